//! A plugin whose components fail on purpose: one file for each family of faults, one `how` for each fault. One of its rewards
//! works, so that what it is given can be seen.

mod colour;
mod construction;
mod ffi;
mod learner;
mod running;
mod sampler;
mod score;

advdmd_sdk::register_reward!("colour", colour::Colour);
advdmd_sdk::register_reward!("faulty-construction", construction::FaultyConstruction);
advdmd_sdk::register_reward!("faulty-score", score::FaultyScore);
advdmd_sdk::register_reward!("faulty-learner", learner::FaultyLearner);
advdmd_sdk::register_reward!("faulty-run", running::FaultyRun);
advdmd_sdk::register_sampler!("faulty-sampler", sampler::FaultySampler);
advdmd_sdk::export_plugin!();
