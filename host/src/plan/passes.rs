//! Passes of an update, counted from the configuration and the rewards' needs.

use advdmd_sdk::{FeatureSource, Scope};
use serde::Serialize;

use crate::train::Trainer;

/// Samples that go through a network in one update; a guided sample counts twice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Passes {
    /// Forward.
    pub forward: u64,
    /// Backward.
    pub backward: u64,
}

/// Passes of an update by role.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct UpdatePasses {
    /// The model that is trained.
    pub student: Passes,
    /// The frozen base.
    pub teacher: Passes,
    /// The fake-score network.
    pub fake: Passes,
}

impl UpdatePasses {
    /// Of an update of this run with the policy gradient on, evaluations left out.
    pub fn of(trainer: &mut Trainer) -> Self {
        let learns = trainer.rewards.learns();
        let config = &trainer.config;
        let objective = &config.objective;
        let samples = (config.batch.groups * config.batch.group_size) as u64;
        let steps = trainer.trajectory.steps() as u64;
        let trained = config.student.trained_steps(trainer.trajectory.steps()) as u64;
        let critic = config.critic.updates as u64;
        let (dmd, gan) = (objective.dmd.weight > 0.0, objective.gan.weight > 0.0 && learns);
        let backprop = objective.reward_backprop.weight > 0.0;
        let grpo = objective.grpo.weight > 0.0 && !trainer.rewards.all.is_empty();
        let taps = |source| match source {
            FeatureSource::Fake => !trainer.rewards.fake_taps.is_empty(),
            FeatureSource::Teacher => !trainer.rewards.teacher_taps.is_empty(),
        };
        let through = |source| gan && taps(source);
        // States whose features a reward is scored on.
        let reads = |scope| trainer.rewards.all.iter().any(|r| r.needs.scope == scope && r.needs.features.is_some());
        let every_step = if reads(Scope::EveryStep) { trainer.trajectory.stochastic().count() as u64 } else { 0 };
        let scored = if grpo { every_step + u64::from(reads(Scope::Final)) } else { 0 };
        let tapped = |source| if taps(source) { scored } else { 0 };
        // The learners' real side, and their fake side where it does not come with the denoising loss.
        let real = |source| if learns && taps(source) { critic } else { 0 };

        let guided = if objective.dmd.guidance_scale == 1.0 { 1 } else { 2 };
        let teacher = real(FeatureSource::Teacher) * 2
            + tapped(FeatureSource::Teacher)
            + trained * (if dmd { guided } else { 0 } + u64::from(through(FeatureSource::Teacher)));
        let fake = critic
            + real(FeatureSource::Fake)
            + tapped(FeatureSource::Fake)
            + trained * u64::from(dmd || through(FeatureSource::Fake));
        let losses = if dmd || gan {
            trained
        } else if grpo {
            // Only the stochastic steps have an action; which of them are drawn differs from update to update.
            let actions = trainer.trajectory.stochastic().count() as u64;
            trained.min(actions + u64::from(backprop && actions < steps))
        } else {
            // The last step alone; an update that does not draw it has none.
            u64::from(backprop)
        };
        Self {
            student: Passes { forward: samples * (steps + trained), backward: samples * losses },
            teacher: Passes {
                forward: samples * teacher,
                backward: samples * trained * u64::from(through(FeatureSource::Teacher)),
            },
            fake: Passes {
                forward: samples * fake,
                backward: samples * (critic + trained * u64::from(through(FeatureSource::Fake))),
            },
        }
    }
}
