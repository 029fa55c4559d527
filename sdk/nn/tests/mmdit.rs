//! MMDiT against diffusers: `tests/golden/mmdit.py` made the reference values.

use std::path::{Path, PathBuf};

use advdmd_nn::mmdit::{Init, LORA_TARGETS, Mmdit, MmditConfig};
use advdmd_nn::{Params, Weights};
use advdmd_sdk::{Request, Tuning};
use tch::{Device, Kind, Tensor};

struct Golden {
    config: MmditConfig,
    values: Weights,
    base: Weights,
}

impl Golden {
    fn load(name: &str) -> Self {
        let path = golden_path(name);
        let values = Weights::load(&path, Some(Kind::Float), Device::Cpu).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let config = &header.metadata().as_ref().unwrap()["config"];
        let config = MmditConfig::from_json(serde_json::from_str(config).unwrap()).unwrap();
        let base = values.strip_prefix("weight.");
        Self { config, values, base }
    }

    fn get(&self, name: &str) -> Tensor {
        self.values.get(name).unwrap_or_else(|| panic!("{name} is not in the golden file")).shallow_clone()
    }

    fn model(&self, tuning: &Tuning) -> Mmdit {
        Mmdit::new(&self.config, &Params::new(&self.base, tuning, &LORA_TARGETS, 5).unwrap()).unwrap()
    }

    /// `velocity`, then the features of every block.
    fn predict(
        &self,
        model: &Mmdit,
        latents: &Tensor,
        velocity: bool,
        taps: &[usize],
    ) -> (Option<Tensor>, Vec<Tensor>) {
        let [timestep, context, pooled] =
            ["timestep", "context", "pooled"].map(|name| self.get(&format!("input.{name}")));
        let request = Request { velocity, taps };
        let prediction = model.forward(latents, &timestep, &context, &pooled, request).unwrap();
        (prediction.velocity, prediction.features)
    }
}

fn golden_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../tests/golden/mmdit_{name}.safetensors"))
}

fn lora(rank: i64) -> Tuning {
    Tuning::Lora { rank, alpha: 2.0 * rank as f64, targets: vec![] }
}

fn largest(tensor: &Tensor) -> f64 {
    tensor.abs().max().double_value(&[])
}

#[track_caller]
fn assert_close(name: &str, found: &Tensor, expected: &Tensor, absolute: f64) {
    assert_eq!(found.size(), expected.size(), "{name}");
    let error = largest(&(found - expected));
    println!("{name}: largest absolute error {error:.2e}, of {:.2}", largest(expected));
    assert!(error <= absolute, "{name}: largest absolute error {error:e} over {absolute:e}");
}

fn matches_diffusers(name: &str) {
    let golden = Golden::load(name);
    let model = golden.model(&Tuning::Full);
    let latents = golden.get("input.latents").set_requires_grad(true);
    let taps: Vec<usize> = (0..golden.config.num_layers).collect();
    let (velocity, features) = golden.predict(&model, &latents, true, &taps);
    let velocity = velocity.unwrap();
    assert_close("velocity", &velocity, &golden.get("velocity"), 1e-5);
    for (tap, feature) in taps.iter().zip(&features) {
        assert_close(&format!("feature {tap}"), feature, &golden.get(&format!("feature.{tap}")), 1e-5);
    }

    (velocity * golden.get("direction")).sum(Kind::Float).backward();
    let relative = |name: &str, found: &Tensor, expected: &Tensor| {
        assert_close(name, found, expected, 1e-4 * largest(expected));
    };
    relative("gradient of the latents", &latents.grad(), &golden.get("grad_latents"));
    let parameters = model.parameters();
    let mut compared = 0;
    for (name, parameter) in &parameters {
        if let Some(expected) = golden.values.get(&format!("grad.{name}")) {
            relative(name, &parameter.grad(), expected);
            compared += 1;
        }
    }
    assert_eq!(compared, golden.values.strip_prefix("grad.").len());
    // The positions are a buffer; everything else trains.
    assert_eq!(parameters.len() + 1, golden.base.len());
}

#[test]
fn digits_matches_diffusers() {
    matches_diffusers("digits");
}

#[test]
fn dual_attention_matches_diffusers() {
    matches_diffusers("dual");
}

#[test]
fn without_qk_norm_matches_diffusers() {
    matches_diffusers("plain");
}

