//! The transformer from every layout that users have, against diffusers (`tests/golden/sd3.py`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use advdmd_nn::{Stored, Weights};
use advdmd_sdk::plugin::build_backbone;
use advdmd_sdk::{Backbone, BackboneInit, Conditioning, DType, Denoiser, Device, Request, Result, Tuning};
use backbone_sd3 as _;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

const MODELS: [&str; 2] = ["sd3-tiny", "sd35-tiny"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/sd3").join(name)
}

/// The same transformer as an original single file (`tests/golden/sd3_single_file.py`).
fn original(model: &str) -> PathBuf {
    golden("../sd3_original").join(model).with_extension("safetensors")
}

fn build(mut config: Value, dtype: DType) -> Result<Box<dyn Backbone>> {
    config["type"] = "sd3".into();
    build_backbone(&config, &BackboneInit { device: Device::Cpu, dtype, seed: 3 })
}

struct Reference(Weights);

impl Reference {
    fn of(model: &str) -> Self {
        Self(Weights::load(&golden(&format!("{model}.safetensors")), None, tch::Device::Cpu).unwrap())
    }

    fn get(&self, name: &str) -> Tensor {
        self.0.get(name).unwrap_or_else(|| panic!("{name} is not in the golden file")).shallow_clone()
    }

    /// Velocities at `noise` at every sigma of the file, `[n, B, C, h, w]`.
    fn velocities(&self, denoiser: &dyn Denoiser) -> Tensor {
        let (x, sigmas) = (self.get("noise"), Vec::<f32>::try_from(self.get("sigmas_check")).unwrap());
        let conditioning =
            Conditioning { context: self.get("prompt_embeds"), pooled: Some(self.get("pooled")), mask: None };
        let at = |sigma: f32| {
            let sigma = Tensor::full([x.size()[0]], f64::from(sigma), (Kind::Float, tch::Device::Cpu));
            denoiser.predict(&x, &sigma, &conditioning, Request::VELOCITY).unwrap().velocity.unwrap()
        };
        tch::no_grad(|| Tensor::stack(&sigmas.into_iter().map(at).collect::<Vec<_>>(), 0))
    }

    fn expected(&self) -> Tensor {
        let count = self.get("sigmas_check").size()[0];
        Tensor::stack(&(0..count).map(|i| self.get(&format!("velocity_{i}"))).collect::<Vec<_>>(), 0)
    }
}

fn frozen(config: Value) -> Box<dyn Denoiser> {
    build(config, DType::F32).unwrap().denoiser(&Tuning::Frozen, 0).unwrap()
}

#[test]
fn velocities_are_those_of_diffusers() {
    for model in MODELS {
        let reference = Reference::of(model);
        let found = reference.velocities(&*frozen(json!({ "model": golden(model) })));
        let error = (&found - reference.expected()).abs().max().double_value(&[]);
        println!("{model}: {error:e}");
        // Sums in another order: a few units of the last place at values of about 5.
        assert!(error < 1e-5, "{model}: {error:e}");
    }
}

#[test]
fn single_files_give_the_same_bits() {
    for model in MODELS {
        let reference = Reference::of(model);
        let expected = reference.velocities(&*frozen(json!({ "model": golden(model) })));
        let single = original(model);
        // Beside a pipeline, in its folder, and with the prefix and the other parts of a whole checkpoint.
        let beside = json!({ "model": golden(model), "transformer": single });
        assert!(reference.velocities(&*frozen(beside)).equal(&expected), "{model}");
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("transformer")).unwrap();
        std::fs::copy(golden(model).join("transformer/config.json"), folder.path().join("transformer/config.json"))
            .unwrap();
        let whole = Weights::load(&single, None, tch::Device::Cpu).unwrap().into_iter();
        let mut whole: Weights =
            whole.map(|(name, tensor)| (format!("model.diffusion_model.{name}"), tensor)).collect();
        whole.insert("first_stage_model.encoder.conv_in.bias", Tensor::zeros([4], (Kind::Float, tch::Device::Cpu)));
        let path = folder.path().join("sd3_tiny.safetensors");
        whole.save(&path, &BTreeMap::new()).unwrap();
        assert!(reference.velocities(&*frozen(json!({ "model": path }))).equal(&expected), "{model}, whole");
    }
    // With qk-normalisation a file alone tells the whole architecture.
    let reference = Reference::of("sd35-tiny");
    let alone = frozen(json!({ "model": original("sd35-tiny"), "height": 96, "width": 96 }));
    assert!(
        reference.velocities(&*alone).equal(&reference.velocities(&*frozen(json!({ "model": golden("sd35-tiny") }))))
    );
}

