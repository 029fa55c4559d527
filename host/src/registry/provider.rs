//! Who makes a component: a plugin file, or the program that it is linked into.

use std::collections::HashMap;
use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use advdmd_sdk::abi::{Header, LoadError, Plugin, read_header};
use advdmd_sdk::{Backbone, BackboneInit, Manifest, Reward, RewardInit, Sampler, plugin};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use super::lock::Lock;
use super::trust;

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
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    // Links are followed once: what is checked is what is loaded.
    let real = path.canonicalize().map_err(|error| match read_header(path) {
        Err(said) => OpenError::of(&said, path),
        Ok(_) => OpenError::refused(error),
    })?;
    if let Some(file) = open.get(&real) {
        return Ok(Arc::clone(file));
    }
    // What it says of itself comes first: a text or an ordinary library is no matter of trust.
    read_header(&real).map_err(|error| OpenError::of(&error, &real))?;
    trust::check(path, &real).map_err(OpenError::refused)?;
    let file = Arc::new(load(&real)?);
    open.insert(real, Arc::clone(&file));
    Ok(file)
}

/// Hashes a plugin file and loads it.
fn load(path: &Path) -> Result<PluginFile, OpenError> {
    let before = identity(path)?;
    let bytes = std::fs::read(path).map_err(OpenError::refused)?;
    let sha256 = format!("{:x}", Sha256::digest(&bytes));
    let opened = match Lock::in_force() {
        Some(lock) if !lock.knows(&sha256) => {
            return Err(OpenError { foreign: true, reason: "not in the lock, so it is not loaded".to_owned() });
        }
        // The very bytes that were hashed.
        Some(_) => Plugin::open_bytes(path, &bytes),
        None => Plugin::open(path),
    };
    let plugin = opened.map_err(|error| OpenError::of(&error, path))?;
    if Lock::in_force().is_none() && identity(path)? != before {
        return Err(OpenError::refused("the file changed while it was loaded; start again"));
    }
    Ok(PluginFile { path: path.to_owned(), sha256, plugin })
}

/// What a file gets anew when it is replaced or written: device, inode, size and the time of its last change.
fn identity(path: &Path) -> Result<[i128; 5], OpenError> {
    let found = std::fs::metadata(path).map_err(OpenError::refused)?;
    Ok([found.dev().into(), found.ino().into(), found.size().into(), found.mtime().into(), found.mtime_nsec().into()])
}

impl OpenError {
    fn refused(reason: impl fmt::Display) -> Self {
        Self { foreign: false, reason: reason.to_string() }
    }

    fn of(error: &LoadError, path: &Path) -> Self {
        let foreign = matches!(error, LoadError::NotAPlugin { .. });
        // Each line begins with the path, which stands in front of the reason anyway.
        let reason = error.to_string().replace(&format!("{}: ", path.display()), "");
        Self { foreign, reason }
    }
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
