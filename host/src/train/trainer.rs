//! Everything of a run that lives in memory, and one update of it.

use std::collections::BTreeMap;
use std::time::Instant;

use advdmd_nn::memory;
use advdmd_nn::optim::{AdamW, Ema, clip_grad_norm};
use advdmd_sdk::BackboneInit;

use super::advantages::StepAdvantage;
use super::checkpoint::{self, Identity, State};
use super::critic::{Critic, CriticContext};
use super::drift::containment_keys;
use super::guard::Guard;
use super::inspection::Inspection;
use super::material::Material;
use super::metrics::Meter;
use super::networks::Networks;
use super::resident::{Ledger, Resident};
use super::rewards::{self, ActiveReward, Rewards};
use super::rollout::{Rollout, rollout};
use super::scoring::{Pending, Scores, Subject, check_finite};
use super::student::{StudentContext, accumulate};
use crate::config::{Optimizer, Resolved, RunConfig};
use crate::data::{Dataset, Scope};
use crate::metrics::DIVERSITY;
use crate::passes::PassCounts;
use crate::pretrain::adamw;
use crate::prompts::PromptTable;
use crate::random::{Random, Stream};
use crate::registry::Registry;
use crate::sampling::Trajectory;
use crate::{Error, Result, device};

/// The numbers of an update, by name.
pub type Values = BTreeMap<String, f64>;

/// Everything of a run that lives in memory.
pub struct Trainer {
    /// The configuration.
    pub config: RunConfig,
    /// What the run is made with.
    pub identity: Identity,
    /// Teacher, student and fake network.
    pub networks: Networks,
    /// Embedded prompts.
    pub table: PromptTable,
    /// Prompts and real images.
    pub data: Box<dyn Dataset>,
    /// Prompts of the sample grid with their ids in the table; none for digit scenes, whose suite has its own.
    pub shown: Vec<(String, usize)>,
    /// Bytes of latents and embeddings on disk, once all are encoded.
    pub cache_bytes: u64,
    /// The student's trajectory.
    pub trajectory: Trajectory,
    /// The rewards.
    pub rewards: Rewards,
    /// Rewards that score evaluations alone.
    pub held_out: Vec<ActiveReward>,
    /// The run's randomness.
    pub random: Random,
    /// Counters.
    pub state: State,
    /// What it holds in memory all the time.
    pub resident: Resident,
    pub(super) critic: Critic,
    pub(super) optimizer: AdamW,
    pub(super) ema: Ema,
    guard: Guard,
    /// The batch of an update that went wrong, and the counters before it.
    failed: Option<(State, Rollout)>,
    /// Passes before and after the critic's part of the newest update.
    critic_passes: [PassCounts; 2],
    /// Whether a phase of an update is half done.
    half_done: bool,
}

impl Trainer {
    /// Loads the backbone and makes everything that a run needs, at update 0.
    ///
    /// # Errors
    /// Configuration and plugin errors.
    pub fn new(resolved: &Resolved<RunConfig>, registry: &Registry) -> Result<Self> {
        Self::with_data(resolved, registry, Scope::All)
    }

