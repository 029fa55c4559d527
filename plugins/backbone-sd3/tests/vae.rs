//! The autoencoder against diffusers: `tests/golden/sd3.py` made the reference values.

mod common;

use std::collections::BTreeMap;

use advdmd_nn::Weights;
use backbone_sd3::vae::Vae;
use common::{Golden, edit, largest};
use tch::{Device, Kind, Tensor};

fn load(golden: &Golden, kind: Kind) -> Vae {
    Vae::load(&golden.folder, None, kind, Device::Cpu).unwrap()
}

#[test]
fn latents_and_images_match_diffusers() {
    for golden in Golden::all() {
        let vae = load(&golden, Kind::Float);
        golden.assert_close("encode_mean", &vae.encode(&golden.get("encode_in")).unwrap(), 1e-5);
        let latents = golden.get("latents_ode4_cfg3.5");
        golden.assert_close("image_ode4_cfg3.5", &vae.decode(&latents).unwrap(), 1e-5);
    }
}

#[test]
fn tiles_match_diffusers() {
    for golden in Golden::all() {
        let side = golden.get("tile_size").int64_value(&[0]);
        let latents = golden.get("latents_ode4_cfg3.5").narrow(0, 0, 1);
        let whole = load(&golden, Kind::Float).decode(&latents).unwrap();
        let tiled = load(&golden, Kind::Float).tiled(side).unwrap().decode(&latents).unwrap();
        golden.assert_close("image_tiled", &tiled, 1e-5);
        let several = latents.size()[2..].iter().any(|&side| side > 4);
        assert_eq!(largest(&(&whole - &tiled)) > 1e-3, several);
        // An image that fits into one tile is not cut up.
        let one = load(&golden, Kind::Float).tiled(64 * side).unwrap().decode(&latents).unwrap();
        assert_eq!(one, whole);
    }
    let vae = load(&Golden::named("sd3-tiny"), Kind::Float);
    let error = vae.tiled(48).unwrap_err().to_string();
    assert_eq!(error, "side of a tile: expected a multiple of 32, found 48");
}

#[test]
fn gradients_flow_to_the_latents() {
    let golden = Golden::named("sd35-tiny");
    let latents = golden.get("latents_ode4_cfg3.5").narrow(0, 0, 1);
    for vae in [load(&golden, Kind::Float), load(&golden, Kind::Float).tiled(16).unwrap()] {
        // One number's slope, by differences in the middle of the image's range.
        let loss = |latents: &Tensor| vae.decode(latents).unwrap().square().mean(Kind::Double);
        let point = latents.copy().set_requires_grad(true);
        loss(&point).backward();
        let gradient = point.grad();
        assert!(largest(&gradient) > 0.0);
        let direction = &gradient / gradient.norm();
        let step = 1e-2;
        let slope = (loss(&(&latents + &direction * step)) - loss(&(&latents - &direction * step))) / (2.0 * step);
        let relative = slope.double_value(&[]) / gradient.norm().double_value(&[]);
        assert!((relative - 1.0).abs() < 0.02, "{relative}");
    }
}

#[test]
fn half_precision_stays_near() {
    for golden in [Golden::named("sd3-tiny"), Golden::named("sd35-tiny")] {
        for (kind, bound) in [(Kind::Half, 3e-3), (Kind::BFloat16, 3e-2)] {
            let vae = load(&golden, kind);
            let relative = |key: &str, found: &Tensor| {
                let expected = golden.get(key);
                assert_eq!(found.kind(), Kind::Float);
                let error = ((found - &expected).norm() / expected.norm()).double_value(&[]);
                println!("{}: {key} in {kind:?}, relative error {error:.2e}", golden.name);
                assert!(error < bound, "{key}: {error}");
            };
            relative("encode_mean", &vae.encode(&golden.get("encode_in")).unwrap());
            relative("image_ode4_cfg3.5", &vae.decode(&golden.get("latents_ode4_cfg3.5")).unwrap());
        }
    }
}

