//! Objectives against float64 references made from the published formulas (`tests/golden/objectives.py`).
//!
//! The host computes in float32, whose rounding is 6e-8 of each number. Averages over 48 values and differences of numbers
//! of size 1 leave errors below 1e-6 of the largest value; the tolerance is ten times that.

use std::path::Path;

use advdmd::objective::advantage::{self, Judged, Normalize};
use advdmd::objective::{denoise, dmd, grpo};
use advdmd_nn::Weights;
use advdmd_sdk::LogProb;
use tch::{Device, Kind, Tensor};

const TOLERANCE: f64 = 1e-5;

struct Golden(Weights);

impl Golden {
    fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/objectives.safetensors");
        Self(Weights::load(&path, None, Device::Cpu).unwrap())
    }

    fn get(&self, name: &str) -> Tensor {
        self.0.get(name).unwrap_or_else(|| panic!("no tensor {name}")).copy()
    }

    fn leaf(&self, name: &str) -> Tensor {
        self.get(name).set_requires_grad(true)
    }

    fn assert_close(&self, found: &Tensor, name: &str) {
        self.assert_within(found, name, TOLERANCE);
    }

    fn assert_within(&self, found: &Tensor, name: &str, tolerance: f64) {
        let expected = self.get(name);
        assert_eq!(found.size(), expected.size(), "{name}");
        let scale = expected.abs().max().double_value(&[]).max(1e-12);
        let error = (found.to_kind(Kind::Double) - expected).abs().max().double_value(&[]) / scale;
        assert!(error <= tolerance, "{name}: relative error {error}");
    }
}

/// The gradient of the sum of `loss` to `leaf`.
fn gradient(loss: &Tensor, leaf: &Tensor) -> Tensor {
    loss.sum(Kind::Float).backward();
    leaf.grad()
}

fn tensor(values: &[f32]) -> Tensor {
    Tensor::from_slice(values)
}

#[test]
fn denoising_loss() {
    let golden = Golden::read();
    let velocity = golden.leaf("denoise.velocity");
    let x0 = golden.leaf("denoise.x0");
    let loss = denoise::loss(&velocity, &x0, &golden.get("denoise.noise")).unwrap();
    golden.assert_close(&loss, "denoise.loss");
    golden.assert_close(&gradient(&loss, &velocity), "denoise.gradient");
    assert!(!x0.grad().defined(), "the target is no leaf of the loss");
}

#[test]
fn distribution_matching_loss() {
    let golden = Golden::read();
    let x0 = golden.leaf("dmd.x0");
    let [x_s, sigma, fake, teacher] =
        ["dmd.x_s", "dmd.sigma", "dmd.fake_velocity", "dmd.teacher_velocity"].map(|name| golden.leaf(name));
    let matching = dmd::loss(&x0, &x_s, &sigma, &fake, &teacher).unwrap();
    golden.assert_close(&matching.loss, "dmd.loss");
    golden.assert_close(&matching.normalizer, "dmd.normalizer");
    golden.assert_close(&matching.gap, "dmd.gap");
    golden.assert_close(&gradient(&matching.loss, &x0), "dmd.gradient");
    assert!(!x_s.grad().defined() && !fake.grad().defined() && !teacher.grad().defined());
    let [(_, normalizer), (_, gap)] = matching.statistics();
    assert!(normalizer.double_value(&[]) > 0.0 && gap.double_value(&[]) > 0.0);
}

#[test]
fn distribution_matching_stops_where_fake_and_teacher_agree() {
    let golden = Golden::read();
    let x0 = golden.leaf("dmd.x0");
    let velocity = golden.get("dmd.fake_velocity");
    let matching = dmd::loss(&x0, &golden.get("dmd.x_s"), &golden.get("dmd.sigma"), &velocity, &velocity).unwrap();
    assert_eq!(gradient(&matching.loss, &x0).abs().max().double_value(&[]), 0.0);
    // The teacher's x0 is the student's own: 0 / (0 + 1e-6), not a NaN.
    let zero = x0.zeros_like();
    let matching = dmd::loss(&x0, &x0.detach(), &golden.get("dmd.sigma"), &zero, &zero).unwrap();
    assert_eq!(matching.loss.abs().max().double_value(&[]), 0.0);
}