#[test]
fn early_exit_gives_the_same_features() {
    for name in ["digits", "dual", "plain"] {
        let golden = Golden::load(name);
        let model = golden.model(&Tuning::Frozen);
        let latents = golden.get("input.latents");
        for tap in 0..golden.config.num_layers {
            let (velocity, features) = golden.predict(&model, &latents, false, &[tap]);
            assert!(velocity.is_none());
            assert_close(&format!("{name}, block {tap}"), &features[0], &golden.get(&format!("feature.{tap}")), 1e-5);
        }
        assert!(golden.predict(&model, &latents, false, &[]).1.is_empty());
        // In the order asked for, also twice.
        let (_, features) = golden.predict(&model, &latents, false, &[1, 0, 1]);
        assert_eq!(features[0], features[2]);
        assert_close("first block", &features[1], &golden.get("feature.0"), 1e-5);
    }
}

#[test]
fn frozen_shares_the_base() {
    let golden = Golden::load("plain");
    for tuning in [Tuning::Frozen, lora(2)] {
        let params = Params::new(&golden.base, &tuning, &LORA_TARGETS, 0).unwrap();
        for (name, tensor) in golden.base.iter() {
            let view = params.get(name, &tensor.size()).unwrap();
            assert_eq!(view.data_ptr(), tensor.data_ptr(), "{name}");
            assert!(!view.requires_grad(), "{name}");
        }
    }
    let params = Params::new(&golden.base, &Tuning::Full, &LORA_TARGETS, 0).unwrap();
    let (name, tensor) = golden.base.iter().next().unwrap();
    let copy = params.get(name, &tensor.size()).unwrap();
    assert_ne!(copy.data_ptr(), tensor.data_ptr());
    assert_eq!(copy.data_ptr(), params.get(name, &tensor.size()).unwrap().data_ptr());
    assert!(copy.requires_grad() && !tensor.requires_grad());
    assert!(golden.model(&Tuning::Frozen).parameters().is_empty());
}

#[test]
fn lora_starts_as_the_base_and_alone_receives_gradients() {
    let golden = Golden::load("dual");
    let latents = golden.get("input.latents");
    let model = golden.model(&lora(3));
    let (teacher, _) = golden.predict(&golden.model(&Tuning::Frozen), &latents, true, &[]);
    let (velocity, _) = golden.predict(&model, &latents, true, &[]);
    assert_eq!(teacher, velocity);

    let parameters = model.parameters();
    // 8 projections in the first block, 7 in the last (no to_add_out), an A and a B each. The dual attention is `attn2`.
    assert_eq!(parameters.len(), 2 * (8 + 7));
    assert_eq!(parameters[0].0, "transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight");
    let direction = golden.get("direction");
    (velocity.unwrap() * &direction).sum(Kind::Float).backward();
    assert!(golden.base.iter().all(|(_, tensor)| !tensor.grad().defined()));
    for (name, parameter) in &parameters {
        let gradient = parameter.grad();
        if name.contains("blocks.1.attn.add_q_proj") {
            assert!(!gradient.defined(), "{name}: nothing reads the last block's text queries");
        } else {
            // At B = 0 only B has a slope.
            assert_eq!(largest(&gradient) > 0.0, name.contains("lora_B"), "{name}");
        }
    }
}

#[test]
fn lora_adds_its_product_to_the_weight() {
    let golden = Golden::load("digits");
    let latents = golden.get("input.latents");
    let tuning = Tuning::Lora { rank: 2, alpha: 3.0, targets: vec!["attn.to_k".into(), "ff.net.2".into()] };
    let model = golden.model(&tuning);
    let mut merged: Weights = golden.base.iter().map(|(name, tensor)| (name.to_owned(), tensor.copy())).collect();
    let parameters: Weights = model.parameters().into_iter().collect();
    assert_eq!(parameters.len(), 2 * 2 * 4);
    let _no_grad = tch::no_grad_guard();
    for (name, b) in parameters.iter() {
        let Some(module) = name.strip_suffix(".lora_B.weight") else { continue };
        let _ = b.shallow_clone().normal_(0.0, 0.3);
        let a = parameters.get(&format!("{module}.lora_A.weight")).unwrap();
        let name = format!("{}.weight", module.strip_prefix("transformer.").unwrap());
        let weight = merged.get(&name).unwrap() + b.matmul(a) * 1.5;
        merged.insert(name, weight);
    }
    let merged = Golden { base: merged, ..golden };
    let (expected, _) = merged.predict(&merged.model(&Tuning::Frozen), &latents, true, &[]);
    let (found, _) = merged.predict(&model, &latents, true, &[]);
    assert_close("velocity", &found.unwrap(), &expected.unwrap(), 1e-5);
}

