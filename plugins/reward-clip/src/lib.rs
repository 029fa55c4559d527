//! The rewards `clipscore`, `hps` and `pickscore`: how well an image fits its prompt, by a CLIP.
//!
//! All three are a cosine between the features of an image and those of its prompt; they differ in the weights, in how
//! images become the model's input, and in the factor. Their configurations say so with sources: [`ClipScore`], [`Hps`],
//! [`PickScore`].
//!
//! - [`pixels`](Preprocess): images to the model's input, as the reference does it and with gradients;
//! - `model`: weights, tokenizer and the prompts' features, shared by all rewards of a process that name the same folder,
//!   type and device;
//! - [`ClipReward`]: the cosine and what becomes of it. The model itself is `advdmd_nn::clip`.

mod clipscore;
mod hps;
mod model;
mod pickscore;
mod pixels;
mod reward;

pub use clipscore::ClipScore;
pub use hps::Hps;
pub use model::Model;
pub use pickscore::PickScore;
pub use pixels::{Pixels, Preprocess};
pub use reward::{ClipReward, Options};

advdmd_sdk::register_reward!("clipscore", ClipScore);
advdmd_sdk::register_reward!("hps", Hps);
advdmd_sdk::register_reward!("pickscore", PickScore);
advdmd_sdk::export_plugin!();
