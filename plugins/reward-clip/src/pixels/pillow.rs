//! Pillow's resampling of 8-bit images (`Resample.c`), to the bit, on any device.
//!
//! Pillow resizes columns and then rows, or rows first where that saves much (from version 13 on, pull request 9549: images
//! that are resized in proportion and are at least twice as high as wide). Each output pixel is a sum of input pixels times
//! weights in fixed-point numbers of 22 bits, rounded and cut off to 8 bits, so that the order shows. Such sums are whole
//! numbers below 2^53: a product of float64 matrices gives them exactly, whatever its order of summation.

use advdmd_sdk::Result;
use tch::{Device, Kind, Tensor};

use super::axis::Axis;
use super::settings::Filter;

/// Bits behind the point of a weight: 32 without the 8 of a pixel and 2 for overshoot.
const BITS: i32 = 32 - 8 - 2;

/// Resizes images `[B, C, H, W]` of whole numbers in 0..=255, float64, and takes the axes' parts.
pub fn resize(images: &Tensor, [rows, columns]: &[Axis; 2], filter: Filter) -> Result<Tensor> {
    let device = images.device();
    let across = |images: &Tensor| match weights(columns, filter, device)? {
        Some(weights) => to_bytes(&images.f_matmul(&weights.f_transpose(0, 1)?)?),
        None => Ok(images.f_narrow(3, columns.start, columns.length)?),
    };
    let down = |images: &Tensor| match weights(rows, filter, device)? {
        Some(weights) => to_bytes(&weights.f_matmul(images)?),
        None => Ok(images.f_narrow(2, rows.start, rows.length)?),
    };
    if rows_first(rows, columns) { across(&down(images)?) } else { down(&across(images)?) }
}

/// Pillow 13's choice: rows are dropped, and more than twice as many as columns.
fn rows_first(rows: &Axis, columns: &Axis) -> bool {
    let dropped = rows.input - rows.resized;
    dropped > 0 && dropped > 2 * (columns.input - columns.resized)
}

/// `clip8`: half is added, the bits behind the point cut off, the rest kept in 0..=255.
fn to_bytes(sums: &Tensor) -> Result<Tensor> {
    let one = f64::from(1 << BITS);
    Ok(sums.f_add_scalar(0.5 * one)?.f_div_scalar(one)?.f_floor()?.f_clamp(0.0, 255.0)?)
}

/// Fixed-point weights `[length, input]` of the pixels that are taken, float64; `None` where nothing is resized.
fn weights(axis: &Axis, filter: Filter, device: Device) -> Result<Option<Tensor>> {
    let Axis { input, resized, start, length, .. } = *axis;
    if input == resized {
        return Ok(None);
    }
    // Enlarging interpolates; shrinking widens the filter by as much, against aliasing.
    let scale = input as f64 / resized as f64;
    let stretch = scale.max(1.0);
    let (support, inverse) = (filter.support() * stretch, 1.0 / stretch);
    let mut weights = vec![0.0; (length * input) as usize];
    for (row, at) in weights.chunks_mut(input as usize).zip(start..) {
        let center = (at as f64 + 0.5) * scale;
        let first = ((center - support + 0.5) as i64).max(0);
        let end = ((center + support + 0.5) as i64).min(input);
        let taps: Vec<f64> = (first..end).map(|x| filter.at((x as f64 - center + 0.5) * inverse)).collect();
        let sum: f64 = taps.iter().sum();
        for (weight, tap) in row[first as usize..].iter_mut().zip(taps) {
            let tap = if sum == 0.0 { tap } else { tap / sum };
            // Half away from zero, as Pillow's cast of a shifted number.
            *weight = (tap * f64::from(1 << BITS)).round();
        }
    }
    let weights = Tensor::f_from_slice(&weights)?.f_view([length, input])?;
    Ok(Some(weights.f_to_kind(Kind::Double)?.f_to(device)?))
}

impl Filter {
    /// Distance from the centre at which it ends, in pixels.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    /// The weight at a distance; the cubic is Keys' with a = -0.5 (Keys, 1981).
    fn at(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bilinear if x < 1.0 => 1.0 - x,
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            Self::Bilinear | Self::Bicubic => 0.0,
        }
    }
}
