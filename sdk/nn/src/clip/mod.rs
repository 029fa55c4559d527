//! CLIP (Radford et al., arXiv:2103.00020), with the weights, names and numbers of transformers' classes.

mod config;
mod layer;
mod model;
mod text;
mod vision;

pub use config::{Activation, ClipConfig, ClipTextConfig, ClipVisionConfig};
pub use model::Clip;
pub use text::{ClipText, ClipTextOutput};
pub use vision::ClipVision;
