//! A run from its first update to its last: state in memory, order of work, saving.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use advdmd_nn::load_parameters;
use advdmd_nn::optim::{AdamW, Ema, clip_grad_norm};
use advdmd_sdk::BackboneInit;
use tch::Tensor;

use super::checkpoint::{self, Parts, State};
use super::critic::{Critic, CriticContext};
use super::metrics::Meter;
use super::networks::Networks;
use super::rewards::Rewards;
use super::rollout::{Rollout, rollout};
use super::student::{StudentContext, accumulate};
use super::watch::Watch;
use crate::config::{Optimizer, Resolved, RunConfig};
use crate::data::{self, Dataset};
use crate::metrics::{Record, Writer};
use crate::objective::advantage;
use crate::pretrain::adamw;
use crate::progress::{Progress, headline};
use crate::prompts::PromptTable;
use crate::random::{Random, Stream};
use crate::registry::Registry;
use crate::sampling::Trajectory;
use crate::{Error, Result, device, files, interrupt};

/// How a run is started.
#[derive(Debug, Clone)]
pub struct TrainOptions {
    /// The run's folder.
    pub out: PathBuf,
    /// Go on from the newest checkpoint in `out`.
    pub resume: bool,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Student updates done.
    pub updates: u64,
    /// Whether all updates were done, or the time limit was reached; false after Ctrl-C.
    pub finished: bool,
    /// Seconds of training.
    pub seconds: f64,
}

/// The numbers of an update, by name.
pub type Values = BTreeMap<String, f64>;

/// Everything of a run that lives in memory.
pub struct Trainer {
    /// The configuration.
    pub config: RunConfig,
    /// Teacher, student and fake network.
    pub networks: Networks,
    /// Embedded prompts.
    pub table: PromptTable,
    /// Prompts and real images.
    pub data: Box<dyn Dataset>,
    /// The student's trajectory.
    pub trajectory: Trajectory,
    /// The rewards.
    pub rewards: Rewards,
    /// The run's randomness.
    pub random: Random,
    /// Counters.
    pub state: State,
    critic: Critic,
    optimizer: AdamW,
    ema: Ema,
}

/// Trains a run to its end, writing metrics, evaluations, samples and checkpoints to its folder.
///
/// # Errors
/// A configuration, plugin or disk error; a loss that is not finite. What was saved before stays.
pub fn run(mut resolved: Resolved<RunConfig>, options: &TrainOptions) -> Result<Outcome> {
    let registry = Registry::discover(&resolved.config.plugins.paths)?;
    registry.resolve(&mut resolved)?;
    let mut trainer = Trainer::new(&resolved, &registry)?;
    let out = &options.out;
    let newest = checkpoint::latest(out)?;
    match newest {
        Some(checkpoint) if options.resume => {
            trainer.load(&checkpoint)?;
            tracing::info!("resumed at update {} from {}", trainer.state.update, checkpoint.display());
        }
        Some(_) => {
            let hint = "`--resume` goes on with it; another `--out` starts a new one".to_owned();
            return Err(Error::usage(format!("{} holds a run already", out.display()), Some(hint)));
        }
        None => {
            files::create_dir(out)?;
            // A run that was stopped before its first checkpoint left these behind.
            for log in ["metrics.jsonl", "eval.jsonl"] {
                files::remove(&out.join(log))?;
            }
            files::write(&out.join("config.toml"), resolved.toml.as_bytes())?;
            registry.write_manifest(&out.join("run.json"), &resolved)?;
        }
    }
    let mut watch = Watch::new(&trainer.config, &registry, out, trainer.state.update)?;
    trainer.train(out, &mut watch)
}

/// What looks on while a run trains: evaluation, sample grids, the report.
pub trait Observer {
    /// Called before the first update, after every `eval.every` updates and after the last, with the averaged weights
    /// in the student's place.
    ///
    /// # Errors
    /// Whatever keeps it from looking; the run saves and stops.
    fn look(&mut self, trainer: &Trainer, out: &Path, last: bool) -> Result<()>;
}

