//! Encoded prompts and images on disk, so that each goes through an encoder once, whatever runs come later.
//!
//! A [`Shelf`] is a folder of safetensors shards that belong to one encoder: its name is a SHA-256 over all that the numbers
//! depend on, so that any change leads to another shelf and an old entry is never read. Entries are found by a
//! SHA-256 of what was encoded. Shards are written whole or not at all and never changed, so that several processes may
//! fill one shelf; what both encode is there twice.

mod facts;
mod filling;
mod shard;
mod shelf;
#[cfg(test)]
pub(crate) mod toy;

use std::path::{Path, PathBuf};

use advdmd_sdk::{DType, EncoderSource, Sources};
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

pub(crate) use facts::{Facts, KnownImages};
pub use filling::Filling;
pub use shelf::{Shelf, Tensors};

use crate::config::Component;
use crate::digests::cache_folder;
use crate::registry::RunManifest;
use crate::{Error, Result};

/// Rises when the meaning of what is stored changes.
const FORMAT: u32 = 1;

/// The word that stands for no cache, where a folder is expected.
pub const NONE: &str = "none";

/// SHA-256 of what was encoded.
pub type Key = [u8; 32];

/// The key of a text or of a file's bytes.
pub fn key_of(content: impl AsRef<[u8]>) -> Key {
    Sha256::digest(content).into()
}

/// What a shelf is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Embedded prompts.
    Text,
    /// Images as latents.
    Latents,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Latents => "latents",
        }
    }
}

/// The cache of one model.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
    /// What the text encoders are, in JSON.
    text: Json,
    /// What the encoder of images is, in JSON.
    images: Json,
}

impl Cache {
    /// The cache below `root` of the backbone of a run: its type, its plugin, its number type and what it names as the
    /// `sources` of its encoders decide what is found there; where it names none, its options and files. A folder that the
    /// files lie in may be another one.
    ///
    /// # Errors
    /// A source that the run is not made with.
    pub fn new(
        root: PathBuf,
        made_with: &RunManifest,
        backbone: &Component,
        dtype: DType,
        sources: Option<&Sources>,
    ) -> Result<Self> {
        let plugin = made_with.components.iter().find(|used| used.key == "backbone").map(|used| &used.sha256);
        let model = |depends: Json| {
            json!({
                "format": FORMAT, "type": backbone.r#type, "depends": depends, "plugin": plugin, "dtype": dtype,
            })
        };
        let (text, images) = if let Some(Sources { text, images, .. }) = sources {
            (model(of_source(text, made_with)?), model(of_source(images, made_with)?))
        } else {
            let all = model(of_options(backbone, made_with));
            (all.clone(), all)
        };
        Ok(Self { root, text, images })
    }

    /// The folder of all models.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The shelf of one kind of entries; `more` is what they depend on beside the model.
    ///
    /// # Errors
    /// A folder that is there and cannot be read.
    pub fn shelf(&self, kind: Kind, more: &Json) -> Result<Shelf> {
        let model = match kind {
            Kind::Text => &self.text,
            Kind::Latents => &self.images,
        };
        let kind = kind.name();
        let identity = json!({ "kind": kind, "model": model, "more": more });
        let digest = hex(&Sha256::digest(identity.to_string()));
        Shelf::open(&self.root.join(format!("{kind}-{}", &digest[..24])), identity)
    }

    /// What is known of the images of the data set at `path`.
    pub(crate) fn known_images(&self, path: &str) -> KnownImages {
        KnownImages::open(&self.root.join(format!("images-{}.json", &hex(&key_of(path))[..24])))
    }
}

/// What an encoder's results depend on: names and content of its files in their order, and its settings.
fn of_source(source: &EncoderSource, made_with: &RunManifest) -> Result<Json> {
    let file = |path: &PathBuf| {
        let digest = made_with.of_backbone(path);
        let digest = digest.ok_or_else(|| Error::failed(format!("{} was not there before", path.display())))?;
        Ok(json!([path.file_name().map(|name| name.to_string_lossy()), digest]))
    };
    let files = source.files.iter().map(file).collect::<Result<Vec<_>>>()?;
    Ok(json!({ "files": files, "settings": source.settings }))
}

/// What the results of a backbone that names no sources depend on, as far as anyone can tell.
fn of_options(backbone: &Component, made_with: &RunManifest) -> Json {
    let mut options = backbone.options.clone();
    let mut files = Vec::new();
    for used in &made_with.files {
        let Some(option) = used.key.strip_prefix("backbone.") else { continue };
        let folder = backbone.options.get(option).and_then(Json::as_str).unwrap_or_default();
        let name = used.path.strip_prefix(folder).unwrap_or(&used.path);
        files.push(json!([option, name, used.digest]));
        // The content stands for the place.
        options.remove(option);
    }
    json!({ "files": files, "options": options })
}

