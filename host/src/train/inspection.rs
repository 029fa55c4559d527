//! The search for the first tensor of an update that is not finite.
//!
//! While a run goes well nobody reads its tensors; when a loss or a gradient turns out not to be finite, the update is
//! repeated from the state before it with a meter that reads every tensor on the way.

use std::fmt;

use tch::{Kind, Tensor};

/// The tensors of an update in the order in which they were made, up to the first that is not finite.
#[derive(Debug, Default)]
pub struct Inspection {
    place: String,
    seen: Vec<Seen>,
    first_bad: Option<Finding>,
}

/// A tensor that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// Phase, chunk and step.
    pub place: String,
    /// What it is.
    pub name: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Largest absolute value; NaN where any element is NaN.
    pub largest: f64,
}

/// The first tensor that is not finite.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// The tensor.
    pub seen: Seen,
    /// Index of its first element that is not finite.
    pub index: Vec<i64>,
    /// That element.
    pub value: f64,
    /// How many of its elements are not finite.
    pub count: i64,
}

impl Inspection {
    /// Where the following tensors belong.
    pub fn place(&mut self, place: String) {
        self.place = place;
    }

    /// Reads a tensor; after the first that is not finite, nothing more.
    pub fn watch(&mut self, name: &str, tensor: &Tensor) {
        if self.first_bad.is_some() || tensor.numel() == 0 {
            return;
        }
        let tensor = tensor.detach();
        let bad = tensor.isfinite().logical_not();
        let count = bad.sum(Kind::Int64).int64_value(&[]);
        let largest = tensor.abs().max().double_value(&[]);
        let seen = Seen { place: self.place.clone(), name: name.to_owned(), shape: tensor.size(), largest };
        if count > 0 {
            let flat = bad.reshape(-1).to_kind(Kind::Uint8).argmax(0, false).int64_value(&[]);
            let value = tensor.reshape(-1).double_value(&[flat]);
            self.first_bad = Some(Finding { index: unravel(flat, &seen.shape), seen: seen.clone(), value, count });
        }
        self.seen.push(seen);
    }

    /// The first tensor that is not finite.
    pub fn first_bad(&self) -> Option<&Finding> {
        self.first_bad.as_ref()
    }

    /// Every tensor that was read, in order; the one that is not finite last.
    pub fn seen(&self) -> &[Seen] {
        &self.seen
    }
}

/// The position of a flat index.
fn unravel(mut flat: i64, shape: &[i64]) -> Vec<i64> {
    let mut index: Vec<i64> = shape
        .iter()
        .rev()
        .map(|&size| {
            let position = flat % size;
            flat /= size;
            position
        })
        .collect();
    index.reverse();
    index
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seen: Seen { place, name, shape, .. }, index, value, count } = self;
        write!(f, "{name} in {place}: ")?;
        match count {
            _ if shape.is_empty() => write!(f, "{value}"),
            1 => write!(f, "{value} at {index:?} of {shape:?}"),
            _ => write!(f, "{value} at {index:?} of {shape:?}, {count} values in all"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bad_element_is_named_and_nothing_after_it_is_read() {
        let mut inspection = Inspection::default();
        inspection.place("critic update 7, chunk 0".to_owned());
        inspection.watch("x0", &Tensor::from_slice(&[1f32, -3.0]));
        assert_eq!(inspection.first_bad(), None);
        let bad = Tensor::from_slice(&[0f32, 1.0, 2.0, 3.0, f32::INFINITY, f32::NAN]).view([2, 3]);
        inspection.watch("velocity", &bad);
        inspection.watch("loss", &Tensor::from(f32::NAN));
        let finding = inspection.first_bad().unwrap();
        assert_eq!(
            finding.to_string(),
            "velocity in critic update 7, chunk 0: inf at [1, 1] of [2, 3], 2 values in all"
        );
        let names: Vec<_> = inspection.seen().iter().map(|seen| (seen.name.as_str(), seen.largest)).collect();
        assert_eq!(names[0], ("x0", 3.0));
        assert_eq!((names.len(), names[1].0), (2, "velocity"));
    }

    #[test]
    fn a_permuted_tensor_is_read_like_any_other() {
        let mut inspection = Inspection::default();
        let bad = Tensor::from_slice(&[0f32, 1.0, 2.0, 3.0, f32::NAN, 5.0]).view([2, 3]).permute([1, 0]);
        inspection.watch("velocity", &bad);
        assert_eq!(inspection.first_bad().unwrap().index, [1, 1]);
    }

    #[test]
    fn a_scalar_needs_no_index() {
        let mut inspection = Inspection::default();
        inspection.place("student".to_owned());
        inspection.watch("dmd/loss", &Tensor::from(f32::NAN));
        assert_eq!(inspection.first_bad().unwrap().to_string(), "dmd/loss in student: NaN");
    }
}
