//! The backbone `sd3`: Stable Diffusion 3 and 3.5 as diffusers computes them.
//!
//! - [`folder`]: where the parts of a model are; [`single_file`] and [`original`]: the names of the original release;
//! - [`text`]: tokenizers, the CLIP text encoders and T5, and how their outputs become one conditioning;
//! - [`vae`]: the autoencoder between images and latents;
//! - [`save`]: a trained model as a folder of diffusers. The transformer itself is `advdmd_nn::mmdit`.

mod backbone;
mod config;
pub mod folder;
pub mod original;
pub mod save;
pub mod single_file;
pub mod text;
pub mod vae;

pub use backbone::Sd3;
pub use config::Sd3Config;

advdmd_sdk::register_backbone!("sd3", Sd3Config);
advdmd_sdk::export_plugin!();
