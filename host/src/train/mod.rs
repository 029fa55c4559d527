//! The training loop: one rollout feeds everything, one student forward feeds every loss.
//!
//! An update is: [`rollout`] (no gradients), `critic.updates` joint `critic` updates of the fake-score network and the
//! learners, `rewards` and advantages with the fresh discriminator, one `student` update.

mod advantages;
mod background;
mod backprop;
pub mod checkpoint;
pub(crate) mod critic;
mod drift;
mod dropped;
mod failure;
pub(crate) mod guard;
mod inspection;
mod learners;
pub(crate) mod lock;
pub(crate) mod material;
pub(crate) mod metrics;
mod networks;
mod persistence;
mod probe;
mod resident;
mod rewards;
mod rollout;
pub(crate) mod run;
mod schedule;
mod scoring;
mod student;
mod trainer;
mod watch;

pub use drift::{config_drift, drift, rounding_drift};
pub use failure::replay;
pub use inspection::{Finding, Inspection, Seen};
pub use networks::Networks;
pub use probe::{Cost, Probe};
pub use resident::Resident;
pub use rewards::Rewards;
pub use rollout::{Chunk, Rollout, rollout};
pub use run::{Outcome, TrainOptions, run};
pub use trainer::{Trainer, Values};
