//! The rewards against transformers, `open_clip` and torchvision, and how the host uses them.

mod common;

use std::sync::Arc;

use advdmd_sdk::Scope;
use common::{Golden, assert_close, batch, largest, reward, score, set};
use reward_clip::{ClipReward, Model, Options, Preprocess};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

fn options(golden: &Golden) -> Options {
    Options {
        model: golden.folder.clone(),
        scale: 1.0,
        logit_scale: false,
        clamp_min: None,
        clamp_max: None,
        prompt_template: "{prompt}".to_owned(),
        preprocess: Preprocess::TensorBicubic,
        batch_size: 3,
        dtype: advdmd_sdk::DType::F32,
    }
}

fn init() -> advdmd_sdk::RewardInit {
    advdmd_sdk::RewardInit { device: advdmd_sdk::Device::Cpu, seed: 0, backbone: None }
}

fn model(golden: &Golden, kind: Kind) -> Arc<std::sync::Mutex<Model>> {
    Model::shared(&golden.folder, kind, Device::Cpu).unwrap()
}

fn unit(features: &Tensor) -> Tensor {
    features / features.norm_scalaropt_dim(2.0, [-1], true)
}

#[test]
fn match_the_features_of_transformers_and_open_clip() {
    for golden in Golden::all() {
        let model = model(&golden, Kind::Float);
        let mut model = model.lock().unwrap();
        let images = model.clip().image_features(&golden.get("pixel_values")).unwrap();
        golden.assert_close("image_features", &images, 1e-5);
        let text = model.text_features(&golden.prompts).unwrap();
        for key in ["text_features", "open_clip_text_features"] {
            assert_close(&format!("{}: {key}", golden.name), &text, &unit(&golden.get(key)), 1e-5);
        }
    }
}

#[test]
fn match_the_scores() {
    for golden in Golden::all() {
        let check = |key: &str, kind: &str, options: Value| {
            let mut reward = golden.reward(kind, &options);
            golden.assert_close(key, &golden.scores(&mut *reward), 1e-5);
        };
        check("bicubic_cosine", "hps", json!({}));
        check("open_clip_cosine", "clipscore", json!({ "preprocess": "open-clip" }));
        check("bilinear_cosine", "clipscore", json!({}));
        check("pickscore", "pickscore", json!({}));
        check("cosine", "clipscore", json!({ "preprocess": "processor" }));
        check("cosine", "hps", json!({ "preprocess": "processor", "batch_size": 1 }));
    }
}

/// No further from the float32 numbers than transformers' own half precision is.
#[test]
fn match_in_half_precision() {
    for golden in Golden::all() {
        let model = model(&golden, Kind::BFloat16);
        let mut model = model.lock().unwrap();
        let pixels = golden.get("pixel_values").to_kind(Kind::BFloat16);
        let images = model.clip().image_features(&pixels).unwrap();
        let text = model.text_features(&golden.prompts).unwrap();
        let check = |what: &str, found: &Tensor, expected: &Tensor| {
            assert_eq!(found.size(), expected.size());
            let error = (found.to_kind(Kind::Float) - expected).norm().double_value(&[]);
            let (error, theirs) = (
                error / expected.norm().double_value(&[]),
                golden.get(&format!("bf16_{what}_error")).double_value(&[]),
            );
            println!("{} {what}: {error:.2e}, transformers {theirs:.2e}", golden.name);
            assert!(error > 0.0 && error < 1.5 * theirs, "{} {what}: {error:e} over 1.5 {theirs:e}", golden.name);
        };
        check("image", &images, &golden.get("image_features"));
        check("text", &text, &unit(&golden.get("text_features")));
    }
}

#[test]
fn match_the_gradients_of_pytorch() {
    for golden in Golden::all() {
        let mut reward = golden.reward("hps", &json!({ "dtype": "f64" }));
        for (index, (image, prompt)) in golden.images().iter().zip(&golden.prompts).enumerate() {
            let image = image.to_kind(Kind::Double).set_requires_grad(true);
            let scores = reward.score_differentiable(&batch(&image, &[prompt])).unwrap().unwrap();
            scores.sum(Kind::Double).backward();
            let key = format!("gradient_{index}");
            let found = image.grad().squeeze_dim(0).to_kind(Kind::Float);
            golden.assert_close(&key, &found, 1e-6 * largest(&golden.get(&key)));
        }
    }
}

