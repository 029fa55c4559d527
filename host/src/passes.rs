//! Counts of network passes: the cost of a run in units that do not depend on the machine.

use std::cell::Cell;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Whose weights a pass used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The model that is trained.
    Student,
    /// The frozen base.
    Teacher,
    /// The fake-score network.
    Fake,
}

const ROLES: [(Role, &str); 3] = [(Role::Student, "student"), (Role::Teacher, "teacher"), (Role::Fake, "fake")];

/// Samples that went through each network, forward and backward; a guided sample counts twice.
#[derive(Debug, Default, Clone)]
pub struct PassCounter {
    forward: [Cell<u64>; 3],
    backward: [Cell<u64>; 3],
}

/// The counts as saved in a checkpoint.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassCounts {
    forward: [u64; 3],
    backward: [u64; 3],
}

impl PassCounts {
    /// These, and what was counted from `before` to `after`.
    #[must_use]
    pub fn plus(self, before: Self, after: Self) -> Self {
        let sum = |these: [u64; 3], before: [u64; 3], after: [u64; 3]| {
            std::array::from_fn(|role| these[role] + after[role].saturating_sub(before[role]))
        };
        Self {
            forward: sum(self.forward, before.forward, after.forward),
            backward: sum(self.backward, before.backward, after.backward),
        }
    }
}

impl PassCounter {
    /// Counts `samples` through a forward pass.
    pub fn forward(&self, role: Role, samples: i64) {
        let cell = &self.forward[role as usize];
        cell.set(cell.get() + samples.unsigned_abs());
    }

    /// Counts `samples` through a backward pass.
    pub fn backward(&self, role: Role, samples: i64) {
        let cell = &self.backward[role as usize];
        cell.set(cell.get() + samples.unsigned_abs());
    }

    /// Adds `passes/<role>/<forward|backward>`, counted since the run began.
    pub fn record_into(&self, values: &mut BTreeMap<String, f64>) {
        for (role, name) in ROLES {
            values.insert(format!("passes/{name}/forward"), self.forward[role as usize].get() as f64);
            values.insert(format!("passes/{name}/backward"), self.backward[role as usize].get() as f64);
        }
    }

    /// The counts, for a checkpoint.
    pub fn counts(&self) -> PassCounts {
        let read = |cells: &[Cell<u64>; 3]| [cells[0].get(), cells[1].get(), cells[2].get()];
        PassCounts { forward: read(&self.forward), backward: read(&self.backward) }
    }

    /// Continues from a checkpoint's counts.
    pub fn restore(&self, counts: PassCounts) {
        for i in 0..ROLES.len() {
            self.forward[i].set(counts.forward[i]);
            self.backward[i].set(counts.backward[i]);
        }
    }
}
