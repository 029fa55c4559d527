//! What a JSON schema cannot say: ranges of single values, and values that must fit each other.

use std::collections::BTreeSet;

use advdmd_sdk::{DType, Tuning};

use super::pretrain::PretrainConfig;
use super::schema::{
    Batch, Checkpoint, Compute, Containment, Critic, Data, Isolation, Objectives, Optimizer, RewardBackprop,
    RewardSection, RunConfig,
};
use super::tree::KeyPath;
use crate::device;

/// A value that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key at fault.
    pub path: KeyPath,
    /// What was found and what was expected.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Rules of a training run.
pub fn of_run(config: &RunConfig) -> Vec<Problem> {
    let mut rules = Rules::default();
    rules.compute(&config.compute);
    rules.data(&config.data);
    rules.batch(&config.batch);
    rules.sampler(config);
    rules.tuning("student.tuning", &config.student.tuning);
    rules.optimizer("student.optimizer", &config.student.optimizer);
    rules.share("student.ema_decay", config.student.ema_decay);
    let (trained, steps) = (config.student.steps_per_update, config.sampler.steps);
    rules.expect(
        trained <= steps,
        "student.steps_per_update",
        trained,
        &format!("at most sampler.steps, which is {steps}"),
    );
    rules.critic(&config.critic);
    for (key, tuning) in [("student.tuning", &config.student.tuning), ("critic.tuning", &config.critic.tuning)] {
        rules.precision(key, tuning, config.compute.dtype);
    }
    rules.rewards(config);
    rules.objective(&config.objective, config);
    rules.expect(config.schedule.updates >= 1, "schedule.updates", config.schedule.updates, "1 or more");
    if let Some(minutes) = config.schedule.max_minutes {
        rules.positive("schedule.max_minutes", minutes);
    }
    rules.expect(config.eval.prompts_per_task >= 1, "eval.prompts_per_task", config.eval.prompts_per_task, "1 or more");
    rules.expect(config.eval.teacher_steps >= 1, "eval.teacher_steps", config.eval.teacher_steps, "1 or more");
    if config.eval.prompts.is_some() && config.data.images().is_none() {
        let hint = "leave it out: their prompts are drawn for each task";
        let message = "`eval.prompts`: digit scenes are evaluated on prompts of their own".to_owned();
        rules.problem("eval.prompts", message, Some(hint.into()));
    }
    rules.checkpoint(&config.checkpoint);
    rules.0
}

/// Rules of a pretraining run.
pub fn of_pretraining(config: &PretrainConfig) -> Vec<Problem> {
    let mut rules = Rules::default();
    rules.compute(&config.compute);
    rules.data(&config.data);
    rules.optimizer("optimizer", &config.optimizer);
    rules.precision("compute.dtype", &Tuning::Full, config.compute.dtype);
    rules.within("final_lr_share", config.final_lr_share);
    rules.expect(config.batch_size >= 1, "batch_size", config.batch_size, "1 or more");
    rules.expect(config.steps >= 1, "steps", config.steps, "1 or more");
    rules.within("null_prompt_share", config.null_prompt_share);
    rules.share("ema_decay", config.ema_decay);
    rules.finite("sigma.mean", config.sigma.mean);
    rules.positive("sigma.std", config.sigma.std);
    rules.checkpoint(&config.checkpoint);
    rules.expect(config.eval_prompts_per_task >= 1, "eval_prompts_per_task", config.eval_prompts_per_task, "1 or more");
    rules.not_negative("eval_guidance_scale", config.eval_guidance_scale);
    rules.0
}

/// Samples of an update, which are all in memory.
const MOST_SAMPLES: usize = 1 << 20;

#[derive(Default)]
struct Rules(Vec<Problem>);

/// Seconds of a year: whoever wants longer wants no limit.
pub const LONGEST_LIMIT: f64 = 366.0 * 86400.0;

impl Rules {
    fn problem(&mut self, path: &str, message: String, hint: Option<String>) {
        self.0.push(Problem { path: KeyPath::of(path), message, hint });
    }

    fn expect(&mut self, holds: bool, path: &str, found: impl std::fmt::Display, expected: &str) {
        if !holds {
            self.problem(path, format!("`{path}`: expected {expected}, found {found}"), None);
        }
    }

