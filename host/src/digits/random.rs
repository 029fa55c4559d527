//! Draws from any [`RngCore`], written out here so that prompt lists, scenes and the checker's training do not
//! change with the version of the `rand` crate, whose own distributions may change their values.

use rand::RngCore;

/// A uniform integer in `0..n`; 0 when `n` is 0. The bias of the widening multiply is below `n / 2^32`.
pub(crate) fn below<R: RngCore + ?Sized>(rng: &mut R, n: usize) -> usize {
    ((u64::from(rng.next_u32()) * n as u64) >> 32) as usize
}

/// A uniform number in `[0, 1)` with 24 bits.
pub(crate) fn unit<R: RngCore + ?Sized>(rng: &mut R) -> f32 {
    (rng.next_u32() >> 8) as f32 / 16_777_216.0
}

/// A uniform number in `[low, high)`.
pub(crate) fn between<R: RngCore + ?Sized>(rng: &mut R, low: f32, high: f32) -> f32 {
    low + (high - low) * unit(rng)
}

/// A standard normal number (Box and Muller, the cosine branch; 1 - u keeps the logarithm finite).
pub(crate) fn normal<R: RngCore + ?Sized>(rng: &mut R) -> f32 {
    let radius = (-2.0 * (1.0 - unit(rng)).ln()).sqrt();
    radius * (std::f32::consts::TAU * unit(rng)).cos()
}

/// One of the items; `None` when there are none.
pub(crate) fn pick<'a, T, R: RngCore + ?Sized>(rng: &mut R, items: &'a [T]) -> Option<&'a T> {
    items.get(below(rng, items.len()))
}

/// Fisher and Yates.
pub(crate) fn shuffle<T, R: RngCore + ?Sized>(rng: &mut R, items: &mut [T]) {
    for i in (1..items.len()).rev() {
        items.swap(i, below(rng, i + 1));
    }
}
