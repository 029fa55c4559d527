//! From the bytes of an image file to the pixels that a model is given.

use std::io::Cursor;

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageReader, RgbImage};
use tch::{Kind, Tensor};

use super::complete;
use crate::Result;

/// Rises when the same file gives other pixels; part of what is cached.
pub(super) const VERSION: u32 = 2;

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
    let Some(format) = reader.format() else { return Err("not a JPEG, PNG or WebP image".to_owned()) };
    complete::check(bytes, format)?;
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

#[cfg(test)]
mod tests {
    use image::{ImageFormat, Luma, LumaA, Rgba};

    use super::*;

    fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn pixel(bytes: &[u8], x: u32, y: u32) -> [u8; 3] {
        decode(bytes).unwrap().get_pixel(x, y).0
    }

    #[test]
    fn every_kind_of_pixel_becomes_rgb() {
        let grey = encoded(image::GrayImage::from_pixel(4, 4, Luma([70])), ImageFormat::Png);
        assert_eq!(pixel(&grey, 1, 1), [70; 3]);
        let deep = encoded(image::ImageBuffer::from_pixel(4, 4, Luma([0x8000_u16])), ImageFormat::Png);
        assert_eq!(pixel(&deep, 1, 1), [128; 3]);
        let mut glass = image::RgbaImage::from_pixel(4, 4, Rgba([255, 0, 0, 0]));
        glass.put_pixel(1, 1, Rgba([255, 0, 0, 255]));
        glass.put_pixel(2, 2, Rgba([0, 0, 0, 51]));
        for format in [ImageFormat::Png, ImageFormat::WebP] {
            let glass = encoded(glass.clone(), format);
            let found = [pixel(&glass, 0, 0), pixel(&glass, 1, 1), pixel(&glass, 2, 2)];
            assert_eq!(found, [[255; 3], [255, 0, 0], [204; 3]], "{format:?}");
        }
        let veiled = encoded(image::GrayAlphaImage::from_pixel(4, 4, LumaA([0, 0])), ImageFormat::Png);
        assert_eq!(pixel(&veiled, 1, 1), [255; 3]);
    }

    /// A file that Pillow wrote, and what Pillow reads in it.
    #[test]
    fn inks_become_colours() {
        let bytes = include_bytes!("fixtures/cmyk.jpg");
        for (x, expected) in [(3, [255, 0, 0]), (12, [0, 0, 191])] {
            let found = pixel(bytes, x, 4);
            let apart = found.iter().zip(expected).map(|(a, b): (&u8, u8)| a.abs_diff(b)).max();
            assert!(apart <= Some(3), "{found:?}, expected {expected:?}");
        }
    }

    #[test]
    fn an_image_is_turned_as_its_camera_says() {
        let bytes = include_bytes!("fixtures/turned.jpg");
        assert_eq!(size(bytes).unwrap(), [8, 16]);
        let image = decode(bytes).unwrap();
        assert_eq!(image.dimensions(), (8, 16));
        let [top, bottom] = [2, 12].map(|y| image.get_pixel(4, y).0);
        assert!(top[2] > 200 && top[0] < 50 && bottom[0] > 200 && bottom[2] < 50, "{top:?} {bottom:?}");
    }

    /// Pillow's Lanczos of the middle square, smaller, and of the middle in portrait, larger; on colours that it does not drive
    /// out of range, since the two clip at different places.
    #[test]
    fn scaling_is_pillows() {
        let image = decode(include_bytes!("fixtures/pattern.png")).unwrap();
        let cases: [(&[u8], [u32; 2]); 2] = [
            (include_bytes!("fixtures/pattern-16.png"), [16, 16]),
            (include_bytes!("fixtures/pattern-48x60.png"), [48, 60]),
        ];
        for (expected, size) in cases {
            let expected = decode(expected).unwrap();
            let found = fit(&image, size, Crop::CENTER).unwrap();
            let apart = found.iter().zip(expected.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(apart <= Some(2), "{size:?}: {apart:?} apart");
        }
    }

    #[test]
    fn crops_reach_both_ends_and_the_own_size_stays() {
        let image = RgbImage::from_fn(32, 16, |x, _| image::Rgb([x as u8 * 8, 0, 0]));
        let red =
            |x| fit(&image, [16, 16], Crop { x, y: 0.3 }).unwrap().into_iter().step_by(3).take(16).collect::<Vec<_>>();
        assert_eq!(red(0.0), (0..16).map(|x| x * 8).collect::<Vec<u8>>());
        assert_eq!(red(1.0), (16..32).map(|x| x * 8).collect::<Vec<u8>>());
        assert_eq!(&fit(&image, [32, 16], Crop { x: 1.0, y: 1.0 }).unwrap(), image.as_raw());
        let tensor = tensor(&fit(&image, [32, 16], Crop::CENTER).unwrap(), [32, 16]).unwrap();
        assert_eq!((tensor.size(), tensor.double_value(&[0, 3, 31])), (vec![3, 16, 32], f64::from(248.0_f32 / 255.0)));
    }

    #[test]
    fn what_is_no_image_is_said() {
        let whole = encoded(image::GrayImage::from_pixel(64, 64, Luma([70])), ImageFormat::Png);
        assert!(decode(&whole[..whole.len() / 2]).is_err());
        let cases: [(&[u8], &str); 3] =
            [(b"", "not a JPEG, PNG or WebP"), (b"<svg/>", "not a JPEG"), (b"GIF89a\x01\0\x01\0\0\0\0;", "not")];
        for (bytes, part) in cases {
            for message in [decode(bytes).unwrap_err(), size(bytes).unwrap_err()] {
                assert!(message.contains(part), "{message}");
            }
        }
    }
}