    fn finite(&mut self, path: &str, value: f64) {
        self.expect(value.is_finite(), path, value, "a finite number");
    }

    fn positive(&mut self, path: &str, value: f64) {
        self.expect(value.is_finite() && value > 0.0, path, value, "a number above 0");
    }

    fn not_negative(&mut self, path: &str, value: f64) {
        self.expect(value.is_finite() && value >= 0.0, path, value, "a number from 0 up");
    }

    fn within(&mut self, path: &str, value: f64) {
        self.expect((0.0..=1.0).contains(&value), path, value, "a number from 0 to 1");
    }

    fn share(&mut self, path: &str, value: f64) {
        self.expect((0.0..1.0).contains(&value), path, value, "a number from 0 up, below 1");
    }

    fn range(&mut self, path: &str, [low, high]: [f64; 2]) {
        let fits = 0.0 <= low && low < high && high <= 1.0;
        self.expect(fits, path, format!("[{low}, {high}]"), "two rising numbers from 0 to 1");
    }

    fn compute(&mut self, compute: &Compute) {
        let known = device::parse(&compute.device).is_some();
        self.expect(known, "compute.device", format!("{:?}", compute.device), device::NAMES);
        let floats = matches!(compute.dtype, DType::F32 | DType::F64 | DType::F16 | DType::Bf16);
        let found = format!("{:?}", compute.dtype).to_lowercase();
        self.expect(floats, "compute.dtype", found, "a float type: \"f32\", \"bf16\", \"f16\" or \"f64\"");
        // libtorch counts threads in 32 bits.
        let most = i32::MAX as usize;
        self.expect(compute.threads <= most, "compute.threads", compute.threads, &format!("at most {most}"));
    }

    /// Weights of 16 bits cannot hold the small steps of training; low-rank updates are float32 beside any base.
    fn precision(&mut self, key: &str, tuning: &Tuning, dtype: DType) {
        if *tuning == Tuning::Full && matches!(dtype, DType::F16 | DType::Bf16) {
            let dtype = format!("{dtype:?}").to_lowercase();
            let message = format!("`{key}`: full tuning trains in compute.dtype, and {dtype} is too coarse for that");
            self.problem(key, message, Some("use compute.dtype = \"f32\", or tuning = { type = \"lora\", … }".into()));
        }
    }

    fn data(&mut self, data: &Data) {
        if let Some(images) = data.images() {
            self.expect(images.random_crops <= 1000, "data.random_crops", images.random_crops, "at most 1,000");
        }
        if let Data::Webdataset { shards, .. } = data {
            self.expect(!shards.patterns().is_empty(), "data.shards", "none", "one shard or more");
        }
        let Data::Digits { task_weights, prompts: _ } = data else { return };
        for (index, &weight) in task_weights.iter().enumerate() {
            self.not_negative(&format!("data.task_weights.{index}"), weight);
        }
        if task_weights.iter().all(|weight| *weight == 0.0) {
            self.problem(
                "data.task_weights",
                "`data.task_weights`: expected a weight above 0, found only zeros".into(),
                None,
            );
        }
    }

    fn batch(&mut self, batch: &Batch) {
        self.expect(batch.groups >= 1, "batch.groups", batch.groups, "1 or more");
        let samples = batch.groups.saturating_mul(batch.group_size);
        self.expect(samples <= MOST_SAMPLES, "batch.groups", batch.groups, "at most 1,048,576 samples an update");
        if batch.group_size < 2 {
            let hint =
                "an advantage compares the samples of one prompt with each other: with one sample it is always 0";
            let message = format!("`batch.group_size`: expected 2 or more, found {}", batch.group_size);
            self.problem("batch.group_size", message, Some(hint.into()));
        }
        self.expect(batch.micro_batch >= 1, "batch.micro_batch", batch.micro_batch, "1 or more");
    }

