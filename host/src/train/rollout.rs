//! The rollout: trajectories of the student that feed everything else in an update.

use advdmd_sdk::{Conditioning, LogProb};
use tch::Tensor;

use super::networks::Networks;
use crate::Result;
use crate::objective::grpo;
use crate::passes::Role;
use crate::prompts::PromptTable;
use crate::random::{Random, Stream};
use crate::sampling::{Trajectory, sigma_column, transition_mean, velocity};

/// The samples of one update, in chunks of at most `micro_batch`.
///
/// A chunk goes through every network as the very batch it was rolled out in: a forward pass then repeats the
/// rollout's arithmetic bit for bit, and the policy ratio of an unchanged student is exactly 1.
#[derive(Debug)]
pub struct Rollout {
    /// Chunks in order; all have the same size but the last.
    pub chunks: Vec<Chunk>,
}

/// Trajectories of some samples, everything `[b, ..]` on the device.
#[derive(Debug)]
pub struct Chunk {
    /// Number of the first sample within the update.
    pub first: usize,
    /// Prompt id of each sample.
    pub prompts: Vec<usize>,
    /// The prompts' embeddings.
    pub conditioning: Conditioning,
    /// The null prompt's embedding, for the teacher's guidance.
    pub null: Conditioning,
    /// States `x_0 ..= x_K`, from noise to image.
    pub states: Vec<Tensor>,
    /// Predicted clean latents `x_k - sigma_k v_k` of each of the K steps.
    pub x0: Vec<Tensor>,
    /// Part of each transition's mean that older velocities gave, where a sampler reads them.
    pub history: Vec<Option<Tensor>>,
    /// Log-probability `[b]` of each stochastic step.
    pub log_prob: Vec<Option<Tensor>>,
}

impl Chunk {
    /// Number of samples.
    #[expect(clippy::len_without_is_empty, reason = "a chunk is cut from the batch and never empty")]
    pub fn len(&self) -> usize {
        self.prompts.len()
    }
}

/// Rolls out `prompts` (one id per sample, groups side by side) with the current student, without gradients.
///
/// # Errors
/// The backbone's.
pub fn rollout(
    networks: &Networks,
    table: &PromptTable,
    trajectory: &Trajectory,
    prompts: &[usize],
    micro_batch: usize,
    random: Random,
    update: u64,
) -> Result<Rollout> {
    let _no_grad = tch::no_grad_guard();
    let mut chunks = Vec::new();
    for (index, ids) in prompts.chunks(micro_batch).enumerate() {
        let first = index * micro_batch;
        chunks.push(roll_chunk(networks, table, trajectory, first, ids, random, update)?);
    }
    Ok(Rollout { chunks })
}

fn roll_chunk(
    networks: &Networks,
    table: &PromptTable,
    trajectory: &Trajectory,
    first: usize,
    ids: &[usize],
    random: Random,
    update: u64,
) -> Result<Chunk> {
    let keys = |step: usize| (first..first + ids.len()).map(move |sample| [update, sample as u64, step as u64]);
    let noise = |stream, step| random.normal(stream, keys(step), &networks.spec.latent_shape, networks.device);
    let conditioning = table.rows(ids);
    let mut chunk = Chunk {
        first,
        prompts: ids.to_vec(),
        null: table.null(ids.len()),
        states: vec![noise(Stream::Initial, 0)?],
        x0: Vec::new(),
        history: Vec::new(),
        log_prob: Vec::new(),
        conditioning,
    };
    let mut velocities: Vec<Tensor> = Vec::new();
    for (step, transition) in trajectory.transitions.iter().enumerate() {
        let x = &chunk.states[step];
        let sigma = sigma_column(trajectory.sigmas[step], x);
        let student = networks.student.as_ref();
        let v = velocity(student, Role::Student, x, &sigma, &chunk.conditioning, None, &networks.passes)?;
        let x0 = x - &v * trajectory.sigmas[step];
        velocities.push(v);
        let mean = transition_mean(transition, x, &velocities);
        let older = velocities[..step].iter().rev().zip(&transition.b[1..]);
        let history = older.map(|(velocity, &b)| velocity * b).reduce(|sum, term| sum + term);
        let (next, log_prob) = match transition.log_prob {
            LogProb::None => (mean, None),
            convention => {
                let next = &mean + noise(Stream::Step, step)? * transition.c;
                let log_prob = grpo::log_prob(&next, &mean, transition.c, convention)?;
                (next, Some(log_prob))
            }
        };
        chunk.states.push(next);
        chunk.x0.push(x0);
        chunk.history.push(history);
        chunk.log_prob.push(log_prob);
    }
    Ok(chunk)
}
