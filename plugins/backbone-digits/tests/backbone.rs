//! The backbone as the host uses it: made from a table, sampled, trained, saved and loaded.

use advdmd_nn::RandomStream;
use advdmd_sdk::plugin::build_backbone;
use advdmd_sdk::{Backbone, BackboneInit, Conditioning, DType, Denoiser, Device, Request, SaveOptions, Tuning};
use backbone_digits as _;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

fn build(config: &Value, dtype: DType) -> advdmd_sdk::Result<Box<dyn Backbone>> {
    build_backbone(config, &BackboneInit { device: Device::Cpu, dtype, seed: 3 })
}

/// A network of two blocks of width 32 on a 4x4 grid.
fn small() -> Box<dyn Backbone> {
    let architecture = json!({ "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16 });
    build(&json!({ "type": "digits", "init": "random", "architecture": architecture }), DType::F32).unwrap()
}

fn random(name: &str, shape: &[i64]) -> Tensor {
    RandomStream::new(5, name).normal(shape, 1.0).unwrap()
}

fn velocity(denoiser: &dyn Denoiser, conditioning: &Conditioning) -> Tensor {
    let (x, sigma) = (random("x", &[2, 3, 16, 16]), Tensor::from_slice(&[0.9_f32, 0.25]));
    denoiser.predict(&x, &sigma, conditioning, Request::VELOCITY).unwrap().velocity.unwrap()
}

/// A full copy whose every parameter has been moved, so that it predicts something.
fn moved(backbone: &dyn Backbone) -> Box<dyn Denoiser> {
    let denoiser = backbone.denoiser(&Tuning::Full, 0).unwrap();
    let _no_grad = tch::no_grad_guard();
    for (name, mut parameter) in denoiser.parameters() {
        parameter += random(&name, &parameter.size()) * 0.05;
    }
    denoiser
}

#[test]
fn the_spec_describes_a_scene() {
    let spec = small().spec();
    assert_eq!((spec.latent_shape, spec.image_shape), ([3, 16, 16], [3, 16, 16]));
    assert_eq!((spec.depth, spec.feature_channels, spec.feature_grid), (2, 32, [4, 4]));
    assert_eq!(spec.null_prompt, "");
}

#[test]
fn the_default_architecture_has_2_3_million_parameters() {
    let backbone = build(&json!({ "type": "digits", "init": "random" }), DType::F32).unwrap();
    let parameters = backbone.denoiser(&Tuning::Full, 0).unwrap().parameters();
    let count: usize = parameters.iter().map(|(_, parameter)| parameter.numel()).sum();
    assert!((2_250_000..2_350_000).contains(&count), "{count}");
}

#[test]
fn the_shipped_teacher_is_what_no_other_weights_mean() {
    let backbone = build(&json!({ "type": "digits" }), DType::F32).unwrap();
    let spec = backbone.spec();
    assert_eq!((spec.latent_shape, spec.depth), ([3, 16, 16], 4));
    let conditioning = backbone.encode_text(&["a red 7", "two 3s"]).unwrap();
    let teacher = backbone.denoiser(&Tuning::Frozen, 0).unwrap();
    // Of pure noise it predicts the noise less a mean image: about unit spread.
    let (noise, sigma) = (random("noise", &[2, 3, 16, 16]), Tensor::from_slice(&[1.0_f32, 1.0]));
    let prediction = teacher.predict(&noise, &sigma, &conditioning, Request::VELOCITY).unwrap();
    let std = prediction.velocity.unwrap().std(false).double_value(&[]);
    assert!((0.5..2.0).contains(&std), "{std}");
}

#[test]
fn images_and_latents_are_each_others_inverse() {
    let backbone = small();
    let images = random("images", &[2, 3, 16, 16]).sigmoid();
    let latents = backbone.encode_images(&images).unwrap();
    assert!((&latents - (&images * 2.0 - 1.0)).abs().max().double_value(&[]) < 1e-6);
    assert!((backbone.decode_latents(&latents).unwrap() - images).abs().max().double_value(&[]) < 1e-6);
    let far = backbone.decode_latents(&(latents * 5.0)).unwrap();
    assert_eq!((far.min().double_value(&[]), far.max().double_value(&[])), (0.0, 1.0));
    let wrong = backbone.encode_images(&random("wrong", &[3, 16, 16])).unwrap_err().to_string();
    assert_eq!(wrong, "images: expected shape [B, 3, 16, 16], found [3, 16, 16]");
    assert!(backbone.decode_latents(&random("wrong", &[1, 3, 8, 8])).is_err());
}

#[test]
fn a_fresh_network_predicts_zero_and_a_frozen_one_has_no_parameters() {
    let backbone = small();
    let conditioning = backbone.encode_text(&["a red 7", ""]).unwrap();
    let teacher = backbone.denoiser(&Tuning::Frozen, 0).unwrap();
    assert!(teacher.parameters().is_empty());
    assert_eq!(velocity(&*teacher, &conditioning).abs().max().double_value(&[]), 0.0);
}

#[test]
fn saved_models_predict_the_same_when_loaded() {
    let backbone = small();
    let trained = moved(&*backbone);
    let conditioning = backbone.encode_text(&["two 7s", "a 1 above a 2"]).unwrap();
    let expected = velocity(&*trained, &conditioning);
    assert!(expected.abs().mean(Kind::Float).double_value(&[]) > 1e-3);
    for (dtype, tolerance) in [(DType::F32, 0.0), (DType::F16, 2e-2)] {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        backbone.save(&model, &trained.parameters(), &options(dtype, &Tuning::Full)).unwrap();
        let loaded = build(&json!({ "type": "digits", "model": model }), DType::F32).unwrap();
        assert_eq!(loaded.spec(), backbone.spec());
        let found = velocity(&*loaded.denoiser(&Tuning::Frozen, 0).unwrap(), &conditioning);
        let error = (found - &expected).abs().max().double_value(&[]) / expected.abs().max().double_value(&[]);
        assert!(error <= tolerance, "{dtype:?}: {error}");
    }
    let folder = tempfile::tempdir().unwrap();
    assert!(backbone.save(folder.path(), &[], &options(DType::I64, &Tuning::Full)).is_err());
}

#[test]
fn a_saved_lora_is_merged() {
    let backbone = build(&json!({ "type": "digits" }), DType::F32).unwrap();
    let conditioning = backbone.encode_text(&["two 7s", "a 1 above a 2"]).unwrap();
    let tuning = Tuning::Lora { rank: 2, alpha: 3.0, targets: Vec::new() };
    let lora = backbone.denoiser(&tuning, 0).unwrap();
    for (_, parameter) in lora.parameters() {
        let _ = tch::no_grad(|| parameter.shallow_clone().g_add_scalar_(0.02));
    }
    let expected = velocity(&*lora, &conditioning);
    let base = velocity(&*backbone.denoiser(&Tuning::Frozen, 0).unwrap(), &conditioning);
    let moved = (&expected - base).abs().max().double_value(&[]);
    let folder = tempfile::tempdir().unwrap();
    backbone.save(folder.path(), &lora.parameters(), &options(DType::F32, &tuning)).unwrap();
    let loaded = build(&json!({ "type": "digits", "model": folder.path() }), DType::F32).unwrap();
    let found = velocity(&*loaded.denoiser(&Tuning::Frozen, 0).unwrap(), &conditioning);
    // One product instead of two: rounding alone is between them.
    let error = (found - &expected).abs().max().double_value(&[]);
    assert!(moved > 1e-2 && error < 1e-4 * moved.max(1.0), "moved by {moved}, off by {error}");
    let alone = &lora.parameters()[..1];
    let refused = backbone.save(folder.path(), alone, &options(DType::F32, &tuning)).unwrap_err().to_string();
    assert!(refused.contains("lora_A") && refused.contains("no lora_B"), "{refused}");
}

fn options(dtype: DType, tuning: &Tuning) -> SaveOptions {
    SaveOptions { dtype, tuning: tuning.clone(), sigmas: None, lossy: false }
}

#[test]
fn a_lora_starts_as_its_base_and_trains() {
    let folder = tempfile::tempdir().unwrap();
    let scratch = small();
    scratch.save(folder.path(), &moved(&*scratch).parameters(), &options(DType::F32, &Tuning::Full)).unwrap();
    let backbone = build(&json!({ "type": "digits", "model": folder.path() }), DType::F32).unwrap();
    let conditioning = backbone.encode_text(&["a 7", "a 3"]).unwrap();
    let base = velocity(&*backbone.denoiser(&Tuning::Frozen, 0).unwrap(), &conditioning);
    let student = backbone.denoiser(&Tuning::Lora { rank: 4, alpha: 8.0, targets: Vec::new() }, 1).unwrap();
    let found = velocity(&*student, &conditioning);
    assert_eq!(found, base);
    found.square().mean(Kind::Float).backward();
    let parameters = student.parameters();
    assert!(parameters.iter().all(|(name, _)| name.starts_with("transformer.transformer_blocks.")));
    let moved = parameters.iter().filter(|(name, _)| name.ends_with("lora_B.weight"));
    let moved = moved.filter(|(_, p)| p.grad().defined() && p.grad().abs().max().double_value(&[]) > 0.0);
    assert!(moved.count() > 0);
    let unknown = Tuning::Lora { rank: 4, alpha: 8.0, targets: vec!["attn.to_x".to_owned()] };
    assert!(backbone.denoiser(&unknown, 0).err().unwrap().to_string().contains("attn.to_x"));
}

#[test]
fn features_come_alone_or_with_the_velocity() {
    let backbone = small();
    let denoiser = moved(&*backbone);
    let conditioning = backbone.encode_text(&["a 7", "a 3"]).unwrap();
    let (x, sigma) = (random("x", &[2, 3, 16, 16]), Tensor::from_slice(&[0.9_f32, 0.25]));
    let predict = |velocity, taps| denoiser.predict(&x, &sigma, &conditioning, Request { velocity, taps }).unwrap();
    let (both, alone) = (predict(true, &[0, 1]), predict(false, &[0]));
    assert!(both.velocity.is_some() && alone.velocity.is_none());
    assert_eq!(alone.features[0].size(), [2, 32, 4, 4]);
    assert_eq!(alone.features[0], both.features[0]);
    let beyond = denoiser.predict(&x, &sigma, &conditioning, Request { velocity: false, taps: &[2] });
    assert!(beyond.is_err());
    let bare = Conditioning { pooled: None, ..conditioning.map(Tensor::shallow_clone) };
    let message = denoiser.predict(&x, &sigma, &bare, Request::VELOCITY).unwrap_err().to_string();
    assert_eq!(message, "the conditioning holds no pooled embedding");
}

#[test]
fn the_seed_alone_decides_random_weights() {
    let (first, second) = (moved(&*small()), moved(&*small()));
    let conditioning = small().encode_text(&["a 7", "a 3"]).unwrap();
    assert_eq!(velocity(&*first, &conditioning), velocity(&*second, &conditioning));
}

#[test]
fn text_scales_travel_with_the_model() {
    let text = json!({ "context_scale": 2.0, "pooled_scale": 3.0 });
    let backbone = build(&json!({ "type": "digits", "init": "random", "text_encoder": text }), DType::F32).unwrap();
    let folder = tempfile::tempdir().unwrap();
    backbone.save(folder.path(), &[], &options(DType::F32, &Tuning::Full)).unwrap();
    let loaded = build(&json!({ "type": "digits", "model": folder.path() }), DType::F32).unwrap();
    let (a, b) = (backbone.encode_text(&["a 7"]).unwrap(), loaded.encode_text(&["a 7"]).unwrap());
    assert_eq!(a.context.max().double_value(&[]), 2.0);
    assert_eq!((a.context, a.pooled), (b.context, b.pooled));
}

#[test]
fn wrong_tables_and_folders_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |config: Value| build(&config, DType::F32).err().unwrap().to_string();
    assert!(refused(json!({ "type": "digits", "init": "random", "model": "m" })).starts_with("model, init: give one"));
    assert!(refused(json!({ "type": "digits", "model": "m", "architecture": {} })).starts_with("architecture: goes"));
    let patch = json!({ "type": "digits", "init": "random", "architecture": { "patch_size": 5 } });
    assert_eq!(refused(patch), "architecture.patch_size: expected a divisor of 16, found 5");
    assert!(refused(json!({ "type": "digits", "init": "random", "depth": 2 })).contains("unknown field `depth`"));
    assert!(refused(json!({ "type": "digits", "model": folder.path() })).contains("config.json"));
    let dtype = build(&json!({ "type": "digits", "init": "random" }), DType::I64).err().unwrap().to_string();
    assert!(dtype.starts_with("dtype: expected"));

    small().save(folder.path(), &[], &options(DType::F32, &Tuning::Full)).unwrap();
    std::fs::write(folder.path().join("text_encoder.json"), "{ \"context_scale\": -1.0 }").unwrap();
    assert!(refused(json!({ "type": "digits", "model": folder.path() })).contains("text_encoder.json: context_scale"));
}
