//! An old plugin in a new host and a new plugin in an old host: this version of the SDK, and a successor that appends to its
//! tables, both built as a stranger would, outside the workspace.

#[path = "../compat/successor.rs"]
mod successor;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use advdmd_sdk::abi::{MAGIC, PROTOCOL, Plugin};
use advdmd_sdk::{Device, RewardBatch, RewardInit, TensorView};
use advdmd_tests::repository;
use serde_json::{Value as Json, json};

/// The folder for everything that is built here, which the next run finds again.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("compat")
}

/// Writes a file only if that changes it: cargo goes by the time.
fn write(path: &Path, content: &[u8]) {
    if fs::read(path).is_ok_and(|known| known == content) {
        return;
    }
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// The files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// A copy of the SDK with the edits of [`successor`].
fn successor() -> PathBuf {
    let (from, to) = (repository(), folder().join("next"));
    let of_sdk =
        ["sdk/src", "sdk/build", "sdk/include", "sdk/tests"].into_iter().flat_map(|part| files(&from.join(part)));
    let alone = ["Cargo.toml", "sdk/Cargo.toml", "sdk/build.rs"].map(|name| from.join(name));
    for path in of_sdk.chain(alone) {
        let name = path.strip_prefix(from).unwrap();
        let mut content = fs::read(&path).unwrap();
        for (_, old, new) in successor::EDITS.iter().filter(|(file, ..)| Path::new(file) == name) {
            let text = String::from_utf8(content).unwrap();
            let count = text.matches(old).count();
            assert_eq!(
                count,
                1,
                "tests/compat/successor.rs: {} holds {count} times, expected once:\n{old}",
                name.display()
            );
            content = text.replace(old, new).into_bytes();
        }
        if name == Path::new("Cargo.toml") {
            let text = String::from_utf8(content).unwrap();
            let (head, rest) = text.split_once("members = [").unwrap();
            let (_, rest) = rest.split_once(']').unwrap();
            content = format!("{head}members = [\"sdk\", \"sdk/build\"]{rest}").into_bytes();
        }
        write(&to.join(name), &content);
    }
    to.join("sdk")
}

/// Builds `tests/compat/<what>` against the SDK at `sdk`: the file that cargo names, copied to `name`.
fn build(what: &str, sdk: &Path, name: &str, features: &str) -> PathBuf {
    let (from, to) = (repository().join("tests/compat").join(what), folder().join(name));
    for path in files(&from) {
        let content = fs::read_to_string(&path).unwrap().replace("{sdk}", sdk.to_str().unwrap());
        write(&to.join(path.strip_prefix(&from).unwrap()), content.as_bytes());
    }
    // The versions that this workspace was built with, so that nothing is fetched; cargo drops what is not needed.
    let (lock, copied) = (fs::read(repository().join("Cargo.lock")).unwrap(), to.join("copied.lock"));
    if fs::read(&copied).ok().as_ref() != Some(&lock) {
        fs::write(to.join("Cargo.lock"), &lock).unwrap();
        fs::write(copied, lock).unwrap();
    }
    let mut command = Command::new(env!("CARGO"));
    command.args(["build", "--offline", "--message-format=json", "--features", features]).current_dir(&to);
    // One folder for all, so that what they share is built once; without what tells of the outer build.
    command.env("CARGO_TARGET_DIR", folder().join("target"));
    let outer = std::env::vars_os().filter(|(key, _)| {
        let key = key.to_string_lossy();
        key.starts_with("CARGO_") && !["CARGO_HOME", "CARGO_NET_OFFLINE"].contains(&&*key) || key == "RUSTFLAGS"
    });
    for (key, _) in outer.filter(|(key, _)| key != "CARGO_TARGET_DIR") {
        command.env_remove(key);
    }
    command.env("CARGO_PROFILE_DEV_DEBUG", "0");
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    let built = String::from_utf8(stdout)
        .unwrap()
        .lines()
        .filter_map(|line| serde_json::from_str::<Json>(line).ok())
        .filter(|message| {
            message["target"]["name"].as_str().is_some_and(|name| name.replace('_', "-") == format!("compat-{what}"))
        })
        .find_map(|message| message["filenames"][0].as_str().map(PathBuf::from))
        .expect("cargo names what it built");
    // Both builds of one name write to one place.
    let copy = to.join("built");
    fs::copy(built, &copy).unwrap();
    copy
}

/// What the host of the next protocol says of a plugin.
fn next_host(host: &Path, plugin: &Path) -> Result<Json, String> {
    let output = Command::new(host).arg(plugin).output().unwrap();
    if output.status.success() {
        return Ok(serde_json::from_slice(&output.stdout).unwrap());
    }
    Err(String::from_utf8(output.stderr).unwrap())
}

/// A copy of the plugin whose header names another major version.
fn of_major(plugin: &Path, major: u8) -> PathBuf {
    let mut bytes = fs::read(plugin).unwrap();
    let at = bytes.windows(MAGIC.len()).position(|window| window == MAGIC).unwrap();
    bytes[at + 12] = major;
    let path = plugin.with_file_name(format!("libmajor{major}.so"));
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn what_is_appended_works_both_ways() {
    let next = successor();
    let old_plugin = build("plugin", &repository().join("sdk"), "old-plugin", "");
    let new_plugin = build("plugin", &next, "new-plugin", "next");
    let new_host = build("host", &next, "new-host", "");
    let minor = |more| format!("{}.{}", PROTOCOL.major, PROTOCOL.minor + more);

    // Each with its own: the functions and keys that were appended are there.
    let said = next_host(&new_host, &new_plugin).unwrap();
    assert_eq!(said["protocol"], minor(1));
    assert_eq!((&said["describe"], &said["title"]), (&json!("always 0.5"), &json!("straight")));
    assert_eq!(said["about"], "a plugin of the next protocol");
    assert_eq!(said["needs"]["alpha"], true);

    // An old plugin in a new host: it has no such function, and the host does without.
    let said = next_host(&new_host, &old_plugin).unwrap();
    assert_eq!((&said["protocol"], &said["about"]), (&json!(minor(0)), &Json::Null));
    assert_eq!((&said["describe"], &said["title"]), (&json!("not described"), &json!("untitled")));
    assert_eq!((&said["needs"]["alpha"], &said["needs"]["images"]), (&json!(false), &json!(true)));
    assert_eq!((&said["score"], &said["sigmas"]), (&json!([0.5, 0.5]), &json!([1.0, 0.5, 0.0])));

    // A new plugin in this host, which has libtorch and knows nothing of what was appended.
    for path in [&new_plugin, &old_plugin] {
        let plugin = Plugin::open(path).unwrap();
        let init = RewardInit { device: Device::Cpu, seed: 0, backbone: None };
        let mut reward = plugin.reward(&json!({ "type": "compat-constant", "value": 0.5 }), &init).unwrap();
        assert!(reward.needs().images && reward.needs().on_cpu);
        let pixels = [0.0; 24];
        let images = TensorView::from_f32(&pixels, &[2, 3, 2, 2]).unwrap();
        let batch = RewardBatch { prompts: vec!["", ""], images: Some(images), ..RewardBatch::default() };
        assert_eq!(reward.score(&batch), Ok(vec![0.5, 0.5]));
        assert!(reward.learner().is_none());
        let sampler = plugin.sampler(&json!({ "type": "compat-straight" })).unwrap();
        assert_eq!(sampler.sigmas(2), Ok(vec![1.0, 0.5, 0.0]));
        assert!(sampler.preserves_marginals() && sampler.order() == 1);
    }
    assert_eq!(Plugin::open(&new_plugin).unwrap().header().protocol().to_string(), minor(1));

    // Another major version is refused by either host, in one line.
    for plugin in [of_major(&old_plugin, 2), of_major(&new_plugin, 2)] {
        let said = [next_host(&new_host, &plugin).unwrap_err(), Plugin::open(&plugin).unwrap_err().to_string()];
        for line in said {
            assert!(line.contains("libmajor2.so: protocol: plugin 2."), "{line}");
            assert!(line.contains("the plugin is newer; update advdmd"), "{line}");
            assert_eq!(line.trim_end().lines().count(), 1);
        }
    }
}
