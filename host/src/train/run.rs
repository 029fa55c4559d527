//! A run from its first update to its last: folder, resuming, order of work, saving.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::checkpoint::{self, Checkpoint};
use super::drift::{drift, rounding_drift};
use super::failure;
use super::lock::{RunLock, occupied};
use super::trainer::{Trainer, Values};
use super::watch;
use crate::config::{OnSaveError, Resolved, RunConfig};
use crate::hacking;
use crate::metrics::{Record, Writer};
use crate::plan::Plan;
use crate::progress::{Progress, headline};
use crate::registry::Registry;
use crate::{Error, Result, files, interrupt};

/// The data set in numbers, in a run's folder.
pub(crate) const SUMMARY: &str = "data.json";

/// How a run is started.
#[derive(Debug, Clone, Default)]
pub struct TrainOptions {
    /// The run's folder.
    pub out: PathBuf,
    /// Go on from the newest checkpoint in `out`.
    pub resume: bool,
    /// Go on although configuration, plugins or model files have changed, or the newest checkpoint is damaged.
    pub allow_drift: bool,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Student updates done.
    pub updates: u64,
    /// Whether all updates were done, the time limit was reached or the watch ended the run; false after Ctrl-C.
    pub finished: bool,
    /// Seconds of training.
    pub seconds: f64,
}

/// What looks on while a run trains: evaluation, sample grids, the report.
pub trait Observer {
    /// Called before the first update, after every `eval.every` updates and after the last, with the averaged weights
    /// in the student's place.
    ///
    /// # Errors
    /// Whatever keeps it from looking; the run saves and stops.
    fn look(&mut self, trainer: &mut Trainer, out: &Path, last: bool) -> Result<After>;
}

/// What an observer wants of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// To go on.
    GoOn,
    /// To end here, saved like any other.
    Stop,
}

/// Trains a run to its end, writing metrics, evaluations, samples and checkpoints to its folder.
///
/// # Errors
/// A configuration, plugin or disk error; another process in the folder; a checkpoint that is damaged or belongs to
/// another run; a loss that is not finite. What was saved before stays.
pub fn run(mut resolved: Resolved<RunConfig>, options: &TrainOptions) -> Result<Outcome> {
    let out = &options.out;
    let registry = Registry::discover(&resolved.config.plugins.paths)?;
    registry.resolve(&mut resolved)?;
    let _lock = RunLock::take(out)?;
    checkpoint::clean(out)?;
    let begun = !checkpoint::list(out)?.is_empty();
    if begun && !options.resume {
        return Err(occupied(out));
    }
    let from = if begun { Some(newest_whole(out, options.allow_drift)?) } else { None };
    let mut trainer = Trainer::new(&resolved, &registry)?;
    match &from {
        None => {
            if options.resume {
                tracing::warn!("{} holds no checkpoint: starting at update 0", out.display());
            }
            // A run that ended before its first checkpoint left these behind.
            for log in ["metrics.jsonl", "eval.jsonl", hacking::FILE] {
                files::set_aside(&out.join(log))?;
            }
        }
        Some(from) => {
            refuse_drift(from, &trainer, options.allow_drift)?;
            trainer.load(from).map_err(|error| {
                let message =
                    format!("{} does not fit this configuration: {}", from.path.display(), error.in_one_line());
                Error::usage(
                    message,
                    "what changes the shape of a network cannot change in the middle of a run".to_owned(),
                )
            })?;
            tracing::info!("resumed at update {} from {}", trainer.state.update, from.path.display());
        }
    }
    files::write(&out.join("config.toml"), resolved.toml.as_bytes())?;
    files::write_json(&out.join("run.json"), &trainer.identity.made_with)?;
    if let Some(summary) = trainer.data.summary() {
        files::write_json(&out.join(SUMMARY), summary)?;
    }
    let mut watch = watch::of(&trainer, &registry, out)?;
    let saved = from.map(|from| (from.index.state.update, from.index.state.warmed_up));
    let plan = if saved.is_none() { Some(announce(&mut trainer)?) } else { None };
    Run { trainer, out: out.clone(), progress: None, plan, saved, unwritten: Vec::new(), silent: BTreeSet::new() }
        .train(watch.as_mut())
}

/// The newest checkpoint, every file verified. One that is damaged is refused, or set aside where `allowed` and there is an
/// older one that is whole.
fn newest_whole(run: &Path, allowed: bool) -> Result<Checkpoint> {
    let mut all = checkpoint::list(run)?;
    let mut damaged: Vec<PathBuf> = Vec::new();
    while let Some((_, path)) = all.pop() {
        let opened = Checkpoint::open(&path).and_then(|checkpoint| checkpoint.verify().map(|()| checkpoint));
        match (opened, all.last()) {
            (Ok(whole), _) => {
                for path in &damaged {
                    tracing::warn!("set aside as {}", checkpoint::set_aside(path)?.display());
                }
                return Ok(whole);
            }
            (Err(error), Some((older, _))) if !allowed => {
                let hint = format!("`--allow-drift` sets it aside and goes on from update {older}, if that is whole");
                return Err(Error::usage(format!("checkpoint cannot be used: {}", error.in_one_line()), hint));
            }
            (Err(error), _) => tracing::warn!("checkpoint cannot be used: {}", error.in_one_line()),
        }
        damaged.push(path);
    }
    let hint = "start anew in another `--out`; nothing of this one was changed".to_owned();
    Err(Error::usage(format!("{} has no whole checkpoint", run.display()), hint))
}

