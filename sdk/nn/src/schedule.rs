//! The noise levels that diffusers' `FlowMatchEulerDiscreteScheduler` walks, and settings of it that walk given ones.

/// The settings of a scheduler with a static shift that decide its sigmas.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FlowMatchEuler {
    /// `shift`.
    pub shift: f64,
    /// `shift_terminal`.
    pub shift_terminal: Option<f64>,
}

/// `num_train_timesteps` of every released model.
const TIMESTEPS: f64 = 1000.0;

/// Sigmas are float32 in the end.
const TOLERANCE: f64 = 1e-6;

impl FlowMatchEuler {
    /// The `steps + 1` sigmas after `set_timesteps(steps)`, as a pipeline calls it that is given no `sigmas`.
    ///
    /// The scheduler spaces its levels evenly from 1 to its smallest one, which was shifted already, shifts them all, and
    /// stretches the result so that the last one before 0 is `shift_terminal`
    /// (`schedulers/scheduling_flow_match_euler_discrete.py`).
    #[must_use]
    pub fn sigmas(self, steps: usize) -> Vec<f64> {
        let shifted = |u: f64| self.shift * u / (1.0 + (self.shift - 1.0) * u);
        let smallest = shifted(1.0 / TIMESTEPS);
        let gaps = steps.saturating_sub(1).max(1) as f64;
        let mut sigmas: Vec<f64> = (0..steps).map(|i| shifted(1.0 - i as f64 / gaps * (1.0 - smallest))).collect();
        if let (Some(terminal), Some(&last)) = (self.shift_terminal, sigmas.last()) {
            let scale = (1.0 - last) / (1.0 - terminal);
            for sigma in &mut sigmas {
                *sigma = 1.0 - (1.0 - *sigma) / scale;
            }
        }
        sigmas.push(0.0);
        sigmas
    }

    /// Settings that walk exactly these sigmas, the 0 at the end included, when they are asked for that many steps; `None`
    /// where there are none. For the sigmas `k u / (1 + (k - 1) u)` of evenly spaced u, and for any three or fewer that
    /// begin at 1, there are.
    ///
    /// Both schedules are of the form `1 - s_i = c i / (a - i)`: the given one has `a = n k / (k - 1)`, and the scheduler's own
    /// for shift `k'` has `a = k' / (d (k' - 1))` with its spacing d. So `k' = a d / (a d - 1)`, where d hangs a little on
    /// `k'`; the stretching then gives c.
    #[must_use]
    pub fn walking(sigmas: &[f64]) -> Option<Self> {
        let steps = sigmas.len().checked_sub(1).filter(|&steps| steps >= 1)?;
        let gaps = (steps - 1) as f64;
        let mut found = Self { shift: 1.0, shift_terminal: (steps > 1).then_some(sigmas[steps - 1]) };
        if steps > 2 {
            // From the second level and the last one before 0; a straight line has no such a.
            let ratio = (1.0 - sigmas[1]) / (1.0 - sigmas[steps - 1]) * gaps;
            if (ratio - 1.0).abs() > TOLERANCE {
                let a = (ratio - gaps) / (ratio - 1.0);
                for _ in 0..100 {
                    let smallest = found.shift / (TIMESTEPS - 1.0 + found.shift);
                    let ad = a * (1.0 - smallest) / gaps;
                    found.shift = ad / (ad - 1.0);
                }
            }
        }
        let walks = found.sigmas(steps).iter().zip(sigmas).all(|(own, given)| (own - given).abs() < TOLERANCE);
        (walks && found.shift > 0.0).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shifted(steps: usize, shift: f64) -> Vec<f64> {
        let even = |i: usize| 1.0 - i as f64 / steps as f64;
        (0..=steps).map(|i| shift * even(i) / (1.0 + (shift - 1.0) * even(i))).collect()
    }

    /// What diffusers 0.42 gives for the released settings of SD3.
    #[test]
    fn the_schedulers_own_sigmas() {
        let own = FlowMatchEuler { shift: 3.0, shift_terminal: None };
        let expected = [1.0, 0.857_692, 0.602_151, 0.008_929, 0.0];
        for (found, expected) in own.sigmas(4).into_iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
        assert_eq!(own.sigmas(1), [1.0, 0.0]);
    }

    #[test]
    fn every_shifted_schedule_can_be_walked() {
        for steps in 1..=12 {
            for shift in [0.5, 1.0, 1.5, 3.0, 6.0, 12.0] {
                let sigmas = shifted(steps, shift);
                let found = FlowMatchEuler::walking(&sigmas).unwrap_or_else(|| panic!("{steps} {shift}"));
                for (own, given) in found.sigmas(steps).iter().zip(&sigmas) {
                    assert!((own - given).abs() < 1e-9, "{steps} {shift}: {own} {given}");
                }
            }
        }
        let four = FlowMatchEuler::walking(&[1.0, 0.9, 0.75, 0.5, 0.0]).unwrap();
        assert!((four.shift - 2.004_020_116_745_064_4).abs() < 1e-12, "{four:?}");
        assert_eq!(four.shift_terminal, Some(0.5));
    }

    #[test]
    fn few_steps_may_lie_anywhere_and_many_may_not() {
        assert!(FlowMatchEuler::walking(&[1.0, 0.3, 0.2, 0.0]).is_some());
        assert!(FlowMatchEuler::walking(&[1.0, 0.9, 0.0]).is_some());
        assert_eq!(FlowMatchEuler::walking(&[1.0, 0.9, 0.5, 0.25, 0.0]), None);
        assert_eq!(FlowMatchEuler::walking(&[0.9, 0.5, 0.0]), None);
        assert_eq!(FlowMatchEuler::walking(&[0.0]), None);
        assert_eq!(FlowMatchEuler::walking(&[]), None);
    }
}
