//! The configuration of `advdmd pretrain`: flow-matching training of a small backbone from scratch.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::{Checkpoint, Component, Compute, Data, Optimizer, Plugins};

/// A pretraining run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PretrainConfig {
    /// Seed of everything random in the run.
    pub seed: u64,
    /// Device and precision.
    pub compute: Compute,
    /// Where to look for plugins.
    #[serde(default)]
    pub plugins: Plugins,
    /// The diffusion model, initialised at random.
    pub backbone: Component,
    /// Prompts and real images.
    pub data: Data,
    /// Optimiser; the learning rate falls by a cosine to `final_lr_share` of `lr` after the warm-up.
    pub optimizer: Optimizer,
    /// Last learning rate as a share of the first.
    pub final_lr_share: f64,
    /// Samples per step.
    pub batch_size: usize,
    /// Optimiser steps.
    pub steps: u64,
    /// Share of samples whose prompt is replaced by the null prompt, for guidance.
    pub null_prompt_share: f64,
    /// Decay of the exponential moving average that is saved.
    pub ema_decay: f64,
    /// Distribution of the training sigma.
    pub sigma: LogitNormal,
    /// Saving.
    pub checkpoint: Checkpoint,
    /// Steps between evaluations; 0 for the last only.
    pub eval_every: u64,
    /// Prompts of each task in an evaluation.
    pub eval_prompts_per_task: usize,
    /// Guidance in evaluations.
    pub eval_guidance_scale: f64,
}

/// `sigma = 1 / (1 + exp(-(mean + std n)))`, n standard normal (SD3, arXiv 2403.03206, 3.1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogitNormal {
    /// Mean of the normal; above 0 trains more on noise.
    pub mean: f64,
    /// Its standard deviation.
    pub std: f64,
}
