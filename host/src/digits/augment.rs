//! Cells to train the checker on: digits as a generator may draw them, and what must not be read as a digit.
//!
//! Half of the digits are as in real scenes. The others are bent, blurred, dimmed, tinted and noisy, as generated ones
//! are, and keep their label. "Empty" means *no readable digit*, so that a score cannot be had with fragments: it is
//! the label of black and noisy cells, of traces too faint to count, of digits with half of their ink erased, of two
//! digits laid over one another (what a student gives that averages modes), and of shapeless blots. Cases in between
//! (a fifth to a half of the brightness, a tenth to half of the ink) are left out, since no label would be right.

use rand::RngCore;

use super::glyphs::{GLYPH_PIXELS, GLYPH_SIDE, Glyph};
use super::random::{below, between, normal, pick, unit};
use super::vocabulary::Colour;

/// The class "no readable digit".
pub(crate) const EMPTY: i64 = 10;

/// Numbers in a cell: three channels of 8x8.
pub(crate) const CELL_VALUES: usize = 3 * GLYPH_PIXELS;

type Ink = [f32; GLYPH_PIXELS];

/// A cell to learn from.
pub(crate) struct Example {
    /// `[3, 8, 8]` in 0..1.
    pub pixels: [f32; CELL_VALUES],
    /// 0 to 9, or [`EMPTY`].
    pub label: i64,
}

/// What a cell shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A digit as in a real scene.
    Clean,
    /// A digit as a generator may draw it.
    Degraded,
    /// Noise on black.
    Blank,
    /// A digit too faint to count.
    Faint,
    /// A digit with at least half of its ink erased.
    Fragment,
    /// Two different digits, each at about half of its brightness.
    Overlay,
    /// Blots without shape.
    Blot,
}

impl Kind {
    /// All kinds with their shares of the training cells.
    pub(crate) const SHARES: [(Self, f32); 7] = [
        (Self::Clean, 0.35),
        (Self::Degraded, 0.40),
        (Self::Blank, 0.07),
        (Self::Faint, 0.05),
        (Self::Fragment, 0.06),
        (Self::Overlay, 0.04),
        (Self::Blot, 0.03),
    ];

    /// Draws a kind by its share.
    pub(crate) fn sample<R: RngCore + ?Sized>(rng: &mut R) -> Self {
        let mut left = unit(rng) * Self::SHARES.iter().map(|(_, share)| share).sum::<f32>();
        for (kind, share) in Self::SHARES {
            if left < share {
                return kind;
            }
            left -= share;
        }
        Self::Clean
    }
}

impl Example {
    /// Draws a cell of this kind from the glyphs; `None` when there are no glyphs to draw from.
    pub(crate) fn sample<R: RngCore + ?Sized>(kind: Kind, glyphs: &[&Glyph], rng: &mut R) -> Option<Self> {
        let glyph = pick(rng, glyphs)?;
        let (ink, label) = match kind {
            Kind::Clean => (glyph.alpha, glyph.digit.index() as i64),
            Kind::Degraded => (degrade(&glyph.alpha, rng), glyph.digit.index() as i64),
            Kind::Blank => ([between(rng, -0.1, 0.1).max(0.0); GLYPH_PIXELS], EMPTY),
            Kind::Faint => (scale(&glyph.alpha, between(rng, 0.0, 0.2)), EMPTY),
            Kind::Fragment => (fragment(&glyph.alpha, rng), EMPTY),
            Kind::Overlay => (overlay(glyph, glyphs, rng)?, EMPTY),
            Kind::Blot => (blot(rng), EMPTY),
        };
        let mut pixels = [0.0; CELL_VALUES];
        let clean = kind == Kind::Clean;
        // Half of the other cells carry a slight tint and noise; blank ones always do.
        let tint = if clean || below(rng, 2) == 0 { 0.0 } else { 0.08 };
        let noise = match kind {
            Kind::Clean => 0.0,
            Kind::Blank => between(rng, 0.0, 0.15),
            _ => (between(rng, -0.1, 0.12)).max(0.0),
        };
        let colour = Colour::ALL[below(rng, Colour::ALL.len())].rgb();
        for (plane, channel) in pixels.chunks_exact_mut(GLYPH_PIXELS).zip(colour) {
            let channel = channel + tint * normal(rng);
            for (pixel, ink) in plane.iter_mut().zip(ink) {
                let disturbance = if noise > 0.0 { noise * normal(rng) } else { 0.0 };
                *pixel = (ink * channel + disturbance).clamp(0.0, 1.0);
            }
        }
        Some(Self { pixels, label })
    }
}

/// Bends, blurs and rescales the brightness, each in a part of the cases.
fn degrade<R: RngCore + ?Sized>(ink: &Ink, rng: &mut R) -> Ink {
    let mut ink = *ink;
    if below(rng, 3) > 0 {
        ink = bend(&ink, rng);
    }
    if below(rng, 3) == 0 {
        let share = between(rng, 0.0, 0.7);
        let blurred = blur(&ink);
        ink = std::array::from_fn(|i| ink[i] + share * (blurred[i] - ink[i]));
    }
    if below(rng, 2) == 0 {
        // Above 1 the brightest strokes clip, as an overshooting sample does.
        ink = scale(&ink, between(rng, 0.55, 1.3));
    }
    ink
}

