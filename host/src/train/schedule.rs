//! When rewards count: after a warm-up, and those that learn at each step only while they can be trusted there.

use serde::{Deserialize, Serialize};

use crate::config::Grpo;

/// Weight of the past in the running accuracy.
const MEMORY: f64 = 0.8;

/// What the schedule remembers between updates.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    /// Running accuracy of the learners at each step; `None` before the first measurement.
    accuracy: Vec<Option<f64>>,
}

impl Gate {
    /// Takes in one update's accuracy at `step`, in 0..1.
    pub fn observe(&mut self, step: usize, accuracy: f64) {
        if self.accuracy.len() <= step {
            self.accuracy.resize(step + 1, None);
        }
        let slot = &mut self.accuracy[step];
        *slot = Some(slot.map_or(accuracy, |past| MEMORY * past + (1.0 - MEMORY) * accuracy));
    }

    /// Whether a reward counts at `step` in this update.
    ///
    /// A discriminator near 0.5 rewards noise, one near 1 has won and no longer ranks the student's samples. Rewards
    /// that do not learn (`learns` false) have no accuracy to watch.
    pub fn is_open(&self, settings: &Grpo, update: u64, step: usize, learns: bool) -> bool {
        if settings.weight == 0.0 || update < settings.warmup {
            return false;
        }
        if !learns {
            return true;
        }
        let [low, high] = settings.accuracy_gate;
        self.accuracy.get(step).copied().flatten().is_some_and(|accuracy| (low..=high).contains(&accuracy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::advantage::Normalize;

    fn settings() -> Grpo {
        Grpo {
            weight: 1.0,
            clip_range: [1e-5, 1e-5],
            advantage_clip: 5.0,
            normalize: Normalize::Group,
            std_floor: 0.0,
            warmup: 10,
            accuracy_gate: [0.6, 0.9],
        }
    }

    #[test]
    fn the_gate_waits_for_warmup_and_accuracy() {
        let mut gate = Gate::default();
        assert!(!gate.is_open(&settings(), 20, 1, true), "nothing measured yet");
        gate.observe(1, 0.75);
        assert!(gate.is_open(&settings(), 20, 1, true));
        assert!(!gate.is_open(&settings(), 9, 1, true), "warm-up");
        assert!(!gate.is_open(&settings(), 20, 0, true), "another step's accuracy says nothing");
        for _ in 0..30 {
            gate.observe(1, 0.5);
        }
        assert!(!gate.is_open(&settings(), 20, 1, true), "a coin is no judge");
        assert!(gate.is_open(&settings(), 20, 1, false), "fixed rewards need no gate");
        assert!(!gate.is_open(&Grpo { weight: 0.0, ..settings() }, 20, 1, false));
    }
}
