//! The run configuration as types: one struct per TOML section, a doc comment per key.
//!
//! Defaults live in the recipes (`recipes/*.toml`), not here, so that each number has one place and a source.
//! A key is optional here only where its absence means something.

use std::path::PathBuf;

use advdmd_sdk::{DType, Tuning};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::objective::advantage::Normalize;

/// A whole run: recipe, user's file and `--set` overrides merged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// The preset that this configuration started from.
    #[serde(default)]
    pub recipe: Option<String>,
    /// Seed of everything random in the run.
    pub seed: u64,
    /// Device and precision.
    pub compute: Compute,
    /// Where to look for plugins.
    #[serde(default)]
    pub plugins: Plugins,
    /// The diffusion model; the keys beside `type` are the plugin's.
    pub backbone: Component,
    /// Prompts and real images.
    pub data: Data,
    /// How the student walks from noise to an image.
    pub sampler: SamplerSection,
    /// Samples of one update.
    pub batch: Batch,
    /// The few-step model that is trained.
    pub student: Student,
    /// The fake-score network and the rewards' learners.
    pub critic: Critic,
    /// Rewards, each normalised on its own and then added by weight.
    #[serde(default)]
    pub reward: Vec<RewardSection>,
    /// Rewards that score the images of each evaluation and are never trained on: where they fall while the others rise, the
    /// others are being gamed.
    #[serde(default)]
    pub held_out: Vec<HeldOutSection>,
    /// Losses of the student.
    pub objective: Objectives,
    /// Length and phases of the run.
    pub schedule: Schedule,
    /// Evaluation during the run.
    pub eval: Eval,
    /// The watch for reward hacking.
    pub watch: Watch,
    /// Saving.
    pub checkpoint: Checkpoint,
}

/// Device and precision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Compute {
    /// `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// Compute type of the networks; losses and optimiser stay in float32.
    pub dtype: DType,
    /// CPU threads of libtorch; 0 for all cores.
    pub threads: usize,
}

/// Where to look for plugins, beside the `plugins` folder of the program and `$ADVDMD_PLUGIN_PATH`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Plugins {
    /// Plugin files or folders of them; relative to the configuration file.
    #[serde(default)]
    pub paths: Vec<PathBuf>,
}

/// A component of a plugin: its `type`, and whatever keys the plugin's own schema has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Component {
    /// Name of the component, as `advdmd plugins list` shows it.
    pub r#type: String,
    /// The plugin's keys.
    #[serde(flatten)]
    pub options: serde_json::Map<String, serde_json::Value>,
}

impl Component {
    /// The table as the plugin gets it: its keys and `type`.
    pub fn to_json(&self) -> serde_json::Value {
        let mut table = self.options.clone();
        table.insert("type".to_owned(), self.r#type.clone().into());
        table.into()
    }
}

/// Prompts and real images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Data {
    /// The embedded digit scenes: every caption of the grammar, a fresh scene for each draw.
    Digits {
        /// Relative frequency of the tasks, in the order single, two, counting, colours, position, attribute.
        task_weights: [f64; 6],
        /// Only these captions: a file with one a line, or a JSON list of strings. A task without captions in it is
        /// not drawn; the others keep their relative frequency.
        #[serde(default)]
        #[schemars(extend("format" = "path"))]
        prompts: Option<PathBuf>,
    },
    /// A folder of images and a `metadata.jsonl` with one JSON object a line, `file_name` and caption, as Hugging Face's
    /// `imagefolder` has it. JPEG, PNG and `WebP`; several lines may share a caption.
    Images {
        /// The folder that `metadata.jsonl` lies in; no `file_name` leads out of it.
        #[schemars(extend("format" = "path"))]
        path: PathBuf,
        /// How its images are used.
        #[serde(flatten)]
        images: ImageOptions,
    },
    /// Tar shards with members `KEY.jpg`, `.jpeg`, `.png` or `.webp` beside `KEY.txt`, `KEY.caption` or `KEY.json`.
    Webdataset {
        /// A tar file, a pattern such as `data/{00000..00012}.tar`, a folder of tar files, or a list of these.
        #[schemars(extend("format" = "path"))]
        shards: Shards,
        /// How their images are used.
        #[serde(flatten)]
        images: ImageOptions,
    },
}

impl Data {
    /// How images of files are used; `None` for data that is made, not read.
    pub fn images(&self) -> Option<&ImageOptions> {
        match self {
            Self::Digits { .. } => None,
            Self::Images { images, .. } | Self::Webdataset { images, .. } => Some(images),
        }
    }
}

/// Where shards are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Shards {
    /// One file, pattern or folder.
    One(PathBuf),
    /// Several.
    Many(Vec<PathBuf>),
}

impl Shards {
    /// All of them.
    pub fn patterns(&self) -> &[PathBuf] {
        match self {
            Self::One(pattern) => std::slice::from_ref(pattern),
            Self::Many(patterns) => patterns,
        }
    }
}

