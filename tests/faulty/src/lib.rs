//! A plugin whose components fail on purpose: one file for each family of faults, one `how` for each fault. One of its rewards
//! works, so that what it is given can be seen.
//!
//! `faulty-construction`, `faulty-score`, `faulty-learner` and `faulty-run` fail in a run. The others break one promise each, which the
//! conformance kit (`sdk/conformance`) must find: `tests/tests/conformance.rs`.

mod backbone;
mod colour;
mod construction;
mod denoiser;
mod ffi;
mod judge;
mod learner;
mod reward;
mod running;
mod sampler;
mod score;
mod table;

advdmd_sdk::register_reward!("colour", colour::Colour);
advdmd_sdk::register_reward!("faulty-construction", construction::FaultyConstruction);
advdmd_sdk::register_reward!("faulty-score", score::FaultyScore);
advdmd_sdk::register_reward!("faulty-learner", learner::FaultyLearner);
advdmd_sdk::register_reward!("faulty-run", running::FaultyRun);
advdmd_sdk::register_reward!("faulty-schema", table::FaultySchema);
advdmd_sdk::register_reward!("faulty-open-table", table::OpenTable);
advdmd_sdk::register_reward!("faulty-optional-key", table::OptionalKey);
advdmd_sdk::register_reward!("faulty-undocumented", table::Undocumented);
advdmd_sdk::register_reward!("faulty-reward", reward::FaultyReward);
advdmd_sdk::register_reward!("faulty-judge", judge::FaultyJudge);
advdmd_sdk::register_sampler!("faulty-sampler", sampler::FaultySampler);
advdmd_sdk::register_backbone!("faulty-backbone", backbone::FaultyBackbone);
advdmd_sdk::export_plugin!();
