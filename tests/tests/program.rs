//! The built program as a user runs it.

use std::path::Path;
use std::process::{Command, Output};

use advdmd_tests::{PLUGINS, plugin, program};

/// A copy of the program in a folder of its own, with these plugins beside it.
fn install(folder: &Path, plugins: &[&str]) -> std::path::PathBuf {
    let copy = folder.join("advdmd");
    std::fs::hard_link(program(), &copy).or_else(|_| std::fs::copy(program(), &copy).map(drop)).unwrap();
    std::fs::create_dir_all(folder.join("plugins")).unwrap();
    for stem in plugins {
        let from = plugin(stem);
        std::fs::copy(&from, folder.join("plugins").join(from.file_name().unwrap())).unwrap();
    }
    copy
}

fn output(program: &Path, folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(args).current_dir(folder).env_remove("ADVDMD_PLUGIN_PATH").env("OMP_NUM_THREADS", "1");
    command.output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_missing_plugin_is_named_with_the_places_that_were_searched() {
    let folder = tempfile::tempdir().unwrap();
    let program = install(folder.path(), &["sampler_flow", "backbone_digits"]);
    std::fs::write(folder.path().join("run.toml"), include_str!("../../examples/digits.toml")).unwrap();
    let output = output(&program, folder.path(), &["train", "run.toml", "--out", "run"]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("adversarial"), "{text}");
    assert!(text.contains(&folder.path().join("plugins").display().to_string()), "{text}");
    assert!(!folder.path().join("run/checkpoints").exists());
}

#[test]
fn samples_are_written_and_depend_on_the_seed_alone() {
    let folder = tempfile::tempdir().unwrap();
    let program = install(folder.path(), &PLUGINS);
    let sample = |out: &str, seed: &str| {
        let args =
            ["sample", "--backbone", "digits", "--prompt", "a red 7", "--steps", "2", "--seed", seed, "--out", out];
        let output = output(&program, folder.path(), &args);
        assert!(output.status.success(), "{}", stderr(&output));
        std::fs::read(folder.path().join(out).join("00000.png")).unwrap()
    };
    let first = sample("a", "1");
    assert_eq!(first, sample("b", "1"));
    assert_ne!(first, sample("c", "2"));
}

#[test]
fn a_prompt_that_the_model_cannot_read_is_quoted() {
    let folder = tempfile::tempdir().unwrap();
    let program = install(folder.path(), &PLUGINS);
    let args = ["sample", "--backbone", "digits", "--prompt", "a purpel 7", "--out", "x"];
    let output = output(&program, folder.path(), &args);
    let text = stderr(&output);
    assert!(!output.status.success());
    assert!(text.contains("\"purpel\"") && text.contains("\"purple\""), "{text}");
}
