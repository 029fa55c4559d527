//! The index of a checkpoint, with the run's state in it.

use std::path::Path;

use advdmd::train::checkpoint::Index;

/// Reads the bytes as `index.json`.
///
/// # Panics
/// An index that is accepted and points out of its folder, or does not read back as itself.
pub fn index(bytes: &[u8]) {
    let Ok(index) = Index::parse(bytes) else { return };
    for name in index.files.keys() {
        assert_eq!(Path::new("checkpoint").join(name).parent(), Some(Path::new("checkpoint")), "{name:?}");
    }
    let written = serde_json::to_vec(&index).expect("an index can be written");
    assert_eq!(Index::parse(&written), Ok(index));
}
