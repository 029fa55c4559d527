//! Flow-matching training of a small backbone from scratch: how the digit teacher was made.

use std::f64::consts::PI;
use std::path::Path;
use std::time::Instant;

use advdmd_nn::Weights;
use advdmd_nn::optim::{AdamW, AdamWConfig, Ema, clip_grad_norm};
use advdmd_sdk::{Backbone, BackboneInit, DType, Denoiser, Request, SaveOptions, Tuning};
use rand::Rng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use tch::Kind;

use crate::config::{Optimizer, PretrainConfig, Resolved};
use crate::data::{self, Dataset};
use crate::device;
use crate::files;
use crate::interrupt;
use crate::metrics::{Record, Writer};
use crate::objective::denoise;
use crate::prompts::PromptTable;
use crate::random::{Random, Stream, column};
use crate::registry::Registry;
use crate::train::config_drift;
use crate::train::critic::noised;
use crate::train::guard::Guard;
use crate::train::lock::{RunLock, occupied};
use crate::train::material::Material;
use crate::train::metrics::Meter;
use crate::{Error, Result};

/// Steps between two lines of metrics.
const LOG_EVERY: u64 = 50;

const PROGRESS: &str = "progress.json";

/// Where a pretraining run stands; the optimiser's and the averages' tensors lie beside it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Progress {
    step: u64,
    seconds: f64,
}

/// A pretraining run in memory.
struct Pretraining<'a> {
    config: &'a PretrainConfig,
    backbone: Box<dyn Backbone>,
    denoiser: Box<dyn Denoiser>,
    data: Box<dyn Dataset>,
    table: PromptTable,
    optimizer: AdamW,
    ema: Ema,
    random: Random,
    device: tch::Device,
    progress: Progress,
    guard: Guard,
}

/// Trains the backbone of `resolved` and writes its averaged weights as a model folder to `out/model`.
///
/// Saves to `out/state` on the way; with `resume`, goes on from there.
///
/// # Errors
/// A configuration, plugin or disk error; a loss that is not finite.
pub fn run(mut resolved: Resolved<PretrainConfig>, out: &Path, resume: bool) -> Result<()> {
    let registry = Registry::discover(&resolved.config.plugins.paths)?;
    registry.resolve(&mut resolved)?;
    let config = &resolved.config;
    let device = device::select(&config.compute)?;
    let random = Random::new(config.seed);
    let init = BackboneInit { device: device::sdk(device), dtype: config.compute.dtype, seed: config.seed };
    let backbone = registry.backbone(&config.backbone, &init)?;
    let made_with = registry.run_manifest(&resolved, backbone.sources()?.as_ref())?;
    let Material { data, table, .. } = Material::of_pretraining(config, &made_with, backbone.as_ref(), device)?;
    let denoiser = backbone.denoiser(&Tuning::Full, config.seed)?;
    let parameters = denoiser.parameters();
    let mut run = Pretraining {
        optimizer: AdamW::new(&parameters, adamw(&config.optimizer))?,
        ema: Ema::new(&parameters, config.ema_decay)?,
        progress: Progress::default(),
        guard: Guard::new(device)?,
        config,
        backbone,
        denoiser,
        data,
        table,
        random,
        device,
    };
    let _lock = RunLock::take(out)?;
    let (state, written) = (out.join("state"), out.join("config.toml"));
    if state.join(PROGRESS).exists() {
        if !resume {
            return Err(occupied(out));
        }
        refuse_drift(&written, &resolved)?;
        run.load(&state)?;
        tracing::info!("resumed at step {}", run.progress.step);
    }
    files::write(&written, resolved.toml.as_bytes())?;
    run.train(out)
}

/// The steps decide the learning rate of each, so that a pretraining, unlike a distillation, cannot be made longer.
fn refuse_drift(written: &Path, resolved: &Resolved<PretrainConfig>) -> Result<()> {
    let json = |text: &str| toml::from_str::<serde_json::Value>(text).map_err(|error| Error::content(written, error));
    let before = std::fs::read_to_string(written).map_err(Error::file("read", written))?;
    let lines = config_drift(&json(&before)?, &json(&resolved.toml)?);
    if lines.is_empty() {
        return Ok(());
    }
    let message = format!("{} is of another configuration:\n  {}", written.display(), lines.join("\n  "));
    Err(Error::usage(message, "undo the change, or start anew in another `--out`".to_owned()))
}

/// The optimiser settings of a configuration, at their full learning rate.
pub fn adamw(optimizer: &Optimizer) -> AdamWConfig {
    AdamWConfig {
        lr: optimizer.lr,
        betas: (optimizer.betas[0], optimizer.betas[1]),
        eps: optimizer.eps,
        weight_decay: optimizer.weight_decay,
    }
}

