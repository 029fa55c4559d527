//! Exports of a small run, by the program and back again.

use std::path::Path;
use std::process::Output;

use advdmd_nn::Weights;
use advdmd_tests::{CONFIG, Installation, PLUGINS, TINY};
use serde_json::Value as Json;
use tch::{Device, Tensor};

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// An installation with a run of two updates of the shipped teacher in `run`, whose student is tuned as `tuning` says.
fn trained(tuning: &str) -> Installation {
    trained_with(tuning, "1e-2", "f32")
}

fn trained_with(tuning: &str, lr: &str, dtype: &str) -> Installation {
    let advdmd = Installation::with(&PLUGINS);
    advdmd.write("run.toml", CONFIG);
    let mut args = vec!["train", "run.toml", "--out", "run", "--quiet"];
    let tuning = format!("student.tuning={tuning}");
    let quick = ["schedule.updates=2", "batch.groups=1", "critic.updates=1", "eval.prompts_per_task=1"];
    // The average of so few updates moves enough to be seen.
    let large = ["student.optimizer.warmup=0", "student.ema_decay=0.5"];
    let mut own = vec![tuning, format!("student.optimizer.lr={lr}"), format!("compute.dtype={dtype}")];
    if dtype != "f32" {
        own.push(format!("critic.tuning={LORA}"));
    }
    for set in quick.into_iter().chain(large).chain(own.iter().map(String::as_str)) {
        args.extend(["--set", set]);
    }
    let output = advdmd.run(&args);
    assert!(output.status.success(), "{}", stderr(&output));
    advdmd
}

const LORA: &str = "{ type = \"lora\", rank = 2, alpha = 3.0 }";

fn export(advdmd: &Installation, format: &str, more: &[&str]) -> Output {
    let out = ["export", "--run", "run", "--format", format, "--out", format];
    advdmd.run(&[&out[..], more].concat())
}