/// The cache folder of a configuration: `data.cache`, `$ADVDMD_CACHE`, `$XDG_CACHE_HOME/advdmd` or `~/.cache/advdmd`, the
/// first that is set; `None` where it says `none`.
///
/// # Errors
/// None of them is set.
pub fn root(configured: Option<&Path>) -> Result<Option<PathBuf>> {
    if configured == Some(Path::new(NONE)) {
        return Ok(None);
    }
    let folder = configured.map(Path::to_owned).or_else(cache_folder);
    let hint = format!("set `data.cache` to a folder, or to \"{NONE}\" to do without");
    let folder =
        folder.ok_or_else(|| Error::usage("no folder for encoded prompts and images: HOME is not set", hint))?;
    Ok(Some(folder.join("encoded")))
}

/// What was tried on the cache and failed, with what to do about it.
fn unwritable(folder: &Path, error: impl std::fmt::Display) -> Error {
    Error::failed(format!(
        "cannot write the cache of encoded prompts and images: {error}\n  make room or mend {}, or set `data.cache` to \
         another folder, or to \"{NONE}\" to do without; what was written before is kept",
        folder.display()
    ))
}

/// In hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::FileDigest;
    use crate::registry::UsedFile;

    fn cache(change: impl FnOnce(&mut RunManifest, &mut Component)) -> Cache {
        let mut made_with = toy::manifest();
        let digest = FileDigest { bytes: 3, sha256: "bb".into() };
        let path = PathBuf::from("/m/text/model.safetensors");
        made_with.files.push(UsedFile { key: "backbone.model".into(), path, digest });
        let options = json!({ "model": "/m", "shift": 3.0 });
        let mut backbone = Component { r#type: "toy".into(), options: options.as_object().unwrap().clone() };
        change(&mut made_with, &mut backbone);
        Cache::new("/c".into(), &made_with, &backbone, DType::F32, None).unwrap()
    }

    /// Of a backbone that names an encoder for text and one for images.
    fn told(change: impl FnOnce(&mut RunManifest, &mut Component, &mut Sources)) -> Cache {
        let mut made_with = toy::manifest();
        let source = |path: &str| EncoderSource { files: vec![path.into()], settings: json!({ "tokens": 7 }) };
        let mut sources = Sources { text: source("/m/text/w"), images: source("/m/vae/w"), network: Vec::new() };
        for path in [&sources.text.files[0], &sources.images.files[0]] {
            let digest = FileDigest { bytes: 3, sha256: path.display().to_string() };
            made_with.files.push(UsedFile { key: "backbone".into(), path: path.clone(), digest });
        }
        let options = json!({ "model": "/m", "checkpointing": true });
        let mut backbone = Component { r#type: "toy".into(), options: options.as_object().unwrap().clone() };
        change(&mut made_with, &mut backbone, &mut sources);
        Cache::new("/c".into(), &made_with, &backbone, DType::F32, Some(&sources)).unwrap()
    }

    #[test]
    fn what_a_backbone_names_decides_for_each_kind_on_its_own() {
        type Change = fn(&mut RunManifest, &mut Component, &mut Sources);
        let usual = told(|_, _, _| ());
        // Which of text and images become another.
        let cases: [(Change, [bool; 2]); 7] = [
            (|_, backbone, _| backbone.options["checkpointing"] = false.into(), [false, false]),
            (
                |made_with, _, sources| {
                    made_with.files[0].path = "/elsewhere/text/w".into();
                    sources.text.files[0] = "/elsewhere/text/w".into();
                },
                [false, false],
            ),
            (|made_with, _, _| made_with.files[0].digest.sha256 = "cc".into(), [true, false]),
            (|made_with, _, _| made_with.files[1].digest.sha256 = "cc".into(), [false, true]),
            (|_, _, sources| sources.text.settings["tokens"] = 8.into(), [true, false]),
            (|_, _, sources| std::mem::swap(&mut sources.text, &mut sources.images), [true, true]),
            (|made_with, _, _| made_with.components[0].sha256 = "another".into(), [true, true]),
        ];
        for (index, (change, expected)) in cases.into_iter().enumerate() {
            let changed = told(change);
            assert_eq!([changed.text != usual.text, changed.images != usual.images], expected, "case {index}");
        }
    }

    #[test]
    fn what_the_numbers_depend_on_decides_and_nothing_else() {
        let model = |change: fn(&mut RunManifest, &mut Component)| cache(change).text;
        let usual = model(|_, _| ());
        assert_eq!(
            usual,
            model(|made_with, backbone| {
                backbone.options["model"] = "/elsewhere".into();
                made_with.files[0].path = "/elsewhere/text/model.safetensors".into();
                made_with.rustc = "another".into();
            })
        );
        let changes: [fn(&mut RunManifest, &mut Component); 5] = [
            |made_with, _| made_with.files[0].digest.sha256 = "cc".into(),
            |made_with, _| made_with.files[0].path = "/m/text_2/model.safetensors".into(),
            |made_with, _| made_with.components[0].sha256 = "another".into(),
            |_, backbone| backbone.options["shift"] = 1.0.into(),
            |_, backbone| backbone.r#type = "other".into(),
        ];
        for change in changes {
            assert_ne!(usual, model(change));
        }
    }

    #[test]
    fn a_configured_folder_wins() {
        assert_eq!(root(Some(Path::new("/d"))).unwrap(), Some("/d/encoded".into()));
        assert_eq!(root(Some(Path::new("none"))).unwrap(), None);
    }
}
