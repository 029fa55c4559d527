//! What keeps a plugin's faults from the run: for rewards a limit of the time that its calls take, and a process of its own.
//!
//! A panic, an error and a wrong answer are caught at the plugin edge. What no edge can catch, a crash of the process or
//! memory that runs out, is caught here by [`Isolation::Process`]: the reward lives in a child, `advdmd plugin-host`, which
//! reads batches from shared memory and answers over a socket. It protects the run from mistakes, not
//! from malice: the child has the rights of the user.
//!
//! A backbone computes with the run's own tensors and cannot be elsewhere; its answers are [`Checked`].

mod checked;
mod child;
mod ffi;
mod limit;
mod memory;
mod process;
mod wire;

use std::time::Duration;

use advdmd_sdk::{Reward, RewardInit};

use crate::config::{Component, Containment, Isolation, LONGEST_LIMIT, OnRewardError};
use crate::registry::Registry;
use crate::{Error, Result};

pub use checked::{Checked, floating};
pub use child::serve;
pub use process::describe;

/// The first argument of a reward's process, which is the running program once more: it then calls [`serve`].
pub const COMMAND: &str = "plugin-host";

/// How often a process is started anew in a run where the configuration does not say.
const RESTARTS: u32 = 3;

/// Makes the reward called `name`, contained as the configuration says.
///
/// # Errors
/// The registry's; a reward that learns in a process of its own.
pub fn reward(
    name: &str,
    component: &Component,
    containment: &Containment,
    on_error: OnRewardError,
    registry: &Registry,
    init: &RewardInit,
) -> Result<Box<dyn Reward>> {
    let seconds = containment.time_limit;
    if let Some(found) = seconds.filter(|seconds| !(*seconds > 0.0 && *seconds <= LONGEST_LIMIT)) {
        let message =
            format!("reward `{name}`: `time_limit`: expected seconds above 0, a year of them at most, found {found}");
        return Err(Error::usage(message, "leave it out for no limit".to_owned()));
    }
    let limit = seconds.map(Duration::from_secs_f64);
    match (containment.isolation, limit) {
        (Isolation::None, None) => registry.reward(component, init),
        (Isolation::None, Some(limit)) => {
            Ok(Box::new(limit::TimeLimited::new(name, registry.reward(component, init)?, limit)?))
        }
        (Isolation::Process, limit) => {
            let settings = process::Settings {
                limit,
                restarts: containment.restarts.unwrap_or(RESTARTS),
                // Whoever leaves groups out tries them one by one instead.
                again: on_error == OnRewardError::Stop,
            };
            Ok(Box::new(process::Isolated::start(name, component, registry, init, settings)?))
        }
    }
}
