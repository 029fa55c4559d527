//! A scene is a 2x2 grid of coloured glyphs on black, 16x16 pixels.

use rand::RngCore;
use tch::Tensor;

use super::caption::{Caption, Request, Task};
use super::error::DigitsError;
use super::glyphs::{GLYPH_SIDE, Glyphs, Split};
use super::prompts::TaskWeights;
use super::random::{below, shuffle};
use super::vocabulary::{Colour, Digit, Relation};

/// Pixels on one side of a scene.
pub const SCENE_SIDE: usize = 2 * GLYPH_SIDE;
/// Numbers in a scene's image: three channels of 16x16.
pub const SCENE_VALUES: usize = 3 * SCENE_SIDE * SCENE_SIDE;
/// Cells of a scene; cell = 2 row + column, rows from the top.
pub const CELLS: usize = 4;

/// What stands in one cell: pixel = alpha of the glyph times the colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// The digit, as the table labels the glyph.
    pub digit: Digit,
    /// Its colour.
    pub colour: Colour,
    /// The row of the glyph in the table.
    pub glyph: usize,
}

/// What stands in each of the four cells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scene {
    /// By cell; `None` is black.
    pub cells: [Option<Object>; CELLS],
}

impl Scene {
    /// Draws a scene that fulfils the caption, with no object that it does not name. What it leaves open is uniform:
    /// cells (distinct), colours (of each object alone), and which glyph of `split` shows a digit.
    pub fn sample<R: RngCore + ?Sized>(caption: &Caption, glyphs: &Glyphs, split: Split, rng: &mut R) -> Self {
        let mut cells = [0, 1, 2, 3];
        let any = None;
        let wanted: [Option<(Digit, Option<Colour>)>; CELLS] = match caption.request() {
            Request::Single(a) => [Some((a, any)), None, None, None],
            Request::Two(a, b) | Request::Position(a, _, b) => [Some((a, any)), Some((b, any)), None, None],
            Request::Counting(count, a) => std::array::from_fn(|i| (i < count.number()).then_some((a, any))),
            Request::Colours(colour, a) => [Some((a, Some(colour))), None, None, None],
            Request::Attribute((first, a), (second, b)) => {
                [Some((a, Some(first))), Some((b, Some(second))), None, None]
            }
        };
        if let Request::Position(_, relation, _) = caption.request() {
            // The two objects share a row (left, right) or a column (above, below), which one is open.
            let line = below(rng, 2);
            [cells[0], cells[1]] = match relation {
                Relation::LeftOf => [2 * line, 2 * line + 1],
                Relation::RightOf => [2 * line + 1, 2 * line],
                Relation::Above => [line, line + 2],
                Relation::Below => [line + 2, line],
            };
        } else {
            shuffle(rng, &mut cells);
        }
        let mut scene = Self::default();
        for (cell, (digit, colour)) in cells.into_iter().zip(wanted.into_iter().flatten()) {
            let colour = colour.unwrap_or_else(|| Colour::ALL[below(rng, Colour::ALL.len())]);
            let rows = glyphs.indices(split, digit);
            let glyph = rows.get(below(rng, rows.len())).copied();
            scene.cells[cell] = glyph.map(|glyph| Object { digit, colour, glyph });
        }
        scene
    }

    /// The objects with their cells, in the order of the cells.
    pub fn objects(&self) -> impl Iterator<Item = (usize, Object)> {
        self.cells.into_iter().enumerate().filter_map(|(cell, object)| Some((cell, object?)))
    }

    /// The image, `[3, 16, 16]` (channel, row, column) in 0..1.
    ///
    /// # Errors
    /// A glyph that the table does not have.
    pub fn render(&self, glyphs: &Glyphs) -> Result<[f32; SCENE_VALUES], DigitsError> {
        let mut image = [0.0; SCENE_VALUES];
        self.render_into(glyphs, &mut image)?;
        Ok(image)
    }

    /// Draws the objects into a black image of [`SCENE_VALUES`] numbers.
    fn render_into(&self, glyphs: &Glyphs, image: &mut [f32]) -> Result<(), DigitsError> {
        for (cell, object) in self.objects() {
            let glyph = glyphs.get(object.glyph).ok_or_else(|| DigitsError::Value {
                name: "glyph",
                value: object.glyph.to_string(),
                expected: format!("a row of the table of {}", glyphs.len()),
            })?;
            let corner = (cell / 2) * GLYPH_SIDE * SCENE_SIDE + (cell % 2) * GLYPH_SIDE;
            for (plane, intensity) in image.chunks_exact_mut(SCENE_SIDE * SCENE_SIDE).zip(object.colour.rgb()) {
                let rows = plane[corner..].chunks_mut(SCENE_SIDE);
                for (row, alphas) in rows.zip(glyph.alpha.chunks_exact(GLYPH_SIDE)) {
                    for (pixel, alpha) in row.iter_mut().zip(alphas) {
                        *pixel = alpha * intensity;
                    }
                }
            }
        }
        Ok(())
    }
}

/// The images of scenes: `[B, 3, 16, 16]`, float, in 0..1, on the CPU. A pixel-space latent is `2 * image - 1`.
///
/// # Errors
/// A glyph that the table does not have.
pub fn render_batch(scenes: &[Scene], glyphs: &Glyphs) -> Result<Tensor, DigitsError> {
    let mut values = vec![0.0f32; scenes.len() * SCENE_VALUES];
    for (scene, image) in scenes.iter().zip(values.chunks_exact_mut(SCENE_VALUES)) {
        scene.render_into(glyphs, image)?;
    }
    let side = SCENE_SIDE as i64;
    Ok(Tensor::f_from_slice(&values)?.f_view([scenes.len() as i64, 3, side, side])?)
}

/// One scene for each caption: `[B, 3, 16, 16]`, float, in 0..1, on the CPU.
///
/// # Errors
/// As [`render_batch`].
pub fn sample_images<R: RngCore + ?Sized>(
    captions: &[Caption],
    glyphs: &Glyphs,
    split: Split,
    rng: &mut R,
) -> Result<Tensor, DigitsError> {
    let scenes: Vec<Scene> = captions.iter().map(|caption| Scene::sample(caption, glyphs, split, rng)).collect();
    render_batch(&scenes, glyphs)
}

/// A training batch: `batch` captions, their tasks drawn by `weights`, and a scene for each
/// (`[batch, 3, 16, 16]`, float, in 0..1, on the CPU).
///
/// # Errors
/// As [`render_batch`].
pub fn sample_batch<R: RngCore + ?Sized>(
    weights: &TaskWeights,
    batch: usize,
    glyphs: &Glyphs,
    split: Split,
    rng: &mut R,
) -> Result<(Vec<Caption>, Tensor), DigitsError> {
    let captions: Vec<Caption> = (0..batch)
        .map(|_| {
            let task: Task = weights.sample(rng);
            Caption::sample(task, rng)
        })
        .collect();
    let images = sample_images(&captions, glyphs, split, rng)?;
    Ok((captions, images))
}
