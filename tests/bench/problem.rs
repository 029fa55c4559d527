//! What both sides compute: the digit scenes of `examples/digits.toml`, at its size and at one where products dominate.

use std::path::Path;

use advdmd::config::{Component, Optimizer, Resolved, RunConfig, load_run};
use advdmd::data::{self, Preparation, Scope};
use advdmd::registry::Registry;
use advdmd::sampling::Trajectory;
use advdmd_nn::mmdit::{Init, Mmdit};
use advdmd_sdk::{Backbone, DType, SaveOptions, Tuning as Adaptation};
use anyhow::{Context, Result};
use backbone_digits::{Architecture, Digits, Model};
use clap::ValueEnum;
use rand::SeedableRng;
use rand::rngs::StdRng;
use reward_adversarial::Geometry;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

/// How large the networks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Size {
    /// The shipped teacher, width 128 and depth 4, and the example's 64 samples
    Digits,
    /// Width 512 and depth 8, weights at random, 8 samples
    Wide,
}

impl Size {
    pub const ALL: [Self; 2] = [Self::Digits, Self::Wide];
}

/// What student and fake-score network train.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Tuning {
    /// Every weight, as the example
    Full,
    /// `LoRA` of rank 32 on the attention projections, the recipe's default
    Lora,
}

impl Tuning {
    pub const ALL: [Self; 2] = [Self::Full, Self::Lora];
}

/// One problem.
#[derive(Debug, Clone, Copy)]
pub struct Problem {
    pub size: Size,
    pub tuning: Tuning,
    pub threads: usize,
}

/// Prompts that the reference draws from, and real images of each.
const PROMPTS: usize = 256;
const IMAGES: usize = 8;

/// What DMD2 weighs the discriminator's loss with beside the denoising loss (SDXL's script); both train the backbone there.
const DISCRIMINATOR_WEIGHT: f64 = 0.01;

impl Problem {
    /// Size and tuning in one word.
    pub fn name(self) -> String {
        let size = match self.size {
            Size::Digits => "digits",
            Size::Wide => "wide",
        };
        match self.tuning {
            Tuning::Full => size.to_owned(),
            Tuning::Lora => format!("{size}, LoRA"),
        }
    }

    /// Writes the problem to a folder: the starting weights in diffusers' format, the program's configuration, and for the
    /// reference settings and data.
    pub fn write(self, folder: &Path) -> Result<()> {
        let model = match self.size {
            Size::Digits => Model::shipped(Kind::Float, Device::Cpu)?,
            Size::Wide => {
                let architecture =
                    Architecture { num_layers: 8, num_attention_heads: 8, attention_head_dim: 64, patch_size: 4 };
                let config = architecture.to_mmdit()?;
                // Zero gates would leave half of the network without gradients.
                let base = Mmdit::init(&config, Init::Uniform, 0)?;
                Model { config, base, text_encoder: backbone_digits::text::TextEncoder::default() }
            }
        };
        let options = SaveOptions { dtype: DType::F32, tuning: Adaptation::Full, sigmas: None, lossy: false };
        model.save(&folder.join("model"), &[], &options)?;
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/digits.toml");
        let resolved = load_run(&example, &self.overrides(folder))?;
        std::fs::write(folder.join("run.toml"), &resolved.toml)?;
        let backbone = Digits::new(model)?;
        std::fs::write(folder.join("settings.json"), settings(&resolved, &backbone)?.to_string())?;
        data(&resolved.config, &backbone, &folder.join("data.safetensors"))
    }

    /// What differs from the example. The policy gradient is on from the first update, whatever the discriminator does, so
    /// that every update measured does all the work.
    fn overrides(self, folder: &Path) -> Vec<String> {
        let mut overrides = vec![
            format!("compute.threads={}", self.threads),
            format!("backbone.model={:?}", folder.join("model")),
            "objective.grpo.warmup=0".to_owned(),
            "objective.grpo.accuracy_gate=[0.0, 1.0]".to_owned(),
            "eval.every=0".to_owned(),
            "student.optimizer.warmup=0".to_owned(),
        ];
        if self.size == Size::Wide {
            overrides.extend(["batch.groups=2", "batch.group_size=4", "batch.micro_batch=8"].map(str::to_owned));
        }
        if self.tuning == Tuning::Lora {
            let lora = "{ type = \"lora\", rank = 32, alpha = 64.0 }";
            overrides.extend(["student", "critic"].map(|owner| format!("{owner}.tuning={lora}")));
        }
        overrides
    }
}

