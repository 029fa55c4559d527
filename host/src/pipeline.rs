//! Prompts to images: text encoder, trajectory, decoder.

use advdmd_sdk::{Backbone, Denoiser};
use tch::{Device, Tensor};

use crate::Result;
use crate::prompts::PromptTable;
use crate::random::{Random, Stream};
use crate::sampling::{Guidance, Trajectory, generate};

/// A denoiser with everything around it that turns prompts into images.
pub struct Pipeline<'a> {
    /// Encoders.
    pub backbone: &'a dyn Backbone,
    /// The network: a teacher or a student.
    pub denoiser: &'a dyn Denoiser,
    /// Sigmas and transitions.
    pub trajectory: &'a Trajectory,
    /// 1 for none; a guided step costs two network evaluations.
    pub guidance_scale: f64,
    /// Sample i of a seed gets the same initial noise whatever the network and the number of steps.
    pub random: Random,
    /// Where the network computes.
    pub device: Device,
}

impl Pipeline<'_> {
    /// Network evaluations per image, a guided step counting two.
    pub fn evaluations(&self) -> usize {
        self.trajectory.steps() * if self.guidance_scale == 1.0 { 1 } else { 2 }
    }

    /// The initial noise of samples `first..first + count`, `[count, C, h, w]`.
    ///
    /// # Errors
    /// libtorch's, for lack of memory.
    pub fn noise(&self, first: usize, count: usize) -> Result<Tensor> {
        self.draw(first, count, 0, &self.backbone.spec().latent_shape)
    }

    /// Latents of prompts of a table from `noise` `[B, C, h, w]`; they are samples `first..` of the seed.
    ///
    /// # Errors
    /// The backbone's, or the table's.
    pub fn latents_of(&self, table: &PromptTable, ids: &[usize], first: usize, noise: Tensor) -> Result<Tensor> {
        let null = table.null(ids.len());
        let guidance = Guidance { scale: self.guidance_scale, null: &null };
        let shape = noise.size()[1..].to_vec();
        let step_noise = |step: usize| self.draw(first, ids.len(), step as u64 + 1, &shape);
        generate(self.denoiser, self.trajectory, noise, &table.rows(ids)?, Some(&guidance), step_noise)
    }

    /// Images `[B, 3, H, W]` in 0..1 of `prompts`, which are samples `first..` of the seed.
    ///
    /// # Errors
    /// A prompt that the backbone refuses.
    pub fn images(&self, prompts: &[&str], first: usize) -> Result<Tensor> {
        let table = PromptTable::new(self.backbone, prompts)?;
        self.images_of(&table, &(0..prompts.len()).collect::<Vec<_>>(), first)
    }

    /// The same for prompts of a table, without the text encoder.
    ///
    /// # Errors
    /// The backbone's, or the table's.
    pub fn images_of(&self, table: &PromptTable, ids: &[usize], first: usize) -> Result<Tensor> {
        let latents = self.latents_of(table, ids, first, self.noise(first, ids.len())?)?;
        Ok(tch::no_grad(|| self.backbone.decode_latents(&latents))?)
    }

    fn draw(&self, first: usize, count: usize, key: u64, shape: &[i64]) -> Result<Tensor> {
        let keys = (first..first + count).map(|sample| [sample as u64, key, 0]);
        self.random.normal(Stream::Eval, keys, shape, self.device)
    }
}
