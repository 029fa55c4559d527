//! The program on its command line: texts, streams and exit codes.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

/// A configuration that only its plugins can find fault with.
const RUN: &str = r#"recipe = "advdmd"

[backbone]
type = "no-such-backbone"

[data]
type = "digits"
task_weights = [1, 1, 1, 1, 1, 1]
"#;

struct Ran {
    code: i32,
    out: String,
    err: String,
}

fn advdmd(folder: &Path, args: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_advdmd"));
    command.current_dir(folder).args(args).env_remove("RUST_LOG").env_remove("ADVDMD_PLUGIN_PATH");
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: status.code().unwrap(), out: text(stdout), err: text(stderr) }
}

fn folder_with(name: &str, text: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(name), text).unwrap();
    folder
}

/// `advdmd train` on a configuration that is refused: its stderr.
fn refused(text: &str, more: &[&str]) -> String {
    let folder = folder_with("run.toml", text);
    let ran = advdmd(folder.path(), &[&["train", "run.toml"], more].concat());
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert_eq!(ran.out, "");
    assert!(!folder.path().join("runs").exists(), "a refused run leaves nothing behind");
    ran.err
}

#[test]
fn usage_errors_are_code_2() {
    let folder = tempfile::tempdir().unwrap();
    let ran = advdmd(folder.path(), &["trian"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("'train'"), "{}", ran.err);
    let ran = advdmd(folder.path(), &["train", "absent.toml"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.starts_with("error: cannot read the configuration absent.toml: "), "{}", ran.err);
    assert!(ran.err.contains("\nhint: "), "{}", ran.err);
}

#[test]
fn help_is_code_0_on_stdout() {
    let folder = tempfile::tempdir().unwrap();
    let ran = advdmd(folder.path(), &["--help"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    for command in ["train", "pretrain", "plugins", "config", "recipes", "digits"] {
        assert!(ran.out.contains(&format!("\n  {command} ")), "{command}");
    }
}

#[test]
fn a_slip_in_a_key_shows_line_and_nearest_key() {
    let err = refused(&format!("{RUN}[batch]\ngrups = 4\n"), &[]);
    let expected = "error: unknown key `batch.grups`\n  --> run.toml:10:1\n   |\n10 | grups = 4\n   | ^^^^^\nhint: did you mean `groups`?\n";
    assert_eq!(err, expected);
}

#[test]
fn all_faults_come_at_once_in_the_order_of_the_file() {
    let text =
        format!("seed = 1.5\n{RUN}[student.tuning]\ntype = \"full\"\nrank = 4\n[objective.dmd]\nsigma_range = [0.1]\n");
    let err = refused(&text, &["--set", "compute.dtype=bf61"]);
    let faults: Vec<&str> = err.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(
        faults,
        [
            "error: `compute.dtype`: expected \"f32\", \"f64\", \"f16\", \"bf16\", \"i64\", \"u8\" or \"bool\", found the string \"bf61\"",
            "error: `seed`: expected an integer, found 1.5",
            "error: unknown key `student.tuning.rank`",
            "error: `objective.dmd.sigma_range`: expected an array of 2 numbers, found 1",
            "error: 4 faults in the configuration",
        ]
    );
    assert!(err.contains("hint: it belongs to type \"lora\", and this is type \"full\"\n"), "{err}");
}

#[test]
fn values_that_do_not_fit_together_are_refused() {
    let cases = [
        ("batch.group_size=1", "`batch.group_size`: expected 2 or more, found 1"),
        ("sampler.sigmas=[1, 0.5, 0]", "`sampler.sigmas`: expected 5 numbers for 4 steps, found 3"),
        ("sampler.sigmas=[1, 0.5, 0.7, 0.1, 0]", "expected numbers that fall strictly from at most 1 to 0"),
        ("objective.dmd.weight=-1", "`objective.dmd.weight`: expected a number from 0 up, found -1"),
        ("objective.dmd.sigma_range=[0.9, 0.1]", "expected two rising numbers from 0 to 1, found [0.9, 0.1]"),
        ("critic.updates=0", "`critic.updates`: expected 1 or more, found 0"),
        ("student.optimizer.lr=0.0", "`student.optimizer.lr`: expected a number above 0, found 0"),
        ("student.optimizer.betas.1=1.0", "`student.optimizer.betas.1`: expected a number from 0 up, below 1, found 1"),
        ("reward=[]", "but there is no reward"),
        ("compute.device=gpu", "`compute.device`: expected \"cpu\", \"cuda\" or \"cuda:N\", found \"gpu\""),
        ("student.tuning={type=\"frozen\"}", "a frozen network cannot be trained"),
        ("batch.groups=-1", "`batch.groups`: expected 0 or more, found -1"),
    ];
    for (set, message) in cases {
        let err = refused(RUN, &["--set", set]);
        assert!(err.contains(message), "{set}: {err}");
    }
    let none = ["objective.dmd.weight=0", "objective.gan.weight=0", "objective.grpo.weight=0"];
    let err = refused(RUN, &none.map(|set| ["--set", set]).concat());
    assert!(err.contains("no objective has a weight above 0: nothing would be trained"), "{err}");
    let twins = "[[reward]]\ntype = \"a\"\nweight = 1.0\n";
    let err = refused(&format!("{RUN}{twins}{twins}"), &[]);
    assert!(err.contains("two rewards are called `a`") && err.contains("run.toml:13:8"), "{err}");
}

#[test]
fn a_component_that_nobody_provides_says_where_it_was_looked_for() {
    let folder = folder_with("run.toml", &format!("{RUN}[plugins]\npaths = [\"here\"]\n"));
    fs::create_dir(folder.path().join("here")).unwrap();
    fs::write(folder.path().join("here/libbroken.so"), "not a library").unwrap();
    let ran = advdmd(folder.path(), &["train", "run.toml"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("error: no backbone named `no-such-backbone`; found backbones: "), "{}", ran.err);
    assert!(ran.err.contains(&format!("\n  looked in {}\n", folder.path().join("here").display())), "{}", ran.err);
    assert!(ran.err.contains("\n --> run.toml:4:8\n"), "{}", ran.err);
}

#[test]
fn a_missing_plugin_folder_is_found_in_the_file() {
    let err = refused(&format!("{RUN}[plugins]\npaths = [\"absent\"]\n"), &[]);
    assert!(err.contains("`plugins.paths.0`: ") && err.contains("/absent does not exist"), "{err}");
    assert!(err.contains("  --> run.toml:10:10\n"), "{err}");
}

#[test]
fn an_unknown_recipe_and_a_missing_one_name_the_presets() {
    let err = refused("recipe = \"advmd\"\n", &[]);
    assert!(err.contains("no recipe \"advmd\"; there are advdmd, dmd2, flow-grpo"), "{err}");
    assert!(err.contains("hint: did you mean \"advdmd\"?"), "{err}");
    let err = refused("seed = 1\n", &[]);
    assert!(err.contains("missing keys: ") && err.contains("hint: start from a preset: write `recipe = `"), "{err}");
}

#[test]
fn a_named_file_that_is_no_plugin_is_listed_as_refused() {
    let folder = folder_with("libbroken.so", "not a library");
    let ran = advdmd(folder.path(), &["plugins", "list", "--path", "libbroken.so"]);
    assert_eq!(ran.code, 0);
    assert!(ran.out.contains("refused libbroken.so: "), "{}", ran.out);
    assert!(ran.err.starts_with("warning: libbroken.so is not used: "), "{}", ran.err);
    let ran = advdmd(folder.path(), &["plugins", "list", "--json", "--quiet", "--path", "libbroken.so"]);
    let list: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(list["refused"][0]["path"], "libbroken.so");
}

#[test]
fn an_unknown_component_is_code_2() {
    let folder = tempfile::tempdir().unwrap();
    let ran = advdmd(folder.path(), &["plugins", "inspect", "reward", "no-such-reward"]);
    assert_eq!((ran.code, ran.out.as_str()), (2, ""));
    assert!(ran.err.starts_with("error: no reward named `no-such-reward`; found rewards: "), "{}", ran.err);
}

#[test]
fn explain_gives_meaning_value_and_origin() {
    let folder = folder_with("run.toml", &format!("{RUN}[batch]\ngroups = 7\n"));
    let ran = advdmd(folder.path(), &["config", "explain", "batch.groups", "run.toml"]);
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (0, "batch.groups: integer\n  Prompts per update.\n  7 (run.toml:10:1)\n")
    );
    let ran = advdmd(folder.path(), &["config", "explain", "batch.groups", "run.toml", "--set", "batch.groups=9"]);
    assert!(ran.out.ends_with("  9 (--set batch.groups=9)\n"), "{}", ran.out);
    let ran = advdmd(folder.path(), &["config", "explain", "batch.group_size"]);
    assert!(ran.out.contains(" (recipe advdmd:") && ran.out.contains(" (recipe flow-grpo:"), "{}", ran.out);
    let ran = advdmd(folder.path(), &["config", "explain", "reward.weight"]);
    assert!(ran.out.starts_with("reward.0.weight: number\n"), "{}", ran.out);
    let ran = advdmd(folder.path(), &["config", "explain", "objective.dmd.wight"]);
    assert_eq!(ran.code, 2);
    assert_eq!(ran.err, "error: no key `objective.dmd.wight`\nhint: did you mean `objective.dmd.weight`?\n");
}

#[test]
fn diff_shows_only_what_differs() {
    let folder = folder_with("run.toml", &format!("{RUN}[batch]\ngroups = 7\n"));
    let ran = advdmd(folder.path(), &["config", "diff", "advdmd", "advdmd"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "the configurations are the same\n"));
    let ran = advdmd(folder.path(), &["config", "diff", "advdmd", "run.toml"]);
    let keys: Vec<&str> = ran.out.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(keys, ["backbone.type", "batch.groups", "data.task_weights", "data.type", "recipe"]);
}

#[test]
fn recipes_are_listed_and_shown() {
    let folder = tempfile::tempdir().unwrap();
    let ran = advdmd(folder.path(), &["recipes", "list"]);
    assert_eq!(ran.code, 0);
    assert!(ran.out.starts_with("advdmd\n  AdvDMD"), "{}", ran.out);
    let ran = advdmd(folder.path(), &["recipes", "show", "dmd2"]);
    assert!(ran.out.contains("[objective.dmd]"), "{}", ran.out);
    let ran = advdmd(folder.path(), &["recipes", "show", "dmd"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("hint: did you mean `dmd2`?"), "{}", ran.err);
}

#[test]
fn the_schema_is_json_schema() {
    let folder = tempfile::tempdir().unwrap();
    for args in [&["config", "schema"][..], &["config", "schema", "--pretrain"]] {
        let ran = advdmd(folder.path(), args);
        let schema: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        assert!(schema["properties"]["seed"]["description"].is_string());
    }
}

#[test]
fn a_closed_pipe_is_no_error() {
    use std::process::Stdio;
    let mut command = Command::new(env!("CARGO_BIN_EXE_advdmd"));
    let mut child = command.args(["config", "schema"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
}
