//! The conformance kit finds nothing wrong with what is shipped, and each check finds the one component of `tests/faulty` that
//! breaks its promise.

use std::path::{Path, PathBuf};

use advdmd_conformance::{Outcome, Report, check_file};
use advdmd_sdk::Kind;
use advdmd_tests::{CONFIG, Installation, Script, TINY, faulty, plugin};
use serde_json::{Value, json};

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(path)
}

/// Checks a component of the faulty plugin and expects these checks to fail, and no others.
#[track_caller]
fn expect(kind: Kind, name: &str, config: &Value, failed: &[&str]) -> Report {
    let report = check_file(&faulty(), kind, name, config);
    let found: Vec<_> = report.failed().map(|check| check.name.as_str()).collect();
    assert_eq!(found, failed, "{config}\n{report}");
    for check in report.failed() {
        let parts = ["expected ", "; found ", "; to mend it: "];
        assert!(parts.iter().all(|part| check.explanation.contains(part)), "{}", check.explanation);
    }
    report
}

#[track_caller]
fn how(kind: Kind, name: &str, how: &str, failed: &[&str]) -> Report {
    expect(kind, name, &json!({ "how": how }), failed)
}

fn outcome(report: &Report, name: &str) -> (Outcome, String) {
    let check = report.checks.iter().find(|check| check.name == name).unwrap_or_else(|| panic!("no {name}: {report}"));
    (check.outcome, check.explanation.clone())
}

#[test]
fn a_file_that_is_no_plugin_fails_by_its_header() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("libtext.so");
    std::fs::write(&file, "no library").unwrap();
    let report = check_file(&file, Kind::Reward, "text", &json!({}));
    assert_eq!(report.failed().map(|check| check.name.as_str()).collect::<Vec<_>>(), ["header"], "{report}");
}

#[test]
fn tables_and_manifests() {
    let reward = Kind::Reward;
    expect(reward, "nowhere", &json!({}), &["manifest"]);
    expect(reward, "faulty-schema", &json!({}), &["schema"]);
    expect(reward, "faulty-open-table", &json!({}), &["unknown_key"]);
    expect(reward, "faulty-optional-key", &json!({ "offset": 1.0 }), &["missing_key"]);
    expect(reward, "faulty-optional-key", &json!({ "offset": "much" }), &["made"]);
    expect(reward, "faulty-construction", &json!({ "how": "panic" }), &["made"]);
    let report = expect(reward, "faulty-undocumented", &json!({ "offset": 1.0 }), &[]);
    let (outcome, explanation) = outcome(&report, "documented");
    assert!(outcome == Outcome::Note && explanation.contains("offset"), "{explanation}");
}

#[test]
fn each_check_of_rewards_finds_its_fault() {
    let reward = |fault: &str, failed: &[&str]| how(Kind::Reward, "faulty-reward", fault, failed);
    let healthy = reward("healthy", &[]);
    for check in ["deterministic", "permutation", "batch_split", "dtypes", "gradient", "grad_mode", "memory"] {
        assert_eq!(outcome(&healthy, check).0, Outcome::Ok, "{check}: {healthy}");
    }
    // A good one that refuses anything but whole groups.
    let groupwise = reward("groupwise", &[]);
    assert_eq!(outcome(&groupwise, "batch_split").0, Outcome::Skipped);
    for check in ["answers", "deterministic", "dtypes", "same_scores", "gradient", "memory"] {
        assert_eq!(outcome(&groupwise, check).0, Outcome::Ok, "{check}: {groupwise}");
    }
    // NaN is not close to anything.
    reward("nan_in_half", &["dtypes"]);
    reward("nan_on_device", &["same_scores"]);
    reward("nan_without_gradient", &["gradient"]);
    for fault in [
        "needs",
        "answers",
        "length",
        "finite",
        "refuses",
        "deterministic",
        "batch_split",
        "dtypes",
        "same_scores",
        "gradient",
        "grad_mode",
        "rng_state",
        "default_dtype",
        "threads",
        "memory",
    ] {
        reward(fault, &[fault]);
    }
    // Who stands second in a batch stands first in the half that begins with it.
    reward("permutation", &["permutation", "batch_split"]);
}

/// One without libtorch, which reads numbers.
#[test]
fn a_reward_of_plain_numbers_conforms() {
    expect(Kind::Reward, "colour", &json!({ "channel": 1, "per_letter": 0.01 }), &[]);
}

#[test]
fn each_check_of_learners_finds_its_fault() {
    let judge = |fault: &str, failed: &[&str]| how(Kind::Reward, "faulty-judge", fault, failed);
    let healthy = judge("healthy", &[]);
    for check in ["learner_loss", "learner_gradients", "generator_loss"] {
        assert_eq!(outcome(&healthy, check).0, Outcome::Ok, "{check}: {healthy}");
    }
    judge("learns_the_wrong_way", &["learner_loss"]);
    judge("idle_parameter", &["learner_gradients"]);
    judge("reaches_the_input", &["learner_gradients"]);
    judge("no_generator_gradient", &["generator_loss"]);
}

#[test]
fn each_check_of_samplers_finds_its_fault() {
    let sampler = |fault: &str, failed: &[&str]| how(Kind::Sampler, "faulty-sampler", fault, failed);
    sampler("healthy", &[]);
    sampler("ends-above-zero", &["sigmas"]);
    sampler("nan-coefficient", &["transition"]);
    sampler("noise-without-probability", &["transition"]);
    sampler("noisy-last-step", &["last_step"]);
    sampler("panics-beyond-the-end", &["refuses"]);
    sampler("gains-x0", &["x0_coefficient"]);
    sampler("over-noised", &["noise_level"]);
    sampler("wrong-order", &["order"]);
    sampler("nan-in-many-steps", &["order"]);
    sampler("leaks", &["memory"]);
}

