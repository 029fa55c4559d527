//! One pass of a transformer of SD3.5's width, against diffusers with the same weights.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use advdmd::config::{Component, Compute};
use advdmd::device;
use advdmd::registry::Registry;
use advdmd_nn::mmdit::{Init, Mmdit, MmditConfig};
use advdmd_nn::optim::{AdamW, AdamWConfig, Ema};
use advdmd_nn::{RandomStream, Weights, memory};
use advdmd_sdk::{Backbone, BackboneInit, Conditioning, DType, Denoiser, Request, Tuning};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::pairs::{self, Failure, Side};
use crate::report::{self, Row};
use crate::worker::loaded;

/// The two passes: the teacher's velocity, and a student's with the gradients of its `LoRA`.
const MODES: [&str; 2] = ["forward", "forward-backward"];

/// Side of the latents: 1024 image tokens, an image of 512x512.
const SIDE: i64 = 64;
/// Tokens of the text: 77 of CLIP and 256 of T5.
const TEXT_TOKENS: i64 = 333;

/// Width and kinds of layers of SD3.5-medium, with four blocks in the place of 24.
fn config() -> MmditConfig {
    MmditConfig {
        sample_size: 128,
        patch_size: 2,
        in_channels: 16,
        num_layers: 4,
        attention_head_dim: 64,
        num_attention_heads: 24,
        joint_attention_dim: 4096,
        caption_projection_dim: 1536,
        pooled_projection_dim: 2048,
        out_channels: Some(16),
        pos_embed_max_size: 192,
        dual_attention_layers: vec![0, 1],
        qk_norm: Some("rms_norm".to_owned()),
    }
}

/// Rank 32 on the attention projections, as the recipes have it.
fn lora() -> Tuning {
    Tuning::Lora { rank: 32, alpha: 64.0, targets: Vec::new() }
}

/// What both sides compute: `pass.json` of a folder that also holds `transformer/` and `inputs.safetensors`.
#[derive(Serialize, Deserialize)]
struct Pass {
    device: String,
    dtype: DType,
    threads: usize,
    /// Keep the inputs of blocks alone for the backward pass.
    activation_checkpointing: bool,
}

/// Writes the transformer and one batch of inputs.
fn write(folder: &Path, threads: usize) -> Result<()> {
    let config = config();
    let transformer = folder.join("transformer");
    std::fs::create_dir_all(&transformer)?;
    let mut json = serde_json::to_value(&config)?;
    json["_class_name"] = "SD3Transformer2DModel".into();
    std::fs::write(transformer.join("config.json"), json.to_string())?;
    let none = BTreeMap::new();
    Mmdit::init(&config, Init::Uniform, 0)?.save(&transformer.join("diffusion_pytorch_model.safetensors"), &none)?;
    let input = |name: &str, shape: &[i64]| RandomStream::new(1, name).normal(shape, 1.0);
    let inputs: Weights = [
        ("x".to_owned(), input("x", &[1, config.in_channels, SIDE, SIDE])?),
        ("context".to_owned(), input("context", &[1, TEXT_TOKENS, config.joint_attention_dim])?),
        ("pooled".to_owned(), input("pooled", &[1, config.pooled_projection_dim])?),
        ("sigma".to_owned(), Tensor::from_slice(&[0.75_f32])),
    ]
    .into_iter()
    .collect();
    inputs.save(&folder.join("inputs.safetensors"), &none)?;
    let pass = Pass { device: "cpu".to_owned(), dtype: DType::F32, threads, activation_checkpointing: false };
    std::fs::write(folder.join("pass.json"), serde_json::to_string(&pass)?)?;
    Ok(())
}

/// Ratios of both passes, and what three networks hold beside the base.
pub fn measure(pairs: usize, threads: usize) -> Result<Vec<Row>, Failure> {
    let folder = tempfile::tempdir()?;
    write(folder.path(), threads)?;
    let mut rows = Vec::new();
    for mode in MODES {
        let mut theirs = Side::python("transformer.py", folder.path(), mode)?;
        let mut ours = Side::ours(folder.path(), Some(mode))?;
        let samples = pairs::interleave(&mut ours, &mut theirs, pairs)?;
        rows.push(report::ratio("width 1536, 4 blocks", &format!("{mode} against diffusers"), &samples));
        rows.extend(report::losses("width 1536, 4 blocks", mode, &samples));
    }
    rows.push(resident(folder.path())?);
    Ok(rows)
}

