//! A flow that is known in closed form: data `N(MEAN, STD^2)`.

use advdmd_sdk::Transition;

const MEAN: f64 = 0.7;
const STD: f64 = 0.4;
/// The quantile of the data whose trajectory is followed.
const QUANTILE: f64 = 1.3;

/// `E[noise - x0 | x_s = x]`.
fn velocity(x: f64, s: f64) -> f64 {
    let variance = ((1.0 - s) * STD).powi(2) + s * s;
    (s - (1.0 - s) * STD * STD) / variance * (x - (1.0 - s) * MEAN) - MEAN
}

/// The state at `s` of the trajectory that ends at the quantile.
fn state(s: f64) -> f64 {
    (1.0 - s) * MEAN + ((1.0 - s) * STD).hypot(s) * QUANTILE
}

/// `steps` even steps in the half log-SNR from sigma 0.9 to 0.1, and one to 0: the variable in which the order of solvers for
/// diffusion is proved. (In even steps of sigma, those next to 0 stay long in it, and a logarithm spoils the measurement.)
pub(crate) fn half_log_snr_grid(steps: usize) -> Vec<f64> {
    let sigma = |i: usize| 1.0 / (1.0 + 9_f64.powf(2.0 * i as f64 / steps as f64 - 1.0));
    (0..=steps).map(sigma).chain([0.0]).collect()
}

/// How far a deterministic trajectory that starts on the true one is from it before the step to 0.
pub(crate) fn endpoint_error(sigmas: &[f64], transitions: &[Transition]) -> f64 {
    let mut x = state(sigmas[0]);
    let mut velocities = Vec::new();
    for (transition, &sigma) in transitions[..transitions.len() - 1].iter().zip(sigmas) {
        velocities.push(velocity(x, sigma));
        let moved: f64 = transition.b.iter().zip(velocities.iter().rev()).map(|(b, v)| b * v).sum();
        x = transition.a * x + moved;
    }
    (x - state(sigmas[transitions.len() - 1])).abs()
}
