//! When the watch speaks up: a function of what it has seen, and of nothing else.

use std::fmt;

use super::{Look, Statistics};
use crate::score::Summary;

/// How far a statistic leaves the range of the teacher's images, and of the student's own at first: a factor of its odds, so
/// that shares near 1 can leave it too.
const FACTOR: f64 = 2.0;

/// Standard errors by which a held-out reward must have fallen. Its best is chosen among all evaluations, which by chance
/// alone lies two above the rest before long; with these, and three evaluations in a row, some 2 % of runs of a hundred
/// evaluations raise a false alarm (see the tests).
const FALL: f64 = 3.5;

/// Standard errors by which a reward in training must have risen since.
const RISE: f64 = 2.0;

const SATURATION: &str = "the saturation";
const PATCH_POWER: &str = "the power at the patch frequency";

/// What looks like a reward being gamed.
#[derive(Debug, Clone, PartialEq)]
pub enum Alarm {
    /// A reward that is trained on rose while one that is not fell.
    Gamed {
        /// The one that is trained on.
        trained: String,
        /// The other.
        held_out: String,
        /// The evaluation at which the other was best.
        since: u64,
        /// Mean score of the first, then and now.
        rise: [f64; 2],
        /// Mean score of the other, then and now.
        fall: [f64; 2],
    },
    /// Images have more of something than the teacher's, or than the student's own had at first.
    Images {
        /// What of.
        what: &'static str,
        /// The teacher's or the student's first, whichever is more.
        reference: f64,
        /// The student's now.
        now: f64,
    },
    /// The samples of a prompt differ less than at first.
    Collapse {
        /// Diversity at first.
        from: f64,
        /// Diversity now.
        to: f64,
    },
}

impl Alarm {
    /// Whether both say the same of different evaluations.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Gamed { trained: a, held_out: b, .. }, Self::Gamed { trained: c, held_out: d, .. }) => {
                a == c && b == d
            }
            (Self::Images { what: a, .. }, Self::Images { what: b, .. }) => a == b,
            (Self::Collapse { .. }, Self::Collapse { .. }) => true,
            _ => false,
        }
    }
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gamed { trained, held_out, since, rise, fall } => write!(
                f,
                "reward `{trained}` rose from {} to {} while held-out `{held_out}`, best at update {since}, fell from {} to {}: \
                 `{trained}` is probably being gamed",
                short(rise[0]),
                short(rise[1]),
                short(fall[0]),
                short(fall[1])
            ),
            Self::Images { what, reference, now } => write!(
                f,
                "{what} of the student's images is {}, that of the teacher's or of the student's own at first was {}",
                short(*now),
                short(*reference)
            ),
            Self::Collapse { from, to } => write!(
                f,
                "the samples of a prompt have grown alike: their spread fell from {} to {}",
                short(*from),
                short(*to)
            ),
        }
    }
}

/// Three significant digits.
fn short(value: f64) -> String {
    let digits = if value == 0.0 { 0 } else { (2 - value.abs().log10().floor() as i32).clamp(0, 9) };
    format!("{value:.*}", digits as usize)
}

/// What held at each of the last `patience` evaluations.
///
/// A reward is *gamed* at an evaluation if a held-out one lies below its best, and the reward above its value at that
/// evaluation, by more than 3.5 and 2 standard errors of the mean difference, image by image: the images are of the same
/// prompts and noise. Statistics of the images are compared with the greater of the teacher's and the student's own at
/// first, the spread within groups with its first value; both raise an alarm at a factor of two, the statistics' odds and
/// only where they are large enough to be seen.
pub fn alarms(looks: &[Look], patience: usize) -> Vec<Alarm> {
    let patience = patience.max(1);
    if looks.len() < patience {
        return Vec::new();
    }
    let at = |count: usize| at_last(&looks[..count]);
    let before: Vec<Vec<Alarm>> = (looks.len() + 1 - patience..looks.len()).map(at).collect();
    let now = at(looks.len());
    now.into_iter().filter(|alarm| before.iter().all(|earlier| earlier.iter().any(|one| one.is_same(alarm)))).collect()
}

