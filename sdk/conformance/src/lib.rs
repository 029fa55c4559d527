//! Checks that a plugin of `AdvDMD` keeps its contract: the ones that `advdmd check` runs, for a plugin's own tests.
//!
//! One call in a file of `tests/` loads the very library that cargo built and runs them all:
//!
//! ```ignore
//! advdmd_conformance::reward!("colorfulness");
//! ```
//!
//! or, without a line of Rust, `advdmd check reward 'type=colorfulness,scale=2.0'`. A program calls [`check_file`]. Each check
//! ends as `ok`, `FAILED` (what was expected, what was found, how to mend it), `skipped` (why) or `note`; a check that builds on one
//! that failed is skipped, so the first failure is the one to mend.
//!
//! Without the feature `torch` the crate needs no libtorch, and the checks marked *torch* are skipped; `advdmd check` runs them
//! all. Inputs are small: images of 3x32x32, latents of 4x8x8, features of 16x4x4 unless [`Subject::with_spec`] says otherwise.
//! A reward that says `groupwise` is given whole groups, four samples of a prompt side by side.
//!
//! # Every component
//!
//! | check | what it asks | how to mend it |
//! | --- | --- | --- |
//! | `header` | the file is a plugin for this protocol, target and libtorch | do what the message says: most often rebuild |
//! | `manifest` | the component is listed, once | call `register_…!` and `export_plugin!()` |
//! | `schema` | its JSON Schema is valid | derive `JsonSchema`; look at `#[schemars(extend(…))]` |
//! | `documented` | each key has a description (a `note` at most) | `///` above the field |
//! | `made` | the given table fits the schema and makes the component | change the table, or what `build` refuses |
//! | `unknown_key` | a key that it does not have is a configuration error that names the key | `#[serde(deny_unknown_fields)]` |
//! | `missing_key` | so is each required key that is left out | no `serde(default)` on what the schema requires |
//! | `grad_mode` *torch* | a call leaves libtorch's gradient mode as it was | `tch::no_grad(…)`, or a guard in a variable |
//! | `rng_state` *torch* | libtorch's global generator is not drawn from | a generator of your own, from the given seed |
//! | `default_dtype`, `threads` *torch* | libtorch's default type and number of threads stay | they belong to the host |
//! | `memory` | the process grows by less than 6 MB (or an eighth of what was lent) in 1,000 calls; fewer of a slow component, with more lent in each, and `skipped` if it is too slow to be lent 24 MB in all | keep nothing that grows with each call |
//!
//! # Rewards
//!
//! | check | what it asks | how to mend it |
//! | --- | --- | --- |
//! | `needs` | [`Needs`](advdmd_sdk::Needs) that do not contradict each other; taps rise and exist | see the fields' documentation |
//! | `answers` | scores, not an error or a panic, for batches of four and of one (for `groupwise`, of one and of two groups), an empty prompt, many scripts, 4,000 letters, black, white and constant images; an error with a text is fine for uneven sizes; the host sends no empty batch | mend what the error names |
//! | `length` | one score a sample, also for those | `batch.len()` scores |
//! | `finite` | no NaN, no infinity | guard divisions: the spread of a constant image is 0 |
//! | `refuses` | an error for a batch that lacks what `needs` asked for | `batch.images()?`, `expect_shape` |
//! | `deterministic` | a second call and a new instance of the same seed score alike (1e-6 of the largest) | seed by `RewardInit::seed` |
//! | `permutation` | samples in another order keep their scores (1e-4) | no score by place, or `groupwise` in `needs` |
//! | `batch_split` | so do samples in smaller batches (1e-4) | no score by company, or `groupwise` in `needs` |
//! | `dtypes` *torch* | the same numbers as f64, bf16, f16 score within 1e-3, 0.05, 0.01 of float32, or are refused; not for `on_cpu` | convert inputs |
//! | `same_scores` *torch* | `score_differentiable` is within 0.1 of `score`; within 1e-4 with `scores_on_device` | one function for both |
//! | `gradient` *torch* | with `differentiable`: the gradient is that of central differences in four directions, within 1e-3 where it computes in f64, else 0.05 | keep the graph: no `detach`, no `to_f32` |
//! | `learner_loss` *torch* | the discriminator's loss falls by a tenth in 40 steps of Adam on samples that a plane separates, and real ones then score higher | give the very tensors that the loss reads |
//! | `learner_gradients` *torch* | that loss reaches each parameter and no input | detach inputs; name no idle tensor |
//! | `generator_loss` *torch* | `[B]`, finite, with gradients to the batch | keep the graph |
//!
//! # Samplers
//!
//! | check | what it asks | how to mend it |
//! | --- | --- | --- |
//! | `sigmas` | for 1 to 50 steps K + 1 numbers that fall strictly from at most 1 to 0, or an error | end with 0.0 itself |
//! | `transition` | on its own and on given sigmas: finite, as many velocities as there were, `c` at least 0, `LogProb::None` exactly where `c` is 0 | see [`Transition`](advdmd_sdk::Transition) |
//! | `last_step` | no noise in the step to 0 | end deterministically |
//! | `refuses` | 0 steps, a step beyond the last, rising and no sigmas are errors | check arguments |
//! | `x0_coefficient` | with exact velocities `a (1 - s) - sum b = 1 - s'`, within 1e-9 | the state's x0 is what the next step reads |
//! | `noise_level` | with `preserves_marginals`: `(a s + sum b)^2 + c^2 = s'^2`, within 1e-9 | or let it be false |
//! | `order` | an ODE's error on a Gaussian of known flow falls, from 64 to 128 steps, with the declared order less 0.25 | correct the coefficients, or `order` |
//!
//! # Backbones (all *torch*)
//!
//! | check | what it asks | how to mend it |
//! | --- | --- | --- |
//! | `spec` | sizes and depth of at least 1 | fill it from the model |
//! | `encode_text` | finite rows, one a prompt, the same in any company | pad to a length of the model |
//! | `encode_images` | latents of the spec's shape, the same each time | the posterior's mean |
//! | `decode_latents` | images of the spec's shape in 0..1, with gradients to the latents | clamp; keep the graph |
//! | `velocity` | finite float32 of the latents' shape; a sample's is the same alone | convert in the end; no batch statistics |
//! | `deterministic` | the same bits again, and (1e-5) by a new instance | no dropout; seed by `BackboneInit::seed` |
//! | `taps` | features of the spec's shape for each block; alone (early exit) as beside the velocity, within 1e-5 | compute until the deepest tap |
//! | `refuses` | a tap beyond the depth, an unknown `LoRA` target, an image without a batch are errors | check arguments |
//! | `frozen` | no parameters, no weight that takes a gradient; gradients pass to `x` | load without `requires_grad` |
//! | `lora_shares` | frozen and `LoRA` denoisers, 96 MB of them if each had a base, cost little more than their factors | share tensors (`shallow_clone`) |
//! | `lora_init` | a new `LoRA` predicts what the base does, within 1e-5 | B = 0 |
//! | `lora_gradients` | gradients reach the named parameters and nothing else; one in ten may be idle (a `note`) | name all that is trained |
//! | `full` | a full copy begins as the base, takes gradients likewise, and leaves the base alone | copy the weights |
//!
//! Agreement with a reference implementation is another question: `advdmd check backbone --golden FILE`.
//!
//! # What they cannot see
//!
//! A crash (a segmentation fault, `abort`) ends the checks with the process. CUDA is not tried. A leak of less
//! than 6 KB in a call is lost in the noise of a process: a handle of a tensor is seen by the numbers that it keeps alive, which are
//! those of the whole batch where it is the host's, and one of a small tensor that the plugin made itself is not. Whether a score means anything is for the author to test.

#[cfg(feature = "torch")]
mod backbone;
mod config;
mod gaussian;
mod macros;
mod memory;
mod report;
mod reward;
mod sampler;
mod samples;
#[cfg(feature = "torch")]
mod state;
mod subject;

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use advdmd_sdk::Kind;
use advdmd_sdk::abi::Plugin;
pub use macros::{__private, library};
pub use report::{Check, Outcome, Report};
use report::{Examiner, fail};
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