fn index(advdmd: &Installation, folder: &str) -> Json {
    let file = advdmd.folder().join(folder).join("export.json");
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

/// Largest relative difference and smallest distance from the base.
fn differences(index: &Json) -> (f64, f64) {
    let numbers =
        |key: &str| index["differences"].as_array().unwrap().iter().map(|at| at[key].as_f64().unwrap()).collect();
    let (relative, base): (Vec<f64>, Vec<f64>) = (numbers("relative"), numbers("from_base"));
    (relative.into_iter().fold(0.0, f64::max), base.into_iter().fold(f64::INFINITY, f64::min))
}

#[test]
fn a_lora_student_is_exported_and_computes_the_same_when_read_back() {
    let advdmd = trained(LORA);
    for format in ["diffusers", "peft"] {
        let output = export(&advdmd, format, &[]);
        assert!(output.status.success(), "{}", stderr(&output));
        let index = index(&advdmd, format);
        let (relative, base) = differences(&index);
        assert_eq!(relative, 0.0, "float32 factors are the student's own");
        assert!(base > 1e-3, "the student has moved: {base}");
        assert_eq!(index["updates"], 2);
        assert_eq!(index["sigmas"], serde_json::json!([1.0, 0.75, 0.5, 0.25, 0.0]));
        let matched = index["matched"].as_u64().unwrap();
        assert!(stderr(&output).contains(&format!("all {matched} tensors have their place")), "{}", stderr(&output));
    }
    let config: Json =
        serde_json::from_slice(&std::fs::read(advdmd.folder().join("peft/adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["r"], &config["lora_alpha"]), (&2.into(), &3.into()));

    for dtype in ["bf16", "f16"] {
        let output = export(&advdmd, "diffusers", &["--force", "--dtype", dtype]);
        assert!(output.status.success(), "{}", stderr(&output));
        let (relative, base) = differences(&index(&advdmd, "diffusers"));
        assert!(0.0 < relative && relative < base / 20.0, "{dtype}: {relative} of {base}");
    }
}

#[test]
fn a_merged_student_is_a_model_of_its_own() {
    for tuning in [LORA, "{ type = \"full\" }"] {
        let advdmd = trained(tuning);
        let output = export(&advdmd, "merged", &[]);
        assert!(output.status.success(), "{}", stderr(&output));
        let (relative, base) = differences(&index(&advdmd, "merged"));
        assert!(relative < 1e-5 && base > 1e-3, "{tuning}: {relative} {base}");
        let sample = |model: &[&str], out: &str| {
            let walk = ["--sampler", "ode-euler", "--sigmas", "1,0.75,0.5,0.25,0", "--prompt", "a red 7", "--out", out];
            let output = advdmd.run(&[&["sample"], model, &walk[..], &["--save-latents", "x.safetensors"]].concat());
            assert!(output.status.success(), "{}", stderr(&output));
            let weights = Weights::load(&advdmd.folder().join("x.safetensors"), None, Device::Cpu).unwrap();
            weights.get("latents").unwrap().copy()
        };
        let student = sample(&["--run", "run"], "student");
        let difference = |other: Tensor| (&student - other).abs().max().double_value(&[]);
        assert!(difference(sample(&["--backbone", "digits", "--model", "merged"], "exported")) < 1e-4, "{tuning}");
        assert!(difference(sample(&["--backbone", "digits"], "base")) > 1e-2, "{tuning}");
    }
}

#[test]
fn a_small_update_in_half_precision_is_not_lost_in_silence() {
    let advdmd = trained_with(LORA, "3e-5", "bf16");
    // The factors are their own numbers.
    for format in ["diffusers", "peft"] {
        let output = export(&advdmd, format, &[]);
        assert!(output.status.success(), "{}", stderr(&output));
        let (relative, base) = differences(&index(&advdmd, format));
        assert!(relative == 0.0 && base > 0.0, "{format}: {relative} {base}");
    }
    let refused = export(&advdmd, "merged", &[]);
    let said = stderr(&refused);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("stored as Bf16, the merged weights lose ") && said.contains("`--dtype f32`"), "{said}");
    assert!(!advdmd.folder().join("merged").exists() && !advdmd.folder().join("merged.part").exists());

    let whole = export(&advdmd, "merged", &["--dtype", "f32"]);
    assert!(whole.status.success() && !stderr(&whole).contains("lose"), "{}", stderr(&whole));
    let forced = export(&advdmd, "merged", &["--force"]);
    assert!(forced.status.success() && stderr(&forced).contains("the merged weights lose "), "{}", stderr(&forced));
}

#[test]
fn what_cannot_be_exported_is_refused_and_leaves_nothing() {
    let advdmd = trained(LORA);
    let refused = |output: &Output, code: i32, part: &str| {
        let said = stderr(output);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(part), "{part} in {said}");
    };
    let comfy = export(&advdmd, "comfy", &[]);
    refused(&comfy, 2, "backbone `digits` has no other names for its layers than diffusers'");
    refused(&comfy, 2, "`--format diffusers`, `peft` and `merged` work");
    assert!(!advdmd.folder().join("comfy").exists() && !advdmd.folder().join("comfy.part").exists());

    assert!(export(&advdmd, "peft", &[]).status.success());
    refused(&export(&advdmd, "peft", &[]), 2, "peft is occupied");
    assert!(export(&advdmd, "peft", &["--force"]).status.success());
    // A folder of the user's is not an export, and is not replaced.
    refused(&export(&advdmd, "peft", &["--force", "--out", "run"]), 2, "cannot be used multiple times");
    let run = ["export", "--run", "run", "--format", "peft", "--out", "run"];
    refused(&advdmd.run(&[&run[..], &["--force"]].concat()), 2, "run holds something else than an export");
    assert!(advdmd.folder().join("run/config.toml").exists());
    refused(&advdmd.run(&["export", "--run", "peft", "--format", "peft", "--out", "x"]), 2, "peft holds no run");

    let average = Path::new("run/checkpoints/update-000002/student.ema.safetensors");
    let whole = std::fs::read(advdmd.folder().join(average)).unwrap();
    advdmd.write(average, &whole[..whole.len() / 2]);
    refused(
        &advdmd.run(&["export", "--run", "run", "--format", "peft", "--out", "x"]),
        1,
        "student.ema.safetensors: damaged",
    );
    assert!(!advdmd.folder().join("x").exists() && !advdmd.folder().join("x.part").exists());
}

#[test]
fn a_fully_trained_student_has_no_lora() {
    let advdmd = trained("{ type = \"full\" }");
    for format in ["diffusers", "peft", "comfy"] {
        let output = export(&advdmd, format, &[]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains("`--format merged` writes the whole model"), "{}", stderr(&output));
        assert!(!advdmd.folder().join(format).exists());
    }
}

#[test]
fn a_student_that_has_not_moved_is_told_of() {
    let advdmd = Installation::with(&PLUGINS);
    advdmd.write("run.toml", CONFIG);
    let tuning = format!("student.tuning={LORA}");
    let train = ["train", "run.toml", "--out", "run", "--quiet", "--set", "schedule.updates=1", "--set", &tuning];
    let still = ["--set", TINY[0], "--set", TINY[1], "--set", "student.optimizer.lr=1e-30"];
    assert!(advdmd.run(&[&train[..], &still].concat()).status.success());
    let output = export(&advdmd, "diffusers", &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("computes what its base computes"), "{}", stderr(&output));
}
