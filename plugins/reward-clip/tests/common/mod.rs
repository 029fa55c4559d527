//! The golden models of `tests/golden/clip.py`.
#![allow(dead_code, reason = "each test program uses a part")]

use std::path::{Path, PathBuf};

use advdmd_nn::{Weights, read_json};
use advdmd_sdk::plugin::build_reward;
use advdmd_sdk::{Result, Reward, RewardBatch, RewardInit, TensorView};
use reward_clip as _;
use serde::Deserialize;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

/// One model and what the references computed with it.
pub struct Golden {
    pub name: String,
    pub folder: PathBuf,
    pub prompts: Vec<String>,
    /// Further settings of the image processor.
    pub processors: Vec<Value>,
    values: Weights,
}

#[derive(Deserialize)]
struct Described {
    prompts: Vec<String>,
    processors: Vec<Value>,
}

impl Golden {
    /// Every model of the golden folder; `CLIP_GOLDEN` names another one than the repository's.
    pub fn all() -> Vec<Self> {
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/clip");
        let folder = std::env::var_os("CLIP_GOLDEN").map_or(own, PathBuf::from);
        let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|ext| ext == "safetensors")).collect();
        files.sort();
        assert!(!files.is_empty(), "no golden file in {}", folder.display());
        files.iter().map(|path| Self::load(&path.with_extension(""))).collect()
    }

    /// The repository's model of that name.
    pub fn named(name: &str) -> Self {
        Self::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/clip").join(name))
    }

    fn load(folder: &Path) -> Self {
        let values = Weights::load(&folder.with_extension("safetensors"), None, Device::Cpu).unwrap();
        let Described { prompts, processors } = read_json(&folder.with_extension("json")).unwrap();
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        Self { name, folder: folder.to_owned(), prompts, processors, values }
    }

    pub fn get(&self, key: &str) -> Tensor {
        self.values.get(key).unwrap_or_else(|| panic!("{key} is not in the golden file")).shallow_clone()
    }

    /// The images, `[1, 3, H, W]` in 0..1, each of its own size.
    pub fn images(&self) -> Vec<Tensor> {
        (0..self.prompts.len())
            .map(|i| self.get(&format!("image_{i}")).unsqueeze(0).to_kind(Kind::Float) / 255.0)
            .collect()
    }

    pub fn image_size(&self) -> i64 {
        self.get("pixel_values").size()[2]
    }

    /// A reward on this model.
    pub fn reward(&self, kind: &str, options: &Value) -> Box<dyn Reward> {
        reward(&self.folder, kind, options).unwrap()
    }

    /// The score of each image with its prompt.
    pub fn scores(&self, reward: &mut dyn Reward) -> Tensor {
        let images = self.images();
        let pairs = images.iter().zip(&self.prompts);
        let scores: Vec<f32> = pairs.flat_map(|(image, prompt)| score(reward, image, &[prompt]).unwrap()).collect();
        Tensor::from_slice(&scores)
    }

    /// A copy of the folder that a test may damage.
    pub fn copy(&self) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(&self.folder).unwrap() {
            let from = entry.unwrap().path();
            std::fs::copy(&from, copy.path().join(from.file_name().unwrap())).unwrap();
        }
        copy
    }

    #[track_caller]
    pub fn assert_close(&self, key: &str, found: &Tensor, absolute: f64) {
        assert_close(&format!("{}: {key}", self.name), found, &self.get(key), absolute);
    }
}

pub fn reward(folder: &Path, kind: &str, options: &Value) -> Result<Box<dyn Reward>> {
    let mut config = json!({ "type": kind, "model": folder });
    config.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
    build_reward(&config, &RewardInit { device: advdmd_sdk::Device::Cpu, seed: 0, backbone: None })
}

pub fn batch<'a>(images: &Tensor, prompts: &[&'a str]) -> RewardBatch<'a> {
    let images = Some(TensorView::from_torch(images).unwrap());
    RewardBatch { prompts: prompts.to_vec(), images, ..RewardBatch::default() }
}

pub fn score(reward: &mut dyn Reward, images: &Tensor, prompts: &[&str]) -> Result<Vec<f32>> {
    reward.score(&batch(images, prompts))
}

pub fn largest(tensor: &Tensor) -> f64 {
    tensor.abs().max().double_value(&[])
}

#[track_caller]
pub fn assert_close(what: &str, found: &Tensor, expected: &Tensor, absolute: f64) {
    assert_eq!((found.kind(), found.size()), (expected.kind(), expected.size()), "{what}");
    let error = largest(&(found - expected));
    println!("{what}: largest absolute error {error:.2e}, of {:.2}", largest(expected));
    assert!(error <= absolute, "{what}: largest absolute error {error:e} over {absolute:e}");
}

/// Sets a key of a JSON file; `null` removes it.
pub fn set(path: &Path, key: &str, value: Value) {
    let mut json: Value = if path.exists() { read_json(path).unwrap() } else { json!({}) };
    let object = json.as_object_mut().unwrap();
    match value {
        Value::Null => drop(object.remove(key)),
        value => drop(object.insert(key.to_owned(), value)),
    }
    std::fs::write(path, json.to_string()).unwrap();
}
