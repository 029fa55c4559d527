//! From the bytes of an image file to the pixels that a model is given.

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;

use crate::picture::{self, Reading};
pub(super) use crate::picture::{size, tensor};

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

/// The image in 8-bit RGB, as [`Reading::OnWhite`] has it.
///
/// # Errors
/// As [`picture::decode`].
pub(super) fn decode(bytes: &[u8]) -> Result<RgbImage, String> {
    picture::decode(bytes, Reading::OnWhite)
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
