//! From the bytes of an image file to 8-bit RGB: one way for training, one for scores that are compared with those of Python.

mod complete;
mod gif;
mod jpeg;

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Seek};
use std::path::Path;

use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageFormat, ImageReader, RgbImage};
use tch::{Kind, Tensor};

use crate::Result;

/// Most pixels of an image: twice Pillow's `MAX_IMAGE_PIXELS`, beyond which it raises `DecompressionBombError`. A small file may
/// unpack to more than memory holds.
pub const MOST_PIXELS: u64 = 178_956_970;

/// How a file's pixels become 8-bit RGB. In both, the image is turned as its EXIF orientation says, grey is repeated, and
/// colour profiles are not applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// For training: what is transparent lies on white, 16 bits are rounded to 8. JPEG, PNG and `WebP`.
    OnWhite,
    /// Pillow's `ImageOps.exif_transpose(Image.open(file)).convert("RGB")`, which the reference pipelines of image rewards
    /// begin with: transparency is dropped and what colour lies under it shows, of 16 bits the upper 8 are taken. GIF as
    /// well, of which the first frame counts.
    ///
    /// One departure is on purpose: of 16-bit grey the upper 8 bits are taken too. Pillow clips it, so that all but its
    /// darkest 256 shades become white.
    Pillow,
}

/// Width and height as the image is meant to be seen, from the header alone, of a format of [`Reading::OnWhite`].
///
/// # Errors
/// No image of a known format, one of more than [`MOST_PIXELS`], or one that is cut off; in words.
pub fn size(bytes: &[u8]) -> Result<[u32; 2], String> {
    is_whole(bytes)?;
    seen_size(decoder(Cursor::new(bytes), Reading::OnWhite)?)
}

/// The same for a file of any format of [`Reading::Pillow`], of which no more than the header is read.
///
/// # Errors
/// As [`size`]; a file that cannot be read.
pub fn size_of_file(path: &Path) -> Result<[u32; 2], String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    seen_size(decoder(BufReader::new(file), Reading::Pillow)?)
}

fn is_whole(bytes: &[u8]) -> Result<(), String> {
    image::guess_format(bytes).map_or(Ok(()), |format| complete::check(bytes, format))
}

/// Refuses more than [`MOST_PIXELS`].
fn check_size([width, height]: [u32; 2]) -> Result<(), String> {
    if u64::from(width) * u64::from(height) <= MOST_PIXELS {
        return Ok(());
    }
    Err(format!("is {width}x{height} pixels, more than {MOST_PIXELS}: expected at most as many as Pillow opens"))
}

fn seen_size(mut decoder: impl ImageDecoder) -> Result<[u32; 2], String> {
    let (width, height) = decoder.dimensions();
    let turned = matches!(
        decoder.orientation().map_err(|error| error.to_string())?,
        Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH
    );
    Ok(if turned { [height, width] } else { [width, height] })
}

/// The image in 8-bit RGB.
///
/// # Errors
/// A format that is not one of the reading's, more than [`MOST_PIXELS`], or a file that is damaged; in words.
pub fn decode(bytes: &[u8], reading: Reading) -> Result<RgbImage, String> {
    is_whole(bytes)?;
    let format = image::guess_format(bytes).ok().filter(|_| reading == Reading::Pillow);
    if format == Some(ImageFormat::Gif) {
        return gif::first_frame(bytes);
    }
    let mut decoder = decoder(Cursor::new(bytes), reading)?;
    let orientation = decoder.orientation().map_err(|error| error.to_string())?;
    let mut image = match format {
        Some(ImageFormat::Jpeg) => DynamicImage::ImageRgb8(jpeg::decode(bytes)?),
        _ => DynamicImage::from_decoder(decoder).map_err(|error| error.to_string())?,
    };
    image.apply_orientation(orientation);
    Ok(match reading {
        Reading::OnWhite if image.color().has_alpha() => on_white(&image),
        Reading::OnWhite => image.into_rgb8(),
        Reading::Pillow => upper_bits(image),
    })
}

