//! Building blocks on `tch` that backbones and rewards share.
//!
//! - [`Stored`]: memory-mapped safetensors files, whose tensors are checked before they are read;
//! - [`Weights`]: named tensors in memory, written atomically;
//! - [`Params`]: a path-prefixed view of weights that applies a [`Tuning`](advdmd_sdk::Tuning) (frozen, `LoRA`, full)
//!   and collects the trainable tensors under their published names;
//! - [`checkpoint`]: blocks whose activations are computed again in the backward pass;
//! - layers: [`Linear`], [`Conv2d`], [`RmsNorm`], [`LayerNorm`], [`GroupNorm`], [`embed`], [`JointAttention`];
//! - [`mmdit`]: the SD3 family's transformer;
//! - [`clip`]: CLIP, whole or its text encoder alone;
//! - [`optim`]: fused `AdamW`, gradient clipping and averaged weights with exact save and load.
//!
//! ```no_run
//! use advdmd_nn::{Params, Weights, mmdit::{LORA_TARGETS, Mmdit, MmditConfig}};
//! use advdmd_sdk::{Request, Tuning};
//! use tch::{Device, Kind, Tensor};
//!
//! # fn main() -> advdmd_sdk::Result<()> {
//! let config = MmditConfig::read("model/transformer/config.json".as_ref())?;
//! let base = Weights::load_folder(
//!     "model/transformer".as_ref(), "diffusion_pytorch_model", Some(Kind::Float), Device::Cpu)?;
//! let teacher = Mmdit::new(&config, &Params::new(&base, &Tuning::Frozen, &LORA_TARGETS, 0)?)?;
//! # let (latents, timestep, context, pooled) = (Tensor::new(), Tensor::new(), Tensor::new(), Tensor::new());
//! let prediction = teacher.forward(&latents, &timestep, &context, &pooled, Request::VELOCITY)?;
//! # Ok(()) }
//! ```

mod attention;
mod checkpoint;
pub mod clip;
mod conv;
pub mod embed;
mod feed_forward;
mod ffi;
mod json;
mod linear;
pub mod memory;
mod merge;
pub mod mmdit;
mod norm;
pub mod optim;
mod params;
mod random;
pub mod schedule;
mod stored;
#[cfg(feature = "tokenizer")]
mod tokenizer;
mod weights;

pub use attention::JointAttention;
pub use checkpoint::checkpoint;
pub use conv::Conv2d;
pub use feed_forward::FeedForward;
pub use json::{read_json, write_json};
pub use linear::{Linear, Lora};
pub use norm::{GroupNorm, LayerNorm, RmsNorm, layer_norm, modulate};
pub use params::{Params, load_parameters};
pub use random::RandomStream;
pub use stored::Stored;
#[cfg(feature = "tokenizer")]
pub use tokenizer::PromptTokenizer;
pub use weights::{Layout, Weights};