    /// The same with a few images and prompts of a set of files, to see what a run would cost: it can be probed, and is
    /// not to be trained.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    pub fn sketch(resolved: &Resolved<RunConfig>, registry: &Registry) -> Result<Self> {
        Self::with_data(resolved, registry, Scope::Sample)
    }

    fn with_data(resolved: &Resolved<RunConfig>, registry: &Registry, scope: Scope) -> Result<Self> {
        let config = resolved.config.clone();
        let device = device::select(&config.compute)?;
        let mut ledger = Ledger::begin(device);
        let random = Random::new(config.seed);
        let init = BackboneInit { device: device::sdk(device), dtype: config.compute.dtype, seed: config.seed };
        let backbone = registry.backbone(&config.backbone, &init)?;
        ledger.book("base");
        let mut made_with = registry.run_manifest(resolved, backbone.sources()?.as_ref())?;
        let Material { data, table, shown, cache_bytes } =
            Material::of_run(&config, &mut made_with, backbone.as_ref(), device, scope)?;
        ledger.book("embedded prompts");
        let identity = Identity {
            made_with,
            config: serde_json::to_value(&config).map_err(Error::failed)?,
            free: registry.free_keys(&config)?.into_iter().chain(containment_keys(config.reward.len())).collect(),
        };
        let networks = Networks::new(backbone, &config, random, device, &mut ledger)?;
        let sampler = registry.sampler(&config.sampler.component)?;
        let trajectory = Trajectory::new(sampler.as_ref(), config.sampler.steps, config.sampler.sigmas.as_deref())?;
        let weight = config.objective.grpo.weight;
        if weight > 0.0 && !config.reward.is_empty() && trajectory.stochastic().next().is_none() {
            let sampler = &config.sampler.component.r#type;
            let message = format!(
                "`objective.grpo.weight` is {weight}, and {} step(s) of sampler `{sampler}` draw no noise: the policy has no \
                 action whose probability could change",
                trajectory.steps()
            );
            let hint =
                "set objective.grpo.weight = 0, or take an `sde-` sampler with noise and 2 steps or more".to_owned();
            return Err(Error::usage(message, hint));
        }
        let mut rewards = Rewards::new(&config, registry, &networks, random)?;
        ledger.book("rewards");
        let held_out = rewards::held_out(&config, registry, &networks, random)?;
        ledger.book("held-out rewards");
        let learners = rewards.all.iter_mut().map(|reward| {
            if !reward.learns {
                return Ok(None);
            }
            AdamW::new(&reward.parameters(), adamw(&config.critic.learner_optimizer)).map(Some)
        });
        let learners = learners.collect::<Result<_, _>>()?;
        ledger.book("moments of rewards");
        let student = networks.student.parameters();
        let critic =
            Critic { fake: AdamW::new(&networks.fake.parameters(), adamw(&config.critic.optimizer))?, learners };
        let optimizer = AdamW::new(&student, adamw(&config.student.optimizer))?;
        ledger.book("moments of networks");
        let ema = Ema::new(&student, config.student.ema_decay)?;
        ledger.book("averaged student");
        Ok(Self {
            critic,
            optimizer,
            ema,
            resident: ledger.close(),
            guard: Guard::new(device)?,
            state: State::default(),
            failed: None,
            critic_passes: [PassCounts::default(); 2],
            half_done: false,
            identity,
            config,
            networks,
            table,
            data,
            shown,
            cache_bytes,
            trajectory,
            rewards,
            held_out,
            random,
        })
    }

    /// Whether nothing has been trained yet, the critic's warm-up included.
    pub fn is_untrained(&self) -> bool {
        self.state.update == 0 && self.state.warmed_up == 0
    }

    /// Critic updates of the warm-up that are still to be done.
    pub fn cold(&self) -> u64 {
        (self.config.critic.warmup as u64).saturating_sub(self.state.warmed_up)
    }

    /// Critic updates before the first student update, at most `critic.updates` of them on one rollout: a fresh
    /// discriminator has no opinion worth following.
    ///
    /// # Errors
    /// As [`Trainer::update`].
    pub fn warm_up(&mut self) -> Result<()> {
        // A key far above any update keeps these rollouts apart from the run's own.
        let rollout = self.roll(u64::MAX - self.state.warmed_up)?;
        let updates = self.cold().min(self.config.critic.updates as u64);
        let before = self.state.clone();
        let mut meter = Meter::default();
        self.guard = Guard::new(self.networks.device)?;
        self.train_critic(&rollout, updates, &mut meter)?;
        self.state.warmed_up += updates;
        let values = meter.read()?;
        if let Some((name, value)) = not_finite(&values) {
            return Err(self.failure(format!("{name} of the warm-up"), value, before, rollout));
        }
        self.observe_accuracy(&values);
        Ok(())
    }

    /// One update: rollout, critic, rewards, student. Returns its numbers.
    ///
    /// A loss or gradient that is not finite moves nothing from there on; [`Trainer::failed`] then holds the batch.
    ///
    /// # Errors
    /// A plugin's, or a loss, gradient or score that is not finite.
    pub fn update(&mut self) -> Result<Values> {
        let before = self.state.clone();
        let device = self.networks.device;
        // A device that cannot be counted has no `memory/peak`.
        let counted = memory::reset_peak(device).is_ok();
        self.guard = Guard::new(device)?;
        let mut meter = Meter::default();
        let mut clock = Clock::start();
        let begun = self.networks.passes.counts();
        self.critic_passes = [begun; 2];
        let rollout = self.roll(self.state.update)?;
        clock.lap("rollout", &mut meter);
        let learned = self.learn(&rollout, &mut clock, &mut meter);
        let learned = match learned {
            // What a plugin says of NaN is a consequence; the guard knows the cause.
            Err(error) if !self.guard.has_tripped() => {
                if !rollout.is_finite() {
                    return Err(self.failure("a state of the rollout".to_owned(), f64::NAN, before, rollout));
                }
                match meter.read() {
                    Ok(values) => self.keep_critic(values, begun),
                    Err(error) => tracing::warn!("what the critic measured is lost: {}", error.in_one_line()),
                }
                return Err(error);
            }
            learned => learned,
        };
        let mut values = meter.read()?;
        for (name, value) in self.state.unfinished.iter().flatten() {
            values.entry(name.clone()).or_insert(*value);
        }
        values.insert("time/other".to_owned(), clock.seconds());
        self.networks.passes.record_into(&mut values);
        if counted {
            values.insert("memory/peak".to_owned(), memory::read(device)?.peak as f64);
        }
        if let Some((name, value)) = not_finite(&values) {
            // A reward is to blame only for what was finite when it got it.
            if let Ok(scores) = &learned
                && rollout.is_finite()
                && checkpoint::first_not_finite(&self.parameters()).is_none()
            {
                let checked = self.check_scores(scores, &rollout);
                if checked.is_err() {
                    self.optimizer.uncount();
                    self.ema.uncount();
                    self.keep_critic(values, begun);
                    return checked.map(|()| Values::new());
                }
            }
            return Err(self.failure(name, value, before, rollout));
        }
        learned?;
        self.state.unfinished = None;
        self.state.update += 1;
        self.observe_accuracy(&values);
        Ok(values)
    }

    /// After an update that broke off behind the critic: keeps what the critic measured, so that the update goes on from
    /// there. The student has not moved. What will be done again is not counted: `begun` are the passes before the update.
    fn keep_critic(&mut self, measured: Values, begun: PassCounts) {
        if let Err(error) = self.drop_gradients() {
            tracing::warn!("gradients of the update that broke off stay in memory: {}", error.in_one_line());
        }
        let [before, after] = self.critic_passes;
        self.networks.passes.restore(begun.plus(before, after));
        if self.state.unfinished.is_none() && !self.half_done && before != after {
            let critic = measured.into_iter().filter(|(name, _)| name.starts_with("critic/"));
            self.state.unfinished = Some(critic.collect());
        }
    }

    /// Whether the run can go on from here as if nothing had happened: no phase of an update is half done.
    pub fn is_whole(&self) -> bool {
        !self.half_done
    }

    /// Critic, rewards and student on one rollout. Returns the scores.
    fn learn(&mut self, rollout: &Rollout, clock: &mut Clock, meter: &mut Meter) -> Result<Scores> {
        meter.add(DIVERSITY, &rollout.diversity(self.config.batch.group_size)?, 1.0);
        let pending = self.begin_scoring(rollout)?;
        clock.lap("reward", meter);
        self.critic_passes = [self.networks.passes.counts(); 2];
        if self.state.unfinished.is_none() {
            self.train_critic(rollout, self.config.critic.updates as u64, meter)?;
            self.critic_passes[1] = self.networks.passes.counts();
        } else {
            self.networks.train_fake(false);
        }
        clock.lap("critic", meter);
        let mut scores = self.finish_scoring(rollout, pending)?;
        self.record_dropped(&scores, meter);
        let advantages = self.advantages(&mut scores, meter)?;
        clock.lap("reward", meter);
        self.accumulate_student(rollout, &advantages, meter)?;
        clock.lap("student", meter);
        self.step_student(meter)?;
        clock.lap("optimizer", meter);
        Ok(scores)
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

    fn train_critic(&mut self, rollout: &Rollout, updates: u64, meter: &mut Meter) -> Result<()> {
        self.networks.train_fake(true);
        self.half_done = true;
        for _ in 0..updates {
            let (number, settings) = (self.state.critic_updates, &self.config.critic);
            self.critic.fake.set_lr(warmed(&settings.optimizer, number));
            for optimizer in self.critic.learners.iter_mut().flatten() {
                optimizer.set_lr(warmed(&settings.learner_optimizer, number));
            }
            self.accumulate_critic(rollout, number, meter)?;
            let settings = &self.config.critic;
            self.critic.step(&self.networks, settings, &mut self.rewards, &mut self.guard, meter)?;
            self.state.critic_updates += 1;
        }
        self.half_done = false;
        self.networks.train_fake(false);
        Ok(())
    }

    /// Begins to score a rollout; `None` where no policy gradient reads the scores.
    fn begin_scoring(&mut self, rollout: &Rollout) -> Result<Option<Pending>> {
        if !self.scores_are_read() {
            return Ok(None);
        }
        let Self { networks, trajectory, data, config, .. } = self;
        let subject = Subject::new(networks, trajectory, rollout, data.as_ref(), &config.batch);
        self.rewards.begin(&subject).map(Some)
    }

    /// The scores of a rollout, as [`Rewards::finish`] gives them; none where nothing was begun.
    fn finish_scoring(&mut self, rollout: &Rollout, pending: Option<Pending>) -> Result<Scores> {
        let Some(pending) = pending else { return Ok(Scores::default()) };
        let Self { networks, trajectory, data, config, .. } = self;
        let subject = Subject::new(networks, trajectory, rollout, data.as_ref(), &config.batch);
        self.rewards.finish(&subject, pending)
    }

    /// The scores of a rollout, all at once.
    pub(super) fn score(&mut self, rollout: &Rollout) -> Result<Scores> {
        let pending = self.begin_scoring(rollout)?;
        self.finish_scoring(rollout, pending)
    }

    /// Refuses scores that are not finite, once they are known to matter.
    pub(super) fn check_scores(&self, scores: &Scores, rollout: &Rollout) -> Result<()> {
        let Self { networks, trajectory, data, config, .. } = self;
        let subject = Subject::new(networks, trajectory, rollout, data.as_ref(), &config.batch);
        check_finite(&self.rewards, &scores.values, &subject)
    }

    fn scores_are_read(&self) -> bool {
        self.config.objective.grpo.weight > 0.0 && !self.rewards.all.is_empty()
    }

    /// Adds the gradients of all objectives to the student's parameters.
    pub(super) fn accumulate_student(
        &mut self,
        rollout: &Rollout,
        advantages: &[Option<StepAdvantage>],
        meter: &mut Meter,
    ) -> Result<()> {
        let context = StudentContext {
            networks: &self.networks,
            trajectory: &self.trajectory,
            prompts: self.data.prompts(),
            config: &self.config,
            random: self.random,
            update: self.state.update,
            advantages,
        };
        accumulate(&context, &mut self.rewards, rollout, meter)
    }

    /// Clips the student's gradients, steps along them and moves the averages.
    fn step_student(&mut self, meter: &mut Meter) -> Result<()> {
        let settings = &self.config.student.optimizer;
        let lr = warmed(settings, self.state.update);
        let norm = clip_grad_norm(&self.networks.student.parameters(), settings.clip_norm)?;
        meter.add("student/grad_norm", &norm, 1.0);
        meter.set("student/lr", lr);
        self.guard.watch(&norm);
        self.optimizer.set_lr(lr);
        self.optimizer.step_unless(self.guard.tripped())?;
        // Freed at once: rollout and critic of the next update have use for the memory.
        self.optimizer.gradients().drop_all()?;
        Ok(self.ema.update_unless(self.guard.tripped())?)
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

    /// Exchanges the student's weights and their averages: once to look at the averaged student, once more to go on.
    ///
    /// # Errors
    /// libtorch's.
    pub fn swap_averages(&mut self) -> Result<()> {
        Ok(self.ema.swap()?)
    }

    /// Goes through an update on `rollout` without moving anything, and reads every tensor on the way. Critic updates that
    /// went well before the one that did not are repeated with the weights that they led to.
    ///
    /// # Errors
    /// A plugin's, unless a tensor before it explains it.
    pub fn inspect(&mut self, rollout: &Rollout) -> Result<Inspection> {
        self.drop_gradients()?;
        let mut meter = Meter::inspecting();
        meter.place(|| "the networks before the update".to_owned());
        meter.watch_parameters("student", &self.networks.student.parameters());
        meter.watch_parameters("fake network's", &self.networks.fake.parameters());
        for reward in &mut self.rewards.all {
            let parameters = reward.parameters();
            meter.watch_parameters(&reward.name, &parameters);
        }
        rollout.watch(&mut meter);
        let gone = self.accumulate_all(rollout, &mut meter);
        self.drop_gradients()?;
        let inspection = meter.into_inspection();
        match gone {
            Err(error) if inspection.first_bad().is_none() => Err(error),
            _ => Ok(inspection),
        }
    }

    /// The gradients of every phase of an update, without a step of any optimiser.
    fn accumulate_all(&mut self, rollout: &Rollout, meter: &mut Meter) -> Result<()> {
        let first = self.state.critic_updates;
        // The critic's part of an update that goes on behind it is done.
        let updates = if self.state.unfinished.is_some() { 0 } else { self.config.critic.updates as u64 };
        self.networks.train_fake(true);
        for number in first..first + updates {
            self.drop_gradients()?;
            self.accumulate_critic(rollout, number, meter)?;
            meter.watch_parameters("fake network's", &self.networks.fake.parameters());
            for reward in &mut self.rewards.all {
                let parameters = reward.parameters();
                meter.watch_parameters(&reward.name, &parameters);
            }
        }
        self.networks.train_fake(false);
        meter.place(|| "the rewards".to_owned());
        let mut scores = self.score(rollout)?;
        for (reward, scores) in self.rewards.all.iter().zip(&scores.values) {
            meter.watch(&format!("scores of {}", reward.name), scores);
        }
        let advantages = self.advantages(&mut scores, meter)?;
        self.accumulate_student(rollout, &advantages, meter)?;
        meter.watch_parameters("student", &self.networks.student.parameters());
        Ok(())
    }

    pub(super) fn accumulate_critic(&mut self, rollout: &Rollout, number: u64, meter: &mut Meter) -> Result<()> {
        let context = CriticContext {
            networks: &self.networks,
            trajectory: &self.trajectory,
            data: self.data.as_ref(),
            config: &self.config,
            random: self.random,
        };
        Critic::accumulate(&context, &mut self.rewards, rollout, number, meter)
    }

    pub(super) fn drop_gradients(&self) -> Result<()> {
        let optimizers = self.critic.learners.iter().flatten().chain([&self.critic.fake, &self.optimizer]);
        for optimizer in optimizers {
            optimizer.gradients().drop_all()?;
        }
        Ok(())
    }

    fn failure(&mut self, name: String, value: f64, before: State, rollout: Rollout) -> Error {
        let update = before.update;
        self.failed = Some((before, rollout));
        Error::NotFinite { update, name, value, finding: None, kept: None }
    }

    /// The batch of an update that was not finite, and the counters before it.
    pub fn failed(&mut self) -> Option<(State, Rollout)> {
        self.failed.take()
    }
}

/// The first loss, gradient norm or reward that is not finite.
fn not_finite(values: &Values) -> Option<(String, f64)> {
    let matters = |name: &str| name.ends_with("/loss") || name.ends_with("_loss") || name.ends_with("grad_norm");
    let bad = |(name, value): &(&String, &f64)| !value.is_finite() && (matters(name) || name.starts_with("reward"));
    values.iter().find(bad).map(|(name, value)| (name.clone(), *value))
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

    /// Seconds since the last lap.
    fn seconds(&self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }

    fn lap(&mut self, phase: &str, meter: &mut Meter) {
        meter.spend(&format!("time/{phase}"), self.seconds());
        self.0 = Instant::now();
    }
}