#[test]
fn shards_and_variants_give_the_same_bits() {
    let reference = Reference::of("sd35-tiny");
    let expected = reference.velocities(&*frozen(json!({ "model": golden("sd35-tiny") })));
    let folder = tempfile::tempdir().unwrap();
    let source = golden("sd35-tiny/transformer");
    let config = || std::fs::copy(source.join("config.json"), folder.path().join("config.json")).unwrap();
    config();
    let weights = Weights::load(&source.join("diffusion_pytorch_model.safetensors"), None, tch::Device::Cpu).unwrap();
    let mut map = serde_json::Map::new();
    let (mut first, mut second) = (Weights::new(), Weights::new());
    for (index, (name, tensor)) in weights.into_iter().enumerate() {
        let (shard, number) = if index % 2 == 0 { (&mut first, 1) } else { (&mut second, 2) };
        map.insert(name.clone(), format!("diffusion_pytorch_model.fp16-0000{number}-of-00002.safetensors").into());
        shard.insert(name, tensor);
    }
    for (number, shard) in [(1, &first), (2, &second)] {
        let name = format!("diffusion_pytorch_model.fp16-0000{number}-of-00002.safetensors");
        shard.save(&folder.path().join(name), &BTreeMap::new()).unwrap();
    }
    let index = folder.path().join("diffusion_pytorch_model.safetensors.index.fp16.json");
    std::fs::write(&index, json!({ "metadata": {}, "weight_map": map }).to_string()).unwrap();
    for config in [json!({ "model": folder.path() }), json!({ "model": folder.path(), "variant": "fp16" })] {
        assert!(reference.velocities(&*frozen(config)).equal(&expected));
    }
    let refused = build(json!({ "model": folder.path(), "variant": "bf16" }), DType::F32).err().unwrap().to_string();
    assert!(refused.contains("diffusion_pytorch_model.bf16.safetensors"), "{refused}");
    // A tensor that the index promises and the shard does not hold.
    let (name, _) = first.iter().next().unwrap();
    map.insert(name.to_owned(), "diffusion_pytorch_model.fp16-00002-of-00002.safetensors".into());
    map.insert("ghost.weight".to_owned(), "diffusion_pytorch_model.fp16-00002-of-00002.safetensors".into());
    std::fs::write(&index, json!({ "weight_map": map }).to_string()).unwrap();
    let refused = build(json!({ "model": folder.path() }), DType::F32).err().unwrap().to_string();
    assert!(refused.contains("ghost.weight") && refused.contains("index.fp16.json"), "{refused}");
}

/// Copies a folder, every file's name through `rename`.
fn copy(from: &Path, to: &Path, rename: &dyn Fn(&str) -> String) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            copy(&entry.path(), &to.join(name), rename);
        } else {
            std::fs::copy(entry.path(), to.join(rename(&name))).unwrap();
        }
    }
}

/// Doubles every number of the weight files of a part.
fn double(folder: &Path, name: &str) {
    let path = folder.join(name);
    let weights = Weights::load(&path, None, tch::Device::Cpu).unwrap().into_iter();
    weights.map(|(name, tensor)| (name, tensor * 2.0)).collect::<Weights>().save(&path, &BTreeMap::new()).unwrap();
}

