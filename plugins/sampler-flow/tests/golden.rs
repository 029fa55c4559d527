//! Every kernel against diffusers and the published formulas (`tests/golden/samplers.py`).

use advdmd_sdk::plugin::build_sampler;
use advdmd_sdk::{LogProb, Transition};
use sampler_flow as _;
use serde::Deserialize;
use serde_json::json;

const GOLDEN: &str = include_str!("../../../tests/golden/samplers.json");

#[derive(Deserialize)]
struct Golden {
    trajectories: Vec<Trajectory>,
    schedules: Vec<Schedule>,
}

#[derive(Deserialize)]
struct Trajectory {
    config: serde_json::Value,
    sigmas: Vec<f64>,
    /// By step.
    velocities: Vec<Vec<f64>>,
    noise: Vec<Vec<f64>>,
    /// One more than steps.
    states: Vec<Vec<f64>>,
    log_prob: Vec<Option<f64>>,
}

#[derive(Deserialize)]
struct Schedule {
    steps: usize,
    shift: f64,
    sigmas: Vec<f64>,
}

fn golden() -> Golden {
    serde_json::from_str(GOLDEN).unwrap()
}

/// diffusers' Euler scheduler, which also made the last step of the SDE kernels, rounds its sigmas and its result to
/// float32 (relative 6e-8); all else is float64 on both sides and differs by the order of the operations.
fn tolerance(kind: &str, last: bool) -> f64 {
    if kind == "ode-euler" || (last && kind != "ode-dpm2m") { 5e-7 } else { 1e-12 }
}

/// The mean of a step; velocities are oldest first.
fn mean(transition: &Transition, x: &[f64], velocities: &[Vec<f64>]) -> Vec<f64> {
    let older =
        |dim: usize| transition.b.iter().zip(velocities.iter().rev()).map(move |(b, v)| b * v[dim]).sum::<f64>();
    x.iter().enumerate().map(|(dim, x)| transition.a * x + older(dim)).collect()
}

fn log_prob(transition: &Transition, next: &[f64], mean: &[f64]) -> Option<f64> {
    let squared = next.iter().zip(mean).map(|(x, m)| (x - m).powi(2)).sum::<f64>() / next.len() as f64;
    match transition.log_prob {
        LogProb::None => None,
        LogProb::SquaredError => Some(-squared),
        LogProb::Gaussian => {
            let std = transition.c;
            Some(-squared / (2.0 * std * std) - std.ln() - (2.0 * std::f64::consts::PI).sqrt().ln())
        }
    }
}

#[test]
fn every_step_is_the_references() {
    let golden = golden();
    assert_eq!(golden.trajectories.len(), 21);
    for case in golden.trajectories {
        let kind = case.config["type"].as_str().unwrap().to_owned();
        let sampler = build_sampler(&case.config).unwrap();
        let steps = case.sigmas.len() - 1;
        for step in 0..steps {
            let transition = sampler.transition(&case.sigmas, step).unwrap();
            let mean = mean(&transition, &case.states[step], &case.velocities[..=step]);
            let tolerance = tolerance(&kind, step + 1 == steps);
            for (dim, expected) in case.states[step + 1].iter().enumerate() {
                let found = mean[dim] + transition.c * case.noise[step][dim];
                let error = (found - expected).abs() / expected.abs().max(1.0);
                assert!(error <= tolerance, "{} step {step}: expected {expected}, found {found}", case.config);
            }
            let found = log_prob(&transition, &case.states[step + 1], &mean);
            match (found, case.log_prob[step]) {
                (None, None) => {}
                (Some(found), Some(expected)) => {
                    assert!((found - expected).abs() < 1e-10, "{}: {found} {expected}", case.config);
                }
                pair => panic!("{} step {step}: {pair:?}", case.config),
            }
        }
    }
}

#[test]
fn the_shift_is_diffusers() {
    for case in golden().schedules {
        let sampler = build_sampler(&json!({ "type": "ode-euler", "shift": case.shift })).unwrap();
        let sigmas = sampler.sigmas(case.steps).unwrap();
        assert_eq!(sigmas.len(), case.sigmas.len());
        for (found, expected) in sigmas.iter().zip(&case.sigmas) {
            // Two roundings to float32 in diffusers.
            assert!((found - expected).abs() < 2e-7, "{} steps: {found} {expected}", case.steps);
        }
    }
}
