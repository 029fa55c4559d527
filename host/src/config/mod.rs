//! The configuration of a run: recipe, file and `--set` options merged, checked and typed.
//!
//! Every value keeps its origin, so that an error points at the line that is wrong and `advdmd config explain`
//! can say where a number came from.

mod check;
mod merge;
mod pretrain;
pub mod recipe;
mod resolved;
mod rules;
mod schema;
mod settings;
pub mod source;
mod suggest;
pub mod tree;
mod view;

pub(crate) use check::Check;
pub use pretrain::{LogitNormal, PretrainConfig};
pub use resolved::{Resolved, json_schema, load_pretrain, load_run, merged, parse_run};
pub(crate) use resolved::{make_absolute, missing_file, refuse, resolve_model};
pub use rules::{LONGEST_LIMIT, Problem};
pub use schema::{
    Batch, Checkpoint, Component, Compute, Containment, Critic, Data, Dmd, Eval, Gan, Grpo, HeldOutSection,
    ImageOptions, Isolation, Objectives, OnBroken, OnHacking, OnRewardError, OnSaveError, Optimizer, Plugins,
    RewardBackprop, RewardSection, RunConfig, SamplerSection, Schedule, Shards, Student, Watch,
};
pub use settings::Settings;
pub use suggest::nearest;
pub use tree::KeyPath;
pub use view::{PathFormat, SchemaView};
