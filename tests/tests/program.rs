//! The built program as a user runs it.

use std::process::Output;

use advdmd_tests::{Installation, PLUGINS};

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