/// Central differences along the gradient, in float64, where nothing is rounded, for all three rewards.
#[test]
fn gradients_are_slopes() {
    let golden = Golden::named("clip-wide");
    let images = golden.images();
    let image = images[1].to_kind(Kind::Double);
    for kind in ["clipscore", "hps", "pickscore"] {
        let mut reward = golden.reward(kind, &json!({ "dtype": "f64" }));
        let mut value = |image: &Tensor| {
            let prompt = golden.prompts[0].as_str();
            reward.score_differentiable(&batch(image, &[prompt])).unwrap().unwrap()
        };
        let leaf = image.copy().set_requires_grad(true);
        value(&leaf).backward();
        let gradient = leaf.grad();
        let direction = &gradient / gradient.norm();
        let step = 1e-5;
        let slope = (value(&(&image + &direction * step)) - value(&(&image - &direction * step))) / (2.0 * step);
        let (slope, expected) = (slope.double_value(&[0]), gradient.norm().double_value(&[]));
        assert!(expected > 1e-3 && (slope / expected - 1.0).abs() < 1e-6, "{kind}: {slope} against {expected}");
    }
}

/// The differentiable way of `processor` moves the score by what `Preprocess` documents.
#[test]
fn scores_without_rounding_stay_near() {
    for golden in ["clip-quick", "clip-wide"].map(Golden::named) {
        let mut reward = golden.reward("clipscore", &json!({ "preprocess": "processor" }));
        let exact = golden.scores(&mut *reward);
        let near: Vec<_> = (golden.images().iter().zip(&golden.prompts))
            .map(|(image, prompt)| reward.score_differentiable(&batch(image, &[prompt])).unwrap().unwrap())
            .collect();
        let error = largest(&(Tensor::cat(&near, 0) - exact));
        println!("{}: {error:.1e}", golden.name);
        assert!(error <= 0.0035, "{}: {error}", golden.name);
    }
}

#[test]
fn needs_say_whether_scores_may_stay_on_the_device() {
    let golden = Golden::named("clip-quick");
    for (kind, options, on_device) in [
        ("clipscore", json!({}), true),
        ("hps", json!({}), true),
        ("pickscore", json!({}), false),
        ("pickscore", json!({ "preprocess": "tensor-bicubic" }), true),
    ] {
        let mut reward = golden.reward(kind, &options);
        let needs = reward.needs();
        assert!(needs.images && needs.differentiable && needs.scope == Scope::Final);
        assert!(!needs.latents && !needs.on_cpu && !needs.background && needs.features.is_none());
        assert_eq!(needs.scores_on_device, on_device, "{kind} {options}");
        let images = Tensor::cat(&[&golden.images()[0]; 5], 0)
            * Tensor::linspace(0.2, 1.0, 5, (Kind::Float, Device::Cpu)).view([5, 1, 1, 1]);
        let prompts = ["a", "b", "a", "", "c"];
        let scores = Tensor::from_slice(&score(&mut *reward, &images, &prompts).unwrap());
        let same = tch::no_grad(|| reward.score_differentiable(&batch(&images, &prompts)).unwrap().unwrap());
        assert_eq!(scores.equal(&same), on_device, "{kind} {options}");
        assert!(!same.requires_grad());
    }
}

#[test]
fn batches_score_as_each_image_alone() {
    let golden = Golden::named("clip-wide");
    let image = &golden.images()[4];
    let shades = Tensor::linspace(0.1, 1.0, 7, (Kind::Float, Device::Cpu)).view([7, 1, 1, 1]);
    let images = image * shades;
    let prompts: Vec<&str> = golden.prompts.iter().map(String::as_str).collect();
    for kind in ["clipscore", "hps", "pickscore"] {
        let mut reward = golden.reward(kind, &json!({ "batch_size": 3 }));
        let all = score(&mut *reward, &images, &prompts).unwrap();
        for (index, expected) in all.iter().enumerate() {
            let one = score(&mut *reward, &images.narrow(0, index as i64, 1), &prompts[index..=index]).unwrap();
            assert!((one[0] - expected).abs() < 1e-6, "{kind} {index}: {one:?} {expected}");
        }
        assert!(all.iter().any(|score| (score - all[0]).abs() > 1e-3), "{kind}: images differ in score");
    }
}

