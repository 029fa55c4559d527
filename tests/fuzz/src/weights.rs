//! Weights in the safetensors format.

use advdmd_nn::Weights;
use tch::{Device, Kind};

/// Reads the bytes as a safetensors file, as it is and converted.
///
/// # Panics
/// Two readings that differ in names or shapes; a fault without words.
pub fn weights(bytes: &[u8]) {
    let read = |kind| Weights::from_bytes(bytes, kind, Device::Cpu);
    let layout = |weights: &Weights| -> Vec<(String, Vec<i64>)> {
        weights.iter().map(|(name, tensor)| (name.to_owned(), tensor.size())).collect()
    };
    match (read(None), read(Some(Kind::Float))) {
        (Ok(own), Ok(converted)) => {
            let found = layout(&own);
            assert_eq!(found, layout(&converted));
            assert_eq!(own.check(&found, "file"), Ok(()));
            let wanted = vec![("student.weight".to_owned(), vec![2, 3])];
            if found != wanted {
                assert!(!own.check(&wanted, "file").expect_err("other weights").to_string().is_empty());
            }
        }
        // Which of several faults is named first is not settled.
        (Err(own), Err(converted)) => assert!(!own.to_string().is_empty() && !converted.to_string().is_empty()),
        (own, converted) => panic!("only one reading fails: {own:?} {converted:?}"),
    }
}
