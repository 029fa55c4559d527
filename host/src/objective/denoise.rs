//! The denoising loss: what the teacher was trained with, and what keeps the fake-score network on the student's samples.

use tch::Tensor;

use super::{check_same_shape, float, mean_per_sample};
use crate::Result;

/// `mean (v - (noise - x0))^2` per sample: the conditional flow-matching loss, whose minimum is the velocity of the
/// marginal flow.
///
/// `velocity` predicted at `(1 - s) x0 + s noise`, `x0` and `noise`, each `[B, ...]` -> `[B]`. Gradients flow to `velocity`
/// alone: `x0` may be the student's.
///
/// Lipman et al. 2022 (arXiv:2210.02747, equation 9) on the straight path; DMD2's fake-score loss in flow form
/// (arXiv:2405.14867; RTDMD's `dmd_trainer.py`); AdvDMD's equation 3.2.
///
/// # Errors
/// Different shapes.
pub fn loss(velocity: &Tensor, x0: &Tensor, noise: &Tensor) -> Result<Tensor> {
    check_same_shape(&[("velocity", velocity), ("x0", x0), ("noise", noise)])?;
    let target = (float(noise)? - float(x0)?).detach();
    mean_per_sample(&(float(velocity)? - target).square())
}
