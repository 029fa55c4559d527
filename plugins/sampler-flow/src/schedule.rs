//! The sigmas of a trajectory, and the checks that all kernels share.

use advdmd_sdk::{Error, Result};

/// More steps than any solver has use for; a typing error beyond it would take all memory.
const MAX_STEPS: usize = 10_000;

/// The static shift of SD3 and SD3.5.
pub(crate) fn default_shift() -> f64 {
    3.0
}

/// # Errors
/// A `shift` that is not a finite number above 0.
pub(crate) fn check_shift(shift: f64) -> Result<()> {
    positive("shift", shift)
}

/// # Errors
/// A `value` that is not a finite number above 0; names the `key`.
pub(crate) fn positive(key: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(Error::config(format!("{key}: expected a finite number above 0, found {value}")))
}

/// `steps + 1` sigmas from 1 to 0: evenly spaced `u = 1 - i / steps`, shifted to `k u / (1 + (k - 1) u)`.
///
/// A shift k above 1 spends more steps near noise (Esser et al. 2024, arXiv:2403.03206, equation 23). Four steps at k = 3
/// are 1, 0.9, 0.75, 0.5, 0: the timesteps 1000, 750, 500, 250 of few-step students. `set_timesteps` of diffusers'
/// scheduler gives other numbers, because it shifts its smallest sigma twice; for few steps that wastes the last one.
///
/// # Errors
/// 0 steps or more than 10,000; a shift so large that sigmas coincide.
pub(crate) fn shifted(steps: usize, shift: f64) -> Result<Vec<f64>> {
    if !(1..=MAX_STEPS).contains(&steps) {
        return Err(Error::invalid(format!("steps: expected 1 to {MAX_STEPS}, found {steps}")));
    }
    let sigma = |i: usize| {
        let u = (steps - i) as f64 / steps as f64;
        // Exact at both ends, whatever the rounding of the shift.
        if i == 0 { 1.0 } else { shift * u / (1.0 + (shift - 1.0) * u) }
    };
    let sigmas: Vec<f64> = (0..=steps).map(sigma).collect();
    match sigmas.windows(2).position(|pair| pair[0] <= pair[1]) {
        Some(step) => Err(Error::config(format!("shift: sigmas {step} and {} coincide at {shift}", step + 1))),
        None => Ok(sigmas),
    }
}

/// One step of a trajectory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    /// Sigma before.
    pub from: f64,
    /// Sigma after.
    pub to: f64,
}

impl Step {
    /// The step `step` of `sigmas`.
    ///
    /// # Errors
    /// Sigmas that do not fall strictly from at most 1 to 0, or a step beyond them.
    pub fn of(sigmas: &[f64], step: usize) -> Result<Self> {
        let within = sigmas.iter().all(|sigma| (0.0..=1.0).contains(sigma));
        let falling = sigmas.windows(2).all(|pair| pair[0] > pair[1]);
        if sigmas.len() < 2 || !within || !falling || sigmas.last() != Some(&0.0) {
            return Err(Error::invalid(format!(
                "sigmas: expected at least two numbers that fall strictly from at most 1 to 0, found {sigmas:?}"
            )));
        }
        let steps = sigmas.len() - 1;
        if step >= steps {
            return Err(Error::invalid(format!("step: expected one below {steps}, found {step}")));
        }
        Ok(Self { from: sigmas[step], to: sigmas[step + 1] })
    }

    /// `s' - s`, below 0.
    pub fn dt(self) -> f64 {
        self.to - self.from
    }

    /// Whether it ends at the data.
    pub fn is_last(self) -> bool {
        self.to == 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_few_step_schedules() {
        assert_eq!(shifted(4, 3.0).unwrap(), [1.0, 0.9, 0.75, 0.5, 0.0]);
        assert_eq!(shifted(2, 3.0).unwrap(), [1.0, 0.75, 0.0]);
        assert_eq!(shifted(4, 1.0).unwrap(), [1.0, 0.75, 0.5, 0.25, 0.0]);
        assert_eq!(shifted(1, 3.0).unwrap(), [1.0, 0.0]);
    }

    #[test]
    fn useless_schedules_are_refused() {
        assert!(shifted(0, 3.0).unwrap_err().to_string().starts_with("steps: expected 1"));
        assert!(shifted(usize::MAX, 3.0).is_err());
        assert!(shifted(4, 1e300).unwrap_err().to_string().starts_with("shift: "));
        for shift in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(check_shift(shift).unwrap_err().to_string().starts_with("shift: expected"));
        }
    }

    #[test]
    fn broken_sigmas_and_steps_are_refused() {
        let broken: [&[f64]; 7] =
            [&[], &[0.0], &[1.0, 0.5], &[1.0, 0.5, 0.5, 0.0], &[0.5, 0.9, 0.0], &[1.5, 0.0], &[f64::NAN, 0.0]];
        for sigmas in broken {
            assert!(Step::of(sigmas, 0).unwrap_err().to_string().starts_with("sigmas: expected"), "{sigmas:?}");
        }
        assert_eq!(Step::of(&[1.0, 0.0], 1).unwrap_err().to_string(), "step: expected one below 1, found 1");
    }
}
