//! What a run was made with: program, plugin files and the files that its configuration names.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use advdmd_sdk::abi::Header;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::{Provider, Registry};
use crate::config::tree::Node;
use crate::config::{KeyPath, Resolved, Settings};
use crate::digests::digests;
use crate::error::{Error, Result};
use crate::files::FileDigest;

/// What a run was made with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunManifest {
    /// Version of this program.
    pub advdmd: String,
    /// Version of the plugin protocol.
    pub protocol: String,
    /// What compiled it.
    pub rustc: String,
    /// Target triple.
    pub target: String,
    /// Version of libtorch.
    pub libtorch: String,
    /// The components in use, in the order of the configuration.
    pub components: Vec<UsedComponent>,
    /// The files that the configuration names, such as the teacher's weights or a list of prompts.
    pub files: Vec<UsedFile>,
}

/// A component in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedComponent {
    /// Its table in the configuration.
    pub key: String,
    /// Reward, sampler or backbone.
    pub kind: advdmd_sdk::Kind,
    /// The `type`.
    pub name: String,
    /// The plugin's file; `None` for what is linked into the program.
    pub file: Option<PathBuf>,
    /// SHA-256 of the file, or of the program.
    pub sha256: String,
}

fn program_sha256() -> Result<String> {
    static PROGRAM: OnceLock<String> = OnceLock::new();
    if let Some(known) = PROGRAM.get() {
        return Ok(known.clone());
    }
    let program = std::env::current_exe().map_err(Error::file("find", "this program"))?;
    let digest = FileDigest::of(&program)?;
    Ok(PROGRAM.get_or_init(|| digest.sha256).clone())
}

/// A file that the configuration names, itself or by its folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedFile {
    /// The key that names it.
    pub key: String,
    /// The file.
    pub path: PathBuf,
    /// Its content.
    #[serde(flatten)]
    pub digest: FileDigest,
}

impl Registry {
    /// What a run of this configuration is made with. Reads every file that the configuration
    /// names, but large ones that have not changed since they were last read.
    ///
    /// # Errors
    /// A component that no plugin provides, or a file that cannot be read.
    pub fn run_manifest<T: Settings>(&self, resolved: &Resolved<T>) -> Result<RunManifest> {
        let used = |(key, kind, component): (KeyPath, _, &crate::config::Component)| {
            let entry = self.entry(kind, &component.r#type)?;
            let (file, sha256) = match &entry.provider {
                Provider::Plugin(file) => (Some(file.path.clone()), file.sha256.clone()),
                // The component is as much as the program that it is linked into.
                Provider::Program => (None, program_sha256()?),
            };
            Ok(UsedComponent { key: key.to_string(), kind, name: entry.name.clone(), file, sha256 })
        };
        let components = resolved.config.components().into_iter().map(used).collect::<Result<_>>()?;
        let host = Header::of_host();
        Ok(RunManifest {
            advdmd: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: host.protocol().to_string(),
            rustc: host.rustc().to_owned(),
            target: host.target().to_owned(),
            libtorch: host.libtorch().to_owned(),
            components,
            files: self.used_files(resolved)?,
        })
    }

    fn used_files<T: Settings>(&self, resolved: &Resolved<T>) -> Result<Vec<UsedFile>> {
        let (mut keys, mut files) = (Vec::new(), Vec::new());
        // What the host itself reads, beside the components' files.
        let data = KeyPath::of("data.prompts");
        for key in self.paths(resolved)?.into_iter().map(|(key, _)| key).chain([data]) {
            let Some(Json::String(path)) = resolved.tree().get(&key).map(Node::to_json) else { continue };
            let mut found = Vec::new();
            collect(Path::new(&path), &mut found)?;
            found.sort();
            keys.extend(found.iter().map(|_| key.to_string()));
            files.extend(found);
        }
        let digests = digests(&files)?;
        let used = keys.into_iter().zip(files).zip(digests);
        Ok(used.map(|((key, path), digest)| UsedFile { key, path, digest }).collect())
    }
}

/// The file `path`, or all files below the folder `path` but hidden ones, which belong to tools; nothing where there is
/// neither. Links to files are followed, as model caches have them; links to folders below are not.
fn collect(path: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_file() {
        found.push(path.to_owned());
    } else if path.is_dir() {
        for entry in fs::read_dir(path).map_err(Error::file("read", path))? {
            let entry = entry.map_err(Error::file("read", path))?;
            let kind = entry.file_type().map_err(Error::file("read", entry.path()))?;
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            if !hidden && (kind.is_dir() || entry.path().is_file()) {
                collect(&entry.path(), found)?;
            }
        }
    }
    Ok(())
}