fn refuse_drift(from: &Checkpoint, trainer: &Trainer, allowed: bool) -> Result<()> {
    for line in rounding_drift(&from.index.identity.config, &trainer.identity.config) {
        tracing::warn!("the rest is not bit for bit what it would have been: {line}");
    }
    let lines = drift(&from.index.identity, &trainer.identity);
    if lines.is_empty() {
        return Ok(());
    }
    if allowed {
        for line in &lines {
            tracing::warn!("going on although {line}");
        }
        return Ok(());
    }
    let message = format!("{} belongs to another run:\n  {}", from.path.display(), lines.join("\n  "));
    Err(Error::usage(message, "undo the change, start anew in another `--out`, or `--allow-drift` to go on".to_owned()))
}

/// Plans the run and says the gist of it. Its probe runs every phase once, so that what cannot work fails at once.
fn announce(trainer: &mut Trainer) -> Result<Plan> {
    let plan = Plan::of(trainer)?;
    for line in plan.arithmetic.to_string().lines() {
        tracing::info!("{line}");
    }
    plan.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    Ok(plan)
}

/// A run while it trains.
struct Run {
    trainer: Trainer,
    out: PathBuf,
    progress: Option<Progress>,
    /// What was planned, until the first update shows what is so.
    plan: Option<Plan>,
    /// Update and warm-up of the newest checkpoint.
    saved: Option<(u64, u64)>,
    /// Records that the disk refused, to be written before the next one.
    unwritten: Vec<Record>,
    /// Rewards whose last scores told no samples apart.
    silent: BTreeSet<String>,
}

impl Run {
    fn train(&mut self, observer: &mut dyn Observer) -> Result<Outcome> {
        let stop = interrupt::flag()?;
        let mut writer = Writer::open(&self.out.join("metrics.jsonl"), self.trainer.state.update)?;
        if writer.last() < self.trainer.state.update {
            let (last, update) = (writer.last(), self.trainer.state.update);
            tracing::warn!(
                "metrics.jsonl ends at update {last}, the checkpoint is of {update}: numbers between are lost"
            );
        }
        let updates = self.trainer.config.schedule.updates;
        if self.trainer.state.update >= updates {
            let done = self.trainer.state.update;
            tracing::info!("nothing left to train: {done} updates are done, schedule.updates is {updates}");
        }
        self.progress = Some(Progress::new("training", self.trainer.state.update, updates));
        // After a resume as well: a run that was killed between its checkpoint and the evaluation of it still owes one.
        let mut after = After::GoOn;
        if self.owes_evaluation() {
            after = self.observe(observer, false)?;
        }
        if after == After::GoOn {
            self.warm_up(stop)?;
        }
        let begun = Instant::now();
        let before = self.trainer.state.seconds;
        let mut paused = 0.0;
        let limit = self.trainer.config.schedule.max_minutes.map_or(f64::INFINITY, |minutes| minutes * 60.0);
        while self.trainer.state.update < updates
            && self.trainer.state.seconds < limit
            && after == After::GoOn
            && !stop.is_raised()
        {
            let started = Instant::now();
            let values = match self.trainer.update() {
                Ok(values) => values,
                Err(Error::Stopped) => break,
                Err(error) => return Err(self.broken_off(error, &mut writer)),
            };
            if let Some(plan) = self.plan.take() {
                let reported = plan.compare(&values, started.elapsed().as_secs_f64()).report(&self.out);
                self.tolerate(reported)?;
            }
            self.warn_of_silent_rewards(&values);
            self.warn_of_ceiling(&values);
            self.trainer.state.seconds = before + begun.elapsed().as_secs_f64() - paused;
            let update = self.trainer.state.update;
            if let Some(progress) = &mut self.progress {
                progress.advance(update, headline(&values));
            }
            let looked = Instant::now();
            self.unwritten.push(Record { update, seconds: self.trainer.state.seconds, values });
            let written = self.write(&mut writer);
            self.tolerate(written)?;
            if update.is_multiple_of(self.trainer.config.checkpoint.every) {
                // The log reaches the disk before the checkpoint that says it is there.
                let saved = writer.sync().and_then(|()| self.save());
                self.tolerate(saved)?;
            }
            if update < updates && self.owes_evaluation() {
                after = self.observe(observer, false)?;
            }
            paused += looked.elapsed().as_secs_f64();
        }
        let written = self.write(&mut writer);
        self.save()?;
        written?;
        let finished = !stop.is_raised();
        if finished {
            self.observe(observer, true)?;
        }
        Ok(Outcome { updates: self.trainer.state.update, finished, seconds: self.trainer.state.seconds })
    }

