//! The autoencoder between images and latents.

mod blocks;
mod coders;
mod config;
mod tiling;

use std::path::{Path, PathBuf};

use advdmd_nn::{Conv2d, Layout, Params, Stored};
use advdmd_sdk::{Error, Result, Tuning};
use tch::{Device, Kind, Tensor};

pub use config::VaeConfig;

use crate::folder::{DIFFUSERS_STEM, model_files};
use coders::{Decoder, Encoder};
use tiling::Tiles;

/// diffusers' `AutoencoderKL` (Rombach et al., arXiv:2112.10752), with the scale and shift that SD3's transformer was
/// trained with.
#[derive(Debug)]
pub struct Vae {
    config: VaeConfig,
    encoder: Encoder,
    decoder: Decoder,
    quant: Option<Conv2d>,
    post_quant: Option<Conv2d>,
    tiles: Option<Tiles>,
    /// Compute type, that of the weights.
    kind: Kind,
}

/// Pixels that go through the network at once, in whole images: a larger batch is cut up. One image of 1024x1024 takes
/// some gigabytes and all of a device.
const PIXELS: i64 = 1 << 20;

/// What older files call the projections of the attention.
const LEGACY_NAMES: [(&str, &str); 4] =
    [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")];

impl Vae {
    /// Reads a pipeline's `vae`, its weights under diffusers' names, those of today or the older ones of the attention; the
    /// weight files of `variant` where it has them.
    ///
    /// # Errors
    /// A missing or malformed file, or weights that are not exactly the configuration's; the message names it.
    pub fn load(folder: &Path, variant: Option<&str>, kind: Kind, device: Device) -> Result<Self> {
        let folder = folder.join("vae");
        let config = VaeConfig::read(&folder.join("config.json"))?;
        let stored = Stored::open_part(&folder, DIFFUSERS_STEM, variant)?;
        let name_of = |name: &str| Some(current_name(name));
        let weights = stored.read_layout(&Self::layout(&config)?, name_of, Some(kind), device)?;
        let vae = Self::build(&config, &Params::new(&weights, &Tuning::Frozen, &[], 0)?)?;
        Ok(Self { kind, ..vae })
    }

    /// Checks the files that [`Vae::load`] reads, without reading weights.
    ///
    /// # Errors
    /// As [`Vae::load`].
    pub fn check(folder: &Path, variant: Option<&str>) -> Result<()> {
        let folder = folder.join("vae");
        let config = VaeConfig::read(&folder.join("config.json"))?;
        let stored = Stored::open_part(&folder, DIFFUSERS_STEM, variant)?;
        stored.check_layout(&Self::layout(&config)?, |name| Some(current_name(name)))
    }

    /// The files of a pipeline's `vae` that [`Vae::load`] reads; none where there is no such folder.
    ///
    /// # Errors
    /// A folder without weights.
    pub fn files(folder: &Path, variant: Option<&str>) -> Result<Vec<PathBuf>> {
        model_files(&folder.join("vae"), DIFFUSERS_STEM, variant)
    }

    /// Names and shapes of the weights.
    ///
    /// # Errors
    /// A configuration whose sizes do not fit.
    pub fn layout(config: &VaeConfig) -> Result<Layout> {
        config.check()?;
        Params::record(|p| Self::build(config, p))
    }

    fn build(config: &VaeConfig, p: &Params<'_>) -> Result<Self> {
        let channels = config.latent_channels;
        let conv = |wanted: bool, channels: i64, name: &str| {
            wanted.then(|| Conv2d::new(channels, channels, 1, &p.pp(name))).transpose()
        };
        Ok(Self {
            encoder: Encoder::new(config, &p.pp("encoder"))?,
            decoder: Decoder::new(config, &p.pp("decoder"))?,
            quant: conv(config.use_quant_conv, 2 * channels, "quant_conv")?,
            post_quant: conv(config.use_post_quant_conv, channels, "post_quant_conv")?,
            tiles: None,
            kind: Kind::Float,
            config: config.clone(),
        })
    }

    /// The same, decoding images with a side of more than `side` pixels in overlapping tiles of that side, which bounds
    /// the memory. Tiles know nothing of each other, so the numbers differ from those of the whole image.
    ///
    /// # Errors
    /// A side that is no multiple of four latent pixels.
    pub fn tiled(self, side: i64) -> Result<Self> {
        Ok(Self { tiles: Some(Tiles::new(side, self.factor())?), ..self })
    }

    /// Whether images can be decoded in tiles of `side` pixels, `factor` of which make a latent pixel.
    ///
    /// # Errors
    /// As [`Vae::tiled`].
    pub fn check_tile(side: i64, factor: i64) -> Result<()> {
        Tiles::new(side, factor).map(drop).map_err(|error| error.context("vae_tile"))
    }

    /// The configuration.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Image pixels to a latent pixel, on a side.
    pub fn factor(&self) -> i64 {
        self.config.factor()
    }

    /// Latents `[B, C, H / f, W / f]` of images `[B, 3, H, W]` in 0..1, float32: `(mean - shift) scale` of the
    /// posterior. Images of any floating type, on the weights' device.
    ///
    /// # Errors
    /// A wrong shape; libtorch's.
    pub fn encode(&self, images: &Tensor) -> Result<Tensor> {
        let (size, channels, factor) = (images.size(), self.config.in_channels, self.factor());
        match *size {
            [_, c, h, w] if c == channels && h > 0 && w > 0 && h % factor == 0 && w % factor == 0 => {}
            _ => {
                let expected = format!("[B, {channels}, H, W], H and W multiples of {factor}");
                return Err(Error::shape("images", expected, &size));
            }
        }
        let mean = in_parts(images, size[2] * size[3], &|images| {
            let x = images.f_to_kind(Kind::Float)?.f_mul_scalar(2.0)?.f_sub_scalar(1.0)?.f_to_kind(self.kind)?;
            let moments = through(self.quant.as_ref(), &self.encoder.forward(&x)?)?;
            Ok(moments.f_narrow(1, 0, self.config.latent_channels)?.f_to_kind(Kind::Float)?)
        })?;
        Ok(mean.f_sub_scalar(self.config.shift_factor.unwrap_or(0.0))?.f_mul_scalar(self.config.scaling_factor)?)
    }

    /// Images `[B, 3, f h, f w]` in 0..1, float32 and clamped, of latents `[B, C, h, w]`: decoded from
    /// `latents / scale + shift`. Latents of any floating type, on the weights' device; gradients flow to them.
    ///
    /// # Errors
    /// A wrong shape; libtorch's.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let (size, channels, factor) = (latents.size(), self.config.latent_channels, self.factor());
        match *size {
            [_, c, h, w] if c == channels && h > 0 && w > 0 => {}
            _ => return Err(Error::shape("latents", format!("[B, {channels}, h, w]"), &size)),
        }
        let pixels = size[2] * size[3] * factor * factor;
        let images = in_parts(latents, pixels, &|latents| {
            let z = latents.f_to_kind(Kind::Float)?.f_div_scalar(self.config.scaling_factor)?;
            let z = z.f_add_scalar(self.config.shift_factor.unwrap_or(0.0))?.f_to_kind(self.kind)?;
            match &self.tiles {
                Some(tiles) if tiles.are_needed(&z) => tiles.decode(&z, &|z| self.decode_whole(z)),
                _ => self.decode_whole(&z),
            }
        })?;
        Ok(images.f_div_scalar(2.0)?.f_add_scalar(0.5)?.f_clamp(0.0, 1.0)?)
    }

    /// The network's own latents to images in about -1..1, float32.
    fn decode_whole(&self, z: &Tensor) -> Result<Tensor> {
        let z = through(self.post_quant.as_ref(), z)?;
        Ok(self.decoder.forward(&z)?.f_to_kind(Kind::Float)?)
    }
}

