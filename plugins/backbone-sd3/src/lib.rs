//! The backbone `sd3`: Stable Diffusion 3 and 3.5 as diffusers computes them.
//!
//! - [`text`]: tokenizers, the CLIP text encoders and T5, and how their outputs become one conditioning;
//! - [`vae`]: the autoencoder between images and latents.

pub mod text;
pub mod vae;
