//! Losses as pure functions of tensors, each with its formula and its source.
//!
//! They give one number per sample, `[B]`, so that the caller weighs and averages over chunks of any size. All compute in
//! float32 (the ratio of two log-probabilities and the matching direction are differences of nearly equal numbers) and
//! leave every result on the device. The generator loss of the discriminator belongs to the reward that learns it.
//!
//! Rectified flow throughout: `x_s = (1 - s) x0 + s noise`, velocity `v = noise - x0`, so `x0 = x_s - s v`.

pub mod advantage;
pub mod denoise;
pub mod dmd;
pub mod grpo;

use tch::{Kind, Tensor};

use crate::{Error, Result};

/// Refuses tensors of different shapes: libtorch would broadcast them into a plausible number.
fn check_same_shape(tensors: &[(&str, &Tensor)]) -> Result<()> {
    let Some(((first, tensor), others)) = tensors.split_first() else { return Ok(()) };
    let expected = tensor.size();
    match others.iter().find(|(_, tensor)| tensor.size() != expected) {
        None => Ok(()),
        Some((name, tensor)) => {
            let found = tensor.size();
            Err(Error::contract(format!("{name}: expected the shape {expected:?} of {first}, found {found:?}")))
        }
    }
}

/// The mean over all dimensions but the first: `[B, ...]` to `[B]`, float32.
fn mean_per_sample(values: &Tensor) -> Result<Tensor> {
    Ok(values.f_flatten(1, -1)?.f_mean_dim(1, false, Kind::Float)?)
}

fn float(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.f_to_kind(Kind::Float)?)
}