impl Trainer {
    /// Loads the backbone and makes everything that a run needs, at update 0.
    ///
    /// # Errors
    /// Configuration and plugin errors.
    pub fn new(resolved: &Resolved<RunConfig>, registry: &Registry) -> Result<Self> {
        let config = resolved.config.clone();
        let device = device::select(&config.compute)?;
        let random = Random::new(config.seed);
        let init = BackboneInit { device: device::sdk(device), dtype: config.compute.dtype, seed: config.seed };
        let backbone = registry.backbone(&config.backbone, &init)?;
        let networks = Networks::new(backbone, &config, random, device)?;
        let data = data::open(&config.data)?;
        let prompts: Vec<&str> = data.prompts().iter().map(String::as_str).collect();
        let table = PromptTable::new(networks.backbone.as_ref(), &prompts)?;
        let sampler = registry.sampler(&config.sampler.component)?;
        let trajectory = Trajectory::new(sampler.as_ref(), config.sampler.steps, config.sampler.sigmas.as_deref())?;
        let mut rewards = Rewards::new(&config, registry, &networks, random)?;
        let learners = rewards.all.iter_mut().map(|reward| {
            let learner = reward.reward.learner();
            learner
                .map(|learner| AdamW::new(&learner.parameters(), adamw(&config.critic.learner_optimizer)))
                .transpose()
        });
        let learners = learners.collect::<Result<_, _>>()?;
        let student = networks.student.parameters();
        Ok(Self {
            critic: Critic {
                fake: AdamW::new(&networks.fake.parameters(), adamw(&config.critic.optimizer))?,
                learners,
            },
            optimizer: AdamW::new(&student, adamw(&config.student.optimizer))?,
            ema: Ema::new(&student, config.student.ema_decay)?,
            state: State { config_hash: resolved.hash.clone(), ..State::default() },
            config,
            networks,
            table,
            data,
            trajectory,
            rewards,
            random,
        })
    }

    fn train(&mut self, out: &Path, observer: &mut dyn Observer) -> Result<Outcome> {
        let stop = interrupt::flag()?;
        let metrics = out.join("metrics.jsonl");
        let mut writer = Writer::open(&metrics, self.state.update)?;
        let updates = self.config.schedule.updates;
        let mut progress = Progress::new("training", self.state.update, updates);
        if self.state.update == 0 {
            self.observe(observer, out, false, &mut progress)?;
            progress.meanwhile("warming up the critic");
            self.warm_up(stop)?;
            progress.meanwhile("");
            if stop.is_raised() {
                // A half warmed-up critic is not worth a checkpoint: a resumed run begins anew.
                return Ok(Outcome { updates: 0, finished: false, seconds: 0.0 });
            }
        }
        let begun = Instant::now();
        let before = self.state.seconds;
        let mut paused = 0.0;
        let limit = self.config.schedule.max_minutes.map_or(f64::INFINITY, |minutes| minutes * 60.0);
        while self.state.update < updates && self.state.seconds < limit && !stop.is_raised() {
            let values = self.update()?;
            self.state.seconds = before + begun.elapsed().as_secs_f64() - paused;
            let update = self.state.update;
            progress.advance(update, headline(&values));
            writer.append(&Record { update, seconds: self.state.seconds, values })?;
            let looked = Instant::now();
            if update.is_multiple_of(self.config.checkpoint.every) {
                self.save(out)?;
            }
            let every = self.config.eval.every;
            if every > 0 && update.is_multiple_of(every) && update < updates {
                self.observe(observer, out, false, &mut progress)?;
            }
            paused += looked.elapsed().as_secs_f64();
        }
        self.save(out)?;
        let finished = !stop.is_raised();
        if finished {
            self.observe(observer, out, true, &mut progress)?;
        }
        Ok(Outcome { updates: self.state.update, finished, seconds: self.state.seconds })
    }

    /// Lets the observer look at the averaged student.
    fn observe(&mut self, observer: &mut dyn Observer, out: &Path, last: bool, progress: &mut Progress) -> Result<()> {
        progress.meanwhile("evaluating");
        self.ema.swap()?;
        let looked = observer.look(self, out, last);
        self.ema.swap()?;
        progress.meanwhile("");
        looked
    }

    /// Critic updates before the first student update: a fresh discriminator has no opinion worth following.
    fn warm_up(&mut self, stop: interrupt::Flag) -> Result<()> {
        let mut done = 0;
        while done < self.config.critic.warmup && !stop.is_raised() {
            // A key far above any update keeps these rollouts apart from the run's own.
            let rollout = self.roll(u64::MAX - done as u64)?;
            let updates = self.config.critic.updates.min(self.config.critic.warmup - done);
            let mut meter = Meter::default();
            self.train_critic(&rollout, updates, &mut meter)?;
            self.observe_accuracy(&meter.read()?);
            done += updates;
        }
        Ok(())
    }

