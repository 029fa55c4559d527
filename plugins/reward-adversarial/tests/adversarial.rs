//! The discriminator as the host uses it.

use advdmd_nn::RandomStream;
use advdmd_nn::optim::{AdamW, AdamWConfig};
use advdmd_sdk::plugin::build_reward;
use advdmd_sdk::{BackboneSpec, Device, Reward, RewardBatch, RewardInit, Scope, TensorView};
use reward_adversarial as _;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

const CHANNELS: i64 = 16;
const DEPTH: usize = 4;

fn init(grid: i64, seed: u64) -> RewardInit {
    let backbone = BackboneSpec {
        latent_shape: [3, 4 * grid, 4 * grid],
        image_shape: [3, 4 * grid, 4 * grid],
        depth: DEPTH,
        feature_channels: CHANNELS,
        feature_grid: [grid, grid],
        null_prompt: String::new(),
    };
    RewardInit { device: Device::Cpu, seed, backbone: Some(backbone) }
}

fn reward(options: &Value, grid: i64) -> Box<dyn Reward> {
    let mut config = json!({ "type": "adversarial" });
    config.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
    build_reward(&config, &init(grid, 7)).unwrap()
}

/// Features of samples whose first channel is raised by `shift`, at falling noise levels.
struct Samples {
    sigma: Tensor,
    features: Vec<Tensor>,
}

impl Samples {
    fn new(name: &str, count: i64, grid: i64, shift: f64) -> Self {
        let draw = |tap: usize| {
            let noise = RandomStream::new(1, &format!("{name}/{tap}")).normal(&[count, CHANNELS, grid, grid], 1.0);
            let mut features = noise.unwrap();
            let mut first = features.narrow(1, 0, 1);
            first += shift;
            // Blocks of very different scale, as in a trained network.
            features *= 10_f64.powi(tap as i32);
            features
        };
        Self {
            sigma: Tensor::linspace(0.9, 0.1, count, (Kind::Float, tch::Device::Cpu)),
            features: (0..DEPTH).map(draw).collect(),
        }
    }

    fn batch(&self) -> RewardBatch<'static> {
        let view = |tensor: &Tensor| TensorView::from_torch(tensor).unwrap();
        RewardBatch {
            prompts: vec!["a 7"; self.sigma.size()[0] as usize],
            sigma: Some(view(&self.sigma)),
            features: self.features.iter().map(view).collect(),
            ..RewardBatch::default()
        }
    }

    fn select(&self, index: i64) -> Self {
        let row = |tensor: &Tensor| tensor.narrow(0, index, 1);
        Self { sigma: row(&self.sigma), features: self.features.iter().map(row).collect() }
    }
}

#[test]
fn it_asks_for_features_of_every_step() {
    let needs = reward(&json!({}), 4).needs();
    assert_eq!(needs.scope, Scope::EveryStep);
    assert_eq!(needs.features.unwrap().taps, [0, 1, 2, 3]);
    assert!(!needs.images && !needs.latents && !needs.on_cpu);
}

#[test]
fn it_learns_to_tell_real_from_fake_and_pulls_the_fake_towards_the_real() {
    // Maps this small are done before a second thread wakes up.
    tch::set_num_threads(1);
    for options in [json!({}), json!({ "loss": "hinge", "r1_weight": 0.1 }), json!({ "sigma_conditioning": false })] {
        let mut reward = reward(&options, 4);
        let mut optimizer = {
            let parameters = reward.learner().unwrap().parameters();
            AdamW::new(&parameters, AdamWConfig { lr: 5e-3, betas: (0.5, 0.999), eps: 1e-8, weight_decay: 0.0 })
                .unwrap()
        };
        let (real, fake) = (Samples::new("real", 32, 4, 0.7), Samples::new("fake", 32, 4, -0.7));
        let mut losses = Vec::new();
        for _ in 0..25 {
            let loss = reward.learner().unwrap().discriminator_loss(&real.batch(), &fake.batch()).unwrap();
            assert!(!loss.real.requires_grad() && !loss.fake.requires_grad());
            losses.push(loss.loss.double_value(&[]));
            loss.loss.backward();
            optimizer.step().unwrap();
            optimizer.gradients().drop_all().unwrap();
        }
        assert!(losses[24] < 0.5 * losses[0], "{losses:?}");

        let mean = |scores: Vec<f32>| scores.iter().sum::<f32>() / scores.len() as f32;
        let unseen = (Samples::new("other real", 16, 4, 0.7), Samples::new("other fake", 16, 4, -0.7));
        let real = mean(reward.score(&unseen.0.batch()).unwrap());
        let fake = mean(reward.score(&unseen.1.batch()).unwrap());
        assert!(real > 0.6 && fake < 0.4, "real {real}, fake {fake}");

        // The generator's gradient raises the first channel, which is what real samples have more of.
        let mut samples = unseen.1;
        samples.features = samples.features.iter().map(|map| map.set_requires_grad(true)).collect();
        let loss = reward.learner().unwrap().generator_loss(&samples.batch()).unwrap();
        assert_eq!(loss.size(), [16]);
        loss.mean(Kind::Float).backward();
        for map in &samples.features {
            assert!(map.grad().narrow(1, 0, 1).sum(Kind::Float).double_value(&[]) < 0.0);
        }
        for (name, parameter) in reward.learner().unwrap().parameters() {
            assert!(!parameter.grad().defined(), "{name}: the student taught the judge");
        }
    }
}