/// A small random affine map about the centre: turned by up to 10 degrees, scaled and sheared by up to 0.12, moved by
/// up to 0.6 pixels; bilinear, black outside.
fn bend<R: RngCore + ?Sized>(ink: &Ink, rng: &mut R) -> Ink {
    let (sin, cos) = between(rng, -0.17, 0.17).sin_cos();
    let (wide, high) = (between(rng, 0.88, 1.12), between(rng, 0.88, 1.12));
    let shear = between(rng, -0.12, 0.12);
    let (right, down) = (between(rng, -0.6, 0.6), between(rng, -0.6, 0.6));
    let centre = (GLYPH_SIDE - 1) as f32 / 2.0;
    std::array::from_fn(|i| {
        let (x, y) = ((i % GLYPH_SIDE) as f32 - centre, (i / GLYPH_SIDE) as f32 - centre);
        let from_x = wide * (cos * x - sin * y) + shear * y + right + centre;
        let from_y = high * (sin * x + cos * y) + down + centre;
        bilinear(ink, from_x, from_y)
    })
}

fn bilinear(ink: &Ink, x: f32, y: f32) -> f32 {
    let (left, top) = (x.floor(), y.floor());
    let at = |x: f32, y: f32| {
        let inside = 0.0..GLYPH_SIDE as f32;
        if inside.contains(&x) && inside.contains(&y) { ink[y as usize * GLYPH_SIDE + x as usize] } else { 0.0 }
    };
    let (dx, dy) = (x - left, y - top);
    let upper = at(left, top) * (1.0 - dx) + at(left + 1.0, top) * dx;
    let lower = at(left, top + 1.0) * (1.0 - dx) + at(left + 1.0, top + 1.0) * dx;
    upper * (1.0 - dy) + lower * dy
}

/// The binomial kernel (1 2 1)/4 in both directions, black outside.
fn blur(ink: &Ink) -> Ink {
    let centre = |i: usize| ((i % GLYPH_SIDE) as f32, (i / GLYPH_SIDE) as f32);
    let across: Ink = std::array::from_fn(|i| {
        let (x, y) = centre(i);
        f32::midpoint(bilinear(ink, x - 0.5, y), bilinear(ink, x + 0.5, y))
    });
    std::array::from_fn(|i| {
        let (x, y) = centre(i);
        f32::midpoint(bilinear(&across, x, y - 0.5), bilinear(&across, x, y + 0.5))
    })
}

fn scale(ink: &Ink, factor: f32) -> Ink {
    ink.map(|value| value * factor)
}

/// Erases one side of a random line through the cell such that at most half of the ink stays.
fn fragment<R: RngCore + ?Sized>(ink: &Ink, rng: &mut R) -> Ink {
    let (sin, cos) = between(rng, 0.0, std::f32::consts::TAU).sin_cos();
    let along = |i: usize| cos * (i % GLYPH_SIDE) as f32 + sin * (i / GLYPH_SIDE) as f32;
    let mut order: [usize; GLYPH_PIXELS] = std::array::from_fn(|i| i);
    order.sort_by(|a, b| along(*a).total_cmp(&along(*b)));
    let mut left = between(rng, 0.2, 0.5) * ink.iter().sum::<f32>();
    let mut kept = [0.0; GLYPH_PIXELS];
    for i in order {
        left -= ink[i];
        if left < 0.0 {
            break;
        }
        kept[i] = ink[i];
    }
    kept
}

/// A glyph and another of a different digit, each at 0.4 to 0.6 of its brightness, in sum 1.
fn overlay<R: RngCore + ?Sized>(glyph: &Glyph, glyphs: &[&Glyph], rng: &mut R) -> Option<Ink> {
    let start = below(rng, glyphs.len());
    let other = glyphs.iter().cycle().skip(start).take(glyphs.len()).find(|other| other.digit != glyph.digit)?;
    let share = between(rng, 0.4, 0.6);
    Some(std::array::from_fn(|i| share * glyph.alpha[i] + (1.0 - share) * other.alpha[i]))
}

/// One to four round blots.
fn blot<R: RngCore + ?Sized>(rng: &mut R) -> Ink {
    let mut ink = [0.0; GLYPH_PIXELS];
    for _ in 0..=below(rng, 4) {
        let (x, y) = (between(rng, 0.0, 8.0), between(rng, 0.0, 8.0));
        let (radius, height) = (between(rng, 1.2, 3.5), between(rng, 0.2, 0.8));
        for (i, value) in ink.iter_mut().enumerate() {
            let (dx, dy) = ((i % GLYPH_SIDE) as f32 - x, (i / GLYPH_SIDE) as f32 - y);
            *value += height * (-(dx * dx + dy * dy) / (2.0 * radius * radius)).exp();
        }
    }
    ink
}