/// Applies `f` to as many rows of `x` at a time as [`PIXELS`] allows, each being `pixels` large.
fn in_parts(x: &Tensor, pixels: i64, f: &dyn Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let rows = (PIXELS / pixels).max(1);
    if x.size()[0] <= rows {
        return f(x);
    }
    let parts = x.f_split(rows, 0)?.iter().map(f).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::f_cat(&parts, 0)?)
}

fn through(conv: Option<&Conv2d>, x: &Tensor) -> Result<Tensor> {
    conv.map_or_else(|| Ok(x.shallow_clone()), |conv| conv.forward(x))
}

fn current_name(name: &str) -> String {
    let Some((module, rest)) = name.split_once(".attentions.0.") else { return name.to_owned() };
    let current = LEGACY_NAMES.iter().find_map(|(old, new)| Some(format!("{new}{}", strip_module(rest, old)?)));
    current.map_or_else(|| name.to_owned(), |current| format!("{module}.attentions.0.{current}"))
}

/// What follows `module` in a name, with the dot.
fn strip_module<'a>(name: &'a str, module: &str) -> Option<&'a str> {
    name.strip_prefix(module).filter(|rest| rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn large_batches_are_cut_up() {
        let x = Tensor::arange(5, (Kind::Float, Device::Cpu));
        let rows = |pixels| {
            let rows = RefCell::default();
            let note = |x: &Tensor| {
                Vec::push(&mut rows.borrow_mut(), x.size()[0]);
                Ok(x + 1.0)
            };
            assert_eq!(in_parts(&x, pixels, &note).unwrap(), &x + 1.0);
            rows.take()
        };
        assert_eq!(rows(16), [5]);
        assert_eq!(rows(512 * 1024), [2, 2, 1]);
        assert_eq!(rows(1025 * 1024), [1; 5]);
        assert_eq!(rows(i64::MAX), [1; 5]);
    }

    #[test]
    fn names_are_brought_up_to_date() {
        let renamed = current_name;
        let path = "encoder.mid_block.attentions.0";
        assert_eq!(renamed(&format!("{path}.query.weight")), format!("{path}.to_q.weight"));
        assert_eq!(renamed(&format!("{path}.proj_attn.bias")), format!("{path}.to_out.0.bias"));
        for kept in [format!("{path}.to_k.weight"), format!("{path}.key_norm.weight"), "encoder.query.weight".into()] {
            assert_eq!(renamed(&kept), kept);
        }
    }
}