/// How images of files are used. Each is scaled until it covers the backbone's image, and cut to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ImageOptions {
    /// Key of the caption in `metadata.jsonl` or in a `KEY.json`: `text` by default.
    #[serde(default = "text")]
    pub text_key: String,
    /// 0 cuts the middle out of each image. N keeps N crops of each, at places that depend on the image alone; a draw takes one
    /// of them, and the cache grows N-fold.
    #[serde(default)]
    pub random_crops: usize,
    /// What to do with an image that is missing or cannot be read, or has no caption.
    #[serde(default)]
    pub on_broken: OnBroken,
    /// Folder for the latents of images and the embeddings of prompts, relative to the configuration file; `none` to encode
    /// anew in each run. By default `$ADVDMD_CACHE`, `$XDG_CACHE_HOME/advdmd` or `~/.cache/advdmd`.
    #[serde(default)]
    pub cache: Option<PathBuf>,
}

fn text() -> String {
    "text".to_owned()
}

/// What to do with an image that cannot be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnBroken {
    /// Name it, count it and go on without it.
    #[default]
    Skip,
    /// Name all of them and end the run before it begins.
    Stop,
}

/// How the student walks from noise to an image: host keys, and the keys of the sampler's plugin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SamplerSection {
    /// Number of steps K.
    pub steps: usize,
    /// Explicit sigmas, `steps + 1` numbers falling to 0; without it the sampler's own schedule for `steps`.
    #[serde(default)]
    pub sigmas: Option<Vec<f64>>,
    /// `type` and the plugin's keys.
    #[serde(flatten)]
    pub component: Component,
}

/// Samples of one update: `groups * group_size`, in chunks of `micro_batch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// Prompts per update.
    pub groups: usize,
    /// Samples per prompt, at least 2: advantages compare the samples of one prompt.
    pub group_size: usize,
    /// Samples per forward pass; only memory and speed depend on it.
    pub micro_batch: usize,
}

/// `AdamW` with a linear warm-up and gradient clipping.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Optimizer {
    /// Learning rate.
    pub lr: f64,
    /// Decay rates of the first and second moment.
    pub betas: [f64; 2],
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Largest L2 norm of the gradient.
    pub clip_norm: f64,
    /// Steps over which the learning rate rises from 0.
    pub warmup: u64,
}

/// The few-step model that is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Student {
    /// Low-rank update or full copy.
    pub tuning: Tuning,
    /// Its optimiser.
    pub optimizer: Optimizer,
    /// Decay of the exponential moving average that is evaluated and exported; 0 for none.
    pub ema_decay: f64,
    /// Steps of the trajectory that an update trains on, drawn at random; 0 for all K.
    pub steps_per_update: usize,
}

impl Student {
    /// How many of a trajectory's `steps` an update trains on.
    pub fn trained_steps(&self, steps: usize) -> usize {
        if self.steps_per_update == 0 { steps } else { self.steps_per_update.min(steps) }
    }
}

/// The fake-score network and the rewards' learners: updated together, several times per student update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Critic {
    /// Critic updates per student update.
    pub updates: usize,
    /// Critic updates before the first student update.
    pub warmup: usize,
    /// Low-rank update or full copy.
    pub tuning: Tuning,
    /// Optimiser of the fake-score network.
    pub optimizer: Optimizer,
    /// Optimiser of the learners' parameters (discriminator heads).
    pub learner_optimizer: Optimizer,
    /// Weight of the learners' losses beside the denoising loss; matters only where they share parameters' clipping.
    pub learner_weight: f64,
    /// Share of critic samples noised to the next sigma of their own step, where rewards are read; the others
    /// are uniform in `objective.dmd.sigma_range`.
    pub on_schedule: f64,
}

/// One reward: host keys, and the keys of the reward's plugin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RewardSection {
    /// Label in logs; the type by default.
    #[serde(default)]
    pub name: Option<String>,
    /// Weight in the advantage; 0 for a reward that is scored and not trained on.
    pub weight: f64,
    /// For a reward of the final image: its weight at a step is multiplied by this for each step that follows. 1, the default,
    /// spreads it evenly over the steps, 0 gives it to the last stochastic step alone.
    #[serde(default)]
    pub discount: Option<f64>,
    /// Least standard deviation that its scores are divided by, in its own units; `objective.grpo.std_floor` by default.
    #[serde(default)]
    pub std_floor: Option<f64>,
    /// What to do when it fails to score samples.
    #[serde(default)]
    pub on_error: OnRewardError,
    /// What keeps its faults from the run.
    #[serde(flatten)]
    pub containment: Containment,
    /// `type` and the plugin's keys.
    #[serde(flatten)]
    pub component: Component,
}

/// What to do when a reward fails to score samples: it panics, says that it failed, gives too few scores or NaN, takes longer
/// than its time limit, or its process ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnRewardError {
    /// Save and end the run.
    #[default]
    Stop,
    /// Score the samples again, group by group, leave the groups that fail again out of the policy gradient, and count them;
    /// where none is left, save and end the run.
    SkipGroup,
}