#[test]
fn a_score_depends_on_its_own_sample_alone() {
    for grid in [1, 3, 4, 8] {
        let mut reward = reward(&json!({}), grid);
        let samples = Samples::new("mixed", 5, grid, 0.0);
        let together = reward.score(&samples.batch()).unwrap();
        let tensor = reward.score_differentiable(&samples.batch()).unwrap().unwrap();
        assert_eq!(Vec::<f32>::try_from(tensor.detach()).unwrap(), together);
        for (index, score) in together.iter().enumerate() {
            assert!(*score > 0.0 && *score < 1.0);
            let alone = reward.score(&samples.select(index as i64).batch()).unwrap();
            assert!((alone[0] - score).abs() < 1e-5, "grid {grid}: {} alone, {score} together", alone[0]);
        }
    }
}

#[test]
fn the_noise_level_matters_once_it_is_learned() {
    let mut reward = reward(&json!({}), 4);
    let samples = Samples::new("mixed", 1, 4, 0.0);
    let mut at = |sigma: f64| {
        let samples = Samples { sigma: Tensor::full([1], sigma, (Kind::Float, tch::Device::Cpu)), ..samples.select(0) };
        reward.score(&samples.batch()).unwrap()[0]
    };
    assert_eq!(at(0.9), at(0.5), "the modulation starts at 0");
    for (name, mut parameter) in reward.learner().unwrap().parameters() {
        if name.ends_with("sigma.weight") {
            let _no_grad = tch::no_grad_guard();
            let _ = parameter.fill_(0.1);
        }
    }
    let mut at = |sigma: f64| {
        let samples = Samples { sigma: Tensor::full([1], sigma, (Kind::Float, tch::Device::Cpu)), ..samples.select(0) };
        reward.score(&samples.batch()).unwrap()[0]
    };
    assert_ne!(at(0.9), at(0.5));
}

#[test]
fn parameters_follow_the_seed_alone_under_stable_names() {
    let build = |seed| {
        let mut reward = build_reward(&json!({ "type": "adversarial", "taps": [1, 3] }), &init(4, seed)).unwrap();
        reward.learner().unwrap().parameters()
    };
    tch::manual_seed(1);
    let first = build(7);
    tch::manual_seed(2);
    let (second, other) = (build(7), build(8));
    let names: Vec<_> = first.iter().map(|(name, _)| name.as_str()).collect();
    let of = |head: usize| {
        ["conv.weight", "conv.bias", "norm.weight", "norm.bias", "sigma.weight", "sigma.bias", "out.weight", "out.bias"]
            .map(|name| format!("heads.{head}.{name}"))
    };
    assert_eq!(names, [of(0), of(1)].concat());
    assert!(first.iter().zip(&second).all(|((_, a), (_, b))| a == b));
    assert!(first.iter().zip(&other).any(|((_, a), (_, b))| a != b));
    assert_eq!(first[0].1.size(), [CHANNELS / 2, CHANNELS, 3, 3]);
}

