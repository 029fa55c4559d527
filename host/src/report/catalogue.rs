//! The curves of the report: which numbers share a chart, how it is drawn, and what it means in words.

use super::svg::Scale;

/// A chart, or one chart for each value of `{name}` in its patterns.
#[derive(Debug)]
pub(super) struct Spec {
    pub section: &'static str,
    /// May hold `{name}`.
    pub title: &'static str,
    /// (pattern of metric names, name of the curve). In a pattern, `{name}` stands for one part of the path,
    /// `step{k}` for a step's number, and `{curve}` for a part that names the curve; a curve named `{k}` is called "step k".
    pub curves: &'static [(&'static str, &'static str)],
    pub scale: Scale,
    /// Values that the axis must have room for.
    pub include: &'static [f64],
    /// Taken off every value.
    pub offset: f64,
    /// Whether this chart shows the gate of the policy gradient.
    pub gate: bool,
    pub definition: &'static str,
}

const fn linear(
    section: &'static str,
    title: &'static str,
    curves: &'static [(&'static str, &'static str)],
    definition: &'static str,
) -> Spec {
    Spec { section, title, curves, scale: Scale::Linear, include: &[], offset: 0.0, gate: false, definition }
}

const LOSSES: &str = "Losses and discriminator";
const REWARDS: &str = "Rewards and advantages";
const GRADIENTS: &str = "Gradients and learning rate";
pub(super) const COST: &str = "Cost";

/// All charts of known numbers, in the order of the page.
pub(super) const CATALOGUE: &[Spec] = &[
    linear(
        LOSSES,
        "Distribution matching",
        &[("dmd/loss", "DMD")],
        "Half the mean square of the DMD direction: the fake-score network's x0 minus the guided teacher's, each sample \
         divided by its distance from the teacher. It gives a direction rather than a distance to the goal, so it need \
         not fall.",
    ),
    linear(
        LOSSES,
        "Generator loss",
        &[("gan/loss", "GAN")],
        "softplus(−D) of the student's states. 0.69 when the discriminator cannot tell them from real ones, more when it can.",
    ),
    linear(
        LOSSES,
        "Policy gradient",
        &[("grpo/loss", "GRPO")],
        "The clipped GRPO loss. Near 0 is normal: advantages are centred and the ratio starts at 1, yet the gradient is not 0.",
    ),
    linear(
        LOSSES,
        "Fake-score network",
        &[("critic/denoise_loss", "denoising")],
        "Flow-matching error of the fake-score network on the student's images: how well it keeps up with the student.",
    ),
    linear(
        LOSSES,
        "Flow matching",
        &[("loss", "flow matching")],
        "Mean squared error of the velocity on real images: the loss of a pretraining run.",
    ),
    linear(
        LOSSES,
        "Discriminator loss: {name}",
        &[("critic/{name}/loss", "loss")],
        "softplus(−D(real)) + softplus(D(fake)). 1.39 when it guesses, near 0 when it always tells.",
    ),
    Spec {
        section: LOSSES,
        title: "Discriminator accuracy: {name}",
        curves: &[("critic/{name}/accuracy/step{k}", "{k}")],
        scale: Scale::Linear,
        include: &[0.5, 1.0],
        offset: 0.0,
        gate: true,
        definition: "Share of real and student states told apart, by the step that led to them; 0.5 is a coin. The policy \
                     gradient of a step is on only while its running accuracy lies in the band, and after the warm-up; the \
                     strips show when it was on.",
    },
    linear(
        REWARDS,
        "Reward: {name}",
        &[("reward/{name}/step{k}/mean", "{k}")],
        "Mean reward of each step before normalisation. A step's reward reads the state that the step leads to; one of the final \
         image is the same for all steps.",
    ),
    linear(
        REWARDS,
        "Spread of reward: {name}",
        &[("reward/{name}/step{k}/std", "{k}")],
        "Standard deviation of the reward over the samples of an update. Where it reaches 0 there is nothing to learn from.",
    ),
    linear(
        REWARDS,
        "Advantages",
        &[("advantage/std", "standard deviation")],
        "Standard deviation of the advantages after normalising and adding the rewards by weight: near 1 unless many groups are \
         dead, or scores differ by less than their `std_floor`.",
    ),
    Spec {
        include: &[0.0, 0.1],
        ..linear(
            REWARDS,
            "Dead groups",
            &[("advantage/dead_groups", "share")],
            "Share of prompt groups whose samples all got the same reward. They teach the policy nothing.",
        )
    },
    Spec {
        include: &[0.0, 0.1],
        ..linear(
            REWARDS,
            "Dead groups by reward",
            &[("reward/{curve}/dead_groups", "")],
            "Share of prompt groups whose samples a reward gives one and the same score, over all steps. At 1 it teaches nothing.",
        )
    },
    Spec {
        include: &[0.0],
        ..linear(
            REWARDS,
            "Skipped groups",
            &[("reward/{curve}/skipped_groups", "")],
            "Prompt groups that a reward could not score, and that were left out of the policy gradient (`on_error = \"skip_group\"`). \
             The log says why.",
        )
    },
    Spec {
        include: &[0.0, 1.0],
        ..linear(
            REWARDS,
            "Share of the advantage",
            &[("reward/{curve}/advantage_share", "")],
            "What each reward gives to the variance of the weighted sum; together 1. Below 0 a reward is outvoted by the others.",
        )
    },
    Spec {
        include: &[-1.0, 0.0, 1.0],
        ..linear(
            REWARDS,
            "Correlation of rewards",
            &[("correlation/{curve}/{curve}", "")],
            "Correlation of two rewards' normalised scores over the samples of an update: 1 says the same twice, below 0 they \
             pull against each other.",
        )
    },
    linear(
        REWARDS,
        "Reward back-propagation",
        &[
            ("reward_backprop/loss", "loss"),
            ("reward_backprop/at_ceiling", "share at the ceiling"),
            ("reward_backprop/{curve}/mean", ""),
        ],
        "Rewards as losses: the mean distance of their weighted sum below the ceiling, and their scores of the student's last \
         step.",
    ),
    linear(
        REWARDS,
        "Diversity",
        &[("rollout/diversity", "spread")],
        "Standard deviation of the final latents over the samples of a prompt. It falls as the samples grow alike.",
    ),
    Spec {
        offset: 1.0,
        ..linear(
            REWARDS,
            "Policy ratio, from 1",
            &[("grpo/ratio_mean", "mean"), ("grpo/ratio_min", "least"), ("grpo/ratio_max", "greatest")],
            "Probability of a step under the student being trained over that under the student that sampled it, minus 1. \
             Exactly 0 until the student has moved within an update.",
        )
    },
    Spec {
        include: &[0.0],
        ..linear(
            REWARDS,
            "Clipped share",
            &[("grpo/clip_fraction", "clipped")],
            "Share of samples whose ratio left the clip range, so that they give no gradient.",
        )
    },
    Spec {
        scale: Scale::Log,
        ..linear(
            GRADIENTS,
            "Gradient norms by objective",
            &[
                ("dmd/grad_norm", "DMD"),
                ("gan/grad_norm", "GAN"),
                ("grpo/grad_norm", "GRPO"),
                ("reward_backprop/grad_norm", "rewards"),
            ],
            "L2 norm of each objective's own gradient at the student's output with its weight, mean over the micro-batches, on a \
             logarithmic axis: which objective leads. It grows as micro-batches shrink.",
        )
    },
    Spec {
        scale: Scale::Log,
        ..linear(
            GRADIENTS,
            "Gradient norm",
            &[("student/grad_norm", "student"), ("grad_norm", "network")],
            "L2 norm of the whole gradient before clipping, on a logarithmic axis.",
        )
    },
    linear(
        GRADIENTS,
        "Learning rate",
        &[("student/lr", "student"), ("lr", "network")],
        "The learning rate in force: a linear warm-up, then the schedule.",
    ),
    Spec {
        include: &[0.0],
        ..linear(
            COST,
            "Time of an update",
            &[
                ("time/rollout", "rollout"),
                ("time/critic", "critic"),
                ("time/reward", "reward"),
                ("time/student", "student"),
                ("time/optimizer", "optimiser"),
                ("time/other", "other"),
            ],
            "Seconds per phase of an update. Evaluation and saving are left out.",
        )
    },
    Spec {
        include: &[0.0],
        ..linear(
            COST,
            "Memory",
            &[("memory/peak", "peak")],
            "The most bytes of tensors on the device in an update. It stays level unless something is never freed.",
        )
    },
    linear(
        COST,
        "Network passes",
        &[
            ("passes/student/forward", "student →"),
            ("passes/student/backward", "student ←"),
            ("passes/teacher/forward", "teacher →"),
            ("passes/teacher/backward", "teacher ←"),
            ("passes/fake/forward", "fake →"),
            ("passes/fake/backward", "fake ←"),
        ],
        "Samples through each network since the start, forward (→) and backward (←); a guided sample counts twice. It does \
         not depend on the machine.",
    ),
];