#[test]
fn lora_initialisation_is_seeded_and_gaussian() {
    let golden = Golden::load("dual");
    let factors = |seed, rank| {
        let tuning = lora(rank);
        let params = Params::new(&golden.base, &tuning, &LORA_TARGETS, seed).unwrap();
        Mmdit::new(&golden.config, &params).unwrap();
        params.parameters()
    };
    tch::manual_seed(1);
    let first = factors(9, 8);
    tch::manual_seed(2);
    assert_eq!(first, factors(9, 8));
    assert_ne!(first, factors(10, 8));
    let a: Vec<_> = first.iter().filter(|(name, _)| name.contains("lora_A")).map(|(_, a)| a.view(-1)).collect();
    let std = Tensor::cat(&a, 0).std(true).double_value(&[]);
    assert!((std - 1.0 / 8.0).abs() < 0.01, "{std}");
}

#[test]
fn half_precision_stays_near() {
    let golden = Golden::load("digits");
    let base = golden.base.iter().map(|(name, tensor)| (name.to_owned(), tensor.to_kind(Kind::BFloat16))).collect();
    let half = Golden { base, ..golden };
    let (velocity, features) = half.predict(&half.model(&lora(2)), &half.get("input.latents"), true, &[0]);
    let expected = half.get("velocity");
    assert_eq!(features[0].kind(), Kind::Float);
    assert_close("velocity", &velocity.unwrap(), &expected, 0.05 * largest(&expected));
}

#[test]
fn initial_weights_are_complete_and_seeded() {
    let golden = Golden::load("dual");
    let init = |scheme, seed| Mmdit::init(&golden.config, scheme, seed).unwrap();
    let weights = init(Init::AdaLnZero, 1);
    weights.check(&Mmdit::layout(&golden.config).unwrap(), "init").unwrap();
    let positions = "pos_embed.pos_embed";
    assert_close(positions, weights.get(positions).unwrap(), golden.base.get(positions).unwrap(), 1e-6);
    let model = Mmdit::new(&golden.config, &Params::new(&weights, &Tuning::Frozen, &[], 0).unwrap()).unwrap();
    let (velocity, _) = golden.predict(&model, &golden.get("input.latents"), true, &[]);
    assert_eq!(largest(&velocity.unwrap()), 0.0);

    let key = "transformer_blocks.0.ff.net.2.weight";
    let bound = 1.0 / 128f64.sqrt();
    let uniform = init(Init::Uniform, 1);
    assert!((largest(uniform.get(key).unwrap()) / bound - 1.0).abs() < 0.01);
    assert!(largest(uniform.get("proj_out.weight").unwrap()) > 0.0);
    assert_eq!(uniform.get(key), init(Init::Uniform, 1).get(key));
    assert_ne!(uniform.get(key), init(Init::Uniform, 2).get(key));
}

#[test]
fn wrong_input_is_an_error_that_names_it() {
    let golden = Golden::load("plain");
    let model = golden.model(&Tuning::Frozen);
    let [timestep, context, pooled] =
        ["timestep", "context", "pooled"].map(|name| golden.get(&format!("input.{name}")));
    let latents = golden.get("input.latents");
    let fails = |latents: &Tensor, timestep: &Tensor, context: &Tensor, pooled: &Tensor, taps: &[usize]| {
        let request = Request { velocity: true, taps };
        model.forward(latents, timestep, context, pooled, request).unwrap_err().to_string()
    };
    let error = fails(&latents.narrow(2, 0, 7), &timestep, &context, &pooled, &[]);
    assert_eq!(error, "latents: expected shape [B, C, H, W], H and W multiples of 2 up to 14, found [3, 4, 7, 10]");
    let error = fails(&latents.narrow(1, 0, 3), &timestep, &context, &pooled, &[]);
    assert!(error.contains("latents: expected shape [B, 4, H, W]"), "{error}");
    let error = fails(&latents, &timestep.narrow(0, 0, 1), &context, &pooled, &[]);
    assert!(error.contains("timestep: expected shape [3], found [1]"), "{error}");
    let error = fails(&latents, &timestep, &context.narrow(2, 0, 4), &pooled, &[]);
    assert!(error.contains("context: expected shape [3, L, 12], found [3, 5, 4]"), "{error}");
    let error = fails(&latents, &timestep, &context, &pooled.narrow(1, 0, 4), &[]);
    assert!(error.contains("pooled: expected shape [3, 10], found [3, 4]"), "{error}");
    let error = fails(&latents, &timestep, &context, &pooled, &[2]);
    assert!(error.contains("tap: expected a block below 2, found 2"), "{error}");

    let error = Params::new(&golden.base, &lora(0), &LORA_TARGETS, 0).err().unwrap().to_string();
    assert!(error.contains("lora.rank"), "{error}");
    let tuning = Tuning::Lora { rank: 1, alpha: 1.0, targets: vec!["attn.to_x".into()] };
    let error = Params::new(&golden.base, &tuning, &[], 0).err().unwrap().to_string();
    assert!(error.contains("attn.to_x"), "{error}");
}

