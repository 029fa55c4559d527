//! What the phases of an update cost, measured on a few samples without changing anything.

use std::time::Instant;

use advdmd_nn::memory;
use advdmd_nn::optim::{AdamW, AdamWConfig, clip_grad_norm};
use tch::{Cuda, Device, Kind, Tensor};

use super::advantages::StepAdvantage;
use super::metrics::Meter;
use super::rollout::{Rollout, rollout};
use super::trainer::Trainer;
use crate::Result;

/// A phase, measured.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Wall time.
    pub seconds: f64,
    /// The most bytes of tensors beyond those that were there before.
    pub peak: f64,
    /// Bytes of tensors that the phase leaves behind.
    pub kept: f64,
}

impl Cost {
    /// The cost of `next`, which runs beside what this one has kept.
    fn then(self, next: Self) -> Self {
        Self { seconds: next.seconds, peak: self.peak.max(self.kept + next.peak), kept: self.kept + next.kept }
    }
}

/// The phases of an update on `samples` samples in one chunk.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Probe {
    /// Samples.
    pub samples: usize,
    /// The rollout.
    pub rollout: Cost,
    /// One critic update.
    pub critic: Cost,
    /// Scoring; nothing where no reward is scored.
    pub reward: Cost,
    /// The student's gradients over all steps that an update trains on, the policy gradient at each.
    pub student: Cost,
    /// Seconds of an optimiser step for each trained number.
    pub step_per_number: f64,
}

/// Numbers in the scratch tensor on which an optimiser step is timed.
const SCRATCH: i64 = 1 << 20;

impl Trainer {
    /// Runs each phase once on `samples` samples of one prompt. Weights, moments, averages and counters stay what they are.
    ///
    /// # Errors
    /// What the phases give; a score that is not finite.
    pub fn probe(&mut self, samples: usize) -> Result<Probe> {
        let passes = self.networks.passes.counts();
        let batch = &self.config.batch;
        let chunks = (batch.groups * batch.group_size).div_ceil(batch.micro_batch);
        let measured = self.measure(samples, chunks > 1);
        self.networks.passes.restore(passes);
        self.drop_gradients()?;
        measured
    }

    /// With more `chunks` than one, the gradients of the first stand beside the activations of the second.
    fn measure(&mut self, samples: usize, chunks: bool) -> Result<Probe> {
        let device = self.networks.device;
        let mut meter = Meter::default();
        let prompt = self.data.draw(&mut self.random.rng(crate::random::Stream::Prompts, [0, 0, 0]));
        let prompts = vec![prompt; samples];
        let (batch, first) = (self.config.batch.micro_batch.max(samples), self.state.update);
        let (rolled, rollout_cost) = measured(device, || {
            rollout(&self.networks, &self.table, &self.trajectory, &prompts, batch, self.random, first)
        })?;
        self.networks.train_fake(true);
        let number = self.state.critic_updates;
        let mut critic = measured(device, || self.accumulate_critic(&rolled, number, &mut meter))?.1;
        if chunks {
            critic = critic.then(measured(device, || self.accumulate_critic(&rolled, number, &mut meter))?.1);
        }
        self.networks.train_fake(false);
        // The critic's gradients are gone before the student's are made, as in a real update.
        self.drop_gradients()?;
        let (scores, reward) = measured(device, || self.score(&rolled))?;
        self.check_scores(&scores, &rolled)?;
        let advantages = self.flat_advantages(&rolled);
        let mut student = measured(device, || self.accumulate_student(&rolled, &advantages, &mut meter))?.1;
        if chunks {
            student = student.then(measured(device, || self.accumulate_student(&rolled, &advantages, &mut meter))?.1);
        }
        let step_per_number = step_per_number(device)?;
        Ok(Probe { samples, rollout: rollout_cost, critic, reward, student, step_per_number })
    }

    /// Zero advantages at every stochastic step: the policy gradient costs what it costs with the gate open.
    fn flat_advantages(&self, rollout: &Rollout) -> Vec<Option<StepAdvantage>> {
        if self.config.objective.grpo.weight == 0.0 || self.rewards.all.is_empty() {
            return Vec::new();
        }
        let samples: usize = rollout.chunks.iter().map(super::Chunk::len).sum();
        let zeros = Tensor::zeros([samples as i64], (Kind::Float, self.networks.device));
        let mut by_step: Vec<Option<StepAdvantage>> = (0..self.trajectory.steps()).map(|_| None).collect();
        for step in self.trajectory.stochastic() {
            let live = Tensor::ones([], (Kind::Float, self.networks.device));
            by_step[step] = Some(StepAdvantage { values: zeros.shallow_clone(), live });
        }
        by_step
    }
}

/// Times a step on a tensor of its own, since one of the run's would move the run.
fn step_per_number(device: Device) -> Result<f64> {
    let scratch = [("scratch".to_owned(), Tensor::zeros([SCRATCH], (Kind::Float, device)).set_requires_grad(true))];
    let mut optimizer = AdamW::new(&scratch, AdamWConfig::with_lr(0.0))?;
    let mut best = f64::INFINITY;
    // The first touches fresh memory.
    for _ in 0..3 {
        scratch[0].1.sum(Kind::Float).f_backward()?;
        let ((), cost) = measured(device, || {
            let _ = clip_grad_norm(&scratch, 1.0)?;
            Ok(optimizer.step()?)
        })?;
        best = best.min(cost.seconds);
    }
    Ok(best / SCRATCH as f64)
}

/// Runs `phase` and measures it; waits for the device before and after.
fn measured<T>(device: Device, phase: impl FnOnce() -> Result<T>) -> Result<(T, Cost)> {
    let bytes = || memory::read(device).map_or((0.0, 0.0), |memory| (memory.current as f64, memory.peak as f64));
    wait(device);
    // A device that is not counted gives zeros.
    let _ = memory::reset_peak(device);
    let (before, _) = bytes();
    let begun = Instant::now();
    let result = phase()?;
    wait(device);
    let seconds = begun.elapsed().as_secs_f64();
    let (after, peak) = bytes();
    Ok((result, Cost { seconds, peak: peak - before, kept: after - before }))
}

fn wait(device: Device) {
    if let Device::Cuda(index) = device {
        Cuda::synchronize(index as i64);
    }
}
