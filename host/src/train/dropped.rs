//! Prompt groups that a reward could not score, where the configuration says `on_error = "skip_group"`.
//!
//! A batch that fails is scored again, group by group. A group that fails alone as well is dropped: no reward's opinion of it
//! enters the policy gradient, since advantages compare what all rewards say. Its samples still teach the critic and the
//! distribution-matching loss, which no reward has a part in.

use std::collections::BTreeMap;
use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::background::{self, Job};
use super::rewards::{ActiveReward, Features, Rewards, Scored, checked};
use crate::{Error, Result};

/// Groups that were dropped, and the reward that did not score each.
#[derive(Debug, Default)]
pub struct Dropped {
    groups: BTreeMap<usize, String>,
    last: Option<Error>,
}

/// Where a batch stands in an update.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// Its first sample.
    pub first: usize,
    /// Samples of a prompt.
    pub group_size: usize,
    /// The step whose result is scored.
    pub step: usize,
}

impl Dropped {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// How many were dropped because of that reward.
    pub fn by(&self, reward: &str) -> usize {
        self.groups.values().filter(|name| *name == reward).count()
    }

    /// The groups of `groups` that are left, rising.
    ///
    /// # Errors
    /// None is left: the error of the last one.
    pub fn kept(&mut self, groups: usize) -> Result<Vec<i64>> {
        let kept: Vec<i64> =
            (0..groups).filter(|group| !self.groups.contains_key(group)).map(|group| group as i64).collect();
        match self.last.take() {
            Some(last) if kept.is_empty() => Err(last),
            _ => Ok(kept),
        }
    }

    fn add(&mut self, group: usize, reward: &str, prompt: &str, error: Error) {
        self.groups.entry(group).or_insert_with(|| {
            tracing::warn!("group {group} (\"{prompt}\") is dropped: {}", error.in_one_line());
            reward.to_owned()
        });
        self.last = Some(error);
    }
}

impl Part {
    /// Whether a group of `samples` samples was dropped before: the whole batch need not be tried.
    pub fn is_known(self, samples: usize, dropped: &Dropped) -> bool {
        self.groups(samples).any(|(group, _)| dropped.groups.contains_key(&group))
    }

    /// The groups of `samples` samples that begin at [`Part::first`], and where the samples of each lie in the batch.
    fn groups(self, samples: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
        let Self { first, group_size, .. } = self;
        (first / group_size..(first + samples).div_ceil(group_size)).map(move |group| {
            let begin = (group * group_size).max(first) - first;
            (group, begin..((group + 1) * group_size - first).min(samples))
        })
    }
}

impl Rewards {
    /// Scores `[b]` of a batch, group by group; 0 for groups that are dropped. `error` is what the whole batch failed with,
    /// if it was tried.
    ///
    /// # Errors
    /// [`Error::Stopped`]; libtorch's.
    pub(super) fn rescue(
        &mut self,
        index: usize,
        scored: &Scored<'_>,
        part: Part,
        device: Device,
        error: Option<Error>,
        dropped: &mut Dropped,
    ) -> Result<Tensor> {
        let groups: Vec<_> = part.groups(scored.prompts.len()).collect();
        rescue(&self.all[index].name.clone(), &groups, &scored.prompts, error, dropped, |range| {
            let rows = |tensor: &Tensor| tensor.f_narrow(0, range.start as i64, range.len() as i64);
            let all = |features: &[Tensor]| features.iter().map(rows).collect::<Result<_, _>>();
            let (sigma, latents) = (rows(scored.sigma)?, rows(scored.latents)?);
            let images = scored.images.map(rows).transpose()?;
            let features = Features { fake: all(&scored.features.fake)?, teacher: all(&scored.features.teacher)? };
            let prompts = scored.prompts[range.clone()].to_vec();
            let scored =
                Scored { prompts, sigma: &sigma, latents: &latents, images: images.as_ref(), features: &features };
            let batch = self.batch(&self.all[index], &scored)?;
            let reward = &mut self.all[index];
            let scores = reward.scores(&batch, part.first + range.start, device);
            scores.map_err(|source| reward.error(part.step, source))
        })?
        .into_iter()
        .map(|(range, scores)| {
            scores.map_or_else(|| Ok(Tensor::f_zeros([range.len() as i64], (Kind::Float, device))?), Ok)
        })
        .collect::<Result<Vec<_>>>()
        .and_then(|parts| Ok(Tensor::f_cat(&parts, 0)?))
    }
}

