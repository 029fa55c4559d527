//! Who makes a component: a plugin file, or the program that it is linked into.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use advdmd_sdk::abi::{Header, LoadError, Plugin};
use advdmd_sdk::{Backbone, BackboneInit, Manifest, Reward, RewardInit, Sampler, plugin};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

// What nothing refers to is not linked, and its components with it.
#[cfg(feature = "static-plugins")]
use {
    backbone_digits as _, backbone_sd3 as _, reward_adversarial as _, reward_clip as _, reward_remote as _,
    sampler_flow as _,
};

/// A loaded plugin file. Never unloaded: its code may be in use anywhere.
#[derive(Debug)]
pub struct PluginFile {
    /// The file.
    pub path: PathBuf,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    plugin: Plugin,
}

/// Who provides a component.
#[derive(Debug, Clone)]
pub enum Provider {
    /// Linked into the program.
    Program,
    /// A plugin file.
    Plugin(Arc<PluginFile>),
}

/// Why a file is not a plugin that can be used.
#[derive(Debug)]
pub(super) struct OpenError {
    /// Whether it is some other library rather than a plugin that does not fit.
    pub foreign: bool,
    /// Why.
    pub reason: String,
}

/// The components that are linked into this program.
pub(super) fn linked() -> advdmd_sdk::Result<Manifest> {
    Manifest::of_this_binary()
}

/// Opens a plugin file, once in the life of the program.
pub(super) fn open(path: &Path) -> Result<Arc<PluginFile>, OpenError> {
    static OPEN: LazyLock<Mutex<HashMap<PathBuf, Arc<PluginFile>>>> = LazyLock::new(Mutex::default);
    let fail = |error: std::io::Error| OpenError { foreign: false, reason: error.to_string() };
    let path = path.canonicalize().map_err(fail)?;
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(file) = open.get(&path) {
        return Ok(Arc::clone(file));
    }
    let file = Arc::new(load(&path)?);
    open.insert(path, Arc::clone(&file));
    Ok(file)
}

fn load(path: &Path) -> Result<PluginFile, OpenError> {
    let plugin = Plugin::open(path).map_err(|error| {
        let foreign = matches!(error, LoadError::NotAPlugin { .. });
        // Each line begins with the path, which stands in front of the reason anyway.
        OpenError { foreign, reason: error.to_string().replace(&format!("{}: ", path.display()), "") }
    })?;
    let bytes = std::fs::read(path).map_err(|error| OpenError { foreign: false, reason: error.to_string() })?;
    Ok(PluginFile { path: path.to_owned(), sha256: format!("{:x}", Sha256::digest(&bytes)), plugin })
}

impl PluginFile {
    /// The plugin's name, version and what it was built with.
    pub fn header(&self) -> &Header {
        self.plugin.header()
    }

    /// The plugin's components.
    pub fn manifest(&self) -> &Manifest {
        self.plugin.manifest()
    }
}

impl Provider {
    pub(super) fn reward(&self, config: &Json, init: &RewardInit) -> advdmd_sdk::Result<Box<dyn Reward>> {
        match self {
            Self::Program => plugin::build_reward(config, init),
            Self::Plugin(file) => file.plugin.reward(config, init),
        }
    }

    pub(super) fn sampler(&self, config: &Json) -> advdmd_sdk::Result<Box<dyn Sampler>> {
        match self {
            Self::Program => plugin::build_sampler(config),
            Self::Plugin(file) => file.plugin.sampler(config),
        }
    }

    pub(super) fn backbone(&self, config: &Json, init: &BackboneInit) -> advdmd_sdk::Result<Box<dyn Backbone>> {
        match self {
            Self::Program => plugin::build_backbone(config, init),
            Self::Plugin(file) => file.plugin.backbone(config, init),
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program => f.write_str("this program"),
            Self::Plugin(file) => write!(f, "{}", file.path.display()),
        }
    }
}