#[test]
fn log_probability() {
    let golden = Golden::read();
    for (convention, name) in [(LogProb::Gaussian, "gaussian"), (LogProb::SquaredError, "squared_error")] {
        let mean = golden.leaf("log_prob.mean");
        let value = grpo::log_prob(&golden.get("log_prob.next"), &mean, 0.37, convention).unwrap();
        golden.assert_close(&value, &format!("log_prob.{name}"));
        golden.assert_close(&gradient(&value, &mean), &format!("log_prob.{name}_gradient"));
    }
    let state = golden.get("log_prob.mean");
    assert!(grpo::log_prob(&state, &state, 0.0, LogProb::None).is_err());
    assert!(grpo::log_prob(&state, &state, 0.0, LogProb::Gaussian).is_err());
}

#[test]
fn policy_loss() {
    let golden = Golden::read();
    let (new, old) = (golden.leaf("policy.log_prob"), golden.leaf("policy.log_prob_old"));
    let policy = grpo::policy_loss(&new, &old, &golden.get("policy.advantage"), [0.1, 0.2], 1.5).unwrap();
    golden.assert_close(&policy.loss, "policy.loss");
    golden.assert_close(&policy.ratio, "policy.ratio");
    golden.assert_close(&policy.clip_fraction, "policy.clip_fraction");
    golden.assert_close(&gradient(&policy.loss, &new), "policy.gradient");
    assert!(!old.grad().defined());
}

#[test]
fn on_policy_the_ratio_is_exactly_one() {
    let golden = Golden::read();
    let mean = golden.leaf("log_prob.mean");
    let next = golden.get("log_prob.next");
    let old = tch::no_grad(|| grpo::log_prob(&next, &mean, 0.37, LogProb::SquaredError).unwrap());
    let new = grpo::log_prob(&next, &mean, 0.37, LogProb::SquaredError).unwrap();
    let advantage = tensor(&[1.0, -1.0, 2.0, 0.5, -3.0, 9.0]);
    let policy = grpo::policy_loss(&new, &old, &advantage, [1e-5, 1e-5], 5.0).unwrap();
    assert_eq!((policy.ratio.min().double_value(&[]), policy.ratio.max().double_value(&[])), (1.0, 1.0));
    assert_eq!(policy.clip_fraction.double_value(&[]), 0.0);
    // Minus the advantage, with a gradient to every sample although the loss's value says nothing about them.
    assert_eq!(Vec::<f32>::try_from(policy.loss.detach()).unwrap(), [-1.0, 1.0, -2.0, -0.5, 3.0, -5.0]);
    let gradient = gradient(&policy.loss, &mean).abs().amax([1, 2, 3].as_slice(), false);
    assert!(gradient.min().double_value(&[]) > 0.0);
}

/// A reward that is spread evenly over the steps.
fn judged(scores: Tensor, weight: f64, std_floor: f64) -> Judged {
    let on = vec![true; scores.size().last().map_or(0, |&steps| steps as usize)];
    Judged { scores, weight, on, discount: 1.0, std_floor }
}

#[test]
fn advantages() {
    let golden = Golden::read();
    for (normalize, name) in [(Normalize::Group, "group"), (Normalize::Global, "global"), (Normalize::None, "none")] {
        let first = judged(golden.get("advantage.first"), 1.0, 0.05);
        let second = Judged { discount: 0.5, ..judged(golden.get("advantage.second"), 0.5, 0.05) };
        let advantages = advantage::combine(&[first, second], normalize).unwrap();
        assert_eq!(advantages.values.kind(), Kind::Float);
        golden.assert_close(&advantages.values, &format!("advantage.{name}.values"));
        golden.assert_close(&advantages.live, "advantage.live");
        golden.assert_close(&advantages.dead, "advantage.dead");
        golden.assert_close(&advantages.share, &format!("advantage.{name}.share"));
        golden.assert_close(&advantages.correlation, &format!("advantage.{name}.correlation"));
        let dead = advantages.values.get(2).select(1, 0).abs().max();
        assert_eq!(dead.double_value(&[]), 0.0, "a dead group has no advantage");
    }
}

/// `PerPromptStatTracker` with `global_std`, which adds 1e-4 to a standard deviation of size 1.
#[test]
fn global_normalisation_is_flow_grpos() {
    let golden = Golden::read();
    let scores = golden.get("flow_grpo.scores");
    let advantages = advantage::combine(&[judged(scores, 1.0, 0.0)], Normalize::Global).unwrap();
    golden.assert_within(&advantages.values, "flow_grpo.values", 5e-4);
}

