//! The checker reads an image back into digits and colours, cell by cell, and gives the features for the Fréchet
//! distance.

use std::collections::BTreeMap;
use std::path::Path;

use advdmd_nn::Weights;
use tch::{Device, Kind, Tensor, no_grad};

use super::error::DigitsError;
use super::network::{CELL_FEATURES, Network, all_finite};
use super::scene::{CELLS, SCENE_SIDE};
use super::vocabulary::{Colour, Digit};

/// Numbers in a scene's feature: for each of the four cells the network's 32 and the mean of each channel.
pub const SCENE_FEATURES: i64 = (CELLS as i64) * (CELL_FEATURES + 3);

/// Puts the channel means (deviation about 0.12 over real scenes) on the scale of the network's features (about 1).
const MEAN_SCALE: f64 = 8.0;

/// Images read at a time, which bounds the memory.
const CHUNK: i64 = 512;

/// The shipped weights' file.
pub(crate) static WEIGHTS: &[u8] = include_bytes!("../../data/checker.safetensors");

/// What stands in one cell of an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CellReading {
    /// The digit with its colour; `None` for a cell without a readable digit.
    pub object: Option<(Digit, Colour)>,
    /// The probability that the network gives to that digit, or to "empty".
    pub confidence: f32,
}

/// What stands in the four cells of an image; cell = 2 row + column.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// By cell.
    pub cells: [CellReading; CELLS],
}

impl Reading {
    /// The objects read, with their cells.
    pub fn objects(&self) -> impl Iterator<Item = (usize, Digit, Colour)> {
        self.cells.iter().enumerate().filter_map(|(cell, reading)| {
            let (digit, colour) = reading.object?;
            Some((cell, digit, colour))
        })
    }
}

/// A small network for the digits and a rule for the colours.
///
/// The network sees the brightest channel of each pixel, so that colour cannot mislead it. The rule takes the mean
/// colour of the ink, `sum(pixel * ink) / sum(ink^2)`, which is `colour / max(colour)` for a pixel `alpha * colour`
/// whatever the alphas, and the nearest of the palette's six.
#[derive(Debug)]
pub struct Checker {
    network: Network,
}

impl Checker {
    /// The checker that is part of the program (`host/data/checker.json` says how it was trained).
    ///
    /// # Errors
    /// As [`Checker::from_bytes`].
    pub fn embedded(device: Device) -> Result<Self, DigitsError> {
        Self::from_bytes(WEIGHTS, device)
    }

    /// Parses float32 safetensors.
    ///
    /// # Errors
    /// Not safetensors; a parameter missing, unknown, of another shape or dtype, or not finite.
    pub fn from_bytes(bytes: &[u8], device: Device) -> Result<Self, DigitsError> {
        Ok(Self { network: Network::from_bytes(bytes, "checker", device)? })
    }

    /// Reads a safetensors file.
    ///
    /// # Errors
    /// The file cannot be read, or as [`Checker::from_bytes`].
    pub fn load(path: &Path, device: Device) -> Result<Self, DigitsError> {
        let weights = Weights::load(path, Some(Kind::Float), device)?;
        Ok(Self { network: Network::from_weights(&weights, &path.display().to_string())? })
    }

