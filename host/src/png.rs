//! Images as PNG files: single ones, and grids of many.

use std::io::Cursor;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::{Error, Result, files};

/// The colour between the tiles of a grid.
const GAP: [u8; 3] = [128, 128, 128];

/// Tiles of a written grid are at least this wide, so that tiny images can be seen in any viewer.
const MIN_TILE: usize = 96;

/// An 8-bit RGB image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    width: usize,
    height: usize,
    /// Row by row from the top, three bytes a pixel.
    rgb: Vec<u8>,
}

/// Where the tiles of a grid lie, in pixels of its file: tile i is in row `i / columns`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grid {
    /// Tiles in a row.
    pub columns: usize,
    /// Rows.
    pub rows: usize,
    /// Width of an image before it was enlarged.
    pub width: usize,
    /// Its height.
    pub height: usize,
    /// Each pixel of an image is a square of this side.
    pub scale: usize,
    /// Pixels between two tiles.
    pub gap: usize,
}

impl Grid {
    /// The grid for `count` images in rows of `columns`.
    pub fn new(count: usize, columns: usize, width: usize, height: usize) -> Self {
        let columns = columns.clamp(1, count.max(1));
        let scale = MIN_TILE.div_ceil(width.max(1)).max(1);
        Self { columns, rows: count.div_ceil(columns), width, height, scale, gap: 4 }
    }

    /// Width and height of the whole file.
    pub fn size(&self) -> (usize, usize) {
        let side =
            |tiles: usize, length: usize| tiles * (length * self.scale + self.gap) - self.gap.min(tiles * self.gap);
        (side(self.columns, self.width), side(self.rows, self.height))
    }

    /// The upper left corner of a tile.
    fn corner(&self, tile: usize) -> (usize, usize) {
        let step = |length: usize| length * self.scale + self.gap;
        ((tile % self.columns) * step(self.width), (tile / self.columns) * step(self.height))
    }
}

impl Image {
    /// An image of a tensor `[3, H, W]` in 0..1, of any float kind, on any device; values outside are clipped.
    ///
    /// # Errors
    /// Another shape; NaN or infinity.
    pub fn from_tensor(image: &Tensor) -> Result<Self> {
        let (height, width) = match image.size().as_slice() {
            [3, height, width] if *height > 0 && *width > 0 => (*height as usize, *width as usize),
            other => return Err(Error::contract(format!("an image has shape {other:?}, expected [3, H, W]"))),
        };
        let image = image.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
        if image.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
            return Err(Error::contract("an image holds NaN or infinity"));
        }
        let bytes = image.f_clamp(0.0, 1.0)?.f_mul_scalar(255.0)?.f_round()?.f_to_kind(Kind::Uint8)?;
        let rgb = Vec::<u8>::try_from(&bytes.f_permute([1, 2, 0])?.f_contiguous()?.f_view([-1])?)?;
        Ok(Self { width, height, rgb })
    }

    /// The images of a tensor `[N, 3, H, W]`, as [`Image::from_tensor`].
    ///
    /// # Errors
    /// Another shape; NaN or infinity.
    pub fn from_batch(images: &Tensor) -> Result<Vec<Self>> {
        match images.size().as_slice() {
            [count, 3, _, _] => (0..*count).map(|index| Self::from_tensor(&images.f_get(index)?)).collect(),
            other => Err(Error::contract(format!("images have shape {other:?}, expected [N, 3, H, W]"))),
        }
    }

    /// An image of one colour.
    pub fn filled(width: usize, height: usize, colour: [u8; 3]) -> Self {
        Self { width, height, rgb: colour.repeat(width * height) }
    }

    /// Pixels in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Red, green and blue at column x of row y, which must lie inside.
    fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        let at = 3 * (y * self.width + x);
        [self.rgb[at], self.rgb[at + 1], self.rgb[at + 2]]
    }

    fn set(&mut self, x: usize, y: usize, colour: [u8; 3]) {
        let at = 3 * (y * self.width + x);
        self.rgb[at..at + 3].copy_from_slice(&colour);
    }

    /// Images side by side as `grid` says, all of its size, enlarged without smoothing.
    ///
    /// # Errors
    /// Images of another size, or more of them than the grid has tiles.
    pub fn tile(images: &[Self], grid: &Grid) -> Result<Self> {
        let fits = |image: &Self| (image.width, image.height) == (grid.width, grid.height);
        if images.len() > grid.columns * grid.rows || !images.iter().all(fits) {
            let count = images.len();
            return Err(Error::contract(format!("{count} images do not fit a grid of {grid:?}")));
        }
        let (width, height) = grid.size();
        let mut whole = Self::filled(width, height, GAP);
        for (index, image) in images.iter().enumerate() {
            let (left, top) = grid.corner(index);
            for y in 0..grid.height * grid.scale {
                for x in 0..grid.width * grid.scale {
                    whole.set(left + x, top + y, image.pixel(x / grid.scale, y / grid.scale));
                }
            }
        }
        Ok(whole)
    }

    /// Tile `index` of a grid, at its size before it was enlarged; `None` where the grid does not have it or does not
    /// fit this image.
    pub fn cut(&self, grid: &Grid, index: usize) -> Option<Self> {
        // The numbers may come from a damaged file.
        let numbers = [grid.columns, grid.rows, grid.width, grid.height, grid.scale];
        let plausible = numbers.iter().all(|number| (1..=1 << 16).contains(number)) && grid.gap <= 1 << 16;
        if !plausible || index >= grid.columns * grid.rows || grid.size() != (self.width, self.height) {
            return None;
        }
        let (left, top) = grid.corner(index);
        let mut tile = Self::filled(grid.width, grid.height, GAP);
        for y in 0..grid.height {
            for x in 0..grid.width {
                tile.set(x, y, self.pixel(left + x * grid.scale, top + y * grid.scale));
            }
        }
        Some(tile)
    }

    /// The image with each square of `factor` pixels averaged into one; what is left over at the edges is dropped.
    #[must_use]
    pub fn shrink(&self, factor: usize) -> Self {
        let factor = factor.clamp(1, self.width.min(self.height).max(1));
        let mut small = Self::filled(self.width / factor, self.height / factor, [0; 3]);
        for y in 0..small.height {
            for x in 0..small.width {
                let mut sum = [0; 3];
                for (dy, dx) in (0..factor).flat_map(|dy| (0..factor).map(move |dx| (dy, dx))) {
                    let pixel = self.pixel(x * factor + dx, y * factor + dy);
                    sum = std::array::from_fn(|channel| sum[channel] + usize::from(pixel[channel]));
                }
                small.set(x, y, sum.map(|sum| (sum / (factor * factor)) as u8));
            }
        }
        small
    }

    /// The image as a PNG file's bytes.
    ///
    /// # Errors
    /// An empty image.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut encoder = ::png::Encoder::new(&mut bytes, self.width as u32, self.height as u32);
        encoder.set_color(::png::ColorType::Rgb);
        encoder.set_compression(::png::Compression::High);
        let written = encoder.write_header().and_then(|mut writer| writer.write_image_data(&self.rgb));
        written.map_err(|error| Error::failed(format!("PNG: {error}")))?;
        Ok(bytes)
    }

    /// Reads a PNG file's bytes; grey, palette and 16-bit images become 8-bit RGB, transparency is dropped.
    ///
    /// # Errors
    /// Not a PNG file, or a damaged one.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let failed = |error: ::png::DecodingError| Error::failed(format!("PNG: {error}"));
        let mut decoder = ::png::Decoder::new(Cursor::new(bytes));
        decoder.set_transformations(::png::Transformations::normalize_to_color8());
        let mut reader = decoder.read_info().map_err(failed)?;
        let size = reader.output_buffer_size().ok_or_else(|| Error::failed("PNG: too large"))?;
        let mut samples = vec![0; size];
        let info = reader.next_frame(&mut samples).map_err(failed)?;
        let channels = info.color_type.samples();
        let rgb = samples[..info.buffer_size()]
            .chunks_exact(channels)
            .flat_map(|pixel| if channels >= 3 { [pixel[0], pixel[1], pixel[2]] } else { [pixel[0]; 3] })
            .collect();
        Ok(Self { width: info.width as usize, height: info.height as usize, rgb })
    }
}

