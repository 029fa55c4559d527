//! Shared memory as slices.

use std::fs::File;
use std::io;

use memmap2::{Mmap, MmapMut};

/// Maps the whole file for writing.
///
/// # Errors
/// The system's.
pub fn map_mut(file: &File) -> io::Result<MmapMut> {
    // SAFETY: the file is memory that this process made and sealed against shrinking, so that no page of the map goes away. The
    // child has a handle for reading alone, and reads between a request and its answer, while this process does not write.
    unsafe { MmapMut::map_mut(file) }
}

/// Maps the whole file for reading.
///
/// # Errors
/// The system's.
pub fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: as in `map_mut`, from the other side.
    unsafe { Mmap::map(file) }
}