#[test]
fn a_variant_is_read_of_every_part_that_has_it() {
    let results = |config: Value| {
        let backbone = build(config, DType::F32).unwrap();
        let text = backbone.encode_text(&["a cat"]).unwrap();
        let latents =
            backbone.encode_images(&Tensor::full([1, 3, 8, 8], 0.3, (Kind::Float, tch::Device::Cpu))).unwrap();
        let velocities = Reference::of("sd35-tiny").velocities(&*backbone.denoiser(&Tuning::Frozen, 0).unwrap());
        [text.context, text.pooled.unwrap(), latents, velocities]
    };
    let expected = results(json!({ "model": golden("sd35-tiny") }));
    let folder = tempfile::tempdir().unwrap();
    let both = folder.path().join("both");
    copy(&golden("sd35-tiny"), &both, &str::to_owned);
    copy(&golden("sd35-tiny"), &both, &|name| name.replace(".safetensors", ".fp16.safetensors"));
    // The plain files are others: what reads one of them gives other numbers.
    for part in ["text_encoder", "text_encoder_2", "text_encoder_3"] {
        double(&both.join(part), "model.safetensors");
    }
    for part in ["transformer", "vae"] {
        double(&both.join(part), "diffusion_pytorch_model.safetensors");
    }
    let variant = results(json!({ "model": both, "variant": "fp16" }));
    let plain = results(json!({ "model": both }));
    for (index, expected) in expected.iter().enumerate() {
        assert!(variant[index].equal(expected), "{index}");
        assert!(!plain[index].equal(expected), "{index}");
    }
    // A part without the variant gives its plain files.
    std::fs::remove_file(both.join("vae/diffusion_pytorch_model.fp16.safetensors")).unwrap();
    let mixed = results(json!({ "model": both, "variant": "fp16" }));
    assert!(mixed[0].equal(&expected[0]) && mixed[2].equal(&plain[2]));
    // Only the variant is there.
    let only = folder.path().join("only");
    copy(&golden("sd35-tiny"), &only, &|name| name.replace(".safetensors", ".fp16.safetensors"));
    let only = results(json!({ "model": only }));
    assert!(only.iter().zip(&expected).all(|(found, expected)| found.equal(expected)));
}

#[test]
fn bfloat16_is_as_near_as_diffusers_own() {
    for model in MODELS {
        let reference = Reference::of(model);
        let backbone = build(json!({ "model": golden(model) }), DType::Bf16).unwrap();
        let found = reference.velocities(&*backbone.denoiser(&Tuning::Frozen, 0).unwrap());
        let theirs = Vec::<f32>::try_from(reference.get("bf16_velocity_error")).unwrap();
        let expected = reference.expected();
        for (index, theirs) in theirs.into_iter().enumerate() {
            let (found, expected) = (found.get(index as i64), expected.get(index as i64));
            let ours = ((found - &expected).norm() / expected.norm()).double_value(&[]);
            println!("{model}, sigma {index}: {ours:.2e}, diffusers {theirs:.2e}");
            assert!(ours < 1.5 * f64::from(theirs), "{model}, sigma {index}: {ours:e} against {theirs:e}");
        }
    }
}