#[test]
fn scale_clamp_and_template() {
    let golden = Golden::named("clip-quick");
    let scores =
        |options: Value| Vec::<f32>::try_from(golden.scores(&mut *golden.reward("clipscore", &options))).unwrap();
    let cosine = scores(json!({}));
    let expected = |f: fn(f32) -> f32| cosine.iter().map(|&c| f(c)).collect::<Vec<_>>();
    let near = |found: Vec<f32>, expected: Vec<f32>| found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-5);
    assert!(cosine.iter().any(|&c| c < 0.0) && cosine.iter().any(|&c| c > 0.05));
    assert!(near(scores(json!({ "scale": 2.5, "clamp_min": 0.0 })), expected(|c| (2.5 * c).max(0.0))));
    assert!(near(scores(json!({ "clamp_max": 0.01 })), expected(|c| c.min(0.01))));
    // What the template makes is what is encoded.
    let mut templated = golden.reward("clipscore", &json!({ "prompt_template": "A photo depicts {prompt}" }));
    let mut plain = golden.reward("clipscore", &json!({}));
    let image = &golden.images()[0];
    assert_eq!(
        score(&mut *templated, image, &["two cats"]).unwrap(),
        score(&mut *plain, image, &["A photo depicts two cats"]).unwrap()
    );
    // Cut at 77 tokens: what comes after changes nothing.
    let long = "the quick brown fox jumps over the lazy dog, ".repeat(30);
    let longer = format!("{long} and a cat");
    assert_eq!(score(&mut *plain, image, &[&long]).unwrap(), score(&mut *plain, image, &[&longer]).unwrap());
    assert_ne!(score(&mut *plain, image, &[&long]).unwrap(), score(&mut *plain, image, &[""]).unwrap());
}

#[test]
fn rewards_on_one_folder_share_one_model_and_its_prompts() {
    let golden = Golden::named("clip-quick");
    let make = |preprocess| ClipReward::new(Options { preprocess, ..options(&golden) }, &init()).unwrap();
    let (mut first, mut second) = (make(Preprocess::TensorBicubic), make(Preprocess::Processor));
    assert!(Arc::ptr_eq(first.model(), second.model()));
    let link = tempfile::tempdir().unwrap();
    let other = link.path().join("other");
    std::os::unix::fs::symlink(&golden.folder, &other).unwrap();
    let third = ClipReward::new(Options { model: other, ..options(&golden) }, &init()).unwrap();
    assert!(Arc::ptr_eq(first.model(), third.model()), "the same folder by another way");
    let half = ClipReward::new(Options { dtype: advdmd_sdk::DType::Bf16, ..options(&golden) }, &init()).unwrap();
    assert!(!Arc::ptr_eq(first.model(), half.model()));

    let model = Arc::clone(first.model());
    let encoded = || model.lock().unwrap().encoded();
    let before = encoded();
    let image = Tensor::cat(&[&golden.images()[0]; 4], 0);
    let group = ["a group of its own"; 4];
    let scores = score(&mut first, &image, &group).unwrap();
    assert_eq!(encoded(), before + 1, "the prompt of a group is encoded once");
    score(&mut second, &image, &group).unwrap();
    assert_eq!(score(&mut first, &image, &group).unwrap(), scores);
    assert_eq!(encoded(), before + 1, "and once for all rewards");
    score(&mut second, &image, &["a group of its own", "x", "y", "x"]).unwrap();
    assert_eq!(encoded(), before + 3);
}

/// More prompts than are kept, in one batch and one after another.
#[test]
fn the_features_that_are_kept_are_bounded() {
    let golden = Golden::named("clip-quick");
    // Not shared with the other tests' rewards, so that no one else adds to it.
    let model = Model::shared(&golden.folder, Kind::Double, Device::Cpu).unwrap();
    let mut model = model.lock().unwrap();
    let prompts: Vec<String> = (0..4200).map(|n| format!("{n}")).collect();
    let all = model.text_features(&prompts).unwrap();
    assert_eq!((all.size(), model.encoded()), (vec![4200, 24], 4200));
    let last = model.text_features(&prompts[4104..]).unwrap();
    assert_eq!(model.encoded(), 4200, "the last ones are known");
    assert!(last.equal(&all.narrow(0, 4104, 96)));
    let first = model.text_features(&prompts[..1]).unwrap();
    assert_eq!(model.encoded(), 4201, "the first one was dropped");
    assert_close("encoded again", &first, &all.narrow(0, 0, 1), 1e-12);
}

