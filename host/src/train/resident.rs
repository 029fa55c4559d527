//! Bytes of tensors that a run holds from its first update to its last, by what they are for.

use advdmd_nn::memory;
use tch::Device;

/// Parts and their bytes, in the order in which they were made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resident {
    /// What the tensors are for, and their bytes as the allocator counted them.
    pub parts: Vec<(String, u64)>,
}

impl Resident {
    /// All parts together.
    pub fn total(&self) -> u64 {
        self.parts.iter().map(|(_, bytes)| bytes).sum()
    }

    /// The bytes of one part; 0 for a part that there is not.
    pub fn of(&self, part: &str) -> u64 {
        self.parts.iter().filter(|(name, _)| name == part).map(|(_, bytes)| bytes).sum()
    }
}

/// Reads the allocator after each part is made.
#[derive(Debug)]
pub struct Ledger {
    device: Device,
    last: u64,
    resident: Resident,
}

impl Ledger {
    /// Begins to count. On a device that cannot be counted all parts are 0.
    pub fn begin(device: Device) -> Self {
        memory::count_cpu();
        Self { device, last: current(device), resident: Resident::default() }
    }

    /// Books what was made since the last call under `part`, beside what it has already.
    pub fn book(&mut self, part: &str) {
        let now = current(self.device);
        let bytes = now.saturating_sub(self.last);
        match self.resident.parts.iter_mut().find(|(name, _)| name == part) {
            Some((_, booked)) => *booked += bytes,
            None => self.resident.parts.push((part.to_owned(), bytes)),
        }
        self.last = now;
    }

    /// The parts.
    pub fn close(self) -> Resident {
        self.resident
    }
}

fn current(device: Device) -> u64 {
    memory::read(device).map_or(0, |memory| memory.current)
}
