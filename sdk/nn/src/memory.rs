//! Bytes of tensors on a device, as libtorch's own allocators hand them out: exact, unlike the size of a process.

use std::sync::Once;

use advdmd_sdk::{Error, Result};
use tch::Device;

use crate::ffi;

/// What the allocator of a device has handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Bytes in use.
    pub current: u64,
    /// The most bytes in use since [`reset_peak`].
    pub peak: u64,
    /// Allocations so far.
    pub allocations: u64,
}

/// Counts tensors on the CPU from now on, once in a process; tensors made before are not counted. CUDA counts anyway.
///
/// For the program, before it starts other threads; not for a plugin, whose copy of these counters is its own.
pub fn count_cpu() {
    static COUNTING: Once = Once::new();
    COUNTING.call_once(ffi::memory_count_cpu);
}

/// Keeps what tensors on the CPU free for the tensors to come, instead of giving it back to the system.
///
/// A training loop asks for the same sizes in every update. The C library maps large ones anew each time and returns them
/// when they are freed, and clearing and mapping those pages takes up to a tenth of an update. The process stays at its peak.
pub fn keep_freed() {
    if !ffi::memory_keep_freed() {
        tracing::debug!("the C library gives freed memory back: updates will be slower");
    }
}

/// The tensors on `device`.
///
/// # Errors
/// A device without a counting allocator.
pub fn read(device: Device) -> Result<Memory> {
    ffi::memory_read(index(device)?).ok_or_else(|| unsupported(device))
}

/// Lowers the peak to what is in use now.
///
/// # Errors
/// A device without a counting allocator.
pub fn reset_peak(device: Device) -> Result<()> {
    if ffi::memory_reset_peak(index(device)?) { Ok(()) } else { Err(unsupported(device)) }
}

/// The device as the shim counts: -1 is the CPU.
fn index(device: Device) -> Result<i32> {
    match device {
        Device::Cpu => Ok(-1),
        Device::Cuda(index) => i32::try_from(index).map_err(|_| unsupported(device)),
        _ => Err(unsupported(device)),
    }
}

fn unsupported(device: Device) -> Error {
    Error::unsupported(format!("the memory of {device:?} cannot be counted"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Kind, Tensor};

    /// One test, because the counters are the process's: `cargo test` runs others beside it, but none of this size.
    #[test]
    fn tensors_are_counted_and_released() {
        count_cpu();
        let before = read(Device::Cpu).unwrap();
        reset_peak(Device::Cpu).unwrap();
        let megabytes = 64 << 20;
        let tensor = Tensor::zeros([megabytes / 4], (Kind::Float, Device::Cpu));
        let held = read(Device::Cpu).unwrap();
        let grown = held.current as i64 - before.current as i64;
        assert!((grown - megabytes).abs() < 8 << 20, "{grown}");
        let doubled = &tensor * 2.0;
        drop((tensor, doubled));
        let after = read(Device::Cpu).unwrap();
        assert!(after.current < before.current + (8 << 20));
        assert!(after.peak >= before.current + 2 * megabytes as u64 - (8 << 20), "the peak stays");
        assert!(after.allocations >= before.allocations + 2);
    }
}