    fn sampler(&mut self, config: &RunConfig) {
        let steps = config.sampler.steps;
        self.expect(steps >= 1, "sampler.steps", steps, "1 or more");
        let Some(sigmas) = &config.sampler.sigmas else { return };
        let path = "sampler.sigmas";
        if sigmas.len() != steps + 1 {
            let message = format!("`{path}`: expected {} numbers for {steps} steps, found {}", steps + 1, sigmas.len());
            let hint = "change both together: `sampler.steps` steps lie between `steps + 1` sigmas";
            self.problem(path, message, Some(hint.into()));
            return;
        }
        let falls = sigmas.windows(2).all(|pair| pair[0] > pair[1]);
        let ends = sigmas.first().is_some_and(|first| *first <= 1.0) && sigmas.last() == Some(&0.0);
        self.expect(falls && ends, path, format!("{sigmas:?}"), "numbers that fall strictly from at most 1 to 0");
    }

    fn tuning(&mut self, path: &str, tuning: &Tuning) {
        match tuning {
            Tuning::Frozen => {
                let hint = "it is \"lora\" or \"full\"; the frozen base is the teacher already";
                self.problem(
                    &format!("{path}.type"),
                    format!("`{path}`: a frozen network cannot be trained"),
                    Some(hint.into()),
                );
            }
            Tuning::Lora { rank, alpha, .. } => {
                self.expect(*rank >= 1, &format!("{path}.rank"), rank, "1 or more");
                self.positive(&format!("{path}.alpha"), *alpha);
            }
            Tuning::Full => {}
        }
    }

    fn optimizer(&mut self, path: &str, optimizer: &Optimizer) {
        self.positive(&format!("{path}.lr"), optimizer.lr);
        for (index, &beta) in optimizer.betas.iter().enumerate() {
            self.share(&format!("{path}.betas.{index}"), beta);
        }
        self.not_negative(&format!("{path}.weight_decay"), optimizer.weight_decay);
        self.positive(&format!("{path}.eps"), optimizer.eps);
        self.positive(&format!("{path}.clip_norm"), optimizer.clip_norm);
    }

    fn critic(&mut self, critic: &Critic) {
        self.expect(critic.updates >= 1, "critic.updates", critic.updates, "1 or more");
        self.tuning("critic.tuning", &critic.tuning);
        self.optimizer("critic.optimizer", &critic.optimizer);
        self.optimizer("critic.learner_optimizer", &critic.learner_optimizer);
        self.not_negative("critic.learner_weight", critic.learner_weight);
        self.within("critic.on_schedule", critic.on_schedule);
    }

    fn containment(&mut self, table: &str, containment: &Containment) {
        if let Some(limit) = containment.time_limit {
            let key = format!("{table}.time_limit");
            self.positive(&key, limit);
            self.expect(limit <= LONGEST_LIMIT, &key, limit, "a year of seconds at most");
        }
        if containment.restarts.is_some() && containment.isolation == Isolation::None {
            let hint = "set `isolation = \"process\"` as well, or leave the key out".to_owned();
            let message = "only a reward in a process of its own can be started anew".to_owned();
            self.problem(&format!("{table}.restarts"), message, Some(hint));
        }
    }

