//! A plugin whose components fail on purpose: one file for each family of faults, one `how` for each fault.

mod construction;
mod ffi;
mod learner;
mod sampler;
mod score;

advdmd_sdk::register_reward!("faulty-construction", construction::FaultyConstruction);
advdmd_sdk::register_reward!("faulty-score", score::FaultyScore);
advdmd_sdk::register_reward!("faulty-learner", learner::FaultyLearner);
advdmd_sdk::register_sampler!("faulty-sampler", sampler::FaultySampler);
advdmd_sdk::export_plugin!();