#[test]
fn weights_that_do_not_fit_are_listed_in_one_error() {
    let golden = Golden::load("plain");
    let mut weights: Weights = golden.base.iter().skip(1).map(|(n, t)| (n.to_owned(), t.shallow_clone())).collect();
    let missing = golden.base.iter().next().unwrap().0;
    weights.insert("proj_out.bias", Tensor::zeros([3], (Kind::Float, Device::Cpu)));
    weights.insert("extra", Tensor::zeros([2], (Kind::Float, Device::Cpu)));
    let params = Params::new(&weights, &Tuning::Frozen, &LORA_TARGETS, 0).unwrap();
    let error = Mmdit::new(&golden.config, &params).unwrap_err().to_string();
    for part in [missing, "1 missing", "1 unexpected: extra [2]", "proj_out.bias expected [16], found [3]"] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
}

#[test]
fn configurations_are_checked() {
    let golden = Golden::load("dual");
    let json = serde_json::to_value(&golden.config).unwrap();
    let refused = |key: &str, value: serde_json::Value| {
        let mut json = json.clone();
        json[key] = value;
        MmditConfig::from_json(json).unwrap_err().to_string()
    };
    assert!(refused("caption_projection_dim", 30.into()).contains("caption_projection_dim: expected"));
    assert!(refused("qk_norm", "layer_norm".into()).contains("qk_norm"));
    assert!(refused("dual_attention_layers", vec![7].into()).contains("dual_attention_layers"));
    assert!(refused("num_single_layers", 2.into()).contains("num_single_layers"));
    assert!(refused("patch_size", 0.into()).contains("patch_size"));
}

/// Loss over velocity and features, and the gradients of every parameter and of the latents.
fn gradients(golden: &Golden, tuning: &Tuning, checkpointing: bool) -> Vec<(String, Tensor)> {
    let model = golden.model(tuning).with_checkpointing(checkpointing);
    for (_, parameter) in model.parameters() {
        let _ = tch::no_grad(|| parameter.shallow_clone().f_add_scalar_(1e-2).unwrap());
    }
    let latents = golden.get("input.latents").set_requires_grad(true);
    let (velocity, features) = golden.predict(&model, &latents, true, &[0, 1]);
    let loss = velocity.unwrap().square().sum(Kind::Float) + features[0].sin().sum(Kind::Float);
    loss.backward();
    let parameters = model.parameters().into_iter().map(|(name, parameter)| (name, parameter.grad()));
    parameters.chain([("latents".to_owned(), latents.grad())]).collect()
}

#[test]
fn checkpointed_gradients_are_exact() {
    for name in ["dual", "plain"] {
        let golden = Golden::load(name);
        for tuning in [Tuning::Full, lora(4)] {
            let plain = gradients(&golden, &tuning, false);
            let mut alive = 0;
            for ((name, expected), (_, found)) in plain.iter().zip(&gradients(&golden, &tuning, true)) {
                assert_eq!(found.defined(), expected.defined(), "{name}");
                if expected.defined() {
                    // Every block reads the conditioning; its gradients are the same numbers, added in another order.
                    let tolerance = if name.starts_with("time_text_embed.") { 1e-6 * largest(expected) } else { 0.0 };
                    assert!(largest(&(found - expected)) <= tolerance, "{name}");
                    alive += usize::from(largest(expected) > 0.0);
                }
            }
            assert!(alive > plain.len() / 2, "{alive} of {} gradients are not zero", plain.len());
        }
    }
}
