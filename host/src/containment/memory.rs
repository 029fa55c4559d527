//! Memory that a reward's process shares with the run: the tensors of a batch, one behind the other.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use memmap2::{Mmap, MmapMut};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use super::ffi;

/// Tensors begin at multiples of this: of a cache line, and of any element's size.
const ALIGNMENT: usize = 64;

/// The run's side, which writes.
#[derive(Debug)]
pub struct Shared {
    file: File,
    map: Option<MmapMut>,
    used: usize,
}

impl Shared {
    /// Empty memory; `name` is shown in `/proc`.
    ///
    /// # Errors
    /// The system's.
    pub fn new(name: &str) -> io::Result<Self> {
        let fd = memfd_create(name.replace('\0', ""), MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        fcntl_add_seals(&fd, SealFlags::SHRINK)?;
        Ok(Self { file: fd.into(), map: None, used: 0 })
    }

    /// A handle on the memory for the child, which reads and does no more.
    ///
    /// # Errors
    /// The system's.
    pub fn handle(&self) -> io::Result<OwnedFd> {
        Ok(File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?.into())
    }

    /// Begins a batch of tensors with these sizes in bytes: grows to hold them.
    ///
    /// # Errors
    /// No memory for it.
    pub fn begin(&mut self, sizes: impl Iterator<Item = usize>) -> io::Result<()> {
        self.used = 0;
        let needed: usize = sizes.map(|size| size.next_multiple_of(ALIGNMENT)).sum();
        if self.map.as_ref().is_none_or(|map| map.len() < needed) && needed > 0 {
            // Half as much again, so that batches which grow do not map anew each time.
            let grown = self.map.as_ref().map_or(needed, |map| needed.max(map.len() + map.len() / 2)) as u64;
            self.map = None;
            // It never shrinks, and may have grown before a map failed.
            self.file.set_len(grown.max(self.file.metadata()?.len()))?;
            self.map = Some(ffi::map_mut(&self.file)?);
        }
        Ok(())
    }

    /// Place for the next tensor of the batch, and its offset. `None` beyond what [`Shared::begin`] was told.
    pub fn next(&mut self, bytes: usize) -> Option<(usize, &mut [u8])> {
        let offset = self.used;
        self.used += bytes.next_multiple_of(ALIGNMENT);
        if bytes == 0 {
            return Some((offset, &mut []));
        }
        Some((offset, self.map.as_mut()?.get_mut(offset..offset + bytes)?))
    }
}

/// The child's side, which reads.
#[derive(Debug)]
pub struct Lent {
    file: File,
    map: Option<Mmap>,
}

impl Lent {
    /// The memory behind a handle.
    pub fn new(fd: OwnedFd) -> Self {
        Self { file: fd.into(), map: None }
    }

    /// Sees what the run has grown since.
    ///
    /// # Errors
    /// The system's.
    pub fn refresh(&mut self) -> io::Result<()> {
        let length = self.file.metadata()?.len() as usize;
        if self.map.as_ref().is_none_or(|map| map.len() != length) && length > 0 {
            self.map = None;
            self.map = Some(ffi::map(&self.file)?);
        }
        Ok(())
    }

    /// The bytes of a tensor; `None` where they are not all there.
    pub fn bytes(&self, offset: usize, length: usize) -> Option<&[u8]> {
        if length == 0 {
            return Some(&[]);
        }
        self.map.as_ref()?.get(offset..offset.checked_add(length)?)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_one_side_writes_the_other_reads() {
        let mut shared = Shared::new("test").unwrap();
        let mut lent = Lent::new(shared.handle().unwrap());
        for size in [100, 10, 1 << 20] {
            shared.begin([size, 3].into_iter()).unwrap();
            let (first, place) = shared.next(size).unwrap();
            place.fill(7);
            let (second, place) = shared.next(3).unwrap();
            place.copy_from_slice(b"end");
            lent.refresh().unwrap();
            assert!(lent.bytes(first, size).unwrap().iter().all(|&byte| byte == 7));
            assert_eq!(lent.bytes(second, 3).unwrap(), b"end");
            assert_eq!(second % ALIGNMENT, 0);
        }
        assert!(lent.bytes(1 << 30, 1).is_none() && lent.bytes(usize::MAX, 2).is_none());
    }

    #[test]
    fn nobody_shrinks_it_and_the_child_does_not_write() {
        let mut shared = Shared::new("test").unwrap();
        shared.begin([4096].into_iter()).unwrap();
        let mut other: File = shared.handle().unwrap().into();
        assert!(other.set_len(0).is_err() && other.write(b"x").is_err());
        assert!(shared.file.set_len(0).is_err(), "sealed");
    }
}