#[test]
fn values_out_of_range_are_refused_by_key() {
    let golden = Golden::named("clip-quick");
    let refused = |options: Value| reward(&golden.folder, "hps", &options).err().unwrap().to_string();
    assert_eq!(refused(json!({ "scale": 0.0 })), "scale: expected a finite number other than 0, found 0");
    assert_eq!(refused(json!({ "batch_size": 0 })), "batch_size: expected 1 to 65536, found 0");
    assert_eq!(
        refused(json!({ "clamp_min": 0.5, "clamp_max": 0.5 })),
        "clamp_max: expected more than clamp_min = 0.5, found 0.5"
    );
    assert_eq!(
        refused(json!({ "prompt_template": "a photo" })),
        "prompt_template: expected a text with {prompt} in it, found \"a photo\""
    );
    assert_eq!(refused(json!({ "dtype": "i64" })), "dtype: expected f32, bf16, f16 or f64, found I64");
    assert!(refused(json!({ "preprocess": "pil" })).contains("unknown variant `pil`, expected one of `processor`"));
    assert!(refused(json!({ "version": "2.1" })).contains("unknown field `version`"));
}

#[test]
fn batches_that_do_not_fit_are_refused() {
    let golden = Golden::named("clip-quick");
    let mut reward = golden.reward("hps", &json!({}));
    let mut refused = |images: &[i64], prompts: &[&str]| {
        let images = Tensor::zeros(images, (Kind::Float, Device::Cpu));
        score(&mut *reward, &images, prompts).unwrap_err().to_string()
    };
    assert_eq!(refused(&[0, 3, 16, 16], &[]), "the batch is empty: there is nothing to score");
    assert_eq!(refused(&[2, 3, 16, 16], &["a"]), "images: expected shape [1, 3, *, *], found [2, 3, 16, 16]");
    assert_eq!(refused(&[1, 1, 16, 16], &["a"]), "images: expected shape [1, 3, *, *], found [1, 1, 16, 16]");
    assert_eq!(
        refused(&[1, 3, 0, 16], &["a"]),
        "images: expected shape [B, 3, H, W] of at least one pixel, found [1, 3, 0, 16]"
    );
    let none = advdmd_sdk::RewardBatch { prompts: vec!["a"], ..advdmd_sdk::RewardBatch::default() };
    let error = reward.score(&none).unwrap_err().to_string();
    assert_eq!(error, "the batch holds no images; ask for them in `needs`");
}

#[test]
fn broken_folders_are_errors_that_name_the_file() {
    let golden = Golden::named("clip-wide");
    let refused = |damage: &dyn Fn(&std::path::Path)| {
        let copy = golden.copy();
        damage(copy.path());
        let error = reward(copy.path(), "hps", &json!({})).err().expect("it is refused").to_string();
        error.replace(&copy.path().display().to_string(), "DIR")
    };
    let remove = |file: &'static str| move |folder: &std::path::Path| std::fs::remove_file(folder.join(file)).unwrap();
    assert!(refused(&remove("config.json")).starts_with("DIR/config.json: No such file"));
    assert_eq!(
        refused(&remove("model.safetensors")),
        "DIR: neither model.safetensors nor model.safetensors.index.json is there"
    );
    assert_eq!(
        refused(&remove("tokenizer.json")),
        "DIR: no tokenizer: expected tokenizer.json, or vocab.json and merges.txt; vocab.json and merges.txt missing"
    );
    let config = |key: &'static str, value: Value| {
        move |folder: &std::path::Path| set(&folder.join("config.json"), key, value.clone())
    };
    assert_eq!(
        refused(&config("model_type", json!("siglip"))),
        "DIR/config.json: model_type: expected \"clip\", found \"siglip\""
    );
    assert!(
        refused(&config("projection_dim", json!(31)))
            .contains("text_projection.weight expected [31, 40], found [32, 40]")
    );
    assert_eq!(
        refused(&config("vision_config", json!({ "hidden_size": 65 }))),
        "DIR/config.json: vision_config: num_attention_heads: expected a divisor of hidden_size = 65, found 12"
    );
    assert!(
        refused(&config("vision_config", json!({ "hidden_act": "relu" })))
            .starts_with("DIR/config.json: unknown variant `relu`, expected `quick_gelu` or `gelu`")
    );
    assert_eq!(
        refused(&|folder| set(&folder.join("tokenizer_config.json"), "model_max_length", json!(78))),
        "DIR: the tokenizer's model_max_length is 78, but config.json has max_position_embeddings = 77"
    );
    let cut = |folder: &std::path::Path| {
        let path = folder.join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    };
    assert!(refused(&cut).starts_with("DIR/model.safetensors: "));
    let error = reward("/nowhere".as_ref(), "clipscore", &json!({})).err().unwrap().to_string();
    assert_eq!(error, "model: /nowhere: No such file or directory (os error 2)");
}