    /// One update: rollout, critic, rewards, student. Returns its numbers.
    ///
    /// # Errors
    /// A plugin's, or a loss or gradient that is not finite.
    pub fn update(&mut self) -> Result<Values> {
        let mut meter = Meter::default();
        let mut clock = Clock::start();
        let rollout = self.roll(self.state.update)?;
        clock.lap("rollout", &mut meter);
        self.train_critic(&rollout, self.config.critic.updates, &mut meter)?;
        clock.lap("critic", &mut meter);
        let advantages = self.advantages(&rollout, &mut meter)?;
        clock.lap("reward", &mut meter);
        self.train_student(&rollout, &advantages, &mut meter)?;
        clock.lap("student", &mut meter);
        self.state.update += 1;
        let values = self.finish(meter)?;
        self.observe_accuracy(&values);
        Ok(values)
    }

    /// The trajectories of an update's prompts, groups side by side.
    ///
    /// # Errors
    /// The backbone's.
    pub fn roll(&self, update: u64) -> Result<Rollout> {
        let batch = &self.config.batch;
        let mut prompts = Vec::with_capacity(batch.groups * batch.group_size);
        for group in 0..batch.groups {
            let mut rng = self.random.rng(Stream::Prompts, [update, group as u64, 0]);
            let prompt = self.data.draw(&mut rng);
            prompts.extend(std::iter::repeat_n(prompt, batch.group_size));
        }
        rollout(&self.networks, &self.table, &self.trajectory, &prompts, batch.micro_batch, self.random, update)
    }

    fn train_critic(&mut self, rollout: &Rollout, updates: usize, meter: &mut Meter) -> Result<()> {
        self.networks.train_fake(true);
        let settings = &self.config.critic;
        for _ in 0..updates {
            let number = self.state.critic_updates;
            self.critic.fake.set_lr(warmed(&settings.optimizer, number));
            for optimizer in self.critic.learners.iter_mut().flatten() {
                optimizer.set_lr(warmed(&settings.learner_optimizer, number));
            }
            let context = CriticContext {
                networks: &self.networks,
                trajectory: &self.trajectory,
                data: self.data.as_ref(),
                config: &self.config,
                random: self.random,
            };
            self.critic.update(&context, &mut self.rewards, rollout, number, meter)?;
            self.state.critic_updates += 1;
        }
        self.networks.train_fake(false);
        Ok(())
    }

    /// Advantage `[B]` of each step of the trajectory whose policy gradient is on.
    fn advantages(&mut self, rollout: &Rollout, meter: &mut Meter) -> Result<Vec<Option<Tensor>>> {
        let settings = &self.config.objective.grpo;
        if settings.weight == 0.0 || self.rewards.all.is_empty() {
            return Ok(Vec::new());
        }
        let scores = self.rewards.score(&self.networks, &self.trajectory, rollout, self.data.prompts())?;
        let actions: Vec<usize> = self.trajectory.stochastic().collect();
        for (reward, scores) in self.rewards.all.iter().zip(&scores) {
            for (column, step) in actions.iter().enumerate() {
                let scores = scores.select(1, column as i64);
                meter.add(&format!("reward/{}/step{step}/mean", reward.name), &scores.mean(tch::Kind::Float), 1.0);
                meter.add(&format!("reward/{}/step{step}/std", reward.name), &scores.std(false), 1.0);
            }
        }
        let batch = &self.config.batch;
        let shape = [batch.groups as i64, batch.group_size as i64, actions.len() as i64];
        let weighted: Vec<(Tensor, f64)> =
            scores.iter().zip(&self.rewards.all).map(|(scores, reward)| (scores.view(shape), reward.weight)).collect();
        let advantages = advantage::combine(&weighted, settings.std_floor)?;
        meter.add("advantage/std", &advantages.values.std(false), 1.0);
        meter.add("advantage/dead_groups", &advantages.dead_share, 1.0);
        let flat = advantages.values.view([-1, actions.len() as i64]).to_device(self.networks.device);
        let learns = self.rewards.learns();
        let mut by_step: Vec<Option<Tensor>> = (0..self.trajectory.steps()).map(|_| None).collect();
        for (column, &step) in actions.iter().enumerate() {
            let open = self.state.gate.is_open(settings, self.state.update, step, learns);
            meter.set(&format!("grpo/gate/step{step}"), f64::from(u8::from(open)));
            if open {
                by_step[step] = Some(flat.select(1, column as i64));
            }
        }
        Ok(by_step)
    }

