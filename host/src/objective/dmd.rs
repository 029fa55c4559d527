//! Distribution matching: moves the student's samples from where the fake-score network denoises them to where the
//! teacher does.

use tch::Tensor;

use super::{check_same_shape, float, mean_per_sample};
use crate::{Error, Result};

/// Added to the normaliser, as in `FastGen`: where student and teacher agree there is nothing to divide.
const EPS: f64 = 1e-6;

/// The loss, and detached numbers to watch.
#[derive(Debug)]
pub struct Matching {
    /// `[B]`, with gradients to the student's x0.
    pub loss: Tensor,
    /// `mean |x0 - x0_teacher|` of each sample, `[B]`: what the direction was divided by.
    pub normalizer: Tensor,
    /// `mean |x0_fake - x0_teacher|` of each sample, `[B]`, before the division: how far the distributions are apart.
    pub gap: Tensor,
}

impl Matching {
    /// Means over the samples, by name: scalars on the device.
    pub fn statistics(&self) -> [(&'static str, Tensor); 2] {
        [("normalizer", self.normalizer.mean(tch::Kind::Float)), ("gap", self.gap.mean(tch::Kind::Float))]
    }
}

/// The distribution-matching loss per sample (DMD, arXiv:2311.18828, equations 7 and 8; DMD2's `sd_guidance.py` with x0
/// in flow form; AdvDMD's equation 3.1):
///
/// ```text
/// x0_fake = x_s - s v_fake          x0_teacher = x_s - s v_teacher
/// g       = (x0_fake - x0_teacher) / (mean |x0 - x0_teacher| + 1e-6)
/// loss    = 1/2 mean (x0 - stopgrad(x0 - g))^2
/// ```
///
/// so that the gradient to x0 is `g` over the number of its elements: a step against the difference of the two scores,
/// whose size does not depend on the noise level.
///
/// `x0` `[B, ...]` of the student, with gradients; `x_s` the same noised to `sigma` `[B]`; `fake_velocity` and
/// `teacher_velocity` (already guided) predicted there. Only `x0` gets gradients. `NaN`s of a network stay `NaN`s: the
/// reference code turns them into 0, which hides a broken run.
///
/// # Errors
/// Different shapes.
pub fn loss(
    x0: &Tensor,
    x_s: &Tensor,
    sigma: &Tensor,
    fake_velocity: &Tensor,
    teacher_velocity: &Tensor,
) -> Result<Matching> {
    let velocities = [("fake velocity", fake_velocity), ("teacher velocity", teacher_velocity)];
    check_same_shape(&[[("x0", x0), ("x_s", x_s)], velocities].concat())?;
    let size = x0.size();
    let Some(&batch) = size.first().filter(|_| sigma.size() == size[..1]) else {
        return Err(Error::contract(format!(
            "sigma: expected one for each sample of x0 {size:?}, found {:?}",
            sigma.size()
        )));
    };
    let mut column = vec![1; size.len()];
    column[0] = batch;

    let x0 = float(x0)?;
    let (gradient, normalizer, gap) = tch::no_grad(|| -> Result<_> {
        let (x_s, sigma) = (float(x_s)?, float(sigma)?.f_view(&*column)?);
        let x0_fake = &x_s - &sigma * float(fake_velocity)?;
        let x0_teacher = &x_s - &sigma * float(teacher_velocity)?;
        let difference = x0_fake - &x0_teacher;
        let normalizer = mean_per_sample(&(&x0 - x0_teacher).abs())?;
        let gradient = &difference / (&normalizer + EPS).f_view(&*column)?;
        Ok((gradient, normalizer, mean_per_sample(&difference.abs())?))
    })?;
    // x0 - stopgrad(x0 - g) without the rounding of x0 - (x0 - g): the value is g, the derivative 1.
    let residual = (&x0 - x0.detach()) + gradient;
    Ok(Matching { loss: mean_per_sample(&residual.square())? * 0.5, normalizer, gap })
}
