//! The components that a run can use: found in plugins, or linked into the program.
//!
//! Places are searched in this order: `[plugins] paths` of the configuration, `$ADVDMD_PLUGIN_PATH`, the user's data folder
//! (`$XDG_DATA_HOME/advdmd/plugins`, else `~/.local/share/advdmd/plugins`), the folder `plugins` beside the program. What is
//! linked into the program itself is always there.
//!
//! A plugin has the rights of the process from the moment it is loaded. So a file that others may write is
//! never loaded, nor, once a [`Lock`] is enforced, one that is not in it.

mod lock;
mod manifest;
mod paths;
mod provider;
mod schema;
mod search;
mod trust;
mod validate;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use advdmd_sdk::{Backbone, BackboneInit, Kind, Reward, RewardInit, Sampler};
use serde_json::Value as Json;

use crate::config::{Component, nearest};
use crate::containment::Checked;
use crate::error::{Error, Result};

pub use lock::{LOCK_FILE, LinkedComponents, Lock, LockedPlugin};
pub use manifest::{RunManifest, UsedComponent, UsedFile};
pub use provider::{PluginFile, Provider};
pub use search::{NamedBy, PATH_VARIABLE, Place, places};

/// The components at hand.
#[derive(Debug)]
pub struct Registry {
    components: BTreeMap<(Kind, String), Entry>,
    files: Vec<Arc<PluginFile>>,
    refused: Vec<Refused>,
    places: Vec<Place>,
}

/// A component and who provides it.
#[derive(Debug)]
pub struct Entry {
    /// Reward, sampler or backbone.
    pub kind: Kind,
    /// The `type` that a configuration names.
    pub name: String,
    /// JSON schema of its keys.
    pub schema: Json,
    /// A plugin, or the program itself.
    pub provider: Provider,
}

/// A file or folder that gives no plugin, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The file or folder.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

impl Registry {
    /// Searches all places and loads every plugin. A file that does not fit is a warning; it becomes an error when a
    /// component is asked for that no other plugin provides.
    ///
    /// # Errors
    /// A place of the configuration that does not exist; two plugins that provide one component.
    pub fn discover(config_paths: &[PathBuf]) -> Result<Self> {
        let mut registry = Self::linked()?;
        registry.places = places(config_paths)?;
        for place in registry.places.clone() {
            if place.named_by.is_optional() && !place.path.exists() {
                continue;
            }
            match search::libraries(&place.path) {
                Ok(libraries) => {
                    for library in libraries {
                        registry.open(library, place.named_by, &place.path)?;
                    }
                }
                Err(error) => registry.refuse(place.path, error.to_string()),
            }
        }
        Ok(registry)
    }

    /// The components that are linked into this program, and no others.
    ///
    /// # Errors
    /// Two linked components of one kind and name.
    pub fn linked() -> Result<Self> {
        let mut registry = Self::empty();
        for component in provider::linked()?.components {
            registry.add(component, &Provider::Program)?;
        }
        Ok(registry)
    }

    /// The components of these plugin files alone: nothing linked, no other place searched.
    ///
    /// # Errors
    /// Two of them provide one component.
    pub fn of_files(files: &[PathBuf]) -> Result<Self> {
        let mut registry = Self::empty();
        for file in files {
            registry.open(file.clone(), NamedBy::Config, file)?;
        }
        Ok(registry)
    }

    fn empty() -> Self {
        Self { components: BTreeMap::new(), files: Vec::new(), refused: Vec::new(), places: Vec::new() }
    }

    fn open(&mut self, path: PathBuf, named_by: NamedBy, place: &std::path::Path) -> Result<()> {
        let file = match provider::open(&path) {
            Ok(file) => file,
            // Other libraries may lie in a folder; they are told of only where a component is missed.
            Err(error) if error.foreign && path != place => {
                tracing::debug!("{} is not used: {}", path.display(), error.reason);
                self.refused.push(Refused { path, reason: error.reason });
                return Ok(());
            }
            Err(error) => {
                self.refuse(path, error.reason);
                return Ok(());
            }
        };
        if self.files.iter().any(|known| known.sha256 == file.sha256) {
            tracing::debug!(path = %path.display(), "the same plugin was found before");
            return Ok(());
        }
        tracing::debug!(path = %file.path.display(), ?named_by, sha256 = file.sha256, "plugin loaded");
        for component in file.manifest().components.clone() {
            self.add(component, &Provider::Plugin(Arc::clone(&file)))?;
        }
        self.files.push(file);
        Ok(())
    }

