//! What the kernels promise beyond the contract of samplers (`conformance.rs`), and on any sigmas.

use advdmd_sdk::plugin::build_sampler;
use advdmd_sdk::{LogProb, Sampler, Transition};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use sampler_flow as _;
use serde_json::{Value, json};

fn sampler(config: &Value) -> Box<dyn Sampler> {
    build_sampler(config).unwrap()
}

fn transitions(sampler: &dyn Sampler, sigmas: &[f64]) -> Vec<Transition> {
    (0..sigmas.len() - 1).map(|step| sampler.transition(sigmas, step).unwrap()).collect()
}

fn assert_close(found: f64, expected: f64, tolerance: f64, what: &str) {
    assert!((found - expected).abs() <= tolerance, "{what}: expected {expected}, found {found}");
}

/// A trajectory with the true x0 and noise known at each step. Returns, after each step, the coefficient of x0 and the
/// standard deviation of everything else.
fn with_oracle(sampler: &dyn Sampler, sigmas: &[f64]) -> Vec<(f64, f64)> {
    // The state is `signal x0 + std n`. The oracle reads its noise as `(x - (1 - s) x0) / s`.
    let mut std = sigmas[0];
    let mut velocities: Vec<(f64, f64)> = Vec::new();
    let mut signal = 1.0 - sigmas[0];
    let mut states = Vec::new();
    for (step, transition) in transitions(sampler, sigmas).into_iter().enumerate() {
        velocities.insert(0, (-1.0, std / sigmas[step]));
        let sum = |part: fn(&(f64, f64)) -> f64| -> f64 {
            transition.b.iter().zip(&velocities).map(|(b, velocity)| b * part(velocity)).sum()
        };
        signal = transition.a * signal + sum(|velocity| velocity.0);
        let kept = transition.a * std + sum(|velocity| velocity.1);
        std = kept.hypot(transition.c);
        states.push((signal, std));
    }
    states
}

#[test]
fn flow_sde_over_noises_coarse_steps() {
    // The standard deviations after one step from a state whose own is right: what should be 0.9, 0.75 and 0.5.
    let cases = [(0.7, [0.959, 0.899, 0.658]), (0.5, [0.922, 0.809, 0.573]), (0.3, [0.906, 0.766, 0.524])];
    let sigmas = [1.0, 0.9, 0.75, 0.5, 0.0];
    for (a, expected) in cases {
        let sampler = sampler(&json!({ "type": "sde-flow", "a": a }));
        assert!(!sampler.preserves_marginals());
        let mut after_one = Vec::new();
        for step in 0..3 {
            let transition = sampler.transition(&sigmas, step).unwrap();
            after_one.push((transition.a * sigmas[step] + transition.b[0]).hypot(transition.c));
        }
        for (std, expected) in after_one.iter().zip(expected) {
            assert_close(*std, expected, 0.0006, "noise level");
        }
        // Over the trajectory the excess adds up.
        let states = with_oracle(&*sampler, &sigmas);
        assert!(states[2].1 > after_one[2]);
    }
}

#[test]
fn values_out_of_range_are_refused_by_key() {
    let cases = [
        (json!({ "type": "sde-cps", "eta": 1.5 }), "eta: expected 0 to 1, found 1.5"),
        (json!({ "type": "sde-cps", "eta": -0.1 }), "eta: expected 0 to 1, found -0.1"),
        (json!({ "type": "sde-flow", "a": 0.0 }), "a: expected a finite number above 0, found 0"),
        (json!({ "type": "sde-dance", "a": -1.0 }), "a: expected a finite number above 0, found -1"),
        (json!({ "type": "ode-euler", "shift": 0.0 }), "shift: expected a finite number above 0, found 0"),
        (json!({ "type": "ode-dpm2m", "shift": -3.0 }), "shift: expected a finite number above 0, found -3"),
    ];
    for (config, message) in cases {
        assert_eq!(build_sampler(&config).err().map(|error| error.to_string()).as_deref(), Some(message));
    }
    let unknown = build_sampler(&json!({ "type": "sde-cps", "noise": 1.0 })).err().unwrap().to_string();
    assert!(unknown.contains("unknown field `noise`"), "{unknown}");
}

/// Any number of falling sigmas that begin at 1 or below it.
fn sigmas() -> impl Strategy<Value = Vec<f64>> {
    (vec(0.02..1.0f64, 1..8), 0.5..=1.0f64, any::<bool>()).prop_map(|(gaps, first, from_noise)| {
        let first = if from_noise { 1.0 } else { first };
        let whole: f64 = gaps.iter().sum();
        let mut left = whole;
        let mut sigmas = Vec::new();
        for gap in gaps {
            sigmas.push(first * left / whole);
            left -= gap;
        }
        sigmas.push(0.0);
        sigmas
    })
}

/// Any sampler of this plugin with any parameters.
fn samplers() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({ "type": "ode-euler" })),
        Just(json!({ "type": "ode-dpm2m" })),
        (0.0..=1.0f64).prop_map(|eta| json!({ "type": "sde-cps", "eta": eta })),
        (0.01..1.5f64).prop_map(|a| json!({ "type": "sde-flow", "a": a })),
        (0.01..1.5f64).prop_map(|a| json!({ "type": "sde-dance", "a": a })),
    ]
}

proptest! {
    // The same cases in each run: what fails here fails for whoever looks.
    #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..ProptestConfig::default() })]

    /// The contract, the signal and, where it is claimed, the noise level hold on any sigmas, not on schedules alone.
    #[test]
    fn every_kernel_holds_on_any_sigmas(config in samplers(), sigmas in sigmas()) {
        let sampler = sampler(&config);
        let steps = sigmas.len() - 1;
        for (step, transition) in transitions(&*sampler, &sigmas).into_iter().enumerate() {
            prop_assert!((1..=step + 1).contains(&transition.b.len()));
            prop_assert_eq!(transition.c == 0.0, transition.log_prob == LogProb::None);
            prop_assert!(transition.b.iter().chain([&transition.a, &transition.c]).all(|x| x.is_finite()));
            prop_assert!(transition.c >= 0.0 && (step + 1 < steps || transition.c == 0.0));
        }
        // Ratios of coefficients and sigmas lose digits where two sigmas are close.
        for ((signal, std), sigma) in with_oracle(&*sampler, &sigmas).into_iter().zip(&sigmas[1..]) {
            prop_assert!((signal - (1.0 - sigma)).abs() < 1e-9, "signal {} at sigma {}", signal, sigma);
            if sampler.preserves_marginals() {
                prop_assert!((std - sigma).abs() < 1e-9, "noise level {} at sigma {}", std, sigma);
            }
        }
    }

    /// `s = k u / (1 + (k - 1) u)` falls from 1 to 0, rises with k, and 1 - s is the schedule of 1 / k read backwards.
    #[test]
    fn schedules_fall_and_mirror(steps in 1..300usize, shift in 0.05..20.0f64, more in 1.01..3.0f64) {
        let sigmas = |shift: f64| sampler(&json!({ "type": "ode-euler", "shift": shift })).sigmas(steps).unwrap();
        let (found, higher, mirror) = (sigmas(shift), sigmas(shift * more), sigmas(1.0 / shift));
        prop_assert_eq!((found.len(), found[0], found[steps]), (steps + 1, 1.0, 0.0));
        prop_assert!(found.windows(2).all(|pair| pair[0] > pair[1]));
        for i in 1..steps {
            prop_assert!(higher[i] > found[i], "a larger shift lingers near noise");
            prop_assert!((found[i] - (1.0 - mirror[steps - i])).abs() < 1e-12);
        }
    }
}