/// What the last evaluation looks like, by itself.
fn at_last(looks: &[Look]) -> Vec<Alarm> {
    let Some((now, past)) = looks.split_last() else { return Vec::new() };
    let mut alarms = Vec::new();
    for (held_out, scores) in &now.held_out {
        let mean_then = |look: &Look| look.held_out.get(held_out).and_then(|scores| mean(scores));
        let best = past.iter().filter_map(|look| Some((look, mean_then(look)?))).max_by(|a, b| a.1.total_cmp(&b.1));
        let Some((best, height)) = best else { continue };
        let Some(fall) = best.held_out.get(held_out).and_then(|then| clear_difference(then, scores, FALL)) else {
            continue;
        };
        if fall >= 0.0 {
            continue;
        }
        for (trained, scores) in &now.trained {
            let Some(then) = best.trained.get(trained) else { continue };
            let Some(rise) = clear_difference(then, scores, RISE).filter(|rise| *rise > 0.0) else { continue };
            let from = mean(then).unwrap_or_default();
            alarms.push(Alarm::Gamed {
                trained: trained.clone(),
                held_out: held_out.clone(),
                since: best.update,
                rise: [from, from + rise],
                fall: [height, height + fall],
            });
        }
    }
    let teacher = looks.iter().find_map(|look| look.teacher);
    for (what, visible) in [(SATURATION, 0.05), (PATCH_POWER, 0.01)] {
        let of = |images: &Statistics| if what == SATURATION { images.saturation } else { images.patch_power };
        let first = past.first().map_or(f64::INFINITY, |look| of(&look.images));
        let reference = first.max(teacher.as_ref().map_or(0.0, of));
        let odds = |share: f64| share / (1.0 - share).max(f64::MIN_POSITIVE);
        let now_is = of(&now.images);
        if now_is > visible && odds(now_is) > FACTOR * odds(reference) {
            alarms.push(Alarm::Images { what, reference, now: of(&now.images) });
        }
    }
    let first = past.iter().find_map(|look| look.diversity);
    if let Some((from, to)) = first.zip(now.diversity)
        && to * FACTOR < from
    {
        alarms.push(Alarm::Collapse { from, to });
    }
    alarms
}

fn mean(scores: &[f32]) -> Option<f64> {
    Summary::of(scores).map(|summary| summary.mean)
}

