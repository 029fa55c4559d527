//! A backbone that counts how often it encodes, for tests of what is cached.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use advdmd_sdk::{Backbone, BackboneSpec, Conditioning, DType, Denoiser, Error, Result, SaveOptions, Tuning};
use tch::{Device, Kind, Tensor};

use super::Cache;
use crate::config::Component;
use crate::registry::{RunManifest, UsedComponent};

/// Images of 8 x 8; a latent is a mean over 4 x 4, an embedding the lengths of the words.
#[derive(Debug, Clone, Default)]
pub struct Toy {
    /// Prompts encoded so far.
    pub texts: Arc<AtomicUsize>,
    /// Images encoded so far.
    pub images: Arc<AtomicUsize>,
}

impl Toy {
    /// Prompts and images encoded so far.
    pub fn encoded(&self) -> [usize; 2] {
        [&self.texts, &self.images].map(|count| count.load(Ordering::Relaxed))
    }
}

impl Backbone for Toy {
    fn spec(&self) -> BackboneSpec {
        BackboneSpec {
            latent_shape: [3, 2, 2],
            image_shape: [3, 8, 8],
            depth: 1,
            feature_channels: 1,
            feature_grid: [1, 1],
            null_prompt: String::new(),
        }
    }

    fn encode_text(&self, prompts: &[&str]) -> Result<Conditioning> {
        self.texts.fetch_add(prompts.len(), Ordering::Relaxed);
        let rows: Vec<f32> = prompts
            .iter()
            .flat_map(|prompt| {
                let mut words = prompt.split_whitespace().map(|word| word.len() as f32 / 7.0);
                std::array::from_fn::<f32, 4, _>(|_| words.next().unwrap_or(0.0))
            })
            .collect();
        let context = Tensor::from_slice(&rows).view([-1, 2, 2]);
        Ok(Conditioning { pooled: Some(context.mean_dim(1, false, Kind::Float)), context, mask: None })
    }

    fn encode_images(&self, images: &Tensor) -> Result<Tensor> {
        self.images.fetch_add(images.size()[0] as usize, Ordering::Relaxed);
        Ok(images.avg_pool2d([4, 4], [4, 4], [0, 0], false, true, None))
    }

    fn decode_latents(&self, _latents: &Tensor) -> Result<Tensor> {
        Err(Error::failed("the toy decodes nothing"))
    }

    fn save(&self, _: &Path, _: &[(String, Tensor)], _: &SaveOptions) -> Result<()> {
        Err(Error::failed("the toy saves nothing"))
    }

    fn denoiser(&self, _: &Tuning, _: u64) -> Result<Box<dyn Denoiser>> {
        Err(Error::failed("the toy has no denoiser"))
    }
}

/// What a run with the toy is made with.
pub fn manifest() -> RunManifest {
    let component = UsedComponent {
        key: "backbone".into(),
        kind: advdmd_sdk::Kind::Backbone,
        name: "toy".into(),
        file: Some(PathBuf::from("/p/libtoy.so")),
        sha256: "aa".into(),
    };
    let text = || "1".to_owned();
    RunManifest {
        advdmd: text(),
        protocol: text(),
        rustc: text(),
        target: text(),
        libtorch: text(),
        components: vec![component],
        files: Vec::new(),
    }
}

/// The toy's cache in `folder`.
pub fn cache(folder: &Path) -> Cache {
    let component = Component { r#type: "toy".into(), options: serde_json::Map::new() };
    Cache::new(folder.to_owned(), &manifest(), &component, DType::F32, None).unwrap()
}

/// The CPU.
pub const DEVICE: Device = Device::Cpu;
