//! Images to the model's input, against transformers with Pillow and against torchvision.

mod common;

use common::{Golden, assert_close, largest, set};
use reward_clip::{Pixels, Preprocess};
use serde_json::json;
use tch::{Kind, Tensor};

/// Pixels of all golden images.
fn all(golden: &Golden, pixels: impl Fn(&Tensor) -> Tensor) -> Tensor {
    Tensor::cat(&golden.images().iter().map(pixels).collect::<Vec<_>>(), 0)
}

fn pixels(golden: &Golden, preprocess: Preprocess) -> Pixels {
    Pixels::new(preprocess, &golden.folder, golden.image_size()).unwrap()
}

#[test]
fn match_the_processor_bit_for_bit() {
    for golden in Golden::all() {
        let pixels = pixels(&golden, Preprocess::Processor);
        assert!(!pixels.is_differentiable());
        golden.assert_close("pixel_values", &all(&golden, |image| pixels.reference(image).unwrap()), 0.0);
        // Images that were never rounded are rounded as a file would round them.
        let shaken = |image: &Tensor| pixels.reference(&(image + 0.4 / 255.0)).unwrap();
        golden.assert_close("pixel_values", &all(&golden, shaken), 0.0);
    }
}

#[test]
fn match_the_processor_with_other_settings() {
    for golden in Golden::all() {
        for (index, settings) in golden.processors.iter().enumerate() {
            let copy = golden.copy();
            for (key, value) in settings.as_object().unwrap() {
                set(&copy.path().join("preprocessor_config.json"), key, value.clone());
            }
            let pixels = Pixels::new(Preprocess::Processor, copy.path(), golden.image_size()).unwrap();
            let found = all(&golden, |image| pixels.reference(image).unwrap());
            golden.assert_close(&format!("processor_{index}"), &found, 0.0);
            // With gradients: the same geometry, without rounding.
            let near = all(&golden, |image| pixels.differentiable(image).unwrap());
            let error = (near - &found).abs().median().double_value(&[]) / found.std(true).double_value(&[]);
            assert!(error < 0.01, "{} {settings}: {error}", golden.name);
        }
    }
}

#[test]
fn match_torchvision() {
    for golden in Golden::all() {
        for (preprocess, key) in [(Preprocess::TensorBicubic, "bicubic"), (Preprocess::TensorBilinear, "bilinear")] {
            let pixels = pixels(&golden, preprocess);
            assert!(pixels.is_differentiable());
            let found = all(&golden, |image| pixels.reference(image).unwrap());
            golden.assert_close(&format!("{key}_pixels"), &found, 2e-6);
            let again = all(&golden, |image| pixels.differentiable(image).unwrap());
            assert!(found.equal(&again), "{key}");
        }
    }
}

#[test]
fn match_open_clips_own_transform() {
    for golden in Golden::all() {
        let pixels = pixels(&golden, Preprocess::OpenClip);
        assert!(!pixels.is_differentiable());
        let found = all(&golden, |image| pixels.reference(image).unwrap());
        // Pillow's bytes, and one rounding of float32 in their normalisation.
        golden.assert_close("open_clip_pixels", &found, 1e-6);
    }
}

/// What `Preprocess` documents: how far the differentiable way of `processor` is from the reference.
#[test]
fn the_differentiable_way_stays_near_the_processor() {
    for golden in ["clip-quick", "clip-wide"].map(Golden::named) {
        let pixels = pixels(&golden, Preprocess::Processor);
        // In 0..1 rather than in deviations of CLIP's normalisation.
        let std = Tensor::from_slice(&[0.268_629_54, 0.261_302_58, 0.275_777_11]).view([1, 3, 1, 1]);
        for (index, image) in golden.images().iter().enumerate() {
            let reference = pixels.reference(image).unwrap();
            let other = pixels.differentiable(image).unwrap();
            let error = ((&other - &reference) * &std).abs();
            let (most, median) = (largest(&error), error.median().double_value(&[]));
            println!("{} image {index}: largest {most:.4}, median {median:.4}", golden.name);
            assert!(most <= 0.115 && median <= 0.0021, "{} image {index}: {most} {median}", golden.name);
        }
    }
}