    fn rewards(&mut self, config: &RunConfig) {
        for (index, reward) in config.reward.iter().enumerate() {
            self.not_negative(&format!("reward.{index}.weight"), reward.weight);
            if let Some(discount) = reward.discount {
                self.within(&format!("reward.{index}.discount"), discount);
            }
            if let Some(floor) = reward.std_floor {
                self.positive(&format!("reward.{index}.std_floor"), floor);
            }
            self.containment(&format!("reward.{index}"), &reward.containment);
        }
        for (index, reward) in config.held_out.iter().enumerate() {
            self.containment(&format!("held_out.{index}"), &reward.containment);
        }
        let trained = config.reward.iter().map(|reward| ("reward", reward.name.as_ref(), &reward.component.r#type));
        let held = config.held_out.iter().map(|reward| ("held_out", reward.name.as_ref(), &reward.component.r#type));
        let numbered = trained.enumerate().chain(held.enumerate());
        let mut names = BTreeSet::new();
        for (index, (section, label, kind)) in numbered {
            let (name, key) = (label.unwrap_or(kind), if label.is_some() { "name" } else { "type" });
            if !names.insert(name) {
                let hint = format!("give one of them another label: `name = \"{name}-2\"`");
                let path = format!("{section}.{index}.{key}");
                self.problem(&path, format!("two rewards are called `{name}`"), Some(hint));
            }
            // A part of the names of metrics and of files.
            if name.is_empty() || name.contains('/') {
                let path = format!("{section}.{index}.{key}");
                self.problem(
                    &path,
                    format!("a reward cannot be called `{name}`"),
                    Some("a label without `/`".to_owned()),
                );
            }
        }
        let grid = config.eval.grid;
        if !config.held_out.is_empty() && config.data.images().is_some() && grid < 2 {
            let message = format!("`eval.grid` is {grid}: held-out rewards score the images of the sample grid");
            self.problem("eval.grid", message, Some("2 or more, such as 24".to_owned()));
        }
        self.expect(config.watch.patience >= 1, "watch.patience", config.watch.patience, "1 or more");
    }

    fn backprop(&mut self, backprop: &RewardBackprop, config: &RunConfig) {
        self.not_negative("objective.reward_backprop.weight", backprop.weight);
        let path = "objective.reward_backprop.ceiling";
        self.expect(backprop.ceiling.is_finite(), path, backprop.ceiling, "a finite number");
        let label = |reward: &RewardSection| reward.name.as_ref().unwrap_or(&reward.component.r#type).clone();
        let known: Vec<String> = config.reward.iter().map(label).collect();
        for (index, name) in backprop.rewards.iter().flatten().enumerate() {
            if !known.contains(name) {
                let message = format!("there is no reward called `{name}`");
                let hint = format!("the rewards are {}", known.join(", "));
                self.problem(&format!("objective.reward_backprop.rewards.{index}"), message, Some(hint));
            }
        }
        if backprop.weight > 0.0 && backprop.rewards.as_ref().is_some_and(Vec::is_empty) {
            let hint = "name some, or leave the key out for all that can".to_owned();
            self.problem("objective.reward_backprop.rewards", "no reward is named".to_owned(), Some(hint));
        }
    }

    fn objective(&mut self, objective: &Objectives, config: &RunConfig) {
        let weights = [
            ("dmd", objective.dmd.weight),
            ("gan", objective.gan.weight),
            ("grpo", objective.grpo.weight),
            ("reward_backprop", objective.reward_backprop.weight),
        ];
        self.backprop(&objective.reward_backprop, config);
        for (name, weight) in &weights[..3] {
            self.not_negative(&format!("objective.{name}.weight"), *weight);
        }
        if weights.iter().all(|(_, weight)| *weight == 0.0) {
            let hint = "set `objective.dmd.weight`, `objective.gan.weight` or `objective.grpo.weight` above 0";
            self.problem(
                "objective",
                "no objective has a weight above 0: nothing would be trained".into(),
                Some(hint.into()),
            );
        }
        for (name, weight) in &weights[1..] {
            if *weight > 0.0 && config.reward.is_empty() {
                let hint = format!("add a `[[reward]]` table, or set `objective.{name}.weight = 0`");
                let path = format!("objective.{name}.weight");
                self.problem(&path, format!("`{path}` is {weight}, but there is no reward"), Some(hint));
            }
        }
        if objective.grpo.weight > 0.0
            && !config.reward.is_empty()
            && config.reward.iter().all(|reward| reward.weight == 0.0)
        {
            let hint = "give one reward a weight above 0";
            let message = "`objective.grpo.weight` is above 0, but every reward has weight 0".to_owned();
            self.problem("objective.grpo.weight", message, Some(hint.into()));
        }
        self.not_negative("objective.dmd.guidance_scale", objective.dmd.guidance_scale);
        self.range("objective.dmd.sigma_range", objective.dmd.sigma_range);
        for (index, &clip) in objective.grpo.clip_range.iter().enumerate() {
            let path = format!("objective.grpo.clip_range.{index}");
            if index == 0 { self.share(&path, clip) } else { self.not_negative(&path, clip) }
        }
        self.positive("objective.grpo.advantage_clip", objective.grpo.advantage_clip);
        self.positive("objective.grpo.std_floor", objective.grpo.std_floor);
        self.range("objective.grpo.accuracy_gate", objective.grpo.accuracy_gate);
    }

    fn checkpoint(&mut self, checkpoint: &Checkpoint) {
        self.expect(checkpoint.every >= 1, "checkpoint.every", checkpoint.every, "1 or more");
        self.expect(checkpoint.keep_last >= 1, "checkpoint.keep_last", checkpoint.keep_last, "1 or more");
    }
}
