//! What a run was made with: program, plugin files and the files that its configuration names.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use advdmd_sdk::Sources;
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
    /// The files that the backbone reads, and those that the configuration names, such as a list of prompts.
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

/// The key of the files that the backbone says it reads.
const BACKBONE: &str = "backbone";

/// A file that the configuration names, itself or by its folder, or that the backbone reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedFile {
    /// The key that names it, or the table of the component that reads it.
    pub key: String,
    /// The file.
    pub path: PathBuf,
    /// Its content.
    #[serde(flatten)]
    pub digest: FileDigest,
}

impl RunManifest {
    /// The digest of a file that the backbone says it reads.
    pub fn of_backbone(&self, path: &Path) -> Option<&FileDigest> {
        self.files.iter().find(|used| used.key == BACKBONE && used.path == path).map(|used| &used.digest)
    }
}

impl Registry {
    /// What a run of this configuration is made with, `sources` being what its backbone says that it reads. Reads every
    /// file of those and that the configuration names, but large ones that have not changed since they were last read.
    ///
    /// # Errors
    /// A component that no plugin provides, or a file that cannot be read.
    pub fn run_manifest<T: Settings>(&self, resolved: &Resolved<T>, sources: Option<&Sources>) -> Result<RunManifest> {
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
            files: self.used_files(resolved, sources)?,
        })
    }

    fn used_files<T: Settings>(&self, resolved: &Resolved<T>, sources: Option<&Sources>) -> Result<Vec<UsedFile>> {
        let (mut keys, mut files) = (Vec::new(), Vec::new());
        // What the host itself reads, beside the components' files.
        let data = KeyPath::of("data.prompts");
        if let Some(Sources { network, text, images }) = sources {
            files = [network, &text.files, &images.files].into_iter().flatten().cloned().collect();
            files.sort();
            files.dedup();
            keys = vec![BACKBONE.to_owned(); files.len()];
        }
        let named = self.paths(resolved)?.into_iter().map(|(key, _)| key).chain([data]);
        // What else lies where the backbone's keys lead is no part of the run.
        let told = |key: &KeyPath| sources.is_some() && key.to_string().starts_with(&format!("{BACKBONE}."));
        for key in named.filter(|key| !told(key)) {
            let Some(Json::String(path)) = resolved.tree().get(&key).map(Node::to_json) else { continue };
            let mut found = Vec::new();
            collect(Path::new(&path), &mut Vec::new(), &mut found)?;
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
/// neither. Links are followed, as whoever reads the folder does, but not to the folders `above` in which they lie.
fn collect(path: &Path, above: &mut Vec<PathBuf>, found: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_file() {
        found.push(path.to_owned());
    } else if path.is_dir() {
        let real = fs::canonicalize(path).map_err(Error::file("read", path))?;
        if above.contains(&real) {
            return Ok(());
        }
        above.push(real);
        for entry in fs::read_dir(path).map_err(Error::file("read", path))? {
            let entry = entry.map_err(Error::file("read", path))?;
            if !entry.file_name().to_string_lossy().starts_with('.') {
                collect(&entry.path(), above, found)?;
            }
        }
        above.pop();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_and_loops_are_not() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        for folder in ["model/text", "elsewhere/.cache"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        for file in ["model/text/a", "elsewhere/b", "elsewhere/.cache/c"] {
            fs::write(at(file), file).unwrap();
        }
        symlink("../elsewhere", at("model/vae")).unwrap();
        symlink("../model", at("elsewhere/back")).unwrap();
        symlink("nowhere", at("model/broken")).unwrap();
        let mut found = Vec::new();
        collect(&at("model"), &mut Vec::new(), &mut found).unwrap();
        found.sort();
        assert_eq!(found, [at("model/text/a"), at("model/vae/b")]);
    }
}
