//! The optimiser and what goes with it: `AdamW` and averaged weights over lists of tensors, a few kernel launches per
//! step whatever the number of parameters, and no wait for the device.

mod adamw;
mod ema;
mod grad;

pub use adamw::{AdamW, AdamWConfig};
pub use ema::Ema;
pub use grad::{Gradients, clip_grad_norm, grad_norm};
