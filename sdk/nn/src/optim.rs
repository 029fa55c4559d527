//! The optimiser and what goes with it: `AdamW` and averaged weights over lists of tensors, a few kernel launches per
//! step whatever the number of parameters, and no wait for the device.

use advdmd_sdk::{Error, Result};
use tch::{Device, Kind, Tensor};

mod adamw;
mod ema;
mod grad;

pub use adamw::{AdamW, AdamWConfig};
pub use ema::Ema;
pub use grad::{Gradients, clip_grad_norm, grad_norm};

/// A flag as the fused kernels read it: through a pointer to one float32 on their device.
fn flag(skip: &Tensor, device: Device) -> Result<Tensor> {
    if skip.f_kind()? != Kind::Float || skip.numel() != 1 {
        let found = format!("{:?} {:?}", skip.f_kind()?, skip.size());
        return Err(Error::invalid(format!("skip: expected one float32 number, found {found}")));
    }
    Ok(skip.f_to_device(device)?)
}