fn backbone(folder: &Path, registry: &Registry) -> Result<(Box<dyn Backbone>, Device)> {
    let pass: Pass = serde_json::from_str(&std::fs::read_to_string(folder.join("pass.json"))?)?;
    let Pass { device, dtype, threads, activation_checkpointing } = pass;
    let device = device::select(&Compute { device, dtype, threads })?;
    let options = json!({ "model": folder, "activation_checkpointing": activation_checkpointing });
    let options = options.as_object().cloned().context("an object")?;
    let component = Component { r#type: "sd3".to_owned(), options };
    let init = BackboneInit { device: device::sdk(device), dtype, seed: 0 };
    Ok((registry.backbone(&component, &init)?, device))
}

/// Bytes of teacher, student and fake network as `LoRA`s, with both optimisers and the average, over those of the base.
fn resident(folder: &Path) -> Result<Row> {
    memory::count_cpu();
    let bytes = || Ok::<_, anyhow::Error>(memory::read(Device::Cpu)?.current);
    let registry = loaded()?;
    let empty = bytes()?;
    let (backbone, _) = backbone(folder, &registry)?;
    let _teacher = backbone.denoiser(&Tuning::Frozen, 0)?;
    let base = bytes()? - empty;
    let mut kept: Vec<(Box<dyn Denoiser>, AdamW)> = Vec::new();
    for seed in 1..=2 {
        let denoiser = backbone.denoiser(&lora(), seed)?;
        let optimizer = AdamW::new(
            &denoiser.parameters(),
            AdamWConfig { lr: 1e-4, betas: (0.9, 0.999), weight_decay: 0.0, eps: 1e-8 },
        )?;
        kept.push((denoiser, optimizer));
    }
    let _average = Ema::new(&kept[0].0.parameters(), 0.99)?;
    let all = (bytes()? - empty) as f64 / base as f64;
    Ok(Row::exact("width 1536, 4 blocks", "three networks, optimisers and average over the base", all, "of its bytes"))
}

/// Reads lines and answers each with one pass, as `transformer.py` does.
pub fn serve(folder: &Path, mode: &str) -> Result<()> {
    memory::keep_freed();
    let registry = loaded()?;
    let (backbone, device) = backbone(folder, &registry)?;
    let backward = mode == MODES[1];
    let denoiser = backbone.denoiser(&if backward { lora() } else { Tuning::Frozen }, 0)?;
    let inputs = Weights::load(&folder.join("inputs.safetensors"), None, device)?;
    let input = |name: &str| inputs.get(name).map(Tensor::shallow_clone).context("an input is missing");
    let conditioning = Conditioning { context: input("context")?, pooled: Some(input("pooled")?), mask: None };
    let (x, sigma) = (input("x")?, input("sigma")?);
    let pass = || -> Result<f64> {
        let predict = || denoiser.predict(&x, &sigma, &conditioning, Request::VELOCITY);
        if !backward {
            let velocity = tch::no_grad(predict)?.velocity.context("no velocity")?;
            return Ok(velocity.square().mean(Kind::Float).double_value(&[]));
        }
        for (_, parameter) in denoiser.parameters() {
            let mut gradient = parameter.grad();
            if gradient.defined() {
                let _ = gradient.zero_();
            }
        }
        let loss = predict()?.velocity.context("no velocity")?.square().mean(Kind::Float);
        loss.f_backward()?;
        Ok(loss.double_value(&[]))
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", json!({"ready": "ours"}))?;
    out.flush()?;
    for line in std::io::stdin().lock().lines() {
        line?;
        let counted = memory::reset_peak(device).is_ok();
        let begun = Instant::now();
        // Reading the loss waits for the device.
        let loss = pass()?;
        let seconds = begun.elapsed().as_secs_f64();
        let peak = if counted { memory::read(device)?.peak } else { 0 };
        let values = json!({"pass/loss": loss, "memory/peak": peak});
        writeln!(out, "{}", json!({"seconds": seconds, "passes": {}, "values": values}))?;
        out.flush()?;
    }
    Ok(())
}
