//! The golden pipelines of `tests/golden/sd3.py`.
#![allow(dead_code, reason = "each test program uses a part")]

use std::path::{Path, PathBuf};

use advdmd_nn::mmdit::MmditConfig;
use advdmd_nn::{Weights, read_json};
use backbone_sd3::text::TextOptions;
use tch::{Device, Kind, Tensor};

/// One pipeline and what diffusers computed with it.
pub struct Golden {
    pub name: String,
    pub folder: PathBuf,
    values: Weights,
}

impl Golden {
    /// Every pipeline of the golden folder; `SD3_GOLDEN` names another one than the repository's.
    pub fn all() -> Vec<Self> {
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/sd3");
        let folder = std::env::var_os("SD3_GOLDEN").map_or(own, PathBuf::from);
        let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|ext| ext == "safetensors")).collect();
        files.sort();
        assert!(!files.is_empty(), "no golden file in {}", folder.display());
        files.iter().map(|path| Self::load(&path.with_extension(""))).collect()
    }

    /// The repository's pipeline of that name.
    pub fn named(name: &str) -> Self {
        Self::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/sd3").join(name))
    }

    fn load(folder: &Path) -> Self {
        let values = Weights::load(&folder.with_extension("safetensors"), None, Device::Cpu).unwrap();
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        Self { name, folder: folder.to_owned(), values }
    }

    pub fn get(&self, key: &str) -> Tensor {
        self.values.get(key).unwrap_or_else(|| panic!("{key} is not in the golden file")).shallow_clone()
    }

    pub fn prompts(&self) -> Vec<String> {
        read_json(&self.folder.with_extension("prompts.json")).unwrap()
    }

    pub fn text_options(&self, kind: Kind) -> TextOptions {
        let transformer = MmditConfig::read(&self.folder.join("transformer/config.json")).unwrap();
        TextOptions {
            kind,
            device: Device::Cpu,
            t5: true,
            t5_tokens: 256,
            context_width: transformer.joint_attention_dim,
            pooled_width: transformer.pooled_projection_dim,
        }
    }

    /// A copy of the pipeline that a test may damage.
    pub fn copy(&self) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        copy_folder(&self.folder, copy.path());
        copy
    }

    #[track_caller]
    pub fn assert_close(&self, key: &str, found: &Tensor, absolute: f64) {
        assert_close(&format!("{}: {key}", self.name), found, &self.get(key), absolute);
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if from.is_dir() {
            copy_folder(&from, &to);
        } else {
            std::fs::copy(&from, &to).unwrap();
        }
    }
}

pub fn largest(tensor: &Tensor) -> f64 {
    tensor.abs().max().double_value(&[])
}

#[track_caller]
pub fn assert_close(what: &str, found: &Tensor, expected: &Tensor, absolute: f64) {
    assert_eq!((found.kind(), found.size()), (Kind::Float, expected.size()), "{what}");
    let error = largest(&(found - expected));
    println!("{what}: largest absolute error {error:.2e}, of {:.2}", largest(expected));
    assert!(error <= absolute, "{what}: largest absolute error {error:e} over {absolute:e}");
}

/// Replaces one piece of a text file, which must be there.
pub fn edit(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from:?} is not in {}", path.display());
    std::fs::write(path, text.replacen(from, to, 1)).unwrap();
}
