//! Images of files with captions: several images may share one.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Tensor};

use super::picture::{self, Crop};
use super::{Dataset, Real, Summary};
use crate::cache::{Key, Shelf, hex, key_of};
use crate::{Error, Result};

/// An image and its caption, as a list names them.
#[derive(Debug)]
pub(super) struct Item {
    pub caption: String,
    pub source: Source,
}

/// Where the bytes of an image are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Source {
    File(PathBuf),
    Member {
        shard: Arc<PathBuf>,
        member: String,
        /// Place and length in the shard.
        offset: u64,
        bytes: u64,
    },
}

impl Source {
    /// The file that the bytes are in.
    pub fn file(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Member { shard, .. } => shard,
        }
    }

    /// All bytes of the image.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        match self {
            Self::File(path) => std::fs::read(path),
            Self::Member { shard, offset, bytes, .. } => {
                let mut content = vec![0; *bytes as usize];
                File::open(shard.as_path())?.read_exact_at(&mut content, *offset)?;
                Ok(content)
            }
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Member { shard, member, .. } => write!(f, "{}: {member}", shard.display()),
        }
    }
}

/// An image in use.
#[derive(Debug)]
pub(super) struct Picture {
    pub source: Source,
    /// SHA-256 of its bytes.
    pub digest: Key,
    /// The id of its caption.
    pub prompt: usize,
}

/// How images become what a model is given.
#[derive(Debug, Clone, Copy)]
pub(super) struct Framing {
    /// Width and height of the model's images.
    pub size: [u32; 2],
    /// Random crops of each image; 0 for its middle.
    pub random_crops: usize,
}

impl Framing {
    /// Crops of each image.
    pub fn crops(&self) -> usize {
        self.random_crops.max(1)
    }

    /// What one crop of an image is known by.
    pub fn key(&self, digest: &Key, crop: usize) -> Key {
        let place = if self.random_crops == 0 { "middle".to_owned() } else { crop.to_string() };
        key_of(format!("{} {place}", hex(digest)))
    }

    /// The place of one crop: of the image and its number alone, so that all runs share it.
    pub fn place(&self, digest: &Key, crop: usize) -> Crop {
        if self.random_crops == 0 {
            return Crop::CENTER;
        }
        let mut rng = ChaCha8Rng::from_seed(*digest);
        rng.set_stream(crop as u64);
        Crop { x: rng.random(), y: rng.random() }
    }
}

/// Where the latents of images come from.
#[derive(Debug)]
pub(super) enum Latents {
    /// From the encoder, whenever an image is drawn.
    Drawn,
    /// From memory.
    Memory(HashMap<Key, Tensor>),
    /// From disk.
    Shelf(Shelf),
}

impl Latents {
    /// Whether they are encoded once.
    pub fn are_kept(&self) -> bool {
        !matches!(self, Self::Drawn)
    }

    /// Whether a crop is encoded.
    pub fn has(&self, key: &Key) -> bool {
        match self {
            Self::Drawn => false,
            Self::Memory(known) => known.contains_key(key),
            Self::Shelf(shelf) => shelf.has(key),
        }
    }

    /// Keeps the latents `[C, h, w]` of a crop.
    ///
    /// # Errors
    /// The disk's.
    pub fn put(&mut self, key: Key, latents: &Tensor) -> Result<()> {
        match self {
            Self::Drawn => Ok(()),
            Self::Memory(known) => {
                known.insert(key, latents.f_to_device(Device::Cpu)?);
                Ok(())
            }
            Self::Shelf(shelf) => shelf.put(key, &[(PART, latents)]),
        }
    }

    /// Brings to disk what was put.
    ///
    /// # Errors
    /// The disk's.
    pub fn flush(&mut self) -> Result<()> {
        if let Self::Shelf(shelf) = self { shelf.flush() } else { Ok(()) }
    }

    /// The latents `[C, h, w]` of a crop, on the CPU; `None` where it is to be encoded.
    ///
    /// # Errors
    /// The disk's, or a crop that was not put.
    fn get(&self, key: &Key) -> Result<Option<Tensor>> {
        let missing = || Error::failed(format!("no latents of the image {}", hex(key)));
        match self {
            Self::Drawn => Ok(None),
            Self::Memory(known) => known.get(key).map(|latents| Some(latents.shallow_clone())).ok_or_else(missing),
            Self::Shelf(shelf) => {
                let part = shelf.get(key)?.into_iter().find(|(name, _)| name == PART);
                part.map(|(_, latents)| Some(latents)).ok_or_else(missing)
            }
        }
    }
}

/// What an entry of the cache calls its only tensor.
const PART: &str = "latents";

/// A set of images.
pub(super) struct ImageSet {
    pub prompts: Vec<String>,
    pub pictures: Vec<Picture>,
    /// The pictures of each prompt.
    pub of_prompt: Vec<Vec<usize>>,
    pub framing: Framing,
    pub latents: Latents,
    pub summary: Summary,
}

impl Dataset for ImageSet {
    fn prompts(&self) -> &[String] {
        &self.prompts
    }

    /// Every image is as likely as every other, and brings its caption.
    fn draw(&self, rng: &mut dyn RngCore) -> usize {
        self.pictures[rng.random_range(0..self.pictures.len())].prompt
    }

    fn real(&self, prompt: usize, rng: &mut dyn RngCore) -> Result<Real> {
        let choices = &self.of_prompt[prompt];
        let picture = &self.pictures[choices[rng.random_range(0..choices.len())]];
        let crop = rng.random_range(0..self.framing.crops());
        match self.latents.get(&self.framing.key(&picture.digest, crop))? {
            Some(latents) => Ok(Real::Latents(latents)),
            None => self.image(picture, crop).map(Real::Image),
        }
    }

    fn summary(&self) -> Option<&Summary> {
        Some(&self.summary)
    }
}

impl ImageSet {
    fn image(&self, picture: &Picture, crop: usize) -> Result<Tensor> {
        let Framing { size, .. } = self.framing;
        let place = self.framing.place(&picture.digest, crop);
        let bytes = picture.source.read().map_err(Error::file("read", picture.source.file()))?;
        let changed = |why: &str| Error::failed(format!("{} has changed since the run began: {why}", picture.source));
        if key_of(&bytes) != picture.digest {
            return Err(changed("its SHA-256 is another"));
        }
        let pixels = picture::decode(&bytes).and_then(|image| picture::fit(&image, size, place));
        picture::tensor(&pixels.map_err(|why| changed(&why))?, size)
    }
}
