//! The checks of rewards.

#[cfg(feature = "torch")]
mod dtypes;
#[cfg(feature = "torch")]
mod gradient;
mod invariance;
#[cfg(feature = "torch")]
mod learner;
mod scores;

use advdmd_sdk::{Needs, Result, Reward};

use crate::config;
use crate::memory;
use crate::report::{Examiner, Report, Verdict, fail, ok};
use crate::samples::{Content, Samples};
use crate::subject::{SEED, Subject};

/// The checks after those of every component, in their order.
const CHECKS: [&str; 8] =
    ["needs", "answers", "length", "finite", "refuses", "deterministic", "permutation", "batch_split"];
/// Those that need libtorch, and `memory`.
const TORCH: [&str; 11] = [
    "dtypes",
    "same_scores",
    "gradient",
    "learner_loss",
    "learner_gradients",
    "generator_loss",
    "grad_mode",
    "rng_state",
    "default_dtype",
    "threads",
    "memory",
];

/// Runs all checks on a reward.
pub(crate) fn check(subject: &Subject<'_>) -> Report {
    let mut examiner = Examiner::new(subject.kind, &subject.name);
    #[cfg(feature = "torch")]
    let state = crate::state::State::now();
    if config::examine(subject, &mut examiner) {
        let mut reward = None;
        if examiner.check("needs", || {
            let made = subject.reward(SEED)?;
            let needs = made.needs();
            reward = Some(made);
            consistent(&needs, subject)
        }) && let Some(mut reward) = reward
        {
            let needs = reward.needs();
            if scores::examine(subject, &mut *reward, &needs, &mut examiner) {
                invariance::examine(subject, &mut *reward, &needs, &mut examiner);
                #[cfg(feature = "torch")]
                torch(subject, &mut *reward, &needs, &state, &mut examiner);
                #[cfg(not(feature = "torch"))]
                examiner.skip(&TORCH[..10], crate::WITHOUT_TORCH);
                examiner.check("memory", || flat(subject, &mut *reward, &needs));
            } else {
                examiner.skip(&CHECKS[5..], "its scores are no scores (above)");
                examiner.skip(&TORCH, "its scores are no scores (above)");
            }
        } else {
            examiner.skip(&CHECKS[1..], "its needs are not clear (`needs`)");
            examiner.skip(&TORCH, "its needs are not clear (`needs`)");
        }
    } else {
        examiner.skip(&CHECKS, "it could not be made (above)");
        examiner.skip(&TORCH, "it could not be made (above)");
    }
    examiner.finish()
}

/// What the host refuses of needs.
fn consistent(needs: &Needs, subject: &Subject<'_>) -> Verdict {
    let depth = subject.spec.depth;
    if let Some(features) = &needs.features {
        let rising = features.taps.is_sorted_by(|a, b| a < b);
        if features.taps.is_empty() || !rising || features.taps.iter().any(|&tap| tap >= depth) {
            return fail(
                format!("taps of features that rise and lie below the backbone's depth of {depth}"),
                format!("{:?}", features.taps),
                "choose taps from `RewardInit::backbone`, and refuse others in `build`",
            );
        }
    }
    if needs.background && (needs.features.is_some() || needs.scope != advdmd_sdk::Scope::Final) {
        return fail(
            "`background` for rewards of the final image without features alone",
            format!("{needs:?}"),
            "leave `background` out, or `features` and `Scope::EveryStep`",
        );
    }
    if needs.on_cpu && (needs.scores_on_device || needs.differentiable) {
        return fail(
            "`on_cpu` or scores on the device, not both",
            format!("{needs:?}"),
            "a reward with libtorch takes tensors where they are: leave `on_cpu` out",
        );
    }
    ok(serde_json::to_string(needs).unwrap_or_default())
}

/// The samples of most checks.
fn ordinary(subject: &Subject<'_>, needs: &Needs, count: usize) -> Samples {
    Samples::new(needs, &subject.spec, count, Content::Random(0.0), 1)
}

fn scores(reward: &mut dyn Reward, samples: &Samples) -> Result<Vec<f32>> {
    samples.lend(|batch| reward.score(batch))
}

/// How far two lists of scores are apart, as a share of the largest score; infinitely far where one is NaN.
fn apart(found: &[f32], expected: &[f32]) -> f64 {
    let largest = expected.iter().fold(1e-6_f32, |largest, score| largest.max(score.abs()));
    let pairs = found.iter().zip(expected);
    // `f64::max` would take the other number for a NaN.
    let furthest = pairs.map(|(a, b)| f64::from((a - b).abs() / largest)).max_by(f64::total_cmp).unwrap_or(0.0);
    if furthest.is_nan() || found.len() != expected.len() { f64::INFINITY } else { furthest }
}

fn flat(subject: &Subject<'_>, reward: &mut dyn Reward, needs: &Needs) -> Verdict {
    // Enough samples that what is kept of a quick call shows in the size of the process.
    let one = ordinary(subject, needs, 1);
    let count = (128 * 1024_usize).div_ceil((one.bytes() / one.len()).max(1)).clamp(1, 16);
    let lend = |times| {
        let samples = ordinary(subject, needs, times * count);
        let bytes = samples.bytes();
        (samples, bytes)
    };
    memory::examine(lend, |samples| scores(reward, samples).map(drop))
}

#[cfg(feature = "torch")]
fn torch(
    subject: &Subject<'_>,
    reward: &mut dyn Reward,
    needs: &Needs,
    state: &crate::state::State,
    examiner: &mut Examiner,
) {
    examiner.check("dtypes", || dtypes::check(subject, reward, needs));
    gradient::examine(subject, reward, needs, examiner);
    learner::examine(subject, needs, examiner);
    let samples = ordinary(subject, needs, 2);
    state.examine(examiner, &mut |gradients| {
        let mut fresh = subject.reward(SEED)?;
        scores(&mut *fresh, &samples)?;
        if needs.differentiable || needs.scores_on_device {
            samples.lend(|batch| fresh.score_differentiable(batch))?;
        }
        if gradients && let Some(learner) = fresh.learner() {
            samples.lend(|batch| learner.discriminator_loss(batch, batch))?;
            samples.lend(|batch| learner.generator_loss(batch).map(drop))?;
        }
        Ok(())
    });
}
