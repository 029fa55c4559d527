//! The first frame of a GIF, as Pillow reads it. The image crate's own reader makes transparent what the frame leaves open.

use gif::{ColorOutput, DecodeOptions, MemoryLimit};
use image::RgbImage;

/// Bytes that a frame may have: 256 million pixels.
const MOST: u64 = 1 << 28;

/// The first frame in 8-bit RGB: transparent pixels show their colour of the palette, and what the frame leaves open has the
/// transparent colour, else the palette's first.
///
/// # Errors
/// A file that is damaged, too large or has no frame; in words.
pub(super) fn first_frame(bytes: &[u8]) -> Result<RgbImage, String> {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    options.check_frame_consistency(true);
    if let Some(most) = std::num::NonZeroU64::new(MOST) {
        options.set_memory_limit(MemoryLimit::Bytes(most));
    }
    let mut decoder = options.read_info(bytes).map_err(|error| error.to_string())?;
    let size = [u32::from(decoder.width()), u32::from(decoder.height())];
    super::check_size(size)?;
    let global = decoder.global_palette().map(<[u8]>::to_vec);
    let frame = decoder.read_next_frame().map_err(|error| error.to_string())?;
    let frame = frame.ok_or_else(|| "holds no image".to_owned())?;
    let palette = frame.palette.clone().or(global).ok_or_else(|| "has no palette".to_owned())?;
    let colour = |index: u8| {
        let at = 3 * usize::from(index);
        // Indices beyond the palette are black to Pillow too.
        palette.get(at..at + 3).map_or([0; 3], |rgb| [rgb[0], rgb[1], rgb[2]])
    };
    let open = image::Rgb(colour(frame.transparent.unwrap_or(0)));
    let mut image = RgbImage::from_pixel(size[0], size[1], open);
    let width = usize::from(frame.width).max(1);
    for (y, row) in frame.buffer.chunks_exact(width).enumerate() {
        for (x, index) in row.iter().enumerate() {
            image.put_pixel(
                u32::from(frame.left) + x as u32,
                u32::from(frame.top) + y as u32,
                image::Rgb(colour(*index)),
            );
        }
    }
    Ok(image)
}