    fn train_student(&mut self, rollout: &Rollout, advantages: &[Option<Tensor>], meter: &mut Meter) -> Result<()> {
        let settings = &self.config.student.optimizer;
        let lr = warmed(settings, self.state.update);
        self.optimizer.gradients().drop_all()?;
        let context = StudentContext {
            networks: &self.networks,
            trajectory: &self.trajectory,
            prompts: self.data.prompts(),
            config: &self.config,
            random: self.random,
            update: self.state.update,
            advantages,
        };
        accumulate(&context, &mut self.rewards, rollout, meter)?;
        meter.add("student/grad_norm", &clip_grad_norm(&self.networks.student.parameters(), settings.clip_norm)?, 1.0);
        meter.set("student/lr", lr);
        self.optimizer.set_lr(lr);
        self.optimizer.step()?;
        Ok(self.ema.update()?)
    }

    /// Feeds the gate with the learners' mean accuracy at each step.
    fn observe_accuracy(&mut self, values: &Values) {
        for step in 0..self.trajectory.steps() {
            let suffix = format!("/accuracy/step{step}");
            let measured: Vec<f64> =
                values.iter().filter(|(name, _)| name.ends_with(&suffix)).map(|(_, &value)| value).collect();
            if !measured.is_empty() {
                self.state.gate.observe(step, measured.iter().sum::<f64>() / measured.len() as f64);
            }
        }
    }

    /// Reads the numbers of an update and refuses what is not finite.
    fn finish(&self, meter: Meter) -> Result<Values> {
        let mut values = meter.read()?;
        self.networks.passes.record_into(&mut values);
        let bad = values
            .iter()
            .find(|(name, value)| !value.is_finite() && (name.ends_with("/loss") || name.ends_with("grad_norm")));
        if let Some((name, value)) = bad {
            return Err(Error::failed(format!(
                "update {}: {name} is {value}; the last checkpoint is whole, a lower learning rate or weight may help",
                self.state.update
            )));
        }
        Ok(values)
    }

    fn save(&mut self, out: &Path) -> Result<()> {
        let mut parts: Parts = [
            ("student".to_owned(), checkpoint::part(&self.networks.student.parameters())),
            ("student.optimizer".to_owned(), self.optimizer.state()),
            ("student.ema".to_owned(), self.ema.state()),
            ("fake".to_owned(), checkpoint::part(&self.networks.fake.parameters())),
            ("fake.optimizer".to_owned(), self.critic.fake.state()),
        ]
        .into();
        for (reward, optimizer) in self.rewards.all.iter_mut().zip(&self.critic.learners) {
            if let Some((learner, optimizer)) = reward.reward.learner().zip(optimizer.as_ref()) {
                parts.insert(format!("reward.{}", reward.name), checkpoint::part(&learner.parameters()));
                parts.insert(format!("reward.{}.optimizer", reward.name), optimizer.state());
            }
        }
        self.state.passes = self.networks.passes.counts();
        checkpoint::save(out, &self.state, &parts, self.config.checkpoint.keep_last)?;
        Ok(())
    }

    fn load(&mut self, from: &Path) -> Result<()> {
        let state = checkpoint::state(from)?;
        if state.config_hash != self.state.config_hash {
            return Err(Error::config(format!(
                "{} was written under another configuration: compare with `advdmd config diff {}/config.toml <yours>`",
                from.display(),
                from.parent().and_then(Path::parent).unwrap_or(from).display()
            )));
        }
        let device = self.networks.device;
        let read = |part: &str| checkpoint::read(from, part, device);
        load_parameters(&self.networks.student.parameters(), &read("student")?)?;
        self.optimizer.load_state(&read("student.optimizer")?)?;
        self.ema.load_state(&read("student.ema")?)?;
        load_parameters(&self.networks.fake.parameters(), &read("fake")?)?;
        self.critic.fake.load_state(&read("fake.optimizer")?)?;
        for (reward, optimizer) in self.rewards.all.iter_mut().zip(&mut self.critic.learners) {
            if let Some((learner, optimizer)) = reward.reward.learner().zip(optimizer.as_mut()) {
                load_parameters(&learner.parameters(), &read(&format!("reward.{}", reward.name))?)?;
                optimizer.load_state(&read(&format!("reward.{}.optimizer", reward.name))?)?;
            }
        }
        self.networks.passes.restore(state.passes);
        self.state = state;
        Ok(())
    }
}

/// The learning rate of a step: linear from 0 over the warm-up.
fn warmed(optimizer: &Optimizer, step: u64) -> f64 {
    optimizer.lr * ((step + 1) as f64 / optimizer.warmup.max(1) as f64).min(1.0)
}

/// Wall time of the phases of an update.
struct Clock(Instant);

impl Clock {
    fn start() -> Self {
        Self(Instant::now())
    }

    fn lap(&mut self, phase: &str, meter: &mut Meter) {
        meter.set(&format!("time/{phase}"), self.0.elapsed().as_secs_f64());
        self.0 = Instant::now();
    }
}
