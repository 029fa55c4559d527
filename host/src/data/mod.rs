//! Prompts and the real images that belong to them.

mod braces;
mod digits;
mod folder;
mod images;
mod picture;
mod preparation;
#[cfg(test)]
mod tests;
mod webdataset;

use std::path::PathBuf;

use advdmd_sdk::Backbone;
use rand::RngCore;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::cache::Cache;
use crate::config::Data;
use crate::device::upload;
use crate::digits::SCENE_SIDE;
use crate::{Error, Result};

/// A set of prompts with real images for each.
pub trait Dataset: Send {
    /// All prompts; the index of a prompt is its id.
    fn prompts(&self) -> &[String];

    /// Draws a prompt's id.
    fn draw(&self, rng: &mut dyn RngCore) -> usize;

    /// A real image of a prompt, by its id.
    ///
    /// # Errors
    /// An image that cannot be read; names it.
    fn real(&self, prompt: usize, rng: &mut dyn RngCore) -> Result<Real>;

    /// What it is made of, where that is files.
    fn summary(&self) -> Option<&Summary> {
        None
    }
}

/// A real image as a data set gives it, on the CPU.
#[derive(Debug)]
pub enum Real {
    /// `[3, H, W]` in 0..1.
    Image(Tensor),
    /// `[C, h, w]`, encoded before.
    Latents(Tensor),
}

/// A data set of files in numbers: a run keeps it in `data.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The folder or the shards.
    pub source: String,
    /// Captions, each counted once.
    pub prompts: usize,
    /// Images in use.
    pub images: usize,
    /// Encoded crops of all images.
    pub latents: usize,
    /// Images that were left out, and why.
    pub broken: Vec<Broken>,
    /// Images in use that are smaller than the model's, and were enlarged.
    pub enlarged: usize,
    /// SHA-256 over captions and images in use, in hexadecimal.
    pub sha256: String,
    /// Where the latents are kept; `None` where each is encoded when it is drawn.
    pub cache: Option<PathBuf>,
}

/// An image that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broken {
    /// The file, or the shard and the member.
    pub name: String,
    /// What is wrong with it.
    pub why: String,
}

/// What a data set is made ready with.
pub struct Preparation<'a> {
    /// Encodes what the cache lacks.
    pub backbone: &'a dyn Backbone,
    /// Where it computes.
    pub device: Device,
    /// Where encoded images are kept; `None` to encode each when it is drawn.
    pub cache: Option<&'a Cache>,
    /// How much of a set of files is read.
    pub scope: Scope,
}

/// How much of a set of files is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Everything is checked and, with a cache, encoded.
    All,
    /// A few images, for a look at what a run would cost; nothing is written.
    Sample,
}

/// Opens the data set of a configuration and makes its images ready.
///
/// # Errors
/// Data that cannot be read, does not fit the backbone, or cannot be drawn: names the file and the line.
pub fn open(config: &Data, with: &Preparation<'_>) -> Result<Box<dyn Dataset>> {
    match config {
        Data::Digits { task_weights, prompts } => {
            let (found, expected) = (with.backbone.spec().image_shape, [3, SCENE_SIDE as i64, SCENE_SIDE as i64]);
            if found != expected {
                let message = format!("digit scenes are images of {expected:?}, the backbone makes {found:?}");
                let hint = "give images of your own: `[data] type = \"images\"` or `\"webdataset\"`".to_owned();
                return Err(Error::usage(message, hint));
            }
            Ok(Box::new(digits::DigitScenes::new(*task_weights, prompts.as_deref())?))
        }
        Data::Images { path, images } => {
            let items = folder::list(path, &images.text_key)?;
            Ok(Box::new(preparation::prepare(&path.display().to_string(), items, images, with)?))
        }
        Data::Webdataset { shards, images } => {
            let items = webdataset::list(shards.patterns(), &images.text_key)?;
            let source: Vec<String> = shards.patterns().iter().map(|path| path.display().to_string()).collect();
            Ok(Box::new(preparation::prepare(&source.join(", "), items, images, with)?))
        }
    }
}

/// Latents `[N, C, h, w]` of real images, on `device`; those that are images still are encoded in one batch.
///
/// # Errors
/// The backbone's; images and latents mixed.
pub fn latents(reals: &[Real], backbone: &dyn Backbone, device: Device) -> Result<Tensor> {
    let (mut images, mut latents) = (Vec::new(), Vec::new());
    for real in reals {
        match real {
            Real::Image(image) => images.push(image),
            Real::Latents(encoded) => latents.push(encoded),
        }
    }
    match (images.is_empty(), latents.is_empty()) {
        (false, true) => Ok(backbone.encode_images(&upload(&Tensor::f_stack(&images, 0)?, device)?)?),
        (true, false) => upload(&Tensor::f_stack(&latents, 0)?, device),
        _ => Err(Error::contract(format!("{} images and {} latents in a batch", images.len(), latents.len()))),
    }
}
