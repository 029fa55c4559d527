//! Large images in overlapping tiles.

use advdmd_sdk::{Error, Result};
use tch::{Kind, Tensor};

/// How an image is cut up: diffusers' `AutoencoderKL.tiled_decode`, whose tiles overlap by a quarter, over which one
/// fades into the next.
#[derive(Debug, Clone, Copy)]
pub struct Tiles {
    /// Side of a tile in latent pixels; a multiple of 4.
    side: i64,
    /// Image pixels to a latent pixel.
    factor: i64,
}

impl Tiles {
    /// Tiles of `side` image pixels for latents of which one pixel is `factor` image pixels wide.
    ///
    /// # Errors
    /// A side that is no multiple of four latent pixels: a quarter of it would be no whole number.
    pub fn new(side: i64, factor: i64) -> Result<Self> {
        let quantum = 4 * factor;
        if side < quantum || side % quantum != 0 {
            return Err(Error::config(format!("side of a tile: expected a multiple of {quantum}, found {side}")));
        }
        Ok(Self { side: side / factor, factor })
    }

    /// Whether latents `[B, C, h, w]` are larger than one tile.
    pub fn are_needed(&self, z: &Tensor) -> bool {
        z.size().iter().skip(2).any(|&side| side > self.side)
    }

    /// Decodes latents `[B, C, h, w]` tile by tile with `decode`.
    ///
    /// # Errors
    /// Those of `decode`; libtorch's.
    pub fn decode(&self, z: &Tensor, decode: &dyn Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let (_, _, height, width) = z.size4()?;
        let step = self.side / 4 * 3;
        let fade = self.side / 4 * self.factor;
        let starts = |length: i64| (0..length).step_by(step as usize);
        // Kept whole, and already faded into their neighbours, for the tiles below.
        let mut above: Vec<Tensor> = Vec::new();
        let mut rows = Vec::new();
        for top in starts(height) {
            let mut row: Vec<Tensor> = Vec::new();
            for (column, left) in starts(width).enumerate() {
                let part = z.f_narrow(2, top, self.side.min(height - top))?;
                let mut tile = decode(&part.f_narrow(3, left, self.side.min(width - left))?)?;
                if let Some(above) = above.get(column) {
                    tile = faded(above, &tile, 2, fade)?;
                }
                if let Some(before) = row.last() {
                    tile = faded(before, &tile, 3, fade)?;
                }
                row.push(tile);
            }
            let shown = step * self.factor;
            let cut = |tile: &Tensor| -> Result<Tensor> {
                let (_, _, height, width) = tile.size4()?;
                Ok(tile.f_narrow(2, 0, shown.min(height))?.f_narrow(3, 0, shown.min(width))?)
            };
            rows.push(Tensor::f_cat(&row.iter().map(cut).collect::<Result<Vec<_>>>()?, 3)?);
            above = row;
        }
        Ok(Tensor::f_cat(&rows, 2)?)
    }
}

/// `tile`, its first `fade` pixels along `dim` mixed with the last ones of `before`, from all of that to none.
fn faded(before: &Tensor, tile: &Tensor, dim: i64, fade: i64) -> Result<Tensor> {
    let (end, length) = (before.size()[dim as usize], tile.size()[dim as usize]);
    let fade = fade.min(end).min(length);
    let mut shape = [1; 4];
    shape[dim as usize] = fade;
    let weight = Tensor::f_arange(fade, (Kind::Double, tile.device()))?.f_div_scalar(fade as f64)?.f_view(shape)?;
    let rest = weight.f_rsub_scalar(1.0)?.f_to_kind(Kind::Float)?;
    let begin = tile.f_narrow(dim, 0, fade)?.f_mul(&weight.f_to_kind(Kind::Float)?)?;
    let mixed = before.f_narrow(dim, end - fade, fade)?.f_mul(&rest)?.f_add(&begin)?;
    Ok(Tensor::f_cat(&[mixed, tile.f_narrow(dim, fade, length - fade)?], dim)?)
}