#[test]
fn what_does_not_fit_is_listed_before_anything_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let original = Stored::open(&original("sd35-tiny")).unwrap();
    let mut weights = original.read_all(None, tch::Device::Cpu).unwrap();
    let tensor = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, tch::Device::Cpu));
    weights.insert("joint_blocks.0.x_block.attn.qkv.weight", tensor(&[64, 32]));
    weights.insert("joint_blocks.0.strange", tensor(&[1]));
    let mut weights: Vec<_> = weights.into_iter().collect();
    weights.retain(|(name, _)| name != "final_layer.linear.bias");
    let path = folder.path().join("broken.safetensors");
    weights.into_iter().collect::<Weights>().save(&path, &BTreeMap::new()).unwrap();
    let message = build(json!({ "model": path, "height": 64, "width": 64 }), DType::F32).err().unwrap().to_string();
    for part in [
        "broken.safetensors",
        "1 missing: final_layer.linear.bias [64]",
        "1 unexpected: joint_blocks.0.strange [1]",
        "1 misshapen: joint_blocks.0.x_block.attn.qkv.weight expected [96, 32], found [64, 32]",
    ] {
        assert!(message.contains(part), "{part} is not in: {message}");
    }
    let nothing = build(json!({ "model": folder.path() }), DType::F32).err().unwrap().to_string();
    assert!(nothing.contains("expected a folder of diffusers"), "{nothing}");
    let size = build(json!({ "model": golden("sd35-tiny"), "height": 50 }), DType::F32).err().unwrap().to_string();
    assert!(size.contains("height: expected a multiple of 8 up to 128, found 50"), "{size}");
}

#[test]
fn checkpointing_changes_nothing() {
    let reference = Reference::of("sd35-tiny");
    let plain = build(json!({ "model": golden("sd35-tiny") }), DType::F32).unwrap();
    let sparing = build(json!({ "model": golden("sd35-tiny"), "activation_checkpointing": true }), DType::F32).unwrap();
    let lora = Tuning::Lora { rank: 2, alpha: 4.0, targets: Vec::new() };
    let gradients = |backbone: &dyn Backbone| {
        let student = backbone.denoiser(&lora, 7).unwrap();
        let x = reference.get("noise");
        let conditioning =
            Conditioning { context: reference.get("prompt_embeds"), pooled: Some(reference.get("pooled")), mask: None };
        let sigma = Tensor::full([x.size()[0]], 0.5, (Kind::Float, tch::Device::Cpu));
        let request = Request { velocity: true, taps: &[1] };
        let prediction = student.predict(&x, &sigma, &conditioning, request).unwrap();
        let spec = backbone.spec();
        let [h, w] = [x.size()[2] / 2, x.size()[3] / 2];
        assert_eq!(prediction.features[0].size(), [x.size()[0], spec.feature_channels, h, w]);
        let loss = prediction.velocity.unwrap().square().mean(Kind::Float) + prediction.features[0].mean(Kind::Float);
        loss.backward();
        student.parameters().into_iter().map(|(name, parameter)| (name, parameter.grad())).collect::<Vec<_>>()
    };
    let [expected, found] = [&*plain, &*sparing].map(gradients);
    assert_eq!(expected.len(), 2 * (8 * 3 - 1));
    let mut alive = 0;
    for ((name, expected), (_, found)) in expected.iter().zip(&found) {
        assert_eq!(found.defined(), expected.defined(), "{name}");
        if expected.defined() {
            assert!(found.equal(expected), "{name}");
            alive += usize::from(expected.abs().max().double_value(&[]) > 0.0);
        }
    }
    // B is zero at first, so that only its own gradient is not.
    assert!(alive >= 8 * 3 - 2, "{alive}");
}

#[test]
fn a_saved_model_without_t5_has_none() {
    let without = build(json!({ "model": golden("sd35-tiny"), "t5": false }), DType::F32).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let options = advdmd_sdk::SaveOptions {
        dtype: DType::F32,
        tuning: Tuning::Full,
        sigmas: Some(vec![1.0, 0.75, 0.0]),
        lossy: false,
    };
    without.save(folder.path(), &[], &options).unwrap();
    assert!(folder.path().join("text_encoder").is_dir() && !folder.path().join("text_encoder_3").exists());
    let index: Value = serde_json::from_slice(&std::fs::read(folder.path().join("model_index.json")).unwrap()).unwrap();
    assert_eq!(index["text_encoder_3"], json!([null, null]));
    // Nobody has to say again that there is no T5.
    let saved = build(json!({ "model": folder.path() }), DType::F32).unwrap();
    let [expected, found] = [&without, &saved].map(|backbone| backbone.encode_text(&["a cat"]).unwrap().context);
    assert!(found.equal(&expected));
}
