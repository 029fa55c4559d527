//! The pickle of a file of weights.

use advdmd::convert::pickle::{Pickle, StoredTensor, Value};

use crate::assert_one_line;

/// Reads the bytes as a pickle.
///
/// # Panics
/// A tensor that does not lie in its storage, a value that refers to nothing, a message of several lines.
pub fn pickle(bytes: &[u8]) {
    let pickle = match Pickle::read(bytes) {
        Ok(pickle) => pickle,
        Err(reason) => return assert_one_line(&reason),
    };
    let mut dicts = vec![pickle.root()];
    for _ in 0..bytes.len() {
        match dicts.pop() {
            Some(Value::Dict(entries)) => {
                dicts.extend(pickle.entries(entries).map(|(_, value)| value).take(bytes.len()));
            }
            Some(Value::Tuple(items) | Value::List(items)) => dicts.extend(items.iter().map(|id| pickle.get(*id))),
            Some(Value::Tensor(tensor)) => lies_inside(tensor),
            Some(_) => {}
            None => return,
        }
    }
}

/// Its last element is one of the storage's numbers.
fn lies_inside(tensor: &StoredTensor) {
    let elements = tensor.elements().expect("a tensor has a size");
    assert_eq!(tensor.shape.len(), tensor.strides.len());
    if elements > 0 {
        let steps = tensor.shape.iter().zip(&tensor.strides).map(|(size, stride)| (size - 1) * stride);
        let last = tensor.offset + steps.sum::<u64>();
        assert!(last < tensor.storage.count && elements <= tensor.storage.count, "{tensor:?}");
    }
}
