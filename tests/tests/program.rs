//! The built program as a user runs it.

use std::process::Output;

use advdmd_tests::{CONFIG, Installation, PLUGINS, TINY};

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_refused_run_leaves_no_checkpoints() {
    let advdmd = Installation::with(&["sampler_flow", "backbone_digits"]);
    advdmd.write("run.toml", include_str!("../../examples/digits.toml"));
    let output = advdmd.run(&["train", "run.toml", "--out", "run"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(!advdmd.folder().join("run/checkpoints").exists());
}

#[test]
fn samples_are_written_and_depend_on_the_seed_alone() {
    let advdmd = Installation::with(&PLUGINS);
    let sample = |out: &str, seed: &str| {
        let args =
            ["sample", "--backbone", "digits", "--prompt", "a red 7", "--steps", "2", "--seed", seed, "--out", out];
        let output = advdmd.run(&args);
        assert!(output.status.success(), "{}", stderr(&output));
        std::fs::read(advdmd.folder().join(out).join("00000.png")).unwrap()
    };
    let first = sample("a", "1");
    assert_eq!(first, sample("b", "1"));
    assert_ne!(first, sample("c", "2"));
}

/// The arguments of a run on the digit scenes that is as small as it gets.
fn tiny<'a>(command: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let sets = TINY.iter().flat_map(|set| ["--set", *set]);
    [command, "run.toml"].into_iter().chain(sets).chain(more.iter().copied()).collect()
}

#[test]
fn a_fast_dev_run_tries_everything_and_leaves_nothing() {
    let installed = Installation::with(&PLUGINS);
    installed.write("run.toml", CONFIG);
    let output = installed.run(&tiny("train", &["--fast-dev-run", "--out", "run"]));
    let text = stderr(&output);
    assert!(output.status.success(), "{text}");
    for part in ["planned", "resumed at update 2", "saving and resuming work"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let left: Vec<_> = std::fs::read_dir(installed.folder()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("run") && name != "run.toml"), "{left:?}");
}

#[test]
fn a_plan_is_printed_in_words_and_as_json_and_writes_nothing() {
    let installed = Installation::with(&PLUGINS);
    installed.write("run.toml", CONFIG);
    let words = installed.run(&tiny("plan", &["--set", "batch.micro_batch=5"]));
    let text = String::from_utf8_lossy(&words.stdout).into_owned();
    assert!(words.status.success(), "{}", stderr(&words));
    for part in [
        "2 prompts x 4 samples = 8 samples an update, in 1 micro-batch of 5 and one of 3",
        "peak in student",
        "s an update",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let json = installed.run(&tiny("plan", &["--json"]));
    let plan: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(plan["arithmetic"]["samples"], 8);
    assert_eq!(plan["passes"]["student"]["forward"], 64, "{plan}");
    assert!(plan["memory"]["phases"]["student"].as_u64() > plan["memory"]["resident"]["base"].as_u64(), "{plan}");
    assert!(!installed.folder().join("runs").exists());
}

#[test]
fn an_update_that_is_not_finite_can_be_replayed() {
    let installed = Installation::with(&PLUGINS);
    installed.write("run.toml", CONFIG);
    let train = installed.run(&tiny("train", &["--out", "run", "--set", "objective.gan.weight=1e60"]));
    assert_eq!(train.status.code(), Some(1));
    let said = stderr(&train);
    assert!(
        said.contains("update 0: gan/grad_norm is NaN") && said.contains("advdmd replay run/failures/update-000000"),
        "{said}"
    );
    let replay = installed.run(&["replay", "run/failures/update-000000"]);
    assert!(replay.status.success(), "{}", stderr(&replay));
    assert!(
        stderr(&replay).contains("first tensor at fault: gradient of gan at the student's velocity"),
        "{}",
        stderr(&replay)
    );
    assert!(String::from_utf8_lossy(&replay.stdout).contains("velocity of the teacher"));
    let nothing = installed.run(&["replay", "run"]);
    assert_eq!(nothing.status.code(), Some(2), "{}", stderr(&nothing));
}

#[test]
fn options_override_the_configuration_of_a_file_and_of_a_run() {
    let advdmd = Installation::with(&PLUGINS);
    advdmd.write("run.toml", CONFIG);
    let options = ["--out", "out", "--quiet", "--dtype", "f32", "--threads", "1"];
    let sets = ["--set", "schedule.updates=1", "--set", "compute.dtype=bf16", "--set", "compute.threads=2"];
    let output = advdmd.run(&tiny("train", &[&options[..], &sets].concat()));
    assert!(output.status.success(), "{}", stderr(&output));
    let config = std::fs::read_to_string(advdmd.folder().join("out/config.toml")).unwrap();
    assert!(config.contains("device = \"cpu\"\ndtype = \"f32\"\nthreads = 1\n"), "{config}");
    // A folder without CUDA, because the machine of the tests may well have it.
    let sample = ["sample", "--run", "out", "--prompt", "a 7", "--out", "images", "--device", "cuda:7"];
    let output = advdmd.command(&sample).env("ADVDMD_TORCH_LIB", advdmd.folder()).output().unwrap();
    assert!(stderr(&output).starts_with("error: device \"cuda:7\" needs CUDA"), "{}", stderr(&output));
}