#[test]
fn older_names_of_the_attention_are_read() {
    let golden = Golden::named("sd3-tiny");
    let copy = golden.copy();
    let path = copy.path().join("vae/diffusion_pytorch_model.safetensors");
    let weights = Weights::load(&path, Some(Kind::Float), Device::Cpu).unwrap();
    let older = |name: String| {
        let renames = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")];
        renames.iter().fold(name, |name, (new, old)| name.replace(new, old))
    };
    let weights: Weights = weights.into_iter().map(|(name, tensor)| (older(name), tensor)).collect();
    assert!(weights.get("decoder.mid_block.attentions.0.proj_attn.bias").is_some());
    weights.save(&path, &BTreeMap::new()).unwrap();
    let vae = Vae::load(copy.path(), None, Kind::Float, Device::Cpu).unwrap();
    golden.assert_close("image_ode4_cfg3.5", &vae.decode(&golden.get("latents_ode4_cfg3.5")).unwrap(), 1e-5);
}

#[test]
fn wrong_input_is_an_error_that_names_it() {
    let golden = Golden::named("sd3-tiny");
    let vae = load(&golden, Kind::Float);
    assert_eq!(vae.factor(), 8);
    let fails =
        |images: &[i64]| vae.encode(&Tensor::zeros(images, (Kind::Float, Device::Cpu))).unwrap_err().to_string();
    let expected = "images: expected shape [B, 3, H, W], H and W multiples of 8, found";
    assert_eq!(fails(&[1, 3, 64, 60]), format!("{expected} [1, 3, 64, 60]"));
    assert_eq!(fails(&[1, 4, 64, 64]), format!("{expected} [1, 4, 64, 64]"));
    assert_eq!(fails(&[3, 64, 64]), format!("{expected} [3, 64, 64]"));
    let error = vae.decode(&Tensor::zeros([1, 4, 8, 8], (Kind::Float, Device::Cpu))).unwrap_err().to_string();
    assert_eq!(error, "latents: expected shape [B, 16, h, w], found [1, 4, 8, 8]");

    let copy = golden.copy();
    let config = copy.path().join("vae/config.json");
    let refused = |from: &str, to: &str| {
        let text = std::fs::read_to_string(&config).unwrap();
        edit(&config, from, to);
        let error = Vae::load(copy.path(), None, Kind::Float, Device::Cpu).unwrap_err().to_string();
        std::fs::write(&config, text).unwrap();
        error.replace(&format!("{}/", copy.path().display()), "")
    };
    let starts = |found: String, expected: &str| assert!(found.starts_with(expected), "{found}");
    let file = "vae/config.json: ";
    starts(
        refused("\"norm_num_groups\": 8", "\"norm_num_groups\": 5"),
        &format!("{file}block_out_channels: expected multiples of norm_num_groups = 5, found 16"),
    );
    starts(refused("\"silu\"", "\"relu\""), &format!("{file}act_fn: expected \"silu\", found \"relu\""));
    starts(
        refused("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        &format!("{file}down_block_types: expected \"DownEncoderBlock2D\", found \"AttnDownEncoderBlock2D\""),
    );
    starts(refused("\"latents_mean\": null", "\"latents_mean\": [0]"), &format!("{file}latents_mean: expected null"));
    starts(refused("\"act_fn\"", "\"act\""), &format!("{file}unknown field `act`"));
    starts(refused("\"latent_channels\": 16,", ""), &format!("{file}missing field `latent_channels`"));
    starts(
        refused("\"use_quant_conv\": false", "\"use_quant_conv\": true"),
        "vae/diffusion_pytorch_model.safetensors: weights do not fit; 2 missing: quant_conv.bias [32], quant_conv.weight [32, 32, 1, 1]",
    );

    let path = copy.path().join("vae/diffusion_pytorch_model.safetensors");
    let mut weights = Weights::load(&path, None, Device::Cpu).unwrap();
    weights.insert("decoder.conv_out.bias", Tensor::zeros([4], (Kind::Float, Device::Cpu)));
    weights.save(&path, &BTreeMap::new()).unwrap();
    let error = Vae::load(copy.path(), None, Kind::Float, Device::Cpu).unwrap_err().to_string();
    assert!(error.ends_with("1 misshapen: decoder.conv_out.bias expected [3], found [4]"), "{error}");
}
