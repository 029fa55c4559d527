//! What a run was made with: program, configuration and plugin files, written beside the run.

use std::path::{Path, PathBuf};

use advdmd_sdk::abi::Header;
use serde::{Deserialize, Serialize};

use super::{Provider, Registry};
use crate::config::{Resolved, Settings};
use crate::error::Result;
use crate::files;

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
    /// SHA-256 of the resolved configuration.
    pub config_sha256: String,
    /// The components in use, in the order of the configuration.
    pub components: Vec<UsedComponent>,
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
    /// SHA-256 of the file.
    pub sha256: Option<String>,
}

impl Registry {
    /// What a run of this configuration is made with.
    ///
    /// # Errors
    /// A component that no plugin provides.
    pub fn run_manifest<T: Settings>(&self, resolved: &Resolved<T>) -> Result<RunManifest> {
        let used = |(key, kind, component): (crate::config::KeyPath, _, &crate::config::Component)| {
            let entry = self.entry(kind, &component.r#type)?;
            let file = match &entry.provider {
                Provider::Plugin(file) => Some(file),
                Provider::Program => None,
            };
            Ok(UsedComponent {
                key: key.to_string(),
                kind,
                name: entry.name.clone(),
                file: file.map(|file| file.path.clone()),
                sha256: file.map(|file| file.sha256.clone()),
            })
        };
        let components = resolved.config.components().into_iter().map(used).collect::<Result<_>>()?;
        let host = Header::of_host();
        Ok(RunManifest {
            advdmd: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: host.protocol().to_string(),
            rustc: host.rustc().to_owned(),
            target: host.target().to_owned(),
            libtorch: host.libtorch().to_owned(),
            config_sha256: resolved.hash.clone(),
            components,
        })
    }

    /// Writes [`Registry::run_manifest`] as JSON.
    ///
    /// # Errors
    /// As there, and the file's.
    pub fn write_manifest<T: Settings>(&self, path: &Path, resolved: &Resolved<T>) -> Result<()> {
        files::write_json(path, &self.run_manifest(resolved)?)
    }
}