/// What a metric's name says by a pattern.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Match {
    pub name: Option<String>,
    pub step: Option<usize>,
    /// All parts that `{curve}` stands for.
    pub curve: Option<String>,
}

/// Holds a metric's name against a pattern of [`Spec::curves`].
pub(super) fn matches(pattern: &str, metric: &str) -> Option<Match> {
    let mut found = Match::default();
    let (mut wanted, mut parts) = (pattern.split('/'), metric.split('/'));
    loop {
        match (wanted.next(), parts.next()) {
            (None, None) => return Some(found),
            (Some("{name}"), Some(part)) => found.name = Some(part.to_owned()),
            (Some("{curve}"), Some(part)) => {
                found.curve = Some(found.curve.map_or_else(|| part.to_owned(), |curve| format!("{curve} × {part}")));
            }
            (Some("step{k}"), Some(part)) => found.step = Some(part.strip_prefix("step")?.parse().ok()?),
            (Some(wanted), Some(part)) if wanted == part => {}
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_read_names_and_steps() {
        let found = matches("critic/{name}/accuracy/step{k}", "critic/heads/accuracy/step12").unwrap();
        assert_eq!(found, Match { name: Some("heads".into()), step: Some(12), curve: None });
        let found = matches("correlation/{curve}/{curve}", "correlation/hps/clipscore").unwrap();
        assert_eq!(found.curve.as_deref(), Some("hps × clipscore"));
        assert_eq!(matches("dmd/loss", "dmd/loss"), Some(Match::default()));
        for other in ["dmd/loss/x", "dmd", "critic/heads/accuracy/stepx", "critic/heads/loss"] {
            assert_eq!(matches("critic/{name}/accuracy/step{k}", other), None, "{other}");
        }
    }

    #[test]
    fn no_metric_falls_into_two_charts() {
        let names = [
            "critic/denoise_loss",
            "critic/heads/loss",
            "reward/a/step0/mean",
            "reward/a/dead_groups",
            "grad_norm",
            "student/grad_norm",
        ];
        for name in names {
            let charts =
                CATALOGUE.iter().flat_map(|spec| spec.curves).filter(|(pattern, _)| matches(pattern, name).is_some());
            assert_eq!(charts.count(), 1, "{name}");
        }
    }
}