    /// Writes the weights as float32 safetensors; the file appears whole or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), DigitsError> {
        Ok(self.network.weights().save(path, &BTreeMap::new())?)
    }

    pub(super) fn from_network(network: Network) -> Self {
        Self { network }
    }

    /// Class logits `[N, 11]` (digits 0 to 9, then empty) and features `[N, 32]` of cells `[N, 3, 8, 8]` in 0..1;
    /// values outside are clipped. No gradients are recorded.
    ///
    /// # Errors
    /// Another shape; NaN or infinity.
    pub fn classify(&self, cells: &Tensor) -> Result<(Tensor, Tensor), DigitsError> {
        match cells.size().as_slice() {
            [_, 3, 8, 8] => {}
            other => return Err(shape_error("cells", other, "[N, 3, 8, 8]")),
        }
        let read = self.cells(cells)?;
        Ok((read.logits, read.features))
    }

    /// Reads images `[B, 3, 16, 16]` in 0..1; values outside are clipped, as a file would.
    ///
    /// # Errors
    /// Another shape; NaN or infinity.
    pub fn read(&self, images: &Tensor) -> Result<Vec<Reading>, DigitsError> {
        let mut readings = Vec::new();
        self.each_chunk(images, |cells| {
            let (confidence, class) = cells.logits.f_softmax(-1, Kind::Float)?.f_max_dim(-1, false)?;
            let distances = cells.colour.f_unsqueeze(1)?.f_sub(&palette(cells.colour.device())?)?;
            let nearest =
                distances.f_square()?.f_sum_dim_intlist([-1i64].as_slice(), false, Kind::Float)?.f_argmin(-1, false)?;
            let (class, colour) = (Vec::<i64>::try_from(&class)?, Vec::<i64>::try_from(&nearest)?);
            let confidence = Vec::<f32>::try_from(&confidence)?;
            let cells: Vec<CellReading> = (0..class.len())
                .map(|i| {
                    let digit = Digit::ALL.get(class[i] as usize);
                    let object = digit.map(|digit| (*digit, Colour::ALL[colour[i] as usize]));
                    CellReading { object, confidence: confidence[i] }
                })
                .collect();
            readings.extend(cells.as_chunks().0.iter().map(|cells| Reading { cells: *cells }));
            Ok(())
        })?;
        Ok(readings)
    }

    /// Features of images `[B, 3, 16, 16]` in 0..1 for a Fréchet distance: `[B, 140]`, float, on the CPU; for each
    /// cell the network's 32 and the three channel means times 8, so that both shape and colour count.
    ///
    /// # Errors
    /// Another shape; NaN or infinity.
    pub fn features(&self, images: &Tensor) -> Result<Tensor, DigitsError> {
        let mut chunks = Vec::new();
        self.each_chunk(images, |cells| {
            let all = Tensor::f_cat(&[&cells.features, &cells.mean], 1)?;
            chunks.push(all.f_reshape([-1, SCENE_FEATURES])?.f_to_device(Device::Cpu)?);
            Ok(())
        })?;
        if chunks.is_empty() {
            return Ok(Tensor::f_zeros([0, SCENE_FEATURES], (Kind::Float, Device::Cpu))?);
        }
        Ok(Tensor::f_cat(&chunks, 0)?)
    }

    /// Cuts images into cells, a chunk at a time, and hands over what is read of them.
    fn each_chunk(
        &self,
        images: &Tensor,
        mut take: impl FnMut(Cells) -> Result<(), DigitsError>,
    ) -> Result<(), DigitsError> {
        let side = SCENE_SIDE as i64;
        let count = match images.size().as_slice() {
            [count, 3, height, width] if *height == side && *width == side => *count,
            other => return Err(shape_error("images", other, "[B, 3, 16, 16]")),
        };
        let half = side / 2;
        let mut start = 0;
        while start < count {
            let length = CHUNK.min(count - start);
            let grid = images.f_narrow(0, start, length)?.f_reshape([length, 3, 2, half, 2, half])?;
            let cells = grid.f_permute([0, 2, 4, 1, 3, 5])?.f_reshape([-1, 3, half, half])?;
            take(self.cells(&cells)?)?;
            start += length;
        }
        Ok(())
    }

    fn cells(&self, cells: &Tensor) -> Result<Cells, DigitsError> {
        no_grad(|| {
            let cells = cells.f_to_device(self.network.device())?.f_to_kind(Kind::Float)?;
            if !all_finite(&cells)? {
                return Err(DigitsError::Tensor { name: "images", problem: "holds NaN or infinity".into() });
            }
            let cells = cells.f_clamp(0.0, 1.0)?;
            let ink = ink(&cells)?;
            let output = self.network.forward(&ink)?;
            let over_pixels = |x: &Tensor| x.f_sum_dim_intlist([2i64, 3].as_slice(), false, Kind::Float);
            let colour = over_pixels(&cells.f_mul(&ink)?)?.f_div(&over_pixels(&ink.f_square()?)?.f_clamp_min(1e-6)?)?;
            let mean = cells.f_mean_dim([2i64, 3].as_slice(), false, Kind::Float)?.f_mul_scalar(MEAN_SCALE)?;
            Ok(Cells { logits: output.logits, features: output.features, colour, mean })
        })
    }
}

/// What is read of N cells.
struct Cells {
    /// `[N, 11]`
    logits: Tensor,
    /// `[N, 32]`
    features: Tensor,
    /// `[N, 3]`: the ink's colour with its brightest channel near 1.
    colour: Tensor,
    /// `[N, 3]`: the mean of each channel, scaled.
    mean: Tensor,
}

/// The ink of cells `[N, 3, 8, 8]`: the brightest channel, `[N, 1, 8, 8]`.
pub(super) fn ink(cells: &Tensor) -> Result<Tensor, DigitsError> {
    Ok(cells.f_amax([1i64].as_slice(), true)?)
}

/// The palette with the brightest channel of each colour at 1, `[6, 3]`.
fn palette(device: Device) -> Result<Tensor, DigitsError> {
    let normalised = Colour::ALL.map(|colour| {
        let rgb = colour.rgb();
        let brightest = rgb.into_iter().fold(0.0, f32::max);
        rgb.map(|channel| channel / brightest)
    });
    Ok(Tensor::f_from_slice(normalised.as_flattened())?.f_view([-1, 3])?.f_to_device(device)?)
}

fn shape_error(name: &'static str, found: &[i64], expected: &str) -> DigitsError {
    DigitsError::Tensor { name, problem: format!("has shape {found:?}, expected {expected}") }
}
