//! The watch for reward hacking: scores the images of each evaluation and raises the alarm.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use advdmd_sdk::{RewardInit, Scope};
use tch::Tensor;

use super::super::rewards::ActiveReward;
use super::super::run::After;
use crate::config::OnHacking;
use crate::hacking::{FILE, Look, Statistics, alarms};
use crate::jsonl::{self, Log};
use crate::metrics::{self, DIVERSITY};
use crate::random::{Random, Stream};
use crate::registry::Registry;
use crate::train::trainer::Trainer;
use crate::{Error, Result, device};

/// What is watched, and what was seen so far.
pub(super) struct Watch {
    held_out: Vec<ActiveReward>,
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
    /// Makes the held-out rewards of a run in `out`, and reads what was seen before.
    ///
    /// # Errors
    /// A held-out reward that cannot be made or reads more than images; a log that cannot be read.
    pub fn new(trainer: &Trainer, registry: &Registry, out: &Path) -> Result<Self> {
        let spec = &trainer.networks.spec;
        let held_out = trainer.config.held_out.iter().enumerate().map(|(index, section)| {
            let init = RewardInit {
                device: device::sdk(trainer.networks.device),
                seed: Random::new(trainer.config.seed).seed(Stream::Init, 200 + index as u64),
                backbone: Some(spec.clone()),
            };
            let reward = ActiveReward::new(section.name.as_deref(), &section.component, registry, &init)?;
            if !scores_images(&reward) {
                return Err(Error::usage(
                    format!(
                        "`held_out.{index}`: reward `{}` learns, or reads more than prompts and images, which is all that a \
                         held-out reward is given",
                        reward.name
                    ),
                    "take a reward of images, such as clipscore or remote".to_owned(),
                ));
            }
            Ok(reward)
        });
        let path = out.join(FILE);
        let looks = if path.exists() { jsonl::read(&path)? } else { Vec::new() };
        let [height, width] = spec.feature_grid;
        let [_, image_height, image_width] = spec.image_shape;
        let patch = [(image_height / height.max(1)).max(1), (image_width / width.max(1)).max(1)];
        Ok(Self { held_out: held_out.collect::<Result<_>>()?, looks, path, log: None, patch })
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
            into.insert(reward.name.clone(), reward.score_images(seen.prompts, seen.images, size, device)?);
            Ok(())
        };
        for reward in trainer.rewards.all.iter_mut().filter(|reward| scores_images(reward)) {
            score(reward, &mut look.trained)?;
        }
        for reward in &mut self.held_out {
            score(reward, &mut look.held_out)?;
        }
        if let Some((name, scores)) = seen.judged {
            look.held_out.insert(name.to_owned(), scores);
        }
        if let Some(log) = &mut self.log {
            log.append(&look)?;
        }
        self.looks.push(look);
        let settings = &trainer.config.watch;
        let found = alarms(&self.looks, settings.patience);
        let known = alarms(&self.looks[..self.looks.len() - 1], settings.patience);
        for alarm in found.iter().filter(|alarm| !known.iter().any(|one| one.is_same(alarm))) {
            tracing::warn!("update {}: {alarm}", trainer.state.update);
        }
        if found.is_empty() || settings.on_hacking == OnHacking::Warn {
            return Ok(After::GoOn);
        }
        tracing::warn!("stopping, as watch.on_hacking asks; `--resume --set watch.on_hacking=\"warn\"` goes on");
        Ok(After::Stop)
    }
}

/// Whether images and prompts are all that a reward reads, and its opinion stays the same.
fn scores_images(reward: &ActiveReward) -> bool {
    let needs = &reward.needs;
    needs.scope == Scope::Final && !reward.learns && needs.features.is_none() && !needs.latents
}

/// Mean diversity of the updates after `since`.
fn diversity(out: &Path, since: u64) -> Result<Option<f64>> {
    let path = out.join("metrics.jsonl");
    let records = if path.exists() { metrics::read(&path)? } else { Vec::new() };
    let values =
        || records.iter().filter(|record| record.update > since).filter_map(|record| record.values.get(DIVERSITY));
    let count = values().count();
    Ok((count > 0).then(|| values().sum::<f64>() / count as f64))
}