/// Scores of a job of the background that failed with `error`, group by group; 0 for groups that are dropped.
///
/// # Errors
/// [`Error::Stopped`]; libtorch's.
pub fn rescue_job(
    reward: &ActiveReward,
    job: &Job,
    group_size: usize,
    step: usize,
    error: Error,
    dropped: &mut Dropped,
) -> Result<Vec<f32>> {
    let Some(background) = reward.background() else { return Err(error) };
    let prompts: Vec<&str> = job.prompts.iter().map(String::as_str).collect();
    let groups: Vec<_> = Part { first: 0, group_size, step }.groups(prompts.len()).collect();
    let parts = rescue(&reward.name, &groups, &prompts, Some(error), dropped, |range| {
        let awaited = background.score(job.part(range)?);
        let scores = background::wait(&awaited)?;
        let scores = scores.and_then(|scores| checked(&scores, range.start, &prompts[range.clone()]));
        scores.map_err(|source| reward.error(step, source))
    })?;
    Ok(parts.into_iter().flat_map(|(range, scores)| scores.unwrap_or_else(|| vec![0.0; range.len()])).collect())
}

/// Scores of each group; `None` for one that is dropped.
fn rescue<T>(
    name: &str,
    groups: &[(usize, Range<usize>)],
    prompts: &[&str],
    error: Option<Error>,
    dropped: &mut Dropped,
    mut score: impl FnMut(&Range<usize>) -> Result<T>,
) -> Result<Vec<(Range<usize>, Option<T>)>> {
    // The same call would fail in the same way.
    let mut known = error.filter(|_| groups.len() == 1);
    let mut parts = Vec::with_capacity(groups.len());
    for (group, range) in groups {
        if dropped.groups.contains_key(group) {
            parts.push((range.clone(), None));
            continue;
        }
        let scores = match known.take().map_or_else(|| score(range), Err) {
            Ok(scores) => Some(scores),
            Err(error @ Error::Reward { .. }) => {
                dropped.add(*group, name, prompts[range.start], error);
                None
            }
            Err(other) => return Err(other),
        };
        parts.push((range.clone(), scores));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_may_begin_and_end_within_a_batch() {
        let part = Part { first: 6, group_size: 4, step: 0 };
        let groups: Vec<_> = part.groups(8).collect();
        assert_eq!(groups, [(1, 0..2), (2, 2..6), (3, 6..8)]);
        let whole: Vec<_> = Part { first: 4, ..part }.groups(4).collect();
        assert_eq!(whole, [(1, 0..4)]);
    }

    fn failed(sample: usize) -> Error {
        let source = advdmd_sdk::Error::failed(format!("cannot score {sample}"));
        Error::Reward { reward: "a".to_owned(), provider: "p".to_owned(), step: 0, source }
    }

    #[test]
    fn only_groups_that_fail_alone_are_dropped() {
        let mut dropped = Dropped::default();
        let groups: Vec<_> = Part { first: 0, group_size: 2, step: 0 }.groups(6).collect();
        let prompts = ["a", "a", "b", "b", "c", "c"];
        let parts = rescue("a", &groups, &prompts, Some(failed(0)), &mut dropped, |range| {
            if range.contains(&3) { Err(failed(3)) } else { Ok(range.len()) }
        });
        let scores: Vec<_> = parts.unwrap().into_iter().map(|(_, scores)| scores).collect();
        assert_eq!(scores, [Some(2), None, Some(2)]);
        assert_eq!((dropped.by("a"), dropped.by("b")), (1, 0));
        // At the next step of the trajectory it is not scored again.
        let part = Part { first: 0, group_size: 2, step: 1 };
        assert!(part.is_known(6, &dropped) && !part.is_known(2, &dropped));
        let parts = rescue("a", &groups, &prompts, None, &mut dropped, |range| {
            assert!(!range.contains(&3), "again");
            Ok(range.len())
        });
        assert_eq!(parts.unwrap()[1], (2..4, None));
        assert_eq!(dropped.kept(3).unwrap(), [0, 2]);
    }

    #[test]
    fn where_none_is_left_the_error_is_the_runs() {
        let mut dropped = Dropped::default();
        let groups: Vec<_> = Part { first: 2, group_size: 2, step: 0 }.groups(2).collect();
        // A batch of one group is not scored again.
        let parts =
            rescue("a", &groups, &["b", "b"], Some(failed(2)), &mut dropped, |_| -> Result<()> { panic!("again") });
        assert!(parts.unwrap()[0].1.is_none());
        dropped.add(0, "a", "a", failed(1));
        assert!(dropped.kept(2).unwrap_err().in_one_line().contains("cannot score 1"));
    }

    #[test]
    fn a_stop_is_no_fault_of_a_group() {
        let mut dropped = Dropped::default();
        let groups: Vec<_> = Part { first: 0, group_size: 1, step: 0 }.groups(2).collect();
        let parts =
            rescue("a", &groups, &["a", "b"], Some(failed(0)), &mut dropped, |_| -> Result<()> { Err(Error::Stopped) });
        assert!(matches!(parts, Err(Error::Stopped)) && dropped.is_empty());
    }
}