/// What keeps a reward's faults from the run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Containment {
    /// Where the reward runs.
    #[serde(default)]
    pub isolation: Isolation,
    /// Seconds that one of its calls may take; no limit by default. A reward in a process of its own is started anew
    /// afterwards, one in this process is given up.
    #[serde(default)]
    pub time_limit: Option<f64>,
    /// How often in a run its own process is started anew: 3 by default.
    #[serde(default)]
    pub restarts: Option<u32>,
}

/// Where a reward runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// In the program itself: nothing is copied, and a crash of the plugin is a crash of the run.
    #[default]
    None,
    /// In a process of its own, on the CPU, with batches through shared memory: a crash there is an error here. For rewards that
    /// do not learn; they give no gradients.
    Process,
}

/// A reward that is measured and never trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HeldOutSection {
    /// Label in logs; the type by default.
    #[serde(default)]
    pub name: Option<String>,
    /// What keeps its faults from the run.
    #[serde(flatten)]
    pub containment: Containment,
    /// `type` and the plugin's keys.
    #[serde(flatten)]
    pub component: Component,
}

/// Losses of the student.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Objectives {
    /// Distribution matching.
    pub dmd: Dmd,
    /// Generator loss of the rewards' learners.
    pub gan: Gan,
    /// Policy gradient.
    pub grpo: Grpo,
    /// Rewards as losses.
    pub reward_backprop: RewardBackprop,
}

/// Distribution matching (DMD2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dmd {
    /// Weight of the loss; 0 switches it off.
    pub weight: f64,
    /// Guidance of the teacher.
    pub guidance_scale: f64,
    /// Range of the sigma that the student's x0 is noised to.
    pub sigma_range: [f64; 2],
}

/// Generator loss of the rewards' learners.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gan {
    /// Weight of the loss; 0 switches it off.
    pub weight: f64,
}

/// Policy gradient (Flow-GRPO) on the rewards of every step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Grpo {
    /// Weight of the loss; 0 switches it off.
    pub weight: f64,
    /// The ratio is clipped to `1 - low ..= 1 + high`.
    pub clip_range: [f64; 2],
    /// Advantages are clamped to plus and minus this.
    pub advantage_clip: f64,
    /// What a reward's distance from its group's mean is divided by, before rewards are added.
    pub normalize: Normalize,
    /// A standard deviation below this is replaced by this; a reward may have its own.
    pub std_floor: f64,
    /// Student updates before the policy gradient is switched on.
    pub warmup: u64,
    /// A reward that learns counts at a step only while its accuracy there lies in this range; others always do.
    pub accuracy_gate: [f64; 2],
}

/// Rewards as losses (`ReFL`, RTDMD): their gradients flow through the decoder to the student's last step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RewardBackprop {
    /// Weight of the loss `max(ceiling - sum of weight * score, 0)`; 0 switches it off.
    pub weight: f64,
    /// Scores above this pull no more.
    pub ceiling: f64,
    /// Labels of the rewards in the sum; by default all that give gradients to the final image.
    #[serde(default)]
    pub rewards: Option<Vec<String>>,
}

/// Length of the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Student updates.
    pub updates: u64,
    /// Stop after this many minutes even if updates are left, saving as at the end.
    #[serde(default)]
    pub max_minutes: Option<f64>,
}

/// Evaluation during the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Eval {
    /// Student updates between evaluations; 0 for none but the last.
    pub every: u64,
    /// Prompts of each task, where the data is digit scenes.
    pub prompts_per_task: usize,
    /// Prompts of the sample grid.
    pub grid: usize,
    /// Prompts to choose those of the sample grid from, evenly: a file with one a line, or a JSON list of strings. By default
    /// the data's own; digit scenes have prompts of their own for this.
    #[serde(default)]
    #[schemars(extend("format" = "path"))]
    pub prompts: Option<PathBuf>,
    /// Steps of the teacher's own sampling, which the student is shown beside.
    pub teacher_steps: usize,
}

/// The watch for reward hacking: what each evaluation's images score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// Evaluations in a row that must look like hacking before it is called that.
    pub patience: usize,
    /// What to do then.
    pub on_hacking: OnHacking,
}

/// What to do when a reward is being gamed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnHacking {
    /// Say it in the terminal and in the report.
    #[default]
    Warn,
    /// Save and end the run as well.
    Stop,
}

/// Saving.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Student updates between checkpoints.
    pub every: u64,
    /// Checkpoints to keep.
    pub keep_last: usize,
    /// What to do when the disk refuses a checkpoint, metrics, samples or the report in the middle of a run; at its end it is an
    /// error.
    #[serde(default)]
    pub on_error: OnSaveError,
}

/// What to do when the disk refuses to save.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnSaveError {
    /// End the run with an error; the checkpoint before stays.
    #[default]
    Stop,
    /// Log an error, keep the checkpoint before, and try again at the next one.
    Continue,
}