#[test]
fn each_check_of_backbones_finds_its_fault() {
    let backbone = |fault: &str, failed: &[&str]| how(Kind::Backbone, "faulty-backbone", fault, failed);
    let healthy = backbone("healthy", &[]);
    for check in ["taps", "lora_shares", "lora_init", "lora_gradients", "full", "memory"] {
        assert_eq!(outcome(&healthy, check).0, Outcome::Ok, "{check}: {healthy}");
    }
    for fault in [
        "spec",
        "encode_text",
        "encode_images",
        "decode_latents",
        "velocity",
        "deterministic",
        "taps",
        "refuses",
        "frozen",
        "lora_shares",
        "lora_init",
        "lora_gradients",
        "full",
        "memory",
        "grad_mode",
    ] {
        backbone(fault, &[fault]);
    }
}

/// The program says the same, and its exit code is 1 where a check fails.
#[test]
fn the_command_line_runs_the_same_checks() {
    let advdmd = Installation::with(&["sampler_flow"]);
    let library = faulty();
    let check = |kind: &str, component: &str| {
        let args = ["check", kind, component, "--plugin-path", library.to_str().unwrap(), "--json", "report.json"];
        let output = advdmd.run(&args);
        let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        let report: Report =
            serde_json::from_slice(&std::fs::read(advdmd.folder().join("report.json")).unwrap()).unwrap();
        (output.status.code(), text, report)
    };
    let (code, text, report) = check("sampler", "type=sde-cps,eta=0.5");
    assert!(code == Some(0) && report.passed(), "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("  ")).count(), report.checks.len(), "{text}");
    let (code, text, report) = check("reward", "type=faulty-reward,how=length");
    assert!(code == Some(1) && !report.passed(), "{text}");
    assert!(text.contains("length             FAILED   expected 4 scores for a batch of four"), "{text}");
    assert!(text.contains("reward `faulty-reward` fails 1 of"), "{text}");
    let (code, text, _) = check("backbone", "type=faulty-backbone,how=taps");
    assert!(code == Some(1) && text.contains("(early exit)"), "{text}");
    let unknown = advdmd.run(&["check", "reward", "type=nowhere"]);
    assert_eq!(unknown.status.code(), Some(2), "{}", String::from_utf8_lossy(&unknown.stderr));
}

/// A run does not cut the groups of a reward that compares their samples.
#[test]
fn a_groupwise_reward_is_given_whole_groups() {
    let advdmd = Installation::new(
        &["sampler_flow", "reward_adversarial", "backbone_digits"]
            .map(plugin)
            .into_iter()
            .chain([faulty()])
            .collect::<Vec<_>>(),
    );
    advdmd.write("run.toml", CONFIG);
    let train = |micro_batch: usize, more: &[&str]| {
        let micro_batch = format!("batch.micro_batch={micro_batch}");
        let rewards = "reward=[{ type = \"faulty-reward\", how = \"groupwise\", weight = 1.0 }]";
        let mut args = vec!["train", "run.toml", "--out", "run", "--set", rewards];
        args.extend(more);
        for set in ["batch.groups=2", "batch.group_size=4", &micro_batch].iter().chain(&TINY) {
            args.extend(["--set", set]);
        }
        let output = advdmd.run(&args);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text) = train(6, &[]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("expected a multiple of batch.group_size = 4, found 6"), "{text}");
    assert!(text.contains("set batch.micro_batch = 8"), "{text}");
    let (code, text) = train(4, &["--fast-dev-run"]);
    assert_eq!(code, Some(0), "{text}");
}

/// Checks a component of a shipped plugin.
#[track_caller]
fn shipped(stem: &str, kind: Kind, name: &str, config: &Value) {
    let report = check_file(&plugin(stem), kind, name, config);
    println!("{report}");
    report.assert();
}

#[test]
fn the_shipped_samplers_conform() {
    for name in ["ode-dpm2m", "ode-euler", "sde-cps", "sde-dance", "sde-flow"] {
        shipped("sampler_flow", Kind::Sampler, name, &json!({}));
    }
    shipped("sampler_flow", Kind::Sampler, "sde-cps", &json!({ "eta": 0.0, "shift": 1.0 }));
    shipped("sampler_flow", Kind::Sampler, "sde-flow", &json!({ "a": 0.7 }));
}

#[test]
fn the_adversarial_reward_conforms() {
    shipped("reward_adversarial", Kind::Reward, "adversarial", &json!({}));
    let others = json!({ "loss": "hinge", "r1_weight": 0.1, "sigma_conditioning": false, "taps": [1, 3] });
    shipped("reward_adversarial", Kind::Reward, "adversarial", &others);
}

#[test]
fn the_rewards_on_clip_conform() {
    for name in ["clipscore", "hps", "pickscore"] {
        shipped("reward_clip", Kind::Reward, name, &json!({ "model": golden("clip/clip-wide") }));
    }
}

#[test]
fn the_remote_reward_conforms() {
    let server = Script::faulty(&[]);
    shipped("reward_remote", Kind::Reward, "remote", &json!({ "endpoints": [server.url] }));
}

#[test]
fn the_shipped_backbones_conform() {
    shipped("backbone_digits", Kind::Backbone, "digits", &json!({}));
    for model in ["sd3/sd3-tiny", "sd3/sd35-tiny"] {
        shipped("backbone_sd3", Kind::Backbone, "sd3", &json!({ "model": golden(model) }));
    }
}
