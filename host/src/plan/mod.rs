//! What a run would do and need, before it is begun: batch arithmetic, passes, memory by phase, disk, time.
//!
//! What can be counted is counted: passes from the configuration, tensors that stay from the allocator. The rest comes
//! from running each phase of an update on a few samples ([`Trainer::probe`]) at two sizes; bytes and seconds are taken as
//! linear in the samples of a micro-batch, which holds for transformers at a fixed number of tokens.

mod compare;
mod passes;
mod render;

use advdmd_nn::memory;
use serde::Serialize;

pub use compare::Comparison;
pub use passes::{Passes, UpdatePasses};

use crate::Result;
use crate::train::{Cost, Probe, Trainer};

/// Samples of the larger probe, at most.
const PROBE: usize = 16;
/// A line of metrics is about this long.
const METRICS_LINE: u64 = 3_000;

/// What a run would do and need.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Groups, samples and chunks.
    pub arithmetic: Arithmetic,
    /// Network passes of an update.
    pub passes: UpdatePasses,
    /// Bytes of tensors; `None` on a device that cannot be counted.
    pub memory: Option<MemoryPlan>,
    /// Bytes on disk.
    pub disk: DiskPlan,
    /// Seconds.
    pub time: TimePlan,
    /// What is allowed, and seldom meant.
    pub warnings: Vec<String>,
}

/// Groups, samples and chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Arithmetic {
    /// Prompts of an update.
    pub groups: u64,
    /// Samples of a prompt.
    pub group_size: u64,
    /// Samples of an update.
    pub samples: u64,
    /// Samples of a forward pass.
    pub micro_batch: u64,
    /// Micro-batches of an update.
    pub chunks: u64,
    /// Samples in the last of them.
    pub last_chunk: u64,
    /// Steps of the trajectory.
    pub steps: u64,
    /// Those that draw noise: the policy's actions.
    pub stochastic_steps: u64,
    /// Those that a student update trains on.
    pub trained_steps: u64,
    /// Critic updates for each student update.
    pub critic_updates: u64,
    /// Critic updates before the first student update.
    pub warmup: u64,
    /// Student updates.
    pub updates: u64,
    /// Prompts that the data set has.
    pub prompts: u64,
}

/// Bytes of tensors on the device of the networks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemoryPlan {
    /// What stays, by what it is for, as the allocator counted it.
    #[serde(serialize_with = "by_name")]
    pub resident: Vec<(String, u64)>,
    /// The rollout of an update, which stays until the update is over.
    pub rollout: u64,
    /// The most in each phase: all of the above, gradients and activations.
    #[serde(serialize_with = "by_name")]
    pub phases: Vec<(String, u64)>,
    /// The most of all.
    pub peak: u64,
}

/// Bytes on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskPlan {
    /// One checkpoint.
    pub checkpoint: u64,
    /// As many as there are at a time: `keep_last`, and the one that is being written.
    pub checkpoints: u64,
    /// `metrics.jsonl` at the end.
    pub metrics: u64,
    /// Embeddings of prompts and latents of images, which later runs find again; 0 without a cache.
    pub cache: u64,
}

/// Seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TimePlan {
    /// Each phase of an update.
    #[serde(serialize_with = "by_name")]
    pub phases: Vec<(String, f64)>,
    /// One update.
    pub update: f64,
    /// The critic's warm-up.
    pub warmup: f64,
    /// All updates and the warm-up, without evaluations.
    pub run: f64,
}

/// Pairs as a table, in their order.
fn by_name<S: serde::Serializer, T: Serialize>(pairs: &[(String, T)], out: S) -> Result<S::Ok, S::Error> {
    out.collect_map(pairs.iter().map(|(name, value)| (name, value)))
}

impl Plan {
    /// Counts, and probes the phases of an update; the trainer is afterwards what it was before.
    ///
    /// # Errors
    /// What the phases give.
    pub fn of(trainer: &mut Trainer) -> Result<Self> {
        let arithmetic = Arithmetic::of(trainer);
        let large = (arithmetic.micro_batch as usize).min(arithmetic.samples as usize).min(PROBE);
        let small = (large / 2).max(1);
        // A reward that compares the samples of a prompt is given whole groups here as well.
        let whole = |samples: usize| {
            let group = arithmetic.group_size as usize;
            if trainer.rewards.all.iter().any(|reward| reward.needs.groupwise) {
                (samples / group).max(1) * group
            } else {
                samples
            }
        };
        let (small, large) = (whole(small), whole(large));
        // Once unmeasured: first calls load kernels and make caches.
        trainer.probe(small)?;
        let small = trainer.probe(small)?;
        let large = if large == small.samples { small } else { trainer.probe(large)? };
        let phases = Phases { small, large };
        let memory = memory::read(trainer.networks.device).is_ok().then(|| phases.memory(trainer, &arithmetic));
        Ok(Self {
            passes: UpdatePasses::of(trainer),
            memory,
            disk: DiskPlan::of(trainer),
            time: phases.time(trainer, &arithmetic),
            warnings: warnings(trainer, &arithmetic),
            arithmetic,
        })
    }
}

impl Arithmetic {
    fn of(trainer: &Trainer) -> Self {
        let config = &trainer.config;
        let batch = &config.batch;
        let (samples, micro_batch) = ((batch.groups * batch.group_size) as u64, batch.micro_batch as u64);
        let steps = trainer.trajectory.steps() as u64;
        let chunks = samples.div_ceil(micro_batch);
        Self {
            groups: batch.groups as u64,
            group_size: batch.group_size as u64,
            samples,
            micro_batch,
            chunks,
            last_chunk: samples - (chunks - 1) * micro_batch,
            steps,
            stochastic_steps: trainer.trajectory.stochastic().count() as u64,
            trained_steps: config.student.trained_steps(trainer.trajectory.steps()) as u64,
            critic_updates: config.critic.updates as u64,
            warmup: config.critic.warmup as u64,
            updates: config.schedule.updates,
            prompts: trainer.data.summary().map_or(trainer.data.prompts().len(), |all| all.prompts) as u64,
        }
    }

