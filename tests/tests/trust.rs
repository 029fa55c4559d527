//! What is loaded is what was pinned, and nothing that others may write.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output};

use advdmd::registry::{Lock, Registry};
use advdmd_tests::{CONFIG, Installation, PLUGINS, TINY, faulty, plugin, resolved, text};
use serde_json::Value as Json;
use {backbone_digits as _, reward_adversarial as _, sampler_flow as _};

const TRAIN: [&str; 9] = ["train", "run.toml", "--out", "out", "--locked", "--set", TINY[0], "--set", TINY[1]];

/// An installation with the configuration of the tests, and its lock.
fn pinned() -> Installation {
    let advdmd = Installation::with(&PLUGINS);
    advdmd.write("run.toml", CONFIG);
    let output = advdmd.run(&["plugins", "pin", "run.toml"]);
    assert!(output.status.success(), "{}", text(&output));
    advdmd
}

/// The one line that `train --locked` ends with, without the folder; nothing was loaded before it.
#[track_caller]
fn refused(advdmd: &Installation, args: &[&str]) -> String {
    let output = advdmd.command(args).env("RUST_LOG", "advdmd=debug").output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(!said.contains("plugin loaded") && !said.contains("connected"), "{said}");
    let errors: Vec<_> = said.lines().filter(|line| !line.contains("DEBUG")).collect();
    assert_eq!(errors.len(), 1, "{said}");
    assert!(!advdmd.folder().join("out").exists(), "nothing was begun");
    errors[0].replace(&format!("{}/", advdmd.folder().canonicalize().unwrap().display()), "")
}

fn sha256(advdmd: &Installation, file: &str) -> String {
    let lock = Lock::read(&advdmd.folder().join("advdmd.lock"), "").unwrap();
    lock.plugins.iter().find(|plugin| plugin.file == file).unwrap().sha256.clone()
}

