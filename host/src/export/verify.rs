//! Whether what was written computes what the student computes.

use std::fmt;

use advdmd_sdk::{Backbone, Conditioning, DType, Denoiser, Request, Tuning};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::model::Model;
use crate::random::{Random, Stream};
use crate::sampling::sigma_column;
use crate::{Error, Result};

/// Cells of the feature grid on a side that are enough to tell two networks apart: a large model's full latents would take
/// minutes on a CPU.
const CELLS: i64 = 16;

/// The student's velocities on random latents, and the base's.
#[derive(Debug)]
pub struct Probe {
    x: Tensor,
    conditioning: Conditioning,
    sigmas: [f64; 2],
    student: [Tensor; 2],
    base: [Tensor; 2],
    dtype: DType,
}

/// How far a network that was read back is from the student.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// The noise level.
    pub sigma: f64,
    /// Largest difference of two velocities.
    pub absolute: f64,
    /// The same, divided by the student's largest velocity.
    pub relative: f64,
    /// Largest difference of the student from the base, divided in the same way.
    pub from_base: f64,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sigma, absolute, relative, from_base } = self;
        if *absolute == 0.0 {
            write!(f, "sigma {sigma}: no difference in any velocity")?;
        } else {
            write!(f, "sigma {sigma}: largest difference {absolute:.1e}, {relative:.1e} of the largest velocity")?;
        }
        write!(f, " (student and base differ by {from_base:.1e} of the largest)")
    }
}

impl Probe {
    /// The velocities of a student of `dtype` for an embedded prompt, at two noise levels.
    ///
    /// # Errors
    /// The backbone's.
    pub fn new(model: &Model, conditioning: Conditioning, sigmas: [f64; 2], dtype: DType) -> Result<Self> {
        let backbone = model.backbone.as_ref();
        let base = backbone.denoiser(&Tuning::Frozen, 0)?;
        let full = Random::new(0).normal(Stream::Eval, [[0, 0, 0]], &backbone.spec().latent_shape, model.device())?;
        let small = crop(backbone, &full)?;
        let velocities = |x: &Tensor| velocities(base.as_ref(), x, &conditioning, sigmas);
        // A backbone need not take latents of another size than its own.
        let (x, base) = match velocities(&small) {
            Ok(found) => (small, found),
            Err(_) => (full.shallow_clone(), velocities(&full)?),
        };
        let student = self::velocities(model.denoiser.as_ref(), &x, &conditioning, sigmas)?;
        Ok(Self { x, conditioning, sigmas, student, base, dtype })
    }

    /// How far `denoiser` is from the student at each noise level.
    ///
    /// # Errors
    /// The backbone's; a velocity that is not finite.
    pub fn compare(&self, denoiser: &dyn Denoiser) -> Result<Vec<Difference>> {
        let found = velocities(denoiser, &self.x, &self.conditioning, self.sigmas)?;
        let differences = self.sigmas.iter().zip(&self.student).zip(&self.base).zip(&found);
        differences
            .map(|(((&sigma, student), base), found)| {
                let scale = largest(student)?;
                let absolute = largest(&student.f_sub(found)?)?;
                if !(scale.is_finite() && absolute.is_finite()) {
                    return Err(Error::failed(format!("sigma {sigma}: a velocity is not finite")));
                }
                let scaled = |value: f64| if value == 0.0 { 0.0 } else { value / scale };
                let from_base = scaled(largest(&student.f_sub(base)?)?);
                Ok(Difference { sigma, absolute, relative: scaled(absolute), from_base })
            })
            .collect()
    }

    /// The largest relative difference that rounding explains where the weights were summed up and stored as `stored`: the
    /// student adds what each layer's weight and its update give, and rounds in other places. That each number is what
    /// was meant to be written is checked by the backbone that writes them.
    #[must_use]
    pub fn tolerance_of_sums(&self, stored: DType) -> f64 {
        rounding(stored).max(rounding(self.dtype))
    }
}

/// What rounding to a type adds up to in a deep network, of its largest velocity. Of the stored type alone where the same
/// network computes with the numbers: in whatever type it does, equal factors give equal velocities.
#[must_use]
pub fn rounding(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 1e-2,
        DType::Bf16 => 5e-2,
        _ => 1e-4,
    }
}

/// An embedded prompt, after which the encoders are gone.
///
/// # Errors
/// The backbone's.
pub fn conditioning(backbone: &dyn Backbone) -> Result<Conditioning> {
    let conditioning = tch::no_grad(|| encoded(backbone))?;
    backbone.release_encoders()?;
    Ok(conditioning)
}

/// The first prompt that the backbone has words for.
fn encoded(backbone: &dyn Backbone) -> Result<Conditioning> {
    // Every backbone takes this one, so that a fault here is none of the prompt's.
    let null = backbone.encode_text(&[&backbone.spec().null_prompt])?;
    for prompt in ["a photograph of a red fox in the snow", "a red 7"] {
        match backbone.encode_text(&[prompt]) {
            Ok(known) => return Ok(known),
            Err(advdmd_sdk::Error::Invalid(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(null)
}

/// The first cells of latents `[1, C, h, w]`, at most [`CELLS`] on a side.
fn crop(backbone: &dyn Backbone, latents: &Tensor) -> Result<Tensor> {
    let spec = backbone.spec();
    let mut small = latents.shallow_clone();
    for (dim, cells, length) in
        [(2, spec.feature_grid[0], spec.latent_shape[1]), (3, spec.feature_grid[1], spec.latent_shape[2])]
    {
        small = small.f_narrow(dim, 0, length / cells.max(1) * cells.min(CELLS))?;
    }
    Ok(small.f_contiguous()?)
}

fn velocities(
    denoiser: &dyn Denoiser,
    x: &Tensor,
    conditioning: &Conditioning,
    sigmas: [f64; 2],
) -> Result<[Tensor; 2]> {
    let _no_grad = tch::no_grad_guard();
    let at = |sigma: f64| -> Result<Tensor> {
        let prediction = denoiser.predict(x, &sigma_column(sigma, x), conditioning, Request::VELOCITY)?;
        let velocity = prediction.velocity.ok_or_else(|| Error::contract("no velocity"))?;
        Ok(velocity.f_to_device_(Device::Cpu, Kind::Double, false, false)?)
    };
    Ok([at(sigmas[0])?, at(sigmas[1])?])
}

fn largest(tensor: &Tensor) -> Result<f64> {
    Ok(tensor.f_abs()?.f_max()?.f_double_value(&[])?)
}
