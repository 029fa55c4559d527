//! JPEG by libjpeg, whose transform, upsampling and rounding are those of the libjpeg-turbo in Pillow: the image crate's decoder
//! is as good, but some pixels differ by up to 3.

use std::panic::catch_unwind;

use image::RgbImage;
use mozjpeg::{ColorSpace, Decompress};

/// The image in 8-bit RGB, not turned.
///
/// # Errors
/// A file that is damaged or too large; in words.
pub(super) fn decode(bytes: &[u8]) -> Result<RgbImage, String> {
    // The crate turns libjpeg's fatal errors into unwinding; they print nothing.
    let decoded = catch_unwind(|| scan(bytes).map_err(|error| error.to_string()));
    let (size, rgb) = decoded.map_err(|_| "is no whole JPEG image".to_owned())??;
    RgbImage::from_raw(size[0], size[1], rgb).ok_or_else(|| "has other pixels than its header said".to_owned())
}

fn scan(bytes: &[u8]) -> std::io::Result<([u32; 2], Vec<u8>)> {
    let image = Decompress::new_mem(bytes)?;
    let size = [image.width() as u32, image.height() as u32];
    super::check_size(size).map_err(std::io::Error::other)?;
    let inks = matches!(image.color_space(), ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK);
    let mut rows = if inks { image.to_colorspace(ColorSpace::JCS_CMYK)? } else { image.rgb()? };
    let samples: Vec<u8> = rows.read_scanlines()?;
    rows.finish()?;
    if !inks {
        return Ok((size, samples));
    }
    // Pillow takes all of these for Adobe's, which are stored inverted: what is stored is how much ink is lacking.
    let rgb = samples.chunks_exact(4).flat_map(|lacking| {
        let white = u32::from(lacking[3]);
        [0, 1, 2].map(|ink| {
            let product = u32::from(255 - lacking[ink]) * white + 128;
            (white - ((product + (product >> 8)) >> 8).min(white)) as u8
        })
    });
    Ok((size, rgb.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_an_error_or_an_image_and_nothing_else() {
        let whole: &[u8] = include_bytes!("fixtures/turned.jpg");
        assert_eq!(decode(whole).unwrap().dimensions(), (16, 8));
        assert!(decode(&whole[..8]).is_err() && decode(b"").is_err() && decode(b"\xff\xd8\xff\xd9").is_err());
        for at in 0..whole.len() {
            let mut damaged = whole.to_vec();
            damaged[at] ^= 0x55;
            // Some sizes are too large for this test.
            if crate::picture::size(&damaged).is_ok_and(|[width, height]| width * height < 1 << 16) {
                drop(decode(&damaged));
            }
        }
    }
}
