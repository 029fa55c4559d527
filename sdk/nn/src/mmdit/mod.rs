//! MMDiT, the transformer of Stable Diffusion 3 and 3.5 (Esser et al., arXiv:2403.03206), with the weights, names and
//! numbers of diffusers' `SD3Transformer2DModel`.

mod block;
mod config;
mod init;
mod model;

pub use block::Block;
pub use config::MmditConfig;
pub use init::Init;
pub use model::{LORA_TARGETS, Mmdit};
