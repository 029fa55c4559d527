//! The watch for reward hacking: scores the images of each evaluation and raises the alarm.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tch::Tensor;

use super::super::rewards::{ActiveReward, Rewards};
use super::super::run::After;
use crate::config::{OnHacking, OnRewardError};
use crate::hacking::{FILE, Look, Statistics, alarms};
use crate::jsonl::{self, Log};
use crate::metrics::{self, DIVERSITY};
use crate::train::trainer::Trainer;
use crate::{Error, Result};

/// What is watched, and what was seen so far.
pub(super) struct Watch {
    looks: Vec<Look>,
    path: PathBuf,
    log: Option<Log>,
    /// Height and width of a patch in pixels.
    patch: [i64; 2],
}

/// The images of an evaluation.
pub(super) struct Seen<'a> {
    /// Prompt of each.
    pub prompts: &'a [&'a str],
    /// The student's, `[B, 3, H, W]` on the CPU.
    pub images: &'a Tensor,
    /// The teacher's.
    pub teacher: Option<&'a Tensor>,
    /// Scores by a suite that judges such images, which nothing is trained on.
    pub judged: Option<(&'static str, Vec<f32>)>,
}

impl Watch {
    /// For a run in `out`: reads what was seen before.
    ///
    /// # Errors
    /// A log that cannot be read.
    pub fn new(trainer: &Trainer, out: &Path) -> Result<Self> {
        let spec = &trainer.networks.spec;
        let path = out.join(FILE);
        let looks = if path.exists() { jsonl::read(&path)? } else { Vec::new() };
        let [height, width] = spec.feature_grid;
        let [_, image_height, image_width] = spec.image_shape;
        let patch = [(image_height / height.max(1)).max(1), (image_width / width.max(1)).max(1)];
        Ok(Self { looks, path, log: None, patch })
    }

    /// The updates at which it looked.
    pub fn seen(&self) -> Vec<u64> {
        self.looks.iter().map(|look| look.update).collect()
    }

    /// Forgets what came after `update`, which will be made again; all where that is `None`.
    ///
    /// # Errors
    /// The disk's.
    pub fn resume(&mut self, update: Option<u64>) -> Result<()> {
        if update.is_none() {
            crate::files::remove(&self.path)?;
        }
        self.looks.retain(|look| update.is_some_and(|update| look.update <= update));
        self.log = Some(Log::open::<Look>(&self.path, update.unwrap_or(0))?);
        Ok(())
    }

    /// Scores images and writes them down; says what is new to be alarmed about.
    ///
    /// # Errors
    /// A reward that fails: names it; the disk's.
    pub fn look(&mut self, trainer: &mut Trainer, out: &Path, seen: Seen<'_>) -> Result<After> {
        let size = trainer.config.batch.micro_batch;
        let device = trainer.networks.device;
        let mut look = Look {
            update: trainer.state.update,
            images: Statistics::of(seen.images, self.patch)?,
            teacher: seen.teacher.map(|images| Statistics::of(images, self.patch)).transpose()?,
            diversity: diversity(out, self.looks.last().map_or(0, |look| look.update))?,
            ..Look::default()
        };
        let score = |reward: &mut ActiveReward, into: &mut BTreeMap<String, Vec<f32>>| -> Result<()> {
            match reward.score_images(seen.prompts, seen.images, size, device) {
                Ok(scores) => _ = into.insert(reward.name.clone(), scores),
                Err(error @ Error::Plugin(_)) if reward.on_error == OnRewardError::SkipGroup => {
                    tracing::warn!("it says nothing of this evaluation: {}", error.in_one_line());
                }
                Err(error) => return Err(error),
            }
            Ok(())
        };
        let Rewards { all, shares, backprop, .. } = &mut trainer.rewards;
        for (index, reward) in all.iter_mut().enumerate().filter(|(_, reward)| reward.scores_images()) {
            let trained = shares[index].weight > 0.0 || backprop.contains(&index);
            score(reward, if trained { &mut look.trained } else { &mut look.held_out })?;
        }
        for reward in &mut trainer.held_out {
            score(reward, &mut look.held_out)?;
        }
        if let Some((name, scores)) = seen.judged {
            look.held_out.insert(name.to_owned(), scores);
        }
        if let Some(log) = &mut self.log {
            log.append(&look)?;
        }
        self.looks.push(look);
        let found = alarms(&self.looks, trainer.config.watch.patience);
        let known = alarms(&self.looks[..self.looks.len() - 1], trainer.config.watch.patience);
        for alarm in found.iter().filter(|alarm| !known.iter().any(|one| one.is_same(alarm))) {
            tracing::warn!("update {}: {alarm}", trainer.state.update);
        }
        Ok(self.standing(trainer))
    }

    /// What follows from what was seen so far.
    pub fn standing(&self, trainer: &Trainer) -> After {
        let settings = &trainer.config.watch;
        if settings.on_hacking == OnHacking::Warn || alarms(&self.looks, settings.patience).is_empty() {
            return After::GoOn;
        }
        tracing::warn!("stopping, as watch.on_hacking asks; `--resume --set 'watch.on_hacking=\"warn\"'` goes on");
        After::Stop
    }
}

/// Mean diversity of the updates after `since`.
fn diversity(out: &Path, since: u64) -> Result<Option<f64>> {
    let path = out.join("metrics.jsonl");
    let records = if path.exists() { metrics::read(&path)? } else { Vec::new() };
    let later = records.iter().filter(|record| record.update > since);
    let values: Vec<f64> =
        later.filter_map(|record| record.values.get(DIVERSITY).copied()).filter(|value| value.is_finite()).collect();
    Ok((!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64))
}
