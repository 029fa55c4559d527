//! One side of an image: how long it is resized to, and which part of that is taken.

/// How half a pixel is rounded where a centre crop starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// transformers' `center_crop`; where it pads, the larger half goes before.
    Down,
    /// torchvision's `center_crop`; where it pads, the smaller half goes before.
    HalfEven,
}

/// One side of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Axis {
    /// Pixels of the image.
    pub input: i64,
    /// Pixels that it is resized to.
    pub resized: i64,
    /// Those of them that are taken: the first.
    pub start: i64,
    /// And their number.
    pub length: i64,
    /// Zeros before and behind.
    pub padding: [i64; 2],
}

impl Axis {
    pub fn new(input: i64, resized: i64, crop: Option<i64>, rounding: Rounding) -> Self {
        let crop = crop.unwrap_or(resized);
        let (excess, lack) = ((resized - crop).max(0), (crop - resized).max(0));
        let (start, before) = match rounding {
            Rounding::Down => (excess / 2, lack - lack / 2),
            Rounding::HalfEven => (excess / 2 + i64::from(excess % 4 == 3), lack / 2),
        };
        Self { input, resized, start, length: resized.min(crop), padding: [before, lack - before] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_pixels_are_rounded_as_each_library_does() {
        let starts =
            |rounding| (0..8).map(|excess| Axis::new(9, 5 + excess, Some(5), rounding).start).collect::<Vec<_>>();
        assert_eq!(starts(Rounding::Down), [0, 0, 1, 1, 2, 2, 3, 3]);
        // Python's round: 0.5 to 0, 1.5 to 2, 2.5 to 2, 3.5 to 4.
        assert_eq!(starts(Rounding::HalfEven), [0, 0, 1, 2, 2, 2, 3, 4]);
        let axis = Axis::new(9, 4, Some(7), Rounding::Down);
        assert_eq!((axis.start, axis.length, axis.padding), (0, 4, [2, 1]));
        assert_eq!(Axis::new(9, 4, Some(7), Rounding::HalfEven).padding, [1, 2]);
    }
}
