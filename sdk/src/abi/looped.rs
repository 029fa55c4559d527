//! The whole edge without a library: what a component looks like to the host when its plugin is loaded.

use super::foreign_reward::ForeignReward;
use super::sampler::ForeignSampler;
use super::{RewardObject, SamplerObject};
use crate::{Result, Reward, Sampler};

/// The same reward behind the edge, for tests: its panics are errors, its tensors are handles.
///
/// # Errors
/// A reward whose `needs` fails.
pub fn loop_reward(reward: Box<dyn Reward>) -> Result<Box<dyn Reward>> {
    // SAFETY: the object is new and ours.
    Ok(Box::new(unsafe { ForeignReward::new(RewardObject::new(reward)) }?))
}

/// The same sampler behind the edge.
///
/// # Errors
/// A sampler whose constant methods fail.
pub fn loop_sampler(sampler: Box<dyn Sampler>) -> Result<Box<dyn Sampler>> {
    // SAFETY: the object is new and ours.
    Ok(Box::new(unsafe { ForeignSampler::new(SamplerObject::new(sampler)) }?))
}

/// The same backbone behind the edge, and its denoisers too.
///
/// # Errors
/// A backbone whose `spec` fails.
#[cfg(feature = "torch")]
pub fn loop_backbone(backbone: Box<dyn crate::Backbone>) -> Result<Box<dyn crate::Backbone>> {
    // SAFETY: the object is new and ours.
    Ok(Box::new(unsafe { super::backbone::ForeignBackbone::new(super::BackboneObject::new(backbone)) }?))
}