#[test]
fn advantages_are_rtdmds_where_rewards_agree() {
    let golden = Golden::read();
    let rewards = [judged(golden.get("rtdmd.first"), 1.0, 0.0), judged(golden.get("rtdmd.second"), 0.5, 0.0)];
    let advantages = advantage::combine(&rewards, Normalize::Group).unwrap();
    // RTDMD adds 1e-4 to each standard deviation, of size 1.
    golden.assert_within(&advantages.values, "rtdmd.values", 5e-4);
}

#[test]
fn one_reward_has_unit_spread_whatever_its_scale_and_weight() {
    let scores = Golden::read().get("advantage.second");
    let reference = advantage::combine(&[judged(scores.shallow_clone(), 1.0, 0.0)], Normalize::Group).unwrap().values;
    let std = reference.std_dim([0, 1].as_slice(), false, false);
    assert!((std.get(1) - 1.0).abs().double_value(&[]) < 1e-6);
    for (scale, weight) in [(1e-3, 1.0), (1e3, 0.2), (1.0, 30.0)] {
        let values = advantage::combine(&[judged(&scores * scale, weight, 0.0)], Normalize::Group).unwrap().values;
        assert!((values - &reference).abs().max().double_value(&[]) < 1e-4);
    }
}

#[test]
fn spreads_below_the_floor_and_rounding_errors_are_not_blown_up() {
    let scores = Tensor::from_slice(&[0.500_f32, 0.501, 0.502, 0.503]).view([1, 4, 1]);
    let floored = advantage::combine(&[judged(scores.shallow_clone(), 2.0, 0.1)], Normalize::Group).unwrap().values;
    assert!(floored.abs().max().double_value(&[]) < 0.02);
    let free = advantage::combine(&[judged(scores, 2.0, 0.0)], Normalize::Group).unwrap().values;
    assert!(free.abs().max().double_value(&[]) > 1.0);
    // Their mean is not exactly 0.1 in any precision.
    let equal = Tensor::from_slice(&[0.1_f32; 7]).view([1, 7, 1]);
    let dead = advantage::combine(&[judged(equal, 1.0, 0.0)], Normalize::Group).unwrap();
    assert_eq!(dead.values.abs().max().double_value(&[]), 0.0);
    assert_eq!(dead.live.double_value(&[0]), 0.0);
}

#[test]
fn shapes_that_would_broadcast_are_refused() {
    let (a, b) = (
        Tensor::zeros([2, 3, 4, 4], (Kind::Float, Device::Cpu)),
        Tensor::zeros([1, 3, 4, 4], (Kind::Float, Device::Cpu)),
    );
    let sigma = tensor(&[0.5, 0.5]);
    let message = denoise::loss(&a, &a, &b).unwrap_err().to_string();
    assert!(message.contains("noise: expected the shape [2, 3, 4, 4] of velocity, found [1, 3, 4, 4]"), "{message}");
    assert!(dmd::loss(&a, &a, &sigma, &a, &b).is_err());
    assert!(dmd::loss(&a, &a, &tensor(&[0.5]), &a, &a).unwrap_err().to_string().contains("sigma"));
    assert!(grpo::log_prob(&a, &b, 1.0, LogProb::Gaussian).is_err());
    assert!(grpo::policy_loss(&sigma, &sigma, &tensor(&[1.0]), [0.1, 0.1], 5.0).is_err());
    assert!(grpo::policy_loss(&sigma, &sigma, &sigma, [-0.1, 0.1], 5.0).is_err());
    assert!(grpo::policy_loss(&sigma, &sigma, &sigma, [0.1, f64::NAN], 5.0).is_err());
    assert!(advantage::combine(&[], Normalize::Group).is_err());
    assert!(advantage::combine(&[judged(sigma.shallow_clone(), 1.0, 0.0)], Normalize::Group).is_err());
    let scores = Tensor::zeros([2, 3, 1], (Kind::Float, Device::Cpu));
    assert!(advantage::combine(&[judged(scores.shallow_clone(), f64::NAN, 0.0)], Normalize::Group).is_err());
    assert!(advantage::combine(&[judged(scores, 1.0, -1.0)], Normalize::Group).is_err());
}