#[test]
fn one_pass_over_real_and_fake_is_the_sum_of_both_sides() {
    let mut reward = reward(&json!({}), 4);
    let (real, fake) = (Samples::new("real", 6, 4, 0.0), Samples::new("fake", 3, 4, 0.0));
    let scores = (reward.score(&real.batch()).unwrap(), reward.score(&fake.batch()).unwrap());
    let learner = reward.learner().unwrap();
    let loss = learner.discriminator_loss(&real.batch(), &fake.batch()).unwrap();
    let close = |found: &Tensor, expected: &[f32]| {
        let found = Vec::<f32>::try_from(found).unwrap();
        found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5) && found.len() == expected.len()
    };
    assert!(close(&loss.real, &scores.0) && close(&loss.fake, &scores.1));
    // softplus(-l) is the generator's side, softplus(l) = softplus(-l) + l; both are tied by the roles of the batches.
    let real_side = learner.generator_loss(&real.batch()).unwrap().mean(Kind::Float).double_value(&[]);
    let swapped = learner.discriminator_loss(&fake.batch(), &fake.batch()).unwrap().loss.double_value(&[]);
    let fake_as_real = learner.generator_loss(&fake.batch()).unwrap().mean(Kind::Float).double_value(&[]);
    let expected = real_side + (swapped - fake_as_real);
    assert!((loss.loss.double_value(&[]) - expected).abs() < 1e-5);
}

#[test]
fn r1_is_the_squared_gradient_at_real_samples() {
    let (real, fake) = (Samples::new("real", 2, 2, 0.0), Samples::new("fake", 2, 2, 0.0));
    let loss = |weight: f64| {
        let mut reward = reward(&json!({ "r1_weight": weight, "taps": [0] }), 2);
        let (real, fake) = ([&real].map(first_map), [&fake].map(first_map));
        let loss = reward.learner().unwrap().discriminator_loss(&real[0].batch(), &fake[0].batch()).unwrap().loss;
        loss.backward();
        let heads = reward.learner().unwrap().parameters();
        (loss.double_value(&[]), heads[0].1.grad().abs().sum(Kind::Float).double_value(&[]))
    };
    let (without, _) = loss(0.0);
    let (one, gradient) = loss(1.0);
    let (three, steeper) = loss(3.0);
    assert!(one > without);
    assert!(((three - without) - 3.0 * (one - without)).abs() < 1e-5);
    assert!(gradient.is_finite() && steeper.is_finite() && steeper != gradient, "the penalty reaches the heads");
}

fn first_map(samples: &Samples) -> Samples {
    Samples { sigma: samples.sigma.shallow_clone(), features: vec![samples.features[0].shallow_clone()] }
}

#[test]
fn wrong_batches_and_settings_are_refused() {
    let mut reward = reward(&json!({}), 4);
    let message = |result: advdmd_sdk::Result<Vec<f32>>| result.unwrap_err().to_string();
    let samples = Samples::new("mixed", 2, 4, 0.0);
    let fewer = first_map(&samples);
    assert_eq!(message(reward.score(&fewer.batch())), "features: expected one map for each of 4 taps, found 1");
    let coarse = Samples::new("mixed", 2, 2, 0.0);
    assert!(message(reward.score(&coarse.batch())).starts_with("features of block 0: expected shape [2, 16, 4, 4]"));
    let mut batch = samples.batch();
    batch.sigma = None;
    assert_eq!(message(reward.score(&batch)), "the batch holds no sigma");
    assert_eq!(reward.score(&RewardBatch { sigma: None, ..RewardBatch::default() }).unwrap(), Vec::<f32>::new());
    let empty = RewardBatch::default();
    assert!(reward.learner().unwrap().discriminator_loss(&empty, &samples.batch()).is_err());

    let refused = |options: Value| {
        let mut config = json!({ "type": "adversarial" });
        config.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        build_reward(&config, &init(4, 0)).err().unwrap().to_string()
    };
    assert!(refused(json!({ "taps": [4] })).starts_with("taps: expected rising block indices below 4"));
    assert!(refused(json!({ "width": 0 })).starts_with("width: expected"));
    assert!(refused(json!({ "r1_weight": -1.0 })).starts_with("r1_weight: expected"));
    assert!(refused(json!({ "loss": "wgan" })).contains("unknown variant `wgan`"));
    assert!(refused(json!({ "heads": 3 })).contains("unknown field `heads`"));
}