fn decoder<'a>(bytes: impl BufRead + Seek + 'a, reading: Reading) -> Result<impl ImageDecoder + 'a, String> {
    let reader = ImageReader::new(bytes).with_guessed_format().map_err(|error| error.to_string())?;
    match (reader.format(), reading) {
        (Some(ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::WebP), _)
        | (Some(ImageFormat::Gif), Reading::Pillow) => {}
        (_, Reading::OnWhite) => return Err("not a JPEG, PNG or WebP image".to_owned()),
        (_, Reading::Pillow) => return Err("not a JPEG, PNG, WebP or GIF image".to_owned()),
    }
    let decoder = reader.into_decoder().map_err(|error| error.to_string())?;
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err("has no pixels".to_owned());
    }
    check_size([width, height])?;
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

/// Colours alone, and of 16 bits the upper 8.
fn upper_bits(image: DynamicImage) -> RgbImage {
    if image.color().bytes_per_pixel() == image.color().channel_count() {
        // From 8 bits, the colours stay what they are.
        return image.into_rgb8();
    }
    let deep = image.into_rgb16();
    let mut rgb = RgbImage::new(deep.width(), deep.height());
    for (to, from) in rgb.pixels_mut().zip(deep.pixels()) {
        to.0 = from.0.map(|colour| (colour >> 8) as u8);
    }
    rgb
}

/// Pixels in rows of RGB as `[3, H, W]` in 0..1, float32.
///
/// # Errors
/// libtorch's, for lack of memory.
pub fn tensor(pixels: &[u8], size: [u32; 2]) -> Result<Tensor> {
    in_unit(&bytes(pixels, size)?.f_contiguous()?)
}

/// Pixels in rows of RGB as a view `[3, H, W]` of a copy, 0 to 255, uint8.
///
/// # Errors
/// libtorch's, for lack of memory.
pub fn bytes(pixels: &[u8], [width, height]: [u32; 2]) -> Result<Tensor> {
    let shape = [i64::from(height), i64::from(width), 3];
    Ok(Tensor::f_from_data_size(pixels, &shape, Kind::Uint8)?.f_permute([2, 0, 1])?)
}

/// Bytes as float32 in 0..1, with one copy.
///
/// # Errors
/// libtorch's, for lack of memory.
pub fn in_unit(bytes: &Tensor) -> Result<Tensor> {
    Ok(bytes.f_to_kind(Kind::Float)?.f_div_scalar_(255.0)?)
}

#[cfg(test)]
mod tests {
    use image::{Luma, LumaA, Rgba};

    use super::*;

    fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn pixel(bytes: &[u8], x: u32, y: u32) -> [u8; 3] {
        decode(bytes, Reading::OnWhite).unwrap().get_pixel(x, y).0
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
        let image = decode(bytes, Reading::OnWhite).unwrap();
        assert_eq!(image.dimensions(), (8, 16));
        let [top, bottom] = [2, 12].map(|y| image.get_pixel(4, y).0);
        assert!(top[2] > 200 && top[0] < 50 && bottom[0] > 200 && bottom[2] < 50, "{top:?} {bottom:?}");
    }

    #[test]
    fn what_is_no_image_is_said() {
        let whole = encoded(image::GrayImage::from_pixel(64, 64, Luma([70])), ImageFormat::Png);
        for reading in [Reading::OnWhite, Reading::Pillow] {
            assert!(decode(&whole[..whole.len() / 2], reading).is_err());
        }
        let cases: [(&[u8], &str); 3] =
            [(b"", "not a JPEG, PNG or WebP"), (b"<svg/>", "not a JPEG"), (b"GIF89a\x01\0\x01\0\0\0\0;", "not")];
        for (bytes, part) in cases {
            for message in [decode(bytes, Reading::OnWhite).unwrap_err(), size(bytes).unwrap_err()] {
                assert!(message.contains(part), "{message}");
            }
        }
    }
}