#[test]
fn the_lock_lists_what_the_configuration_uses() {
    let advdmd = pinned();
    let lock = fs::read_to_string(advdmd.folder().join("advdmd.lock")).unwrap();
    let lines: Vec<_> = lock.lines().filter(|line| !line.starts_with("sha256")).collect();
    let expected = "\
# The plugins of a run: `advdmd train --locked` loads these and no others. Written by `advdmd plugins pin`.
format = 1

[[plugin]]
file = \"libbackbone_digits.so\"
name = \"backbone-digits\"
version = \"0.1.0\"
protocol = \"1.0\"
components = [\"backbone digits\"]

[[plugin]]
file = \"libreward_adversarial.so\"
name = \"reward-adversarial\"
version = \"0.1.0\"
protocol = \"1.0\"
components = [\"reward adversarial\"]

[[plugin]]
file = \"libsampler_flow.so\"
name = \"sampler-flow\"
version = \"0.1.0\"
protocol = \"1.0\"
components = [\"sampler sde-cps\"]";
    assert_eq!(lines.join("\n"), expected);
    assert!(!lock.contains(advdmd.folder().to_str().unwrap()), "no path of this machine");

    // Stable, also in another place; a held-out reward is a part of it.
    let again = Installation::with(&PLUGINS);
    again.write("run.toml", CONFIG);
    assert!(again.run(&["plugins", "pin", "run.toml", "--lock", "mine.lock"]).status.success());
    assert_eq!(fs::read_to_string(again.folder().join("mine.lock")).unwrap(), lock);
    again.write(
        "held.toml",
        format!("{CONFIG}\n[[held_out]]\ntype = \"remote\"\nendpoints = [\"http://127.0.0.1:9/\"]\n"),
    );
    let output = again.run(&["plugins", "pin", "held.toml"]);
    assert!(output.status.success(), "{}", text(&output));
    let held = fs::read_to_string(again.folder().join("advdmd.lock")).unwrap();
    assert!(held.contains("components = [\"reward remote\"]"), "{held}");
}

#[test]
fn a_locked_run_trains_and_records_the_hashes() {
    let advdmd = pinned();
    // A plugin that the lock does not know lies there and is left alone; its components would run as it is loaded.
    advdmd.write("plugins/libadvdmd_faulty.so", fs::read(faulty()).unwrap());
    let output = advdmd.command(&TRAIN).env("RUST_LOG", "advdmd=debug").output().unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("libadvdmd_faulty.so is not used: not in the lock"), "{said}");
    let run: Json = serde_json::from_slice(&fs::read(advdmd.folder().join("out/run.json")).unwrap()).unwrap();
    let text = run.to_string();
    for file in ["libbackbone_digits.so", "libreward_adversarial.so", "libsampler_flow.so"] {
        assert!(text.contains(&sha256(&advdmd, file)), "{file}: {text}");
    }
}

#[test]
fn anything_else_is_refused_before_it_is_loaded() {
    let advdmd = pinned();
    let renews = "`advdmd plugins pin run.toml --set 'backbone.init=\"random\"'";
    let lock = fs::read_to_string(advdmd.folder().join("advdmd.lock")).unwrap();

    fs::remove_file(advdmd.folder().join("advdmd.lock")).unwrap();
    let said = refused(&advdmd, &TRAIN);
    assert!(
        said.starts_with("error: advdmd.lock: expected the lock of this configuration, found no such file; "),
        "{said}"
    );
    assert!(said.contains(renews) && said.ends_with("` writes it"), "{said}");
    let named = [&TRAIN[..], &["--lock", "other.lock"]].concat();
    let said = refused(&advdmd, &named);
    assert!(said.starts_with("error: other.lock: ") && said.ends_with(" --lock other.lock` writes it"), "{said}");

    for (content, found) in
        [("format = 1\n[[plugin]]\nfile = 3", "a file that is none ("), ("format = 7", "format 7 instead of 1")]
    {
        advdmd.write("advdmd.lock", content);
        let said = refused(&advdmd, &TRAIN);
        assert!(said.contains(&format!("found {found}")), "{said}");
    }

    // A component that is not in it.
    advdmd.write("advdmd.lock", lock.replace("reward adversarial", "reward other"));
    let said = refused(&advdmd, &TRAIN);
    assert!(
        said.starts_with(
            "error: advdmd.lock: expected reward adversarial, which `reward.0` of the configuration names, found only \
             backbone digits, reward other, sampler sde-cps; if that is right, "
        ) && said.contains(renews),
        "{said}"
    );

    // A plugin that is not there.
    advdmd.write("advdmd.lock", &lock);
    let library = advdmd.folder().join("plugins/libreward_adversarial.so");
    let bytes = fs::read(&library).unwrap();
    fs::remove_file(&library).unwrap();
    let said = refused(&advdmd, &TRAIN);
    assert!(
        said.contains("advdmd.lock: expected libreward_adversarial.so (reward-adversarial 0.1.0), found no such"),
        "{said}"
    );

    // Another content under its name, be it by one byte behind all that is loaded, and under another name.
    let other: Vec<u8> = bytes.iter().copied().chain([0]).collect();
    for name in ["libreward_adversarial.so", "libother.so"] {
        advdmd.write("plugins/libreward_adversarial.so", &bytes);
        advdmd.write(Path::new("plugins").join(name), &other);
        let said = refused(&advdmd, &TRAIN);
        let expected = sha256(&advdmd, "libreward_adversarial.so");
        assert!(
            said.starts_with(&format!(
                "error: plugins/{name}: expected reward-adversarial 0.1.0 with SHA-256 {expected}, found reward-adversarial 0.1.0 with "
            )) && said.contains(renews),
            "{said}"
        );
        fs::remove_file(advdmd.folder().join("plugins").join(name)).unwrap();
    }
    advdmd.write("plugins/libreward_adversarial.so", &bytes);

    // A plugin that the configuration names and the lock does not know.
    advdmd.write("mine.so", fs::read(faulty()).unwrap());
    let set = [&TRAIN[..], &["--set", "plugins.paths=[\"mine.so\"]"]].concat();
    let said = refused(&advdmd, &set);
    assert!(
        said.contains("mine.so: expected a plugin of advdmd.lock, found advdmd-faulty 0.1.0, which is not in it; "),
        "{said}"
    );
}

/// What is linked into the program is as much as its version, and in the lock as such.
#[test]
fn linked_components_are_locked_by_the_programs_version() {
    let folder = tempfile::tempdir().unwrap();
    let config = resolved(folder.path(), &[]).config;
    let lock = Registry::linked().unwrap().lock(&config).unwrap();
    assert!(lock.plugins.is_empty());
    let text = lock.to_toml().unwrap();
    let expected = "\n[linked]\nversion = \"0.1.0\"\ncomponents = [\n    \"backbone digits\",";
    assert!(text.contains(expected) || text.contains(&expected.replace("\n    ", "")), "{text}");
    let path = folder.path().join("advdmd.lock");
    let enforced = |text: &str| {
        fs::write(&path, text).unwrap();
        Lock::enforce(&config, &path, "renew").map_err(|error| error.to_string())
    };
    let other = enforced(&text.replace("0.1.0", "0.0.9")).unwrap_err();
    assert!(other.contains("expected advdmd 0.0.9, which backbone digits is linked into, found 0.1.0; "), "{other}");
    // A plugin file in the place of what is linked in, and the other way round.
    let files = Registry::of_files(&PLUGINS.map(plugin)).unwrap().lock(&config).unwrap().to_toml().unwrap();
    let other = enforced(&files).unwrap_err();
    assert!(
        other.contains("expected backbone digits of libbackbone_digits.so, found it linked into advdmd 0.1.0"),
        "{other}"
    );
    assert_eq!(enforced(&text), Ok(()));
    let advdmd = pinned();
    advdmd.write("advdmd.lock", &text);
    let said = refused(&advdmd, &TRAIN);
    assert!(
        said.contains("expected backbone digits linked into advdmd 0.1.0, found advdmd 0.1.0 without it; "),
        "{said}"
    );
}

/// The message of `plugins list` about the reward's file, after `change` in a fresh installation.
#[track_caller]
fn list(change: impl FnOnce(&Path)) -> (Installation, String) {
    let advdmd = Installation::with(&["sampler_flow", "reward_adversarial"]);
    change(advdmd.folder());
    let output = advdmd.run(&["plugins", "list"]);
    let said = String::from_utf8(output.stdout).unwrap();
    let said = said.replace(advdmd.folder().canonicalize().unwrap().to_str().unwrap(), "");
    (advdmd, said)
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_file_that_others_may_write_is_not_loaded() {
    let library = "plugins/libreward_adversarial.so";
    for (bits, shown) in [(0o646, "o-w"), (0o666, "o-w")] {
        let (_kept, said) = list(|folder| mode(&folder.join(library), bits));
        let expected = format!(
            "refused /{library}: the file /{library} may be written by everybody and with it the plugin changed: `chmod "
        );
        assert!(said.contains(&expected) && said.contains(&format!("{shown} ")), "{said}");
        assert!(!said.contains("adversarial  "), "{said}");
        assert!(said.contains("sde-cps"), "others are in use");
    }
    // The command that it names mends it.
    let (advdmd, said) = list(|folder| mode(&folder.join(library), 0o646));
    let command = said.split("`chmod ").nth(1).unwrap().split('`').next().unwrap();
    let (bits, path) = command.split_once(' ').unwrap();
    let path = advdmd.folder().join(path.trim_start_matches('/'));
    assert!(Command::new("chmod").arg(bits).arg(path).status().unwrap().success());
    let output = advdmd.run(&["plugins", "list"]);
    assert!(String::from_utf8(output.stdout).unwrap().contains("reward-adversarial"));
}

#[test]
fn a_folder_on_the_way_counts_and_a_sticky_one_does_not() {
    let (_kept, said) = list(|folder| mode(&folder.join("plugins"), 0o777));
    assert!(said.contains("the folder /plugins may be written by everybody"), "{said}");
    assert!(said.contains("no components were found"), "{said}");
    let (_kept, said) = list(|folder| mode(&folder.join("plugins"), 0o1777));
    assert!(said.contains("reward-adversarial") && !said.contains("refused"), "{said}");
    // A link is as good as the folder that it lies in and the one that it leads to.
    for open in ["elsewhere", "plugins"] {
        let (_kept, said) = list(|folder| {
            let elsewhere = folder.join("elsewhere");
            fs::create_dir(&elsewhere).unwrap();
            fs::rename(folder.join("plugins/libreward_adversarial.so"), elsewhere.join("real.so")).unwrap();
            symlink("../elsewhere/real.so", folder.join("plugins/libreward_adversarial.so")).unwrap();
            mode(&folder.join(open), 0o777);
        });
        assert!(said.contains(&format!("the folder /{open} may be written by everybody")), "{said}");
    }
}

#[test]
fn two_providers_of_one_name_are_both_named() {
    let advdmd = Installation::with(&["sampler_flow"]);
    let user = advdmd.folder().join("data/advdmd/plugins");
    fs::create_dir_all(&user).unwrap();
    // The same file twice is no matter; another content is.
    fs::copy(plugin("sampler_flow"), user.join("libsampler_flow.so")).unwrap();
    assert!(advdmd.run(&["plugins", "list"]).status.success());
    let bytes: Vec<u8> = fs::read(plugin("sampler_flow")).unwrap().into_iter().chain([0]).collect();
    fs::write(user.join("libsampler_flow.so"), bytes).unwrap();
    let output = advdmd.run(&["plugins", "list"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for path in [user.join("libsampler_flow.so"), advdmd.folder().join("plugins/libsampler_flow.so")] {
        assert!(said.contains(path.canonicalize().unwrap().to_str().unwrap()), "{said}");
    }
    assert!(said.contains("sampler `ode-dpm2m` is provided twice: by "), "{said}");
}

#[test]
fn the_users_folder_is_searched() {
    let advdmd = Installation::with(&["sampler_flow"]);
    let user = advdmd.folder().join("data/advdmd/plugins");
    fs::create_dir_all(&user).unwrap();
    fs::copy(plugin("reward_adversarial"), user.join("libreward_adversarial.so")).unwrap();
    let Output { stdout, .. } = advdmd.run(&["plugins", "list", "--json"]);
    let found: Json = serde_json::from_slice(&stdout).unwrap();
    let searched: Vec<_> = found["searched"].as_array().unwrap().iter().map(|path| path.as_str().unwrap()).collect();
    let at = |end: &str| searched.iter().position(|path| path.ends_with(end)).unwrap();
    assert!(at("data/advdmd/plugins") < searched.len() - 1, "before the folder of the program: {searched:?}");
    let components = found["components"].as_array().unwrap();
    let reward = components.iter().find(|component| component["name"] == "adversarial").unwrap();
    let plugin = &reward["plugin"];
    assert_eq!(
        (&plugin["name"], &plugin["version"], &plugin["protocol"]),
        (&"reward-adversarial".into(), &"0.1.0".into(), &"1.0".into())
    );
    assert_eq!(plugin["libtorch"], "2.11.0");
    assert_eq!(plugin["sha256"].as_str().unwrap().len(), 64);
    assert!(plugin["path"].as_str().unwrap().ends_with("data/advdmd/plugins/libreward_adversarial.so"));
    let table = String::from_utf8(advdmd.run(&["plugins", "list"]).stdout).unwrap();
    let titles: Vec<_> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(titles, ["KIND", "NAME", "PLUGIN", "VERSION", "PROTOCOL", "LIBTORCH", "SHA-256", "FILE"]);
}

/// The program without the right of root to read everything.
fn powerless(advdmd: &Installation, args: &[&str]) -> Output {
    let mut ours = advdmd.command(args);
    if fs::File::open(advdmd.folder().join("plugins/libunreadable.so")).is_err() {
        return ours.output().unwrap();
    }
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-all", "--inh-caps=-all"]).arg(ours.get_program()).args(ours.get_args());
    for (name, value) in ours.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.current_dir(advdmd.folder()).output().expect("setpriv of util-linux")
}

/// Everything else that may lie in a folder of plugins: a line each, and the plugins beside it are in use.
#[test]
fn what_is_no_plugin_gets_a_line() {
    let advdmd = Installation::with(&["sampler_flow"]);
    let folder = advdmd.folder().join("plugins");
    fs::create_dir(folder.join("libfolder.so")).unwrap();
    symlink("../nowhere/libgone.so", folder.join("liblink.so")).unwrap();
    advdmd.write("plugins/libempty.so", "");
    advdmd.write("plugins/libtext.so", "#!/bin/sh\n");
    advdmd.write("plugins/libcut.so", &fs::read(plugin("sampler_flow")).unwrap()[..5000]);
    advdmd.write("plugins/libunreadable.so", fs::read(plugin("reward_adversarial")).unwrap());
    mode(&folder.join("libunreadable.so"), 0o000);
    assert!(Command::new("mkfifo").arg(folder.join("libpipe.so")).status().unwrap().success());
    let closed = advdmd.folder().join("data/advdmd/plugins");
    fs::create_dir_all(&closed).unwrap();
    mode(&closed, 0o000);
    let output = powerless(&advdmd, &["plugins", "list"]);
    mode(&closed, 0o755);
    let said = String::from_utf8(output.stdout).unwrap();
    let said = said.replace(advdmd.folder().canonicalize().unwrap().to_str().unwrap(), "");
    let refused: Vec<_> = said.lines().filter_map(|line| line.strip_prefix("refused ")).collect();
    assert_eq!(
        refused,
        [
            "/data/advdmd/plugins: Permission denied (os error 13)",
            "/plugins/libcut.so: a truncated or damaged ELF file (Invalid ELF section header offset/size/alignment)",
            "/plugins/libempty.so: an empty file",
            "/plugins/libfolder.so: cannot be read: is a directory",
            "/plugins/liblink.so: cannot be read: a link to ../nowhere/libgone.so, which does not exist",
            "/plugins/libpipe.so: cannot be read: neither a file nor a link to one",
            "/plugins/libtext.so: a text file (it begins with \"#!/bin/sh\\n\"), not a dynamic library",
            "/plugins/libunreadable.so: cannot be read: Permission denied (os error 13)",
        ]
    );
    assert!(said.contains("sde-cps"), "{said}");
}