    fn chunk_sizes(&self) -> impl Iterator<Item = u64> {
        let full = std::iter::repeat_n(self.micro_batch, self.chunks as usize - 1);
        full.chain([self.last_chunk])
    }
}

/// Two probes, and the line through them.
struct Phases {
    small: Probe,
    large: Probe,
}

impl Phases {
    /// The value at `samples` samples of the line through both probes; never below what was measured at the larger one,
    /// when asked for more.
    fn at(&self, samples: u64, value: impl Fn(&Probe) -> f64) -> f64 {
        let (small, large) = (value(&self.small), value(&self.large));
        let between = self.large.samples as f64 - self.small.samples as f64;
        if between == 0.0 {
            return large * samples as f64 / self.large.samples as f64;
        }
        let slope = ((large - small) / between).max(0.0);
        (large + slope * (samples as f64 - self.large.samples as f64)).max(0.0)
    }

    fn memory(&self, trainer: &Trainer, arithmetic: &Arithmetic) -> MemoryPlan {
        let resident = &trainer.resident;
        let chunk = arithmetic.micro_batch.min(arithmetic.samples);
        let rollout: f64 = arithmetic.chunk_sizes().map(|chunk| self.at(chunk, |probe| probe.rollout.kept)).sum();
        let all = resident.total() as f64 + rollout;
        let phase = |cost: fn(&Probe) -> Cost| (all + self.at(chunk, |probe| cost(probe).peak)).round() as u64;
        let rolling = self.at(chunk, |probe| probe.rollout.peak - probe.rollout.kept);
        let phases = vec![
            ("rollout".to_owned(), (all + rolling).round() as u64),
            ("critic".to_owned(), phase(|probe| probe.critic)),
            ("reward".to_owned(), phase(|probe| probe.reward)),
            ("student".to_owned(), phase(|probe| probe.student)),
        ];
        let peak = phases.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0);
        MemoryPlan { resident: resident.parts.clone(), rollout: rollout.round() as u64, phases, peak }
    }

    fn time(&self, trainer: &Trainer, arithmetic: &Arithmetic) -> TimePlan {
        let over_chunks = |cost: fn(&Probe) -> Cost| -> f64 {
            arithmetic.chunk_sizes().map(|chunk| self.at(chunk, |probe| cost(probe).seconds)).sum()
        };
        let numbers = |parameters: Vec<(String, tch::Tensor)>| -> f64 {
            parameters.iter().map(|(_, tensor)| tensor.numel() as f64).sum()
        };
        let per_number = self.large.step_per_number;
        let critic_step = per_number * numbers(trainer.networks.fake.parameters());
        let student_step = per_number * numbers(trainer.networks.student.parameters());
        let (rollout, critic) = (over_chunks(|probe| probe.rollout), over_chunks(|probe| probe.critic));
        let critics = arithmetic.critic_updates as f64;
        let phases = vec![
            ("rollout".to_owned(), rollout),
            ("critic".to_owned(), critic * critics),
            ("reward".to_owned(), over_chunks(|probe| probe.reward)),
            ("student".to_owned(), over_chunks(|probe| probe.student)),
            ("optimizer".to_owned(), critic_step * critics + student_step),
        ];
        let update: f64 = phases.iter().map(|(_, seconds)| seconds).sum();
        let warmup = arithmetic.warmup as f64 * (critic + critic_step + rollout / critics.max(1.0));
        TimePlan { phases, update, warmup, run: warmup + update * arithmetic.updates as f64 }
    }
}

impl DiskPlan {
    fn of(trainer: &mut Trainer) -> Self {
        let config = &trainer.config;
        let (keep, updates) = (config.checkpoint.keep_last.max(1) as u64, config.schedule.updates);
        let bytes = |tensor: &tch::Tensor| (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64;
        let parts = trainer.parts();
        let checkpoint: u64 = parts.values().flat_map(advdmd_nn::Weights::iter).map(|(_, tensor)| bytes(tensor)).sum();
        Self {
            checkpoint,
            checkpoints: checkpoint.saturating_mul(keep.min(updates).saturating_add(1)),
            metrics: updates.saturating_mul(METRICS_LINE),
            cache: trainer.cache_bytes,
        }
    }
}

fn warnings(trainer: &Trainer, arithmetic: &Arithmetic) -> Vec<String> {
    let mut warnings = Vec::new();
    let Arithmetic { group_size, groups, prompts, samples, micro_batch, last_chunk, .. } = *arithmetic;
    if group_size < 8 && trainer.config.objective.grpo.weight > 0.0 {
        warnings.push(format!(
            "batch.group_size is {group_size}: a mean over so few siblings makes noisy advantages; 8 or more are usual"
        ));
    }
    if groups > prompts {
        warnings
            .push(format!("batch.groups is {groups}, and the data has {prompts} prompts: groups will repeat prompts"));
    }
    if micro_batch > samples {
        warnings.push(format!(
            "batch.micro_batch is {micro_batch}, and an update has {samples} samples: less has the same effect"
        ));
    } else if last_chunk * 2 < micro_batch {
        warnings.push(format!(
            "the last micro-batch has {last_chunk} samples of {micro_batch}: a divisor of {samples} would use the device better"
        ));
    }
    warnings
}
