//! Images of a batch as PNG files in base64.

use std::borrow::Cow;

use advdmd_sdk::{Error, Result, RewardBatch};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The images of a batch, ready to be encoded one by one.
pub(crate) struct Pictures<'b> {
    width: usize,
    height: usize,
    values: Cow<'b, [f32]>,
}

impl<'b> Pictures<'b> {
    /// The images `[B, 3, H, W]` of a batch.
    ///
    /// # Errors
    /// No images, another shape, NaN or infinity.
    pub fn of(batch: &'b RewardBatch<'_>) -> Result<Self> {
        let images = batch.images()?;
        images.expect_shape("images", &[Some(batch.len() as i64), Some(3), None, None])?;
        let (height, width) = (images.shape()[2] as usize, images.shape()[3] as usize);
        if height == 0 || width == 0 {
            return Err(Error::shape("images", "[B, 3, H, W] with H, W > 0", images.shape()));
        }
        let values = images.to_f32()?;
        match values.iter().position(|value| !value.is_finite()) {
            Some(at) => Err(Error::invalid(format!("image {} holds NaN or infinity", at / (3 * height * width)))),
            None => Ok(Self { width, height, values }),
        }
    }

    /// Image `index` as an 8-bit RGB PNG file in base64: `round(255 x)` of values clipped to 0..1, halves to even, as
    /// libtorch rounds.
    ///
    /// # Errors
    /// The encoder's.
    pub fn base64(&self, index: usize) -> Result<String> {
        let area = self.width * self.height;
        let image = &self.values[3 * area * index..][..3 * area];
        let byte = |value: f32| (value.clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
        let rgb: Vec<u8> = (0..area).flat_map(|at| [0, 1, 2].map(|channel| byte(image[channel * area + at]))).collect();
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, self.width as u32, self.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        // The network is rarely slower than a better compression.
        encoder.set_compression(png::Compression::Fast);
        let written = encoder.write_header().and_then(|mut writer| writer.write_image_data(&rgb));
        written.map_err(|error| Error::failed(format!("PNG: {error}")))?;
        Ok(STANDARD.encode(file))
    }
}
