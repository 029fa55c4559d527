//! Scores of `hps` at its real size, with random weights, against `open_clip` with the same ones.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use advdmd::config::Component;
use advdmd_nn::clip::{Clip, ClipConfig};
use advdmd_nn::{Weights, memory};
use advdmd_sdk::{Device, RewardBatch, RewardInit, TensorView};
use anyhow::{Context, Result};
use serde_json::json;
use tch::{Kind, Tensor};

use crate::pairs::{self, Failure, Side};
use crate::report::{self, Row};
use crate::worker::loaded;

/// What tells the worker to be this side.
pub const MODE: &str = "hps";

/// Images that are scored at once, of [`SIDE`] pixels a side.
const IMAGES: usize = 4;
const SIDE: i64 = 512;

/// Writes ViT-H-14 with a small tokenizer, and images. In bfloat16: half the disk, and the same numbers on both sides.
fn write(folder: &Path, threads: usize) -> Result<()> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/clip/clip-quick");
    for file in ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"] {
        std::fs::copy(golden.join(file), folder.join(file)).with_context(|| file.to_owned())?;
    }
    let config = json!({
        "model_type": "clip",
        "projection_dim": 1024,
        "text_config": {
            "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24,
            "hidden_act": "gelu", "eos_token_id": 2,
        },
        "vision_config": {
            "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 16, "num_hidden_layers": 32,
            "hidden_act": "gelu", "patch_size": 14,
        },
    });
    let path = folder.join("config.json");
    std::fs::write(&path, config.to_string())?;
    tch::manual_seed(0);
    let mut weights = Weights::new();
    for (name, shape) in Clip::layout(&ClipConfig::read(&path)?)? {
        let options = (Kind::Float, tch::Device::Cpu);
        let inputs: i64 = shape.iter().skip(1).product();
        let tensor = match &shape[..] {
            [] => Tensor::from(4.6052_f32),
            [_] if name.contains("norm") && name.ends_with("weight") => Tensor::ones(&*shape, options),
            [_] => Tensor::randn(&*shape, options) * 0.02,
            _ => Tensor::randn(&*shape, options) * (inputs as f64).powf(-0.5),
        };
        weights.insert(name, tensor.to_kind(Kind::BFloat16));
    }
    let none = std::collections::BTreeMap::new();
    weights.save(&folder.join("model.safetensors"), &none)?;
    let images = Tensor::rand([IMAGES as i64, 3, SIDE, SIDE], (Kind::Float, tch::Device::Cpu));
    let inputs: Weights = [("images".to_owned(), images)].into_iter().collect();
    inputs.save(&folder.join("inputs.safetensors"), &none)?;
    std::fs::write(folder.join("pass.json"), json!({ "threads": threads }).to_string())?;
    Ok(())
}

/// Images a second on both sides.
pub fn measure(pairs: usize, threads: usize) -> Result<Vec<Row>, Failure> {
    // ADVDMD_BENCH_HPS keeps the model between runs.
    let temporary = tempfile::tempdir()?;
    let kept = std::env::var_os("ADVDMD_BENCH_HPS").map(PathBuf::from);
    let folder = kept.as_deref().unwrap_or(temporary.path());
    if !folder.join("pass.json").is_file() {
        std::fs::create_dir_all(folder)?;
        write(folder, threads)?;
    }
    let mut theirs = Side::python("hps.py", folder, MODE)?;
    let mut ours = Side::ours(folder, Some(MODE))?;
    let samples = pairs::interleave(&mut ours, &mut theirs, pairs)?;
    let mut rows = report::rates("hps, ViT-H-14", "images of 512x512, against open_clip", IMAGES, &samples);
    rows.extend(report::losses("hps, ViT-H-14", MODE, &samples));
    Ok(rows)
}

/// The prompts of an update: new ones each time, so that none is known.
fn prompts(update: usize) -> Vec<String> {
    (0..IMAGES).map(|image| format!("a photo of {} red foxes near the river", update * IMAGES + image)).collect()
}

/// Reads lines and answers each with the scores of all images, as `hps.py` does.
pub fn serve(folder: &Path) -> Result<()> {
    memory::keep_freed();
    let pass: serde_json::Value = advdmd_nn::read_json(&folder.join("pass.json"))?;
    if let Some(threads) = pass["threads"].as_i64().filter(|&threads| threads > 0) {
        tch::set_num_threads(threads as i32);
    }
    let options = json!({ "model": folder }).as_object().cloned().context("an object")?;
    let init = RewardInit { device: Device::Cpu, seed: 0, backbone: None };
    let mut reward = loaded()?.reward(&Component { r#type: "hps".to_owned(), options }, &init)?;
    let inputs = Weights::load(&folder.join("inputs.safetensors"), None, tch::Device::Cpu)?;
    let images = inputs.get("images").context("no images")?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", json!({"ready": "ours"}))?;
    out.flush()?;
    for (update, line) in std::io::stdin().lock().lines().enumerate() {
        line?;
        let begun = Instant::now();
        let prompts = prompts(update);
        let scores = reward.score(&RewardBatch {
            prompts: prompts.iter().map(String::as_str).collect(),
            images: Some(TensorView::from_torch(images)?),
            ..RewardBatch::default()
        })?;
        let seconds = begun.elapsed().as_secs_f64();
        let mean = scores.iter().sum::<f32>() / scores.len() as f32;
        writeln!(out, "{}", json!({"seconds": seconds, "passes": {}, "values": {"hps/score": mean}}))?;
        out.flush()?;
    }
    Ok(())
}