/// The run's settings as the reference reads them.
fn settings(resolved: &Resolved<RunConfig>, backbone: &Digits) -> Result<Value> {
    let config = &resolved.config;
    let registry = Registry::linked()?;
    let sampler = registry.sampler(&config.sampler.component)?;
    let trajectory = Trajectory::new(sampler.as_ref(), config.sampler.steps, config.sampler.sigmas.as_deref())?;
    let transitions: Vec<_> = trajectory.transitions.iter().map(|t| json!([t.a, t.b[0], t.c])).collect();
    let spec = backbone.spec();
    let taps: Vec<usize> = (1..=4).map(|quarter| spec.depth * quarter / 4 - 1).collect();
    let Geometry { channels, width, kernel, stride, groups, waves } =
        Geometry::new(spec.feature_channels, spec.feature_channels / 2, spec.feature_grid, 16);
    let tuning = |tuning: &Adaptation| serde_json::to_value(tuning);
    let adamw = |o: &Optimizer| json!({"lr": o.lr, "betas": o.betas, "eps": o.eps, "weight_decay": o.weight_decay});
    let (student, critic, objective) = (&config.student, &config.critic, &config.objective);
    Ok(json!({
        "threads": config.compute.threads,
        "groups": config.batch.groups,
        "group_size": config.batch.group_size,
        "steps": trajectory.steps(),
        "sigmas": trajectory.sigmas,
        "transitions": transitions,
        "taps": taps,
        "heads": {"channels": channels, "width": width, "kernel": kernel, "stride": stride, "groups": groups, "waves": waves},
        "student_tuning": tuning(&student.tuning)?,
        "fake_tuning": tuning(&critic.tuning)?,
        "optimizers": {
            "student": adamw(&student.optimizer),
            "fake": adamw(&critic.optimizer),
            "heads": adamw(&critic.learner_optimizer),
        },
        "clip_norm": student.optimizer.clip_norm,
        "ema_decay": student.ema_decay,
        "steps_per_update": student.steps_per_update,
        "critic_updates": critic.updates,
        "on_schedule": critic.on_schedule,
        "discriminator_weight": DISCRIMINATOR_WEIGHT,
        "guidance_scale": objective.dmd.guidance_scale,
        "sigma_range": objective.dmd.sigma_range,
        "dmd_weight": objective.dmd.weight,
        "gan_weight": objective.gan.weight,
        "grpo_weight": objective.grpo.weight,
        "clip_range": objective.grpo.clip_range,
        "advantage_clip": objective.grpo.advantage_clip,
        "std_floor": objective.grpo.std_floor,
    }))
}

/// Embedded prompts, the null prompt behind them, and real images of each as latents: the reference makes none itself.
fn data(config: &RunConfig, backbone: &Digits, path: &Path) -> Result<()> {
    let with = Preparation { backbone, device: Device::Cpu, cache: None, scope: Scope::All };
    let data = data::open(&config.data, &with)?;
    let mut rng = StdRng::seed_from_u64(0);
    let ids: Vec<usize> = (0..PROMPTS).map(|_| data.draw(&mut rng)).collect();
    let prompts: Vec<&str> = ids.iter().map(|&id| data.prompts()[id].as_str()).chain([""]).collect();
    let text = backbone.encode_text(&prompts)?;
    let repeated: Vec<usize> = ids.iter().flat_map(|&id| [id; IMAGES]).collect();
    let reals = repeated.iter().map(|&id| data.real(id, &mut rng)).collect::<Result<Vec<_>, _>>()?;
    let real = data::latents(&reals, backbone, Device::Cpu)?.f_unflatten(0, [PROMPTS as i64, IMAGES as i64])?;
    let pooled = text.pooled.context("the backbone has a pooled embedding")?;
    let tensors: [(&str, Tensor); 3] = [("context", text.context), ("pooled", pooled), ("real", real)];
    Ok(Tensor::write_safetensors(&tensors, path)?)
}

/// The program's configuration of the problem in `folder`, its components known to `registry`.
pub fn configuration(folder: &Path, registry: &Registry) -> Result<Resolved<RunConfig>> {
    let mut resolved = load_run(&folder.join("run.toml"), &[])?;
    registry.resolve(&mut resolved)?;
    // A name alone would be looked up among the shipped ones.
    let _: &Component = &resolved.config.backbone;
    Ok(resolved)
}
