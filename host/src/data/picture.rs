//! From the bytes of an image file to the pixels that a model is given.

use std::io::Cursor;

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageReader, RgbImage};
use tch::{Kind, Tensor};

use crate::Result;

/// Rises when the same file gives other pixels; part of what is cached.
pub(super) const VERSION: u32 = 1;

/// Which part of an image is taken: from 0, all to the left or top, to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Crop {
    pub x: f64,
    pub y: f64,
}

impl Crop {
    /// The middle.
    pub const CENTER: Self = Self { x: 0.5, y: 0.5 };
}

/// Width and height as the image is meant to be seen, from the header alone.
///
/// # Errors
/// No image of a known format; in words.
pub(super) fn size(bytes: &[u8]) -> Result<[u32; 2], String> {
    let mut decoder = decoder(bytes)?;
    let (width, height) = decoder.dimensions();
    let turned = matches!(
        decoder.orientation().map_err(|error| error.to_string())?,
        Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH
    );
    Ok(if turned { [height, width] } else { [width, height] })
}

/// The image, turned as its EXIF orientation says, in 8-bit RGB: grey is repeated, what is transparent lies on white, 16 bits
/// are rounded to 8. Colour profiles are not applied.
///
/// # Errors
/// A format that is not JPEG, PNG or `WebP`, or a file that is damaged; in words.
pub(super) fn decode(bytes: &[u8]) -> Result<RgbImage, String> {
    let mut decoder = decoder(bytes)?;
    let orientation = decoder.orientation().map_err(|error| error.to_string())?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(|error| error.to_string())?;
    image.apply_orientation(orientation);
    Ok(if image.color().has_alpha() { on_white(&image) } else { image.into_rgb8() })
}

fn decoder(bytes: &[u8]) -> Result<impl ImageDecoder + '_, String> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|error| error.to_string())?;
    if reader.format().is_none() {
        return Err("not a JPEG, PNG or WebP image".to_owned());
    }
    let decoder = reader.into_decoder().map_err(|error| error.to_string())?;
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err("has no pixels".to_owned());
    }
    if decoder.color_type() == ColorType::Rgb32F || decoder.color_type() == ColorType::Rgba32F {
        return Err("holds floating-point colours, expected 8 or 16 bits".to_owned());
    }
    Ok(decoder)
}

/// `alpha colour + (1 - alpha) 255`, rounded.
fn on_white(image: &DynamicImage) -> RgbImage {
    let rgba = image.to_rgba8();
    let mut rgb = RgbImage::new(rgba.width(), rgba.height());
    for (to, from) in rgb.pixels_mut().zip(rgba.pixels()) {
        let [colours @ .., alpha] = from.0;
        to.0 = colours.map(|colour| {
            let (colour, alpha) = (u32::from(colour), u32::from(alpha));
            ((colour * alpha + 255 * (255 - alpha) + 127) / 255) as u8
        });
    }
    rgb
}

/// The largest part of the image that has the shape of `width` x `height`, at `crop`, scaled to that size: Lanczos, wide
/// enough when it shrinks that nothing is skipped. An image of that very size is left as it is.
///
/// # Errors
/// The resizer's; in words.
pub(super) fn fit(image: &RgbImage, [width, height]: [u32; 2], crop: Crop) -> Result<Vec<u8>, String> {
    if image.dimensions() == (width, height) {
        return Ok(image.as_raw().clone());
    }
    let (whole_width, whole_height) = (f64::from(image.width()), f64::from(image.height()));
    let shape = f64::from(width) / f64::from(height);
    let taken = (whole_width.min(whole_height * shape), whole_height.min(whole_width / shape));
    let left = (whole_width - taken.0) * crop.x;
    let top = (whole_height - taken.1) * crop.y;
    let source = ImageRef::new(image.width(), image.height(), image.as_raw(), PixelType::U8x3)
        .map_err(|error| error.to_string())?;
    let mut scaled = Image::new(width, height, PixelType::U8x3);
    let options =
        ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3)).crop(left, top, taken.0, taken.1);
    Resizer::new().resize(&source, &mut scaled, &options).map_err(|error| error.to_string())?;
    Ok(scaled.into_vec())
}

/// Pixels of [`fit`] as `[3, H, W]` in 0..1, float32.
///
/// # Errors
/// libtorch's, for lack of memory.
pub(super) fn tensor(pixels: &[u8], [width, height]: [u32; 2]) -> Result<Tensor> {
    let shape = [i64::from(height), i64::from(width), 3];
    let bytes = Tensor::f_from_data_size(pixels, &shape, Kind::Uint8)?;
    Ok(bytes.f_permute([2, 0, 1])?.f_to_kind(Kind::Float)?.f_div_scalar(255.0)?.f_contiguous()?)
}
