//! CLIP (Radford et al., arXiv:2103.00020), with the weights, names and numbers of transformers' classes.

mod config;
mod layer;
mod text;

pub use config::{Activation, ClipTextConfig};
pub use text::{ClipText, ClipTextOutput};