/// The settings in the file that transformers 5 writes have the first word.
#[test]
fn a_nested_image_processor_is_read() {
    let golden = Golden::named("clip-wide");
    let copy = golden.copy();
    let usual = copy.path().join("preprocessor_config.json");
    let nested: serde_json::Value = advdmd_nn::read_json(&usual).unwrap();
    set(&usual, "resample", json!(2));
    set(&copy.path().join("processor_config.json"), "processor_class", json!("CLIPProcessor"));
    let read = || Pixels::new(Preprocess::Processor, copy.path(), golden.image_size()).unwrap();
    let image = &golden.images()[0];
    let expected = golden.get("pixel_values").narrow(0, 0, 1);
    assert!(!read().reference(image).unwrap().equal(&expected), "no nested settings, so the bilinear ones");
    set(&copy.path().join("processor_config.json"), "image_processor", nested);
    assert!(read().reference(image).unwrap().equal(&expected));
    std::fs::remove_file(usual).unwrap();
    assert!(read().reference(image).unwrap().equal(&expected));
}

#[test]
fn images_that_are_out_of_range_or_not_finite() {
    let golden = Golden::named("clip-quick");
    let pixels = pixels(&golden, Preprocess::Processor);
    let image = &golden.images()[1];
    let beyond = image * 3.0 - 1.0;
    let clamped = beyond.clamp(0.0, 1.0);
    assert_close("clamped", &pixels.reference(&beyond).unwrap(), &pixels.reference(&clamped).unwrap(), 0.0);
    let broken = pixels.reference(&(image / 0.0 * 0.0)).unwrap();
    assert_eq!(broken.isnan().sum(Kind::Int64).int64_value(&[]), broken.numel() as i64, "NaN does not become a number");
    for size in [vec![1, 1, 8, 8], vec![3, 8, 8], vec![1, 3, 0, 8]] {
        let error = pixels.reference(&Tensor::zeros(&*size, (Kind::Float, tch::Device::Cpu))).unwrap_err().to_string();
        assert_eq!(error, format!("images: expected shape [B, 3, H, W] of at least one pixel, found {size:?}"));
    }
    // The longer side of a line is not rounded to nothing, nor the line itself.
    let line = Tensor::zeros([1, 3, 1, 700], (Kind::Float, tch::Device::Cpu));
    assert_eq!(pixels.reference(&line).unwrap().size(), [1, 3, 16, 16]);
}

#[test]
fn settings_that_are_not_offered_are_refused_by_name() {
    let golden = Golden::named("clip-wide");
    let refused = |key: &str, value: serde_json::Value| {
        let copy = golden.copy();
        set(&copy.path().join("preprocessor_config.json"), key, value);
        let error = Pixels::new(Preprocess::Processor, copy.path(), golden.image_size()).unwrap_err().to_string();
        let start = format!("{}: ", copy.path().join("preprocessor_config.json").display());
        error.strip_prefix(&start).unwrap_or_else(|| panic!("{error}")).to_owned()
    };
    assert_eq!(refused("resample", json!(1)), "resample: expected 2 (bilinear) or 3 (bicubic), found 1 (Lanczos)");
    assert_eq!(refused("resample", json!(9)), "resample: expected 2 (bilinear) or 3 (bicubic), found 9 (unknown)");
    assert_eq!(
        refused("size", json!({ "shortest_edge": 16, "longest_edge": 32 })),
        "size: expected a number, shortest_edge, or height and width, found longest_edge, shortest_edge"
    );
    assert_eq!(
        refused("crop_size", json!({ "height": 16, "width": 20 })),
        "crop_size: expected 16 x 16, the image_size of config.json, found 16 x 20"
    );
    assert_eq!(refused("size", json!(0)), "size: expected 1 to 16384, found 0");
    assert_eq!(refused("do_pad", json!(true)), "do_pad: expected false, found true");
    assert!(refused("image_std", json!([0.2, 0.0, 0.2])).contains("deviations above 0, found"));
    assert!(refused("image_mean", json!([0.2])).contains("invalid length 1, expected an array of length 3"));

    let copy = golden.copy();
    std::fs::remove_file(copy.path().join("preprocessor_config.json")).unwrap();
    let error = Pixels::new(Preprocess::Processor, copy.path(), 16).unwrap_err().to_string();
    assert!(error.ends_with(
        ": no preprocessor_config.json; add the model's, or set preprocess = \"tensor-bicubic\", which needs none"
    ));
    assert!(Pixels::new(Preprocess::TensorBicubic, copy.path(), 16).is_ok());
}
