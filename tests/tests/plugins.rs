//! Every shipped plugin as the built library, each test in a process of its own (nextest).

use std::path::Path;

use advdmd_nn::Weights;
use advdmd_sdk::abi::Plugin;
use advdmd_sdk::plugin::build_sampler;
use advdmd_sdk::{BackboneInit, DType, Device, Kind, Manifest, Request, RewardBatch, RewardInit, TensorView, Tuning};
use advdmd_tests::plugin;
use serde_json::json;

fn components(stem: &str) -> (Plugin, Vec<(Kind, String)>) {
    let plugin = Plugin::open(plugin(stem)).unwrap();
    let components = plugin.manifest().components.iter().map(|component| (component.kind, component.name.clone()));
    let components = components.collect();
    (plugin, components)
}

fn backbone() -> Box<dyn advdmd_sdk::Backbone> {
    let init = BackboneInit { device: Device::Cpu, dtype: DType::F32, seed: 0 };
    Plugin::open(plugin("backbone_digits")).unwrap().backbone(&json!({ "type": "digits" }), &init).unwrap()
}

#[test]
fn sampler_flow_loads_and_samples() {
    let (plugin, components) = components("sampler_flow");
    let names = ["ode-dpm2m", "ode-euler", "sde-cps", "sde-dance", "sde-flow"];
    assert_eq!(components, names.map(|name| (Kind::Sampler, name.to_owned())));
    let sampler = plugin.sampler(&json!({ "type": "sde-cps", "eta": 0.9 })).unwrap();
    assert_eq!(sampler.sigmas(4).unwrap().len(), 5);
    let transition = sampler.transition(&[1.0, 0.5, 0.0], 0).unwrap();
    assert!(transition.c > 0.0 && transition.b.len() == 1);
}

/// The macros' two registries live inside the library: the host's own copies stay empty.
#[test]
fn inventory_and_typetag_work_inside_a_library_and_stay_there() {
    let (plugin, components) = components("sampler_flow");
    assert_eq!(components.len(), 5, "inventory collected the plugin's five entries");
    let config = json!({ "type": "sde-flow", "a": 0.3 });
    assert!(plugin.sampler(&config).is_ok(), "typetag found the variant in the plugin");
    assert_eq!(Manifest::of_this_binary().unwrap().components, [], "nothing is registered in the host");
    let here = build_sampler(&config).err().expect("typetag knows no variant in the host").to_string();
    assert!(here.contains("sde-flow"), "{here}");
    let unknown = plugin.sampler(&json!({ "type": "sde-flaw" })).err().expect("an unknown type").to_string();
    assert!(unknown.contains("sde-flaw") && unknown.contains("sde-flow"), "{unknown}");
}

#[test]
fn backbone_digits_loads_and_predicts() {
    let (_, components) = components("backbone_digits");
    assert_eq!(components, [(Kind::Backbone, "digits".to_owned())]);
    let backbone = backbone();
    let spec = backbone.spec();
    assert_eq!((spec.latent_shape, spec.depth), ([3, 16, 16], 4));
    let conditioning = backbone.encode_text(&["a red 7 and a blue 3", ""]).unwrap();
    let x = tch::Tensor::zeros([2, 3, 16, 16], (tch::Kind::Float, tch::Device::Cpu));
    let sigma = tch::Tensor::from_slice(&[0.5f32, 1.0]);
    let teacher = backbone.denoiser(&Tuning::Frozen, 0).unwrap();
    let prediction = teacher.predict(&x, &sigma, &conditioning, Request { velocity: true, taps: &[1, 3] }).unwrap();
    assert_eq!(prediction.velocity.unwrap().size(), [2, 3, 16, 16]);
    assert_eq!(prediction.features.iter().map(tch::Tensor::size).collect::<Vec<_>>(), vec![vec![2, 128, 4, 4]; 2]);
    assert!(teacher.parameters().is_empty());
    assert!(!backbone.denoiser(&Tuning::Full, 0).unwrap().parameters().is_empty());
}

#[test]
fn reward_adversarial_loads_and_learns() {
    let (plugin, components) = components("reward_adversarial");
    assert_eq!(components, [(Kind::Reward, "adversarial".to_owned())]);
    let init = RewardInit { device: Device::Cpu, seed: 0, backbone: Some(backbone().spec()) };
    let mut reward = plugin.reward(&json!({ "type": "adversarial" }), &init).unwrap();
    assert_eq!(reward.needs().features.unwrap().taps, [0, 1, 2, 3]);
    assert!(!reward.learner().expect("it learns").parameters().is_empty());
}

#[test]
fn reward_clip_loads_and_scores() {
    let (plugin, components) = components("reward_clip");
    assert_eq!(components, ["clipscore", "hps", "pickscore"].map(|name| (Kind::Reward, name.to_owned())));
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/clip/clip-wide");
    let values = Weights::load(&golden.with_extension("safetensors"), None, tch::Device::Cpu).unwrap();
    let image = values.get("image_0").unwrap().unsqueeze(0).to_kind(tch::Kind::Float) / 255.0;
    let init = RewardInit { device: Device::Cpu, seed: 0, backbone: None };
    for (name, key) in [("hps", "bicubic_cosine"), ("clipscore", "bilinear_cosine"), ("pickscore", "pickscore")] {
        let mut reward = plugin.reward(&json!({ "type": name, "model": golden }), &init).unwrap();
        let needs = reward.needs();
        assert!(needs.images && needs.differentiable && needs.scores_on_device == (name != "pickscore"));
        let leaf = image.copy().set_requires_grad(true);
        let batch = RewardBatch {
            prompts: vec!["a photo of a red fox"],
            images: Some(TensorView::from_torch(&leaf).unwrap()),
            ..RewardBatch::default()
        };
        let expected = values.get(key).unwrap().double_value(&[0]);
        let found = f64::from(reward.score(&batch).unwrap()[0]);
        assert!((found - expected).abs() < 1e-5, "{name}: {found}, transformers and open_clip {expected}");
        reward.score_differentiable(&batch).unwrap().expect("it gives gradients").backward();
        assert!(leaf.grad().abs().max().double_value(&[]) > 0.0, "{name}: autograd runs through the library");
    }
}
