//! Write rewards, samplers and backbones for `AdvDMD` as dynamic libraries.
//!
//! A plugin is a crate of type `cdylib` that registers components and exports them:
//!
//! ```
//! use advdmd_sdk::{Needs, Result, Reward, RewardBatch, RewardConfig, RewardInit};
//! use schemars::JsonSchema;
//! use serde::Deserialize;
//!
//! /// Rewards bright images.
//! #[derive(Deserialize, JsonSchema)]
//! #[serde(deny_unknown_fields)]
//! struct Brightness {
//!     /// Factor on the mean pixel value.
//!     scale: f32,
//! }
//!
//! impl RewardConfig for Brightness {
//!     fn build(self, _init: &RewardInit) -> Result<Box<dyn Reward>> {
//!         Ok(Box::new(self))
//!     }
//! }
//!
//! impl Reward for Brightness {
//!     fn needs(&self) -> Needs {
//!         Needs { images: true, on_cpu: true, ..Needs::default() }
//!     }
//!
//!     fn score(&mut self, batch: &RewardBatch<'_>) -> Result<Vec<f32>> {
//!         let images = batch.images()?;
//!         let pixels = images.to_f32()?;
//!         let per_image = pixels.len() / batch.len();
//!         let mean = |image: &[f32]| image.iter().sum::<f32>() / image.len() as f32;
//!         Ok(pixels.chunks(per_image).map(|image| self.scale * mean(image)).collect())
//!     }
//! }
//!
//! advdmd_sdk::register_reward!("brightness", Brightness);
//! advdmd_sdk::export_plugin!();
//! # fn main() {}
//! ```
//!
//! The traits are [`Reward`] (with an optional [`Learner`]), [`Sampler`], and [`Backbone`] with its [`Denoiser`]s.
//! They are safe Rust; how they cross the edge of the library is in [`abi`].

pub mod abi;
mod backbone;
mod error;
pub mod plugin;
mod reward;
mod sampler;
mod tensor;
mod trace;

#[cfg(feature = "torch")]
pub use backbone::{Backbone, Conditioning, Denoiser, Prediction};
pub use backbone::{BackboneInit, BackboneSpec, EncoderSource, OriginalModule, Request, SaveOptions, Sources, Tuning};
pub use error::{Error, Result};
#[cfg(feature = "torch")]
pub use plugin::BackboneConfig;
pub use plugin::{Component, Kind, Manifest, RewardConfig, SamplerConfig};
#[cfg(feature = "torch")]
pub use reward::{DiscriminatorLoss, Learner};
pub use reward::{FeatureNeeds, FeatureSource, Needs, Reward, RewardBatch, RewardInit, Scope};
pub use sampler::{LogProb, Sampler, Transition};
pub use tensor::{DType, Device, TensorView};

/// Crates that the macros name, so that a plugin need not depend on them.
#[doc(hidden)]
pub mod __private {
    pub use {inventory, serde, typetag};
}
