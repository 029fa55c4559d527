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

use advdmd_sdk::DType;
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

/// The cache of one model.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
    /// What the encoders are, in JSON.
    model: Json,
}

impl Cache {
    /// The cache below `root` of the backbone of a run: its type and options, its files, its plugin and its
    /// number type decide what is found there. A folder that the files lie in may be another one.
    pub fn new(root: PathBuf, made_with: &RunManifest, backbone: &Component, dtype: DType) -> Self {
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
        let plugin = made_with.components.iter().find(|used| used.key == "backbone").map(|used| &used.sha256);
        let model = json!({
            "format": FORMAT, "type": backbone.r#type, "options": options, "files": files, "plugin": plugin, "dtype": dtype,
        });
        Self { root, model }
    }

    /// The folder of all models.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The shelf of one kind of entries, such as `text`; `more` is what they depend on beside the model.
    ///
    /// # Errors
    /// A folder that is there and cannot be read.
    pub fn shelf(&self, kind: &str, more: &Json) -> Result<Shelf> {
        let identity = json!({ "kind": kind, "model": self.model, "more": more });
        let digest = hex(&Sha256::digest(identity.to_string()));
        Shelf::open(&self.root.join(format!("{kind}-{}", &digest[..24])), identity)
    }

    /// What is known of the images of the data set at `path`.
    pub(crate) fn known_images(&self, path: &str) -> KnownImages {
        KnownImages::open(&self.root.join(format!("images-{}.json", &hex(&key_of(path))[..24])))
    }
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
        Cache::new("/c".into(), &made_with, &backbone, DType::F32)
    }

    #[test]
    fn what_the_numbers_depend_on_decides_and_nothing_else() {
        let model = |change: fn(&mut RunManifest, &mut Component)| cache(change).model;
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