/// Writes an image `[3, H, W]` in 0..1 at its own size; the file appears whole or not at all.
///
/// # Errors
/// As [`Image::from_tensor`], or the file cannot be written.
pub fn write_png(path: &Path, image: &Tensor) -> Result<()> {
    files::write(path, &Image::from_tensor(image)?.encode()?)
}

/// Writes images `[N, 3, H, W]` in 0..1 as one grid with `columns` images in a row, enlarged without smoothing until
/// a tile is at least 96 pixels wide.
///
/// # Errors
/// Another shape, no image, NaN or infinity; the file cannot be written.
pub fn write_grid(path: &Path, images: &Tensor, columns: usize) -> Result<Grid> {
    write_tiles(path, &Image::from_batch(images)?, columns)
}

/// [`write_grid`] for images that are bytes already.
///
/// # Errors
/// No image, images of several sizes; the file cannot be written.
pub fn write_tiles(path: &Path, images: &[Image], columns: usize) -> Result<Grid> {
    let first = images.first().ok_or_else(|| Error::contract("a grid without an image"))?;
    let grid = Grid::new(images.len(), columns, first.width, first.height);
    files::write(path, &Image::tile(images, &grid)?.encode()?)?;
    Ok(grid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(count: i64, side: i64) -> Tensor {
        let numbers = count * 3 * side * side;
        Tensor::arange(numbers, (Kind::Float, Device::Cpu)).view([count, 3, side, side]) / (numbers as f64)
    }

    #[test]
    fn a_grid_can_be_cut_up_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("grid.png");
        let images = ramp(5, 16);
        let grid = write_grid(&path, &images, 3).unwrap();
        assert_eq!((grid.columns, grid.rows, grid.scale), (3, 2, 6));
        let whole = Image::decode(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!((whole.width(), whole.height()), (3 * 96 + 8, 2 * 96 + 4));
        for index in 0..5 {
            let expected = Image::from_tensor(&images.get(index)).unwrap();
            assert_eq!(whole.cut(&grid, index as usize).unwrap(), expected);
        }
        assert!(whole.cut(&grid, 6).is_none());
    }

    #[test]
    fn values_are_rounded_and_clipped() {
        let image = Tensor::from_slice(&[-1.0f32, 0.5, 2.0]).view([3, 1, 1]);
        assert_eq!(Image::from_tensor(&image).unwrap().rgb, [0, 128, 255]);
    }

    #[test]
    fn wrong_images_are_refused() {
        let nan = Tensor::from_slice(&[0.0f32, f32::NAN, 1.0]).view([3, 1, 1]);
        assert!(Image::from_tensor(&nan).unwrap_err().to_string().contains("NaN"));
        assert!(Image::from_tensor(&ramp(1, 4)).unwrap_err().to_string().contains("[1, 3, 4, 4]"));
        assert!(Image::decode(b"not a PNG").is_err());
    }

    #[test]
    fn shrinking_averages() {
        let mut image = Image::filled(4, 2, [10, 20, 30]);
        image.set(0, 0, [50, 20, 30]);
        let small = image.shrink(2);
        assert_eq!((small.width(), small.height()), (2, 1));
        assert_eq!(small.rgb, [20, 20, 30, 10, 20, 30]);
    }
}