    /// Says once of each reward that has stopped to tell samples apart.
    fn warn_of_silent_rewards(&mut self, values: &Values) {
        for (reward, share) in self.trainer.rewards.all.iter().zip(&self.trainer.rewards.shares) {
            let dead = values.get(&format!("reward/{}/dead_groups", reward.name)).is_some_and(|&dead| dead == 1.0);
            if !dead {
                self.silent.remove(&reward.name);
            } else if share.weight > 0.0 && self.silent.insert(reward.name.clone()) {
                tracing::warn!(
                    "update {}: reward `{}` gives every sample of a prompt the same score: it teaches nothing",
                    self.trainer.state.update,
                    reward.name
                );
            }
        }
    }

    /// Says once that a loss of rewards has reached its ceiling for all samples.
    fn warn_of_ceiling(&mut self, values: &Values) {
        let reached = values.get("reward_backprop/at_ceiling").is_some_and(|&share| share == 1.0);
        if reached && self.silent.insert("objective.reward_backprop".to_owned()) {
            tracing::warn!(
                "update {}: every sample scores above objective.reward_backprop.ceiling, so that it pulls no more",
                self.trainer.state.update
            );
        }
    }

    /// Saves what an update left that a plugin broke off, or keeps the batch of one that was not finite. The error, in any
    /// case.
    fn broken_off(&mut self, error: Error, writer: &mut Writer) -> Error {
        if matches!(error, Error::NotFinite { .. }) {
            return failure::keep(&mut self.trainer, error, &self.out);
        }
        let update = self.trainer.state.update;
        if !self.trainer.is_whole() {
            tracing::warn!("update {update} broke off within a phase: `--resume` goes on from the newest checkpoint");
            return error;
        }
        match self.write(writer).and_then(|()| self.save()) {
            Ok(()) => tracing::info!("saved at update {update}: `--resume` goes on from there"),
            Err(failed) => tracing::error!("not saved at update {update}: {}", failed.in_one_line()),
        }
        error
    }

    /// Whether an evaluation is due at this update; the observer knows whether it was made.
    fn owes_evaluation(&self) -> bool {
        let every = self.trainer.config.eval.every;
        let update = self.trainer.state.update;
        if every == 0 { self.trainer.is_untrained() } else { update.is_multiple_of(every) }
    }

    /// What is left of the critic's warm-up; a stop in the middle is saved like any other.
    fn warm_up(&mut self, stop: interrupt::Flag) -> Result<()> {
        if self.trainer.cold() == 0 {
            return Ok(());
        }
        self.meanwhile("warming up the critic");
        while self.trainer.cold() > 0 && !stop.is_raised() {
            self.trainer.warm_up().map_err(|error| failure::keep(&mut self.trainer, error, &self.out))?;
        }
        self.meanwhile("");
        Ok(())
    }

    /// Lets the observer look at the averaged student.
    fn observe(&mut self, observer: &mut dyn Observer, last: bool) -> Result<After> {
        self.meanwhile("evaluating");
        self.trainer.swap_averages()?;
        let looked = observer.look(&mut self.trainer, &self.out, last);
        self.trainer.swap_averages()?;
        self.meanwhile("");
        let error = match looked {
            Ok(after) => return Ok(after),
            // Whoever asked for it sees the flag himself.
            Err(Error::Stopped) => return Ok(After::GoOn),
            Err(error) => error,
        };
        // What was trained is not lost with a picture of it.
        let saved = self.save();
        if matches!(error, Error::File { .. }) && !last {
            return self.tolerate(Err(error)).map(|()| After::GoOn);
        }
        saved?;
        tracing::info!("saved at update {}: `--resume` goes on from there", self.trainer.state.update);
        Err(error)
    }

    fn meanwhile(&mut self, activity: &str) {
        if let Some(progress) = &mut self.progress {
            progress.meanwhile(activity);
        }
    }

    /// Writes what is still to be written of the metrics.
    fn write(&mut self, writer: &mut Writer) -> Result<()> {
        while let Some(record) = self.unwritten.first() {
            writer.append(record)?;
            self.unwritten.remove(0);
        }
        Ok(())
    }

    /// Writes a checkpoint, unless this very one is there already.
    fn save(&mut self) -> Result<()> {
        let parts = self.trainer.parts();
        let Trainer { state, identity, config, .. } = &self.trainer;
        let now = (state.update, state.warmed_up);
        if self.saved != Some(now) {
            if let Some((part, name)) = checkpoint::first_not_finite(&parts) {
                let update = state.update;
                return Err(Error::failed(format!(
                    "update {update}: {part}: {name} is not finite, so that this is not saved; what was saved before is whole, \
                     a lower learning rate may help"
                )));
            }
            checkpoint::save(&self.out, state, identity, &parts, config.checkpoint.keep_last)?;
            self.saved = Some(now);
        }
        Ok(())
    }

    /// An error of the disk in the middle of a run: ends it, or is a warning, as configured.
    fn tolerate(&self, written: Result<()>) -> Result<()> {
        match written {
            Err(error) if self.trainer.config.checkpoint.on_error == OnSaveError::Continue => {
                let update = self.trainer.state.update;
                tracing::error!("not saved at update {update}, going on: {}", error.in_one_line());
                Ok(())
            }
            other => other,
        }
    }
}
