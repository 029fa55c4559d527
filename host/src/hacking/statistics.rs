//! What gamed images have in common, in numbers.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{Error, Result};

/// Statistics of a set of images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statistics {
    /// Mean saturation in 0..1: `(max - min) / max` of a pixel's colours, that of the HSV model.
    pub saturation: f64,
    /// Share, in 0..1, of the brightness' variance that repeats from patch to patch: the power of the spectrum at the
    /// patch frequency and its multiples, without the mean.
    pub patch_power: f64,
}

impl Statistics {
    /// Of images `[B, 3, H, W]` in 0..1, whose model has patches of `patch` pixels (height, width).
    ///
    /// What repeats in every patch is the mean over all patches, so that its variance is the spectrum's power at the
    /// multiples of the patch frequency (Parseval). Sides that are no multiple of the patch are cut.
    ///
    /// # Errors
    /// Another shape, or images smaller than a patch.
    pub fn of(images: &Tensor, patch: [i64; 2]) -> Result<Self> {
        let size = images.size();
        let [height, width] = match *size {
            [count, 3, height, width]
                if count > 0 && height >= patch[0] && width >= patch[1] && patch.iter().all(|&side| side > 0) =>
            {
                [height / patch[0] * patch[0], width / patch[1] * patch[1]]
            }
            _ => {
                let expected = format!("[B, 3, H, W] of at least a patch of {patch:?}");
                return Err(Error::contract(format!("images: expected {expected}, found {size:?}")));
            }
        };
        let images = images.f_to_kind(Kind::Double)?;
        let (most, least) = (images.f_amax([1].as_slice(), false)?, images.f_amin([1].as_slice(), false)?);
        let saturation = ((&most - least) / most.f_clamp_min(f64::MIN_POSITIVE)?).f_mean(Kind::Double)?;
        let brightness = images.f_mean_dim([1].as_slice(), false, Kind::Double)?;
        let brightness = brightness.f_narrow(1, 0, height)?.f_narrow(2, 0, width)?;
        let tiles = brightness.f_unflatten(2, [-1, patch[1]])?.f_unflatten(1, [-1, patch[0]])?;
        let repeated = tiles.f_mean_dim([1, 3].as_slice(), false, Kind::Double)?;
        let variance = |x: &Tensor| x.f_var_dim([1, 2].as_slice(), false, false);
        // An image of one colour has nothing that could repeat.
        let share = variance(&repeated)? / variance(&brightness)?.f_clamp_min(1e-12)?;
        Ok(Self {
            saturation: saturation.f_double_value(&[])?,
            patch_power: share.f_mean(Kind::Double)?.f_double_value(&[])?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::TAU;

    use tch::Device;

    use super::*;

    fn grey(rows: impl Fn(f64, f64) -> f64) -> Tensor {
        let pixels: Vec<f64> =
            (0..32).flat_map(|y| (0..32).map(move |x| (f64::from(y), f64::from(x)))).map(|(y, x)| rows(y, x)).collect();
        Tensor::from_slice(&pixels).view([1, 1, 32, 32]).expand([2, 3, 32, 32], false)
    }

    #[test]
    fn a_texture_of_the_patch_is_found_and_others_are_not() {
        let power = |images: &Tensor| Statistics::of(images, [8, 8]).unwrap().patch_power;
        for period in [8.0, 4.0] {
            let texture = grey(|_, x| 0.5 + 0.3 * (TAU * x / period).cos());
            assert!((power(&texture) - 1.0).abs() < 1e-9);
        }
        let other = grey(|y, _| 0.5 + 0.3 * (TAU * y / 16.0).cos());
        assert!(power(&other) < 1e-9);
        // Equal power in each: half of it repeats.
        let both = grey(|y, x| 0.5 + 0.2 * (TAU * x / 8.0).cos() + 0.2 * (TAU * y / 16.0).cos());
        assert!((power(&both) - 0.5).abs() < 1e-9);
        assert_eq!(power(&grey(|_, _| 0.3)), 0.0);
    }

    /// The share of the power of the discrete Fourier transform at the multiples of the patch frequency.
    #[test]
    fn the_share_is_that_of_the_spectrum() {
        tch::manual_seed(1);
        let images = Tensor::rand([1, 3, 32, 32], (Kind::Double, Device::Cpu));
        let spectrum = images
            .mean_dim([1].as_slice(), false, Kind::Double)
            .fft_fft2(None::<&[i64]>, [1, 2], "backward")
            .abs()
            .square();
        let total = spectrum.sum(Kind::Double).double_value(&[]) - spectrum.double_value(&[0, 0, 0]);
        let multiples = (0..8).flat_map(|u| (0..8).map(move |v| [0, 4 * u, 4 * v]));
        let at: f64 = multiples.skip(1).map(|place| spectrum.double_value(&place)).sum();
        assert!((Statistics::of(&images, [8, 8]).unwrap().patch_power - at / total).abs() < 1e-9);
    }

    #[test]
    fn saturation_is_hsvs() {
        let pixel = |rgb: [f64; 3]| Tensor::from_slice(&rgb).view([1, 3, 1, 1]).expand([1, 3, 8, 8], false);
        let saturation = |rgb| Statistics::of(&pixel(rgb), [8, 8]).unwrap().saturation;
        assert_eq!(saturation([0.5, 0.5, 0.5]), 0.0);
        assert_eq!(saturation([0.0, 0.0, 0.0]), 0.0);
        assert_eq!(saturation([0.8, 0.0, 0.4]), 1.0);
        assert_eq!(saturation([0.8, 0.6, 0.4]), 0.5);
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
        for shape in [&[1, 3, 4, 8][..], &[0, 3, 8, 8], &[3, 8, 8], &[1, 1, 8, 8]] {
            assert!(Statistics::of(&zeros(shape), [8, 8]).is_err(), "{shape:?}");
        }
    }
}
