//! Checks that a plugin of `AdvDMD` keeps its contract.
mod config;
mod gaussian;
mod macros;
mod memory;
mod report;
mod reward;
mod sampler;
mod samples;
#[cfg(feature = "torch")]
mod backbone;
#[cfg(feature = "torch")]
mod state;
mod subject;

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use advdmd_sdk::Kind;
use advdmd_sdk::abi::Plugin;
pub use macros::{__private, library};
use report::{Examiner, fail};
pub use report::{Check, Outcome, Report};
use serde_json::Value;
pub use subject::Subject;

/// Why a check did not run.
#[cfg(not(feature = "torch"))]
const WITHOUT_TORCH: &str = "needs libtorch: `advdmd check`, or the feature `torch` of advdmd-conformance";

/// Runs all checks on a component; `subject` says which.
///
/// One at a time in a process: memory and libtorch's state are the process's.
pub fn check(subject: &Subject<'_>) -> Report {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    match subject.kind {
        Kind::Reward => reward::check(subject),
        Kind::Sampler => sampler::check(subject),
        #[cfg(feature = "torch")]
        Kind::Backbone => backbone::check(subject),
        #[cfg(not(feature = "torch"))]
        Kind::Backbone => {
            let mut examiner = Examiner::new(subject.kind, &subject.name);
            let advice = "depend on advdmd-conformance with `features = [\"torch\"]`";
            examiner.check("made", || fail("libtorch, which backbones need", "none", advice));
            examiner.finish()
        }
    }
}

/// Loads the plugin at `path` and runs all checks on its component `name`; `config` is its table, without `type`. A file that
/// is no plugin for this host is the failed check `header`.
pub fn check_file(path: &Path, kind: Kind, name: &str, config: &Value) -> Report {
    match Plugin::open(path) {
        Ok(plugin) => check(&Subject::of_plugin(&plugin, kind, name, config)),
        Err(error) => {
            let mut examiner = Examiner::new(kind, name);
            let advice = "do what it says; `advdmd plugins inspect FILE` shows the header";
            examiner.check("header", || fail("a plugin that fits this program", error, advice));
            examiner.finish()
        }
    }
}
