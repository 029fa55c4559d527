//! The rollout: trajectories of the student that feed everything else in an update.

use advdmd_nn::Weights;
use advdmd_sdk::{Conditioning, LogProb};
use tch::Tensor;

use super::metrics::Meter;
use super::networks::Networks;
use crate::objective::grpo;
use crate::passes::Role;
use crate::prompts::PromptTable;
use crate::random::{Random, Stream};
use crate::sampling::{Trajectory, sigma_column, transition_mean, velocity};
use crate::{Error, Result};

/// The samples of one update, in chunks of at most `micro_batch`.
///
/// A chunk goes through every network as the very batch it was rolled out in: a forward pass then repeats the
/// rollout's arithmetic bit for bit, and the policy ratio of an unchanged student is exactly 1.
#[derive(Debug)]
pub struct Rollout {
    /// Chunks in order; all have the same size but the last.
    pub chunks: Vec<Chunk>,
}

impl Rollout {
    /// Shows every tensor to the meter's inspection.
    pub fn watch(&self, meter: &mut Meter) {
        for (index, chunk) in self.chunks.iter().enumerate() {
            meter.place(|| format!("rollout, chunk {index}"));
            for (name, tensor) in chunk.tensors() {
                meter.watch(&name, tensor);
            }
        }
    }

    /// Whether all states and log-probabilities are finite; waits for the device.
    pub fn is_finite(&self) -> bool {
        let mut tensors = self.chunks.iter().flat_map(Chunk::tensors);
        tensors.all(|(_, tensor)| tensor.isfinite().all().int64_value(&[]) != 0)
    }

    /// Standard deviation of the final latents over the `group_size` samples of a prompt, mean over latents and prompts: a
    /// scalar.
    ///
    /// # Errors
    /// libtorch's.
    pub fn diversity(&self, group_size: usize) -> Result<Tensor> {
        let finals: Vec<&Tensor> = self.chunks.iter().filter_map(|chunk| chunk.states.last()).collect();
        let groups = Tensor::f_cat(&finals, 0)?.f_unflatten(0, [-1, group_size as i64])?;
        Ok(groups.f_std_dim([1].as_slice(), false, false)?.f_mean(tch::Kind::Float)?)
    }

    /// Everything but the embeddings, which follow from the prompts' ids.
    pub fn to_weights(&self) -> Weights {
        let mut all = Vec::new();
        for (index, chunk) in self.chunks.iter().enumerate() {
            let ids: Vec<i64> = chunk.prompts.iter().map(|&id| id as i64).collect();
            all.push((format!("{index}.prompts"), Tensor::from_slice(&ids)));
            all.extend(chunk.tensors().into_iter().map(|(name, tensor)| (format!("{index}.{name}"), tensor.copy())));
        }
        all.into_iter().collect()
    }

    /// The rollout of [`Rollout::to_weights`].
    ///
    /// # Errors
    /// A tensor that is missing, or a prompt that the table lacks: names it.
    pub fn from_weights(weights: &Weights, table: &PromptTable, steps: usize) -> Result<Self> {
        let mut chunks = Vec::new();
        let mut first = 0;
        while let Some(ids) = weights.get(&format!("{}.prompts", chunks.len())) {
            let index = chunks.len();
            let ids: Vec<i64> = Vec::try_from(ids)?;
            let prompts: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
            if let Some(id) = prompts.iter().find(|&&id| id >= table.len()) {
                return Err(Error::failed(format!("the rollout has prompt {id} of {}", table.len())));
            }
            let get = |name: &str, step| weights.get(&format!("{index}.{name}.{step}")).map(Tensor::shallow_clone);
            let need = |name: &str, step| {
                get(name, step).ok_or_else(|| Error::failed(format!("the rollout lacks {index}.{name}.{step}")))
            };
            chunks.push(Chunk {
                first,
                conditioning: table.rows(&prompts)?,
                null: table.null(prompts.len()),
                states: (0..=steps).map(|step| need("state", step)).collect::<Result<_>>()?,
                x0: (0..steps).map(|step| need("x0", step)).collect::<Result<_>>()?,
                history: (0..steps).map(|step| get("history", step)).collect(),
                log_prob: (0..steps).map(|step| get("log_prob", step)).collect(),
                prompts,
            });
            first += chunks[index].len();
        }
        if chunks.is_empty() {
            return Err(Error::failed("the rollout holds no samples"));
        }
        Ok(Self { chunks })
    }
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

    /// The tensors of all steps, by name.
    fn tensors(&self) -> Vec<(String, &Tensor)> {
        let states = self.states.iter().enumerate().map(|(step, tensor)| (format!("state.{step}"), tensor));
        let x0 = self.x0.iter().enumerate().map(|(step, tensor)| (format!("x0.{step}"), tensor));
        let mut all: Vec<_> = states.chain(x0).collect();
        for (name, tensors) in [("history", &self.history), ("log_prob", &self.log_prob)] {
            let steps = tensors.iter().enumerate();
            all.extend(steps.filter_map(|(step, tensor)| Some((format!("{name}.{step}"), tensor.as_ref()?))));
        }
        all
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
    let shape = &networks.spec.latent_shape;
    // All noise at once, before the first step: the loop then never waits for a copy to the device.
    let steps: Vec<usize> = trajectory.stochastic().collect();
    let noise = random.normal(Stream::Step, steps.iter().flat_map(|&step| keys(step)), shape, networks.device)?;
    let mut noise = noise.split(ids.len() as i64, 0).into_iter();
    let conditioning = table.rows(ids)?;
    let mut chunk = Chunk {
        first,
        prompts: ids.to_vec(),
        null: table.null(ids.len()),
        states: vec![random.normal(Stream::Initial, keys(0), shape, networks.device)?],
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
                let noise = noise.next().ok_or_else(|| Error::contract("a stochastic step has no noise"))?;
                let next = &mean + noise * transition.c;
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