impl Pretraining<'_> {
    fn train(&mut self, out: &Path) -> Result<()> {
        let mut writer = Writer::open(&out.join("metrics.jsonl"), self.progress.step)?;
        let stop = interrupt::flag()?;
        let begun = Instant::now();
        let before = self.progress.seconds;
        let mut meter = Meter::default();
        while self.progress.step < self.config.steps && !stop.is_raised() {
            self.step(&mut meter)?;
            self.progress.step += 1;
            self.progress.seconds = before + begun.elapsed().as_secs_f64();
            let step = self.progress.step;
            if step.is_multiple_of(LOG_EVERY) || step == self.config.steps {
                let values = std::mem::take(&mut meter).read()?;
                let loss = values.get("loss").copied().unwrap_or(f64::NAN);
                if !loss.is_finite() {
                    return Err(Error::failed(format!(
                        "step {step}: the loss is {loss}; a lower learning rate may help"
                    )));
                }
                let rate = step as f64 * self.config.batch_size as f64 / self.progress.seconds;
                tracing::info!("step {step}/{} loss {loss:.4} {rate:.0} samples/s", self.config.steps);
                writer.append(&Record { update: step, seconds: self.progress.seconds, values })?;
            }
            if step.is_multiple_of(self.config.checkpoint.every) {
                self.save(out)?;
            }
        }
        self.save(out)?;
        if self.progress.step < self.config.steps {
            tracing::warn!("stopped at step {}; `--resume` goes on", self.progress.step);
        }
        Ok(())
    }

    /// One optimiser step on a fresh batch.
    fn step(&mut self, meter: &mut Meter) -> Result<()> {
        let (config, step, size) = (self.config, self.progress.step, self.config.batch_size);
        let mut rng = self.random.rng(Stream::Pretrain, [step, 0, 0]);
        let prompts: Vec<usize> = (0..size).map(|_| self.data.draw(&mut rng)).collect();
        let reals = prompts.iter().map(|&id| self.data.real(id, &mut rng)).collect::<Result<Vec<_>>>()?;
        let x0 = data::latents(&reals, self.backbone.as_ref(), self.device)?;
        let kept = |&id: &usize, rng: &mut _| (Rng::random::<f64>(rng) >= config.null_prompt_share).then_some(id);
        let ids: Vec<Option<usize>> = prompts.iter().map(|id| kept(id, &mut rng)).collect();
        let logit_normal = |_| {
            let n: f64 = StandardNormal.sample(&mut rng);
            1.0 / (1.0 + (-(config.sigma.mean + config.sigma.std * n)).exp())
        };
        let sigma = column(&(0..size).map(logit_normal).collect::<Vec<f64>>(), self.device)?;
        let noise = self.random.normal(Stream::PretrainNoise, [[step, 0, 0]], &x0.size(), self.device)?.squeeze_dim(0);
        let x = noised(&x0, &noise, &sigma);
        let prediction = self.denoiser.predict(&x, &sigma, &self.table.rows_or_null(&ids)?, Request::VELOCITY)?;
        let velocity = prediction.velocity.ok_or_else(|| Error::contract("no velocity"))?;
        let loss = denoise::loss(&velocity, &x0, &noise)?.mean(Kind::Float);
        meter.add("loss", &loss, 1.0);
        self.optimizer.gradients().drop_all()?;
        loss.f_backward()?;
        let norm = clip_grad_norm(&self.denoiser.parameters(), config.optimizer.clip_norm)?;
        meter.add("grad_norm", &norm, 1.0);
        let lr = self.learning_rate(step);
        meter.set("lr", lr);
        self.optimizer.set_lr(lr);
        self.guard.watch(&norm);
        self.optimizer.step_unless(self.guard.tripped())?;
        Ok(self.ema.update_unless(self.guard.tripped())?)
    }

    /// Linear warm-up, then a cosine to `final_lr_share`.
    fn learning_rate(&self, step: u64) -> f64 {
        let Optimizer { lr, warmup, .. } = self.config.optimizer;
        if step < warmup {
            return lr * (step + 1) as f64 / warmup as f64;
        }
        let done = (step - warmup) as f64 / (self.config.steps - warmup).max(1) as f64;
        let low = self.config.final_lr_share;
        lr * (low + (1.0 - low) * 0.5 * (1.0 + (PI * done).cos()))
    }

    /// The model folder with the averaged weights, and the state to resume from.
    ///
    /// # Errors
    /// The disk's; a gradient that was not finite since the last time: what was saved then stays.
    fn save(&self, out: &Path) -> Result<()> {
        if self.guard.has_tripped() {
            let step = self.progress.step;
            return Err(Error::failed(format!(
                "a gradient was not finite before step {step}; what was saved before is whole, a lower learning rate may help"
            )));
        }
        // A training that has hardly begun is saved as well.
        let options = SaveOptions { dtype: DType::F16, tuning: Tuning::Full, sigmas: None, lossy: true };
        self.backbone.save(&out.join("model"), &self.ema.averages(), &options)?;
        let parameters: Weights = self.denoiser.parameters().into_iter().map(|(name, p)| (name, p.detach())).collect();
        files::replace_dir(&out.join("state"), |folder| {
            let none = std::collections::BTreeMap::new();
            parameters.save(&folder.join("parameters.safetensors"), &none)?;
            self.optimizer.state().save(&folder.join("optimizer.safetensors"), &none)?;
            self.ema.state().save(&folder.join("ema.safetensors"), &none)?;
            files::write_json(&folder.join(PROGRESS), &self.progress)
        })
    }

    fn load(&mut self, state: &Path) -> Result<()> {
        let read = |name: &str| Weights::load(&state.join(name), None, self.device);
        advdmd_nn::load_parameters(&self.denoiser.parameters(), &read("parameters.safetensors")?)?;
        self.optimizer.load_state(&read("optimizer.safetensors")?)?;
        self.ema.load_state(&read("ema.safetensors")?)?;
        self.progress = files::read_json(&state.join(PROGRESS))?;
        Ok(())
    }
}
