//! Images to what the model reads.

mod axis;
mod pillow;
mod settings;

use std::path::Path;

use advdmd_sdk::{Error, Result};
use schemars::JsonSchema;
use serde::Deserialize;
use tch::{Kind, Tensor};

use axis::{Axis, Rounding};
use settings::{Filter, Settings, Size};

/// How images become the model's input.
///
/// `tensor-bicubic` and `tensor-bilinear` are computed on floating-point numbers and give gradients as they are.
/// `processor` and `open-clip` round as a PNG file and Pillow do, and so have none: where gradients are asked for, the same sizes and
/// filter are computed without rounding. How far the second way is from the first, on the golden images of smooth areas,
/// noise and hard edges: pixels, in 0..1, by 0.002 in the median and at most by 0.115, where the filter overshoots
/// black or white, which Pillow cuts off; cosines by at most 0.0035.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Preprocess {
    /// As transformers' `CLIPImageProcessor` with Pillow: images rounded to 8 bits, then all that the folder's
    /// `preprocessor_config.json` says.
    Processor,
    /// As `open_clip`'s own transform with Pillow: images rounded to 8 bits, shorter side to the model's size by Pillow's bicubic
    /// filter, torchvision's centre crop (which rounds half a pixel otherwise than transformers), CLIP's mean and deviation.
    OpenClip,
    /// As torchvision on a tensor: shorter side to the model's size by an antialiased bicubic filter, without rounding or
    /// clamping, centre crop, CLIP's mean and deviation.
    TensorBicubic,
    /// The same with a bilinear filter.
    TensorBilinear,
}

/// Images `[B, 3, H, W]` in 0..1 to the model's `[B, 3, S, S]`.
#[derive(Debug)]
pub struct Pixels {
    settings: Settings,
    rounding: Rounding,
    exact: bool,
}

impl Pixels {
    /// For a model of `image_size` in `folder`.
    ///
    /// # Errors
    /// `processor` without the folder's file, or with one that asks for what is not offered.
    pub fn new(preprocess: Preprocess, folder: &Path, image_size: i64) -> Result<Self> {
        let tensor =
            |filter| Self { settings: Settings::clip(image_size, filter), rounding: Rounding::HalfEven, exact: false };
        Ok(match preprocess {
            Preprocess::Processor => {
                Self { settings: Settings::read(folder, image_size)?, rounding: Rounding::Down, exact: true }
            }
            Preprocess::OpenClip => Self { exact: true, ..tensor(Filter::Bicubic) },
            Preprocess::TensorBicubic => tensor(Filter::Bicubic),
            Preprocess::TensorBilinear => tensor(Filter::Bilinear),
        })
    }

    /// Whether [`Pixels::differentiable`] gives the numbers of [`Pixels::reference`].
    pub fn is_differentiable(&self) -> bool {
        !self.exact
    }

    /// The reference's numbers, float32 (float64 where the images are that and nothing is rounded).
    ///
    /// # Errors
    /// Images without pixels; libtorch's.
    pub fn reference(&self, images: &Tensor) -> Result<Tensor> {
        if !self.exact {
            return self.differentiable(images);
        }
        let axes = self.axes(images)?;
        // What a PNG file would hold; NaN stays NaN.
        let bytes = widen(images)?.f_clamp(0.0, 1.0)?.f_mul_scalar(255.0)?.f_round()?.f_to_kind(Kind::Double)?;
        let resized = pillow::resize(&bytes, &axes, self.settings.filter)?;
        let padded = pad(&resized, &axes)?;
        let scaled = match self.settings.rescale {
            Some(factor) => padded.f_mul_scalar(factor)?,
            None => padded,
        };
        self.normalize(&scaled.f_to_kind(Kind::Float)?)
    }

    /// The same without rounding, with gradients to the images.
    ///
    /// # Errors
    /// As [`Pixels::reference`].
    pub fn differentiable(&self, images: &Tensor) -> Result<Tensor> {
        let axes = self.axes(images)?;
        let images = widen(images)?;
        let [rows, columns] = &axes;
        let size = [rows.resized, columns.resized];
        let resized = match self.settings.filter {
            _ if images.size()[2..] == size => images,
            Filter::Bicubic => images.f_internal_upsample_bicubic2d_aa(size, false, None, None)?,
            Filter::Bilinear => images.f_internal_upsample_bilinear2d_aa(size, false, None, None)?,
        };
        let cropped = resized.f_narrow(2, rows.start, rows.length)?.f_narrow(3, columns.start, columns.length)?;
        let padded = pad(&cropped, &axes)?;
        // From 0..1; of the usual 1 / 255 nothing is left.
        let factor = 255.0 * self.settings.rescale.unwrap_or(1.0);
        self.normalize(&if factor == 1.0 { padded } else { padded.f_mul_scalar(factor)? })
    }

    /// Rows and columns.
    fn axes(&self, images: &Tensor) -> Result<[Axis; 2]> {
        let size = images.size();
        let [height, width] = match *size {
            [_, 3, height, width] if height > 0 && width > 0 => [height, width],
            _ => return Err(Error::shape("images", "[B, 3, H, W] of at least one pixel", &size)),
        };
        let resized = match self.settings.size {
            None => [height, width],
            Some(Size::Sides(sides)) => sides,
            Some(Size::ShortestEdge(edge)) => {
                // As torchvision and transformers: the longer side is rounded down.
                let longer = |long: i64, short: i64| (edge * long / short).max(1);
                if width <= height { [longer(height, width), edge] } else { [edge, longer(width, height)] }
            }
        };
        let axis = |input, resized, crop| Axis::new(input, resized, crop, self.rounding);
        let [rows, columns] = self.settings.crop.map_or([None; 2], |crop| crop.map(Some));
        Ok([axis(height, resized[0], rows), axis(width, resized[1], columns)])
    }

    fn normalize(&self, pixels: &Tensor) -> Result<Tensor> {
        let Some([mean, std]) = &self.settings.normalize else { return Ok(pixels.shallow_clone()) };
        let row = |values: &[f64; 3]| -> Result<Tensor> {
            let row = Tensor::f_from_slice(values)?.f_view([1, 3, 1, 1])?;
            Ok(row.f_to_kind(pixels.kind())?.f_to(pixels.device())?)
        };
        Ok(pixels.f_sub(&row(mean)?)?.f_div(&row(std)?)?)
    }
}

/// In float32, or float64 where they are that.
fn widen(images: &Tensor) -> Result<Tensor> {
    Ok(images.f_to_kind(if images.kind() == Kind::Double { Kind::Double } else { Kind::Float })?)
}

/// Zeros around what is smaller than the crop.
fn pad(images: &Tensor, [rows, columns]: &[Axis; 2]) -> Result<Tensor> {
    let [top, bottom] = rows.padding;
    let [left, right] = columns.padding;
    if [top, bottom, left, right] == [0; 4] {
        return Ok(images.shallow_clone());
    }
    Ok(images.f_constant_pad_nd([left, right, top, bottom])?)
}