/// The mean of `now - then`, image by image, if it is beyond so many standard errors.
fn clear_difference(then: &[f32], now: &[f32], errors: f64) -> Option<f64> {
    let count = then.len();
    if count < 2 || now.len() != count {
        return None;
    }
    let differences = || then.iter().zip(now).map(|(then, now)| f64::from(*now) - f64::from(*then));
    let mean = differences().sum::<f64>() / count as f64;
    let variance = differences().map(|one| (one - mean).powi(2)).sum::<f64>() / (count - 1) as f64;
    (mean.abs() > errors * (variance / count as f64).sqrt()).then_some(mean)
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use rand_distr::StandardNormal;

    use super::*;

    /// An evaluation of 40 images, whose scores lie around these means.
    fn look(update: u64, trained: f32, held_out: f32) -> Look {
        let around =
            |mean: f32| (0..40).map(|index| mean + 0.3 * ((index * 7 + update as i32 * 3) as f32).sin()).collect();
        Look {
            update,
            trained: [("hps".to_owned(), around(trained))].into(),
            held_out: [("pickscore".to_owned(), around(held_out))].into(),
            images: Statistics { saturation: 0.3, patch_power: 0.02 },
            teacher: (update == 0).then_some(Statistics { saturation: 0.25, patch_power: 0.03 }),
            diversity: Some(0.8),
        }
    }

    #[test]
    fn a_reward_that_rises_while_another_falls_is_gamed() {
        let looks: Vec<Look> = [(0.0, 0.0), (1.0, 1.0), (2.0, 0.5), (3.0, 0.4), (4.0, 0.3)]
            .iter()
            .zip([0, 10, 20, 30, 40])
            .map(|(&(t, h), update)| look(update, t, h))
            .collect();
        assert_eq!(alarms(&looks[..4], 3), [], "two in a row, and three are asked for");
        assert_eq!(alarms(&looks[..4], 2).len(), 1);
        let found = alarms(&looks, 3);
        let [alarm @ Alarm::Gamed { trained, held_out, since: 10, .. }] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((trained.as_str(), held_out.as_str()), ("hps", "pickscore"));
        let text = alarm.to_string();
        assert!(
            text.contains("reward `hps` rose from") && text.contains("held-out `pickscore`, best at update 10"),
            "{text}"
        );
    }

    #[test]
    fn chance_and_honest_progress_are_not_hacking() {
        let series = |values: &[(f32, f32)]| -> Vec<Look> {
            values.iter().enumerate().map(|(index, &(t, h))| look(10 * index as u64, t, h)).collect()
        };
        assert_eq!(alarms(&series(&[(0.0, 0.0), (1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]), 1), [], "both rise");
        assert_eq!(alarms(&series(&[(3.0, 3.0), (2.0, 2.0), (1.0, 1.0)]), 1), [], "both fall");
        let noise = series(&[(0.0, 0.0), (1.0, 0.01), (2.0, 0.0), (3.0, 0.005)]);
        assert_eq!(alarms(&noise, 1), [], "within two standard errors");
        let mut recovered = series(&[(0.0, 0.0), (1.0, 1.0), (2.0, 0.2), (3.0, 0.2), (4.0, 1.1)]);
        assert_eq!(alarms(&recovered, 1), []);
        recovered.pop();
        assert_eq!(alarms(&recovered, 1).len(), 1);
        assert_eq!(alarms(&[], 3), []);
    }

    #[test]
    fn images_that_change_for_the_worse_are_told() {
        let mut looks: Vec<Look> = (0..4).map(|index| look(10 * index, 0.0, 0.0)).collect();
        assert_eq!(alarms(&looks, 2), []);
        for late in &mut looks[2..] {
            late.images = Statistics { saturation: 0.45, patch_power: 0.07 };
            late.diversity = Some(0.3);
        }
        let found = alarms(&looks, 2);
        let [power, collapse] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(
            power.to_string(),
            "the power at the patch frequency of the student's images is 0.0700, that of the teacher's or of the student's own at \
             first was 0.0300"
        );
        assert_eq!(
            collapse.to_string(),
            "the samples of a prompt have grown alike: their spread fell from 0.800 to 0.300"
        );
        looks[3].diversity = Some(0.5);
        assert_eq!(alarms(&looks, 2).len(), 1);
        // Colours that were strong already: half of what was left to white is gone.
        let colours = |saturation| Look { images: Statistics { saturation, patch_power: 0.0 }, ..Look::default() };
        assert_eq!(alarms(&[colours(0.8), colours(0.87)], 1), []);
        assert_eq!(alarms(&[colours(0.8), colours(0.9)], 1).len(), 1);
    }

    /// Runs whose held-out reward does nothing but scatter, while the other rises all the time: hardly any is accused.
    #[test]
    fn a_plateau_is_not_a_fall() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut scatter =
            |mean: f32| (0..24).map(|_| mean + rng.sample::<f32, _>(StandardNormal)).collect::<Vec<f32>>();
        let accused = (0..100)
            .filter(|_| {
                let look = |update: u64| Look {
                    update,
                    trained: [("hps".to_owned(), scatter(update as f32))].into(),
                    held_out: [("pickscore".to_owned(), scatter(0.0))].into(),
                    ..Look::default()
                };
                let looks: Vec<Look> = (0..50).map(look).collect();
                (3..=looks.len()).any(|count| !alarms(&looks[..count], 3).is_empty())
            })
            .count();
        assert!(accused <= 3, "{accused} of 100");
    }
}
