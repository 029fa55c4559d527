//! One head: from a feature map to a logit at each place.

use advdmd_nn::RandomStream;
use advdmd_sdk::Result;
use tch::{Device, Kind, Tensor};

/// Slope of the leaky rectifier below 0.
const SLOPE: f64 = 0.2;

/// Epsilon of the normalisations, libtorch's own for group norm.
const EPS: f64 = 1e-5;

/// Sizes of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Channels read.
    pub channels: i64,
    /// Channels inside.
    pub width: i64,
    /// Side of the convolution's kernel.
    pub kernel: i64,
    /// Its stride; the padding is 1.
    pub stride: i64,
    /// Groups of the group norm.
    pub groups: i64,
    /// Waves of the noise level's embedding; 0 where the head does not know the noise level.
    pub waves: i64,
}

impl Geometry {
    /// For feature maps of `channels` on a `grid`.
    ///
    /// From a side of 8 on, `FastGen`'s: a 4x4 convolution of stride 2, which halves the grid. Below, where halving would
    /// leave too few places to judge, a 3x3 of stride 1. The group norm has as many groups as fit, at most 32 (`FastGen`'s)
    /// and with at least 16 channels each: normalised alone, a channel would lose its level over the map, and with it
    /// everything in which real and fake differ as a whole.
    pub fn new(channels: i64, width: i64, grid: [i64; 2], waves: i64) -> Self {
        let (kernel, stride) = if grid[0].min(grid[1]) >= 8 { (4, 2) } else { (3, 1) };
        let fits = |groups: &i64| width % groups == 0 && width / groups >= 16;
        let groups = (1..=width.min(32)).rev().find(fits).unwrap_or(1);
        Self { channels, width, kernel, stride, groups, waves }
    }
}

/// Layer norm, convolution, group norm, modulation by the noise level, leaky rectifier, 1x1 convolution.
///
/// `FastGen`'s head for transformers (`discriminators.py`, `ImageDiT`) with two additions. The feature map is normalised
/// over its channels at each place, because blocks differ in scale by orders of magnitude. And a scale and a shift of the
/// normalised channels depend on the noise level; both start at 0.
#[derive(Debug)]
pub(crate) struct Head {
    geometry: Geometry,
    conv: [Tensor; 2],
    norm: [Tensor; 2],
    sigma: Option<[Tensor; 2]>,
    out: [Tensor; 2],
    /// [`SLOPE`], `[1]`.
    slope: Tensor,
}

impl Head {
    /// Weights drawn from `seed` and their own names alone: convolutions uniform within `1 / sqrt(inputs)`, libtorch's
    /// default; gains 1; the noise level's part 0.
    pub fn new(geometry: Geometry, seed: u64, name: &str, device: Device) -> Result<Self> {
        let Geometry { channels, width, kernel, waves, .. } = geometry;
        let leaf = |tensor: Tensor| -> Result<Tensor> { Ok(tensor.f_to(device)?.f_set_requires_grad(true)?) };
        let convolution = |layer: &str, shape: [i64; 4]| -> Result<[Tensor; 2]> {
            let bound = 1.0 / ((shape[1] * shape[2] * shape[3]) as f32).sqrt();
            let draw = |part: &str, shape: &[i64]| {
                leaf(RandomStream::new(seed, &format!("{name}.{layer}.{part}")).uniform(shape, bound)?)
            };
            Ok([draw("weight", &shape)?, draw("bias", &shape[..1])?])
        };
        let options = (Kind::Float, Device::Cpu);
        let zeros = |shape: &[i64]| leaf(Tensor::f_zeros(shape, options)?);
        Ok(Self {
            geometry,
            conv: convolution("conv", [width, channels, kernel, kernel])?,
            norm: [leaf(Tensor::f_ones([width], options)?)?, zeros(&[width])?],
            sigma: if waves == 0 { None } else { Some([zeros(&[2 * width, waves])?, zeros(&[2 * width])?]) },
            out: convolution("out", [1, width, 1, 1])?,
            slope: Tensor::f_full([1], SLOPE, (Kind::Float, device))?,
        })
    }

    /// Handles on the trainable tensors.
    pub fn parameters(&self) -> impl Iterator<Item = (String, Tensor)> {
        let layers = [("conv", Some(&self.conv)), ("norm", Some(&self.norm)), ("sigma", self.sigma.as_ref())];
        let layers = layers.into_iter().chain([("out", Some(&self.out))]);
        layers.filter_map(|(layer, tensors)| Some((layer, tensors?))).flat_map(|(layer, [weight, bias])| {
            [(format!("{layer}.weight"), weight.shallow_clone()), (format!("{layer}.bias"), bias.shallow_clone())]
        })
    }

    /// The same head over the same storage, without gradients to its parameters.
    pub fn detach(&self) -> Self {
        let detach = |[weight, bias]: &[Tensor; 2]| [weight.detach(), bias.detach()];
        Self {
            geometry: self.geometry,
            conv: detach(&self.conv),
            norm: detach(&self.norm),
            sigma: self.sigma.as_ref().map(detach),
            out: detach(&self.out),
            slope: self.slope.shallow_clone(),
        }
    }

    /// Logits `[B, N]` of N places, from features `[B, C, h, w]` that [`normalize`] made and the embedded noise level
    /// `[B, waves]`.
    pub fn forward(&self, features: &Tensor, sigma: &Tensor) -> Result<Tensor> {
        let Geometry { width, stride, groups, .. } = self.geometry;
        let convolve = |x: &Tensor, [weight, bias]: &[Tensor; 2], stride: i64, padding: i64| {
            x.f_conv2d(weight, Some(bias), [stride, stride], [padding, padding], [1, 1], 1)
        };
        let x = convolve(features, &self.conv, stride, 1)?;
        let mut x = x.f_group_norm(groups, Some(&self.norm[0]), Some(&self.norm[1]), EPS, true)?;
        if let Some([weight, bias]) = &self.sigma {
            let modulation = sigma.f_linear(weight, Some(bias))?.f_view([-1, 2 * width, 1, 1])?.f_chunk(2, 1)?;
            // x (1 + scale) + shift
            x = modulation[1].f_addcmul(&x, &modulation[0].f_add_scalar(1.0)?)?;
        }
        // The leaky rectifier is a parametric one whose slope is not trained; tch's own has a fixed slope.
        let x = x.f_prelu(&self.slope)?;
        Ok(convolve(&x, &self.out, 1, 0)?.f_flatten(1, -1)?)
    }
}

/// Layer norm over the channels of `[B, C, h, w]` at each place, without affine parameters, float32.
pub(crate) fn normalize(features: &Tensor) -> Result<Tensor> {
    // The host's maps are transposed tokens, so this permutation restores their own layout.
    let tokens = features.f_to_kind(Kind::Float)?.f_permute([0, 2, 3, 1])?;
    Ok(advdmd_nn::layer_norm(&tokens)?.f_permute([0, 3, 1, 2])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_and_groups_fit_the_grid() {
        let sd3 = Geometry::new(1536, 768, [32, 32], 16);
        assert_eq!((sd3.kernel, sd3.stride, sd3.groups), (4, 2, 32));
        let digits = Geometry::new(128, 64, [4, 4], 16);
        assert_eq!((digits.kernel, digits.stride, digits.groups), (3, 1, 4));
        assert_eq!(Geometry::new(256, 120, [16, 16], 0).groups, 6);
        assert_eq!(Geometry::new(32, 7, [4, 4], 0).groups, 1);
    }
}