    fn add(&mut self, component: advdmd_sdk::Component, provider: &Provider) -> Result<()> {
        let key = (component.kind, component.name);
        if let Some(first) = self.components.get(&key) {
            if cfg!(feature = "static-plugins") && matches!(first.provider, Provider::Program) {
                let (kind, name) = &key;
                tracing::warn!("{kind} `{name}` is linked into this program; {provider} is not used for it");
                return Ok(());
            }
            let message = format!("{} `{}` is provided twice: by {} and by {provider}", key.0, key.1, first.provider);
            return Err(Error::usage(message, "remove one of the files, or look in fewer places".to_owned()));
        }
        let (kind, name) = key.clone();
        let entry = Entry { kind, name, schema: component.schema.to_value(), provider: provider.clone() };
        self.components.insert(key, entry);
        Ok(())
    }

    fn refuse(&mut self, path: PathBuf, reason: String) {
        // Once in the life of the program, however often the places are searched.
        static WARNED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
        if WARNED.lock().unwrap_or_else(PoisonError::into_inner).insert(path.clone()) {
            tracing::warn!("{} is not used: {reason}", path.display());
        }
        self.refused.push(Refused { path, reason });
    }

    /// Makes a reward from its table.
    ///
    /// # Errors
    /// A component that no plugin provides, or what the plugin refuses.
    pub fn reward(&self, component: &Component, init: &RewardInit) -> Result<Box<dyn Reward>> {
        let entry = self.entry(Kind::Reward, &component.r#type)?;
        entry.named(entry.provider.reward(&component.to_json(), init))
    }

    /// Makes a sampler from its table.
    ///
    /// # Errors
    /// As [`Registry::reward`].
    pub fn sampler(&self, component: &Component) -> Result<Box<dyn Sampler>> {
        let entry = self.entry(Kind::Sampler, &component.r#type)?;
        entry.named(entry.provider.sampler(&component.to_json()))
    }

    /// Makes a backbone from its table.
    ///
    /// # Errors
    /// As [`Registry::reward`].
    pub fn backbone(&self, component: &Component, init: &BackboneInit) -> Result<Box<dyn Backbone>> {
        let entry = self.entry(Kind::Backbone, &component.r#type)?;
        let made = entry.named(entry.provider.backbone(&component.to_json(), init))?;
        Ok(Box::new(Checked::new(made, &entry.name)))
    }

    /// The component of that kind and name.
    ///
    /// # Errors
    /// None: says where it was looked for, what there is, and which files were refused.
    pub fn entry(&self, kind: Kind, name: &str) -> Result<&Entry> {
        self.components.get(&(kind, name.to_owned())).ok_or_else(|| {
            let (message, hint) = self.absent(kind, name);
            Error::usage(message, hint)
        })
    }

    /// All components, in order of kind and name.
    pub fn components(&self) -> impl Iterator<Item = &Entry> {
        self.components.values()
    }

    /// The JSON schema of a component's keys.
    ///
    /// # Errors
    /// As [`Registry::entry`].
    pub fn schema(&self, kind: Kind, name: &str) -> Result<&Json> {
        Ok(&self.entry(kind, name)?.schema)
    }

    /// The plugin files in use.
    pub fn files(&self) -> &[Arc<PluginFile>] {
        &self.files
    }

    /// The files and folders that gave no plugin.
    pub fn refused(&self) -> &[Refused] {
        &self.refused
    }

    /// The places that were searched, in order.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// What to say of a component that nobody provides, and what to do.
    fn absent(&self, kind: Kind, name: &str) -> (String, String) {
        use std::fmt::Write as _;
        let there: Vec<&str> =
            self.components().filter(|entry| entry.kind == kind).map(|entry| entry.name.as_str()).collect();
        let mut message = format!("no {kind} named `{name}`");
        let list = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        let _ = write!(message, "; found {kind}s: {list}");
        for place in &self.places {
            let missing = if place.path.exists() { "" } else { " (not there)" };
            let _ = write!(message, "\n  looked in {}{missing}", place.path.display());
        }
        for Refused { path, reason } in &self.refused {
            let _ = write!(message, "\n  refused {}: {}", path.display(), reason.replace('\n', "\n    "));
        }
        let hint = match nearest(name, there.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None if self.files.is_empty() && there.is_empty() => {
                format!("no plugins were found: build them with `cargo xtask build`, or set {PATH_VARIABLE}")
            }
            None if !self.refused.is_empty() => {
                format!(
                    "mend or rebuild the refused file, or add another folder to `[plugins] paths` or to {PATH_VARIABLE}"
                )
            }
            None => format!("add its plugin's folder to `[plugins] paths` or to {PATH_VARIABLE}"),
        };
        (message, hint)
    }
}

impl Entry {
    fn named<T>(&self, made: advdmd_sdk::Result<T>) -> Result<T> {
        made.map_err(|source| Error::Component {
            kind: self.kind,
            name: self.name.clone(),
            provider: self.provider.to_string(),
            source,
        })
    }
}
