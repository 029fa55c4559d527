//! Prompts to conditioning.
//!
//! [`TextEncoders`] does what diffusers' `StableDiffusion3Pipeline.encode_prompt` does: two CLIP encoders side by side on
//! the width, T5 behind them on the length.

mod clip;
mod encoders;
mod t5;
mod t5_config;

pub use clip::ClipEncoder;
pub use encoders::{TextEncoders, TextOptions};
pub use t5::{T5Encoder, T5Model};
pub use t5_config::T5Config;
