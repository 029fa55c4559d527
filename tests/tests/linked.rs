//! The same plugins linked into the program and loaded into it.

use std::time::Instant;

use {
    advdmd_constant as _, backbone_digits as _, backbone_sd3 as _, reward_adversarial as _, reward_clip as _,
    reward_remote as _, sampler_flow as _,
};

use advdmd::config::load_run;
use advdmd::registry::Registry;
use advdmd::train::{Trainer, Values};
use advdmd_sdk::abi::Plugin;
use advdmd_sdk::plugin::build_reward;
use advdmd_sdk::{Device, RewardBatch, RewardInit, TensorView};
use advdmd_tests::{PLUGINS, is_effort, plugin, profile_dir};
use serde_json::json;

fn train(registry: &Registry) -> (Vec<Values>, Vec<(String, tch::Tensor)>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    std::fs::write(&path, include_str!("../digits.toml")).unwrap();
    let mut resolved = load_run(&path, &["student.optimizer.lr=1e-3".to_owned()]).unwrap();
    registry.resolve(&mut resolved).unwrap();
    let mut trainer = Trainer::new(&resolved, registry).unwrap();
    let timeless = |values: Values| values.into_iter().filter(|(name, _)| !is_effort(name)).collect();
    let values = (0..3).map(|_| timeless(trainer.update().unwrap())).collect();
    (values, trainer.networks.student.parameters())
}

#[test]
fn static_and_dynamic_plugins_train_the_same_student() {
    let (linked_values, linked) = train(&Registry::linked().unwrap());
    let (loaded_values, loaded) = train(&Registry::of_files(&PLUGINS.map(plugin)).unwrap());
    assert_eq!(linked_values, loaded_values);
    assert!(linked_values[2].contains_key("grpo/loss"), "all objectives took part");
    assert_eq!(linked.len(), loaded.len());
    for ((name, linked), (other, loaded)) in linked.iter().zip(&loaded) {
        assert_eq!(name, other);
        assert!(linked.equal(loaded), "{name} differs");
    }
}

/// The way to a reward and back, 64 samples at a time; `cargo xtask bench --only edge` measures it.
#[test]
fn the_edge_takes_less_than_20_microseconds_of_a_call() {
    let (config, init) =
        (json!({ "type": "constant", "value": 0.5 }), RewardInit { device: Device::Cpu, seed: 0, backbone: None });
    let library = profile_dir().join("deps/libadvdmd_constant.so");
    let mut loaded = Plugin::open(library).unwrap().reward(&config, &init).unwrap();
    let mut linked = build_reward(&config, &init).unwrap();
    let images = tch::Tensor::zeros([64, 3, 16, 16], (tch::Kind::Float, tch::Device::Cpu));
    let images = Some(TensorView::from_torch(&images).unwrap());
    let batch = RewardBatch { prompts: vec!["a red 7"; 64], images, ..RewardBatch::default() };
    assert_eq!(loaded.score(&batch), Ok(vec![0.5; 64]));
    // The best of many turns: whatever else the machine does only adds to them.
    let mut best = [f64::INFINITY; 2];
    for _ in 0..50 {
        for (best, reward) in best.iter_mut().zip([&mut linked, &mut loaded]) {
            let begun = Instant::now();
            for _ in 0..50 {
                std::hint::black_box(reward.score(&batch).unwrap());
            }
            *best = best.min(begun.elapsed().as_secs_f64() * 1e6 / 50.0);
        }
    }
    let [direct, over] = best;
    assert!(over > direct && over - direct < 20.0, "{direct} us directly, {over} us over the edge");
}
