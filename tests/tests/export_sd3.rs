//! Exports of a student of Stable Diffusion 3, on a tiny random pipeline (`tests/golden/sd3.py`). What diffusers, PEFT and
//! ComfyUI's arithmetic make of them is checked by `tests/golden/export.py`.

use std::path::Path;
use std::process::Output;

use advdmd_nn::Weights;
use advdmd_tests::{Installation, PLUGINS};
use serde_json::Value as Json;
use tch::{Device, Tensor};

fn golden(name: &str) -> String {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap();
    repository.join(name).display().to_string()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A run of three large updates.
fn trained(model: &str) -> Installation {
    let advdmd = Installation::with(&PLUGINS);
    let config = include_str!("../golden/export.toml");
    let config = config.replace("MODEL", &golden(&format!("tests/golden/sd3/{model}")));
    advdmd.write("run.toml", config.replace("PHOTOS", &golden("examples/photos")));
    let output = advdmd.run(&["train", "run.toml", "--out", "run", "--quiet"]);
    assert!(output.status.success(), "{}", stderr(&output));
    advdmd
}

fn export(advdmd: &Installation, format: &str) -> Json {
    let output = advdmd.run(&["export", "--run", "run", "--format", format, "--out", format]);
    assert!(output.status.success(), "{format}: {}", stderr(&output));
    let file = advdmd.folder().join(format).join("export.json");
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

#[test]
fn every_format_computes_what_the_student_computes() {
    for model in ["sd3-tiny", "sd35-tiny"] {
        let advdmd = trained(model);
        for format in ["diffusers", "peft", "comfy", "merged"] {
            let index = export(&advdmd, format);
            for at in index["differences"].as_array().unwrap() {
                let [relative, from_base] = ["relative", "from_base"].map(|key| at[key].as_f64().unwrap());
                assert!(relative < 1e-5 && from_base > 1e-3, "{model} {format}: {at}");
            }
            let matched = index["matched"].as_u64();
            assert!(if format == "merged" { matched.is_none() } else { matched >= Some(20) }, "{format}: {matched:?}");
            let readme = std::fs::read_to_string(advdmd.folder().join(format).join("README.md")).unwrap();
            let call = match format {
                "comfy" => "shift 3, and a `KSampler` with 4 steps",
                "merged" => "num_inference_steps=4, guidance_scale=1.0",
                _ => "num_inference_steps=4, sigmas=[1.0, 0.9, 0.75, 0.5], guidance_scale=1.0",
            };
            assert!(readme.contains(call), "{call} in {readme}");
        }
    }
}

#[test]
fn a_merged_student_samples_as_the_student_does() {
    let advdmd = trained("sd35-tiny");
    export(&advdmd, "merged");
    let sample = |model: &[&str]| {
        let walk = ["--sampler", "ode-euler", "--sigmas", "1,0.9,0.75,0.5,0", "--prompt", "a red fox"];
        let size = ["--out", "images", "--save-latents", "x.safetensors"];
        let output = advdmd.run(&[&["sample"], model, &walk[..], &size].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        let weights = Weights::load(&advdmd.folder().join("x.safetensors"), None, Device::Cpu).unwrap();
        weights.get("latents").unwrap().copy()
    };
    let image = ["--backbone-set", "height=32", "--backbone-set", "width=48"];
    let student = sample(&["--run", "run"]);
    let difference = |other: Tensor| (&student - other).abs().max().double_value(&[]);
    let merged = ["--backbone", "sd3", "--model", "merged"];
    assert!(difference(sample(&[&merged[..], &image].concat())) < 1e-4);
    let base = golden("tests/golden/sd3/sd35-tiny");
    assert!(difference(sample(&[&["--backbone", "sd3", "--model", &base], &image[..]].concat())) > 1e-2);
}
