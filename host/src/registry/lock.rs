//! `advdmd.lock`: the plugins of a configuration as they were when they were pinned, and nothing else under `--locked`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use advdmd_sdk::Kind;
use advdmd_sdk::abi::read_header;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Place, Provider, Registry, places, provider, search, trust};
use crate::config::{KeyPath, Settings};
use crate::error::{Error, Result};
use crate::files;

/// The lock's name beside a configuration.
pub const LOCK_FILE: &str = "advdmd.lock";

/// Version of the file's format.
const FORMAT: u32 = 1;

/// The program's own version, which stands for what is linked into it.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The plugins that a configuration uses, by name and content; where they lie is each machine's own matter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    format: u32,
    /// What is linked into the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linked: Option<LinkedComponents>,
    /// The plugin files, in order of their names.
    #[serde(default, rename = "plugin", skip_serializing_if = "Vec::is_empty")]
    pub plugins: Vec<LockedPlugin>,
}

/// Components that are linked into the program, and so as much as its version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkedComponents {
    /// Version of the program.
    pub version: String,
    /// The components in use, as `KIND NAME`.
    pub components: Vec<String>,
}

/// A plugin file.
#[derive(Default, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedPlugin {
    /// Name of the file.
    pub file: String,
    /// Name of the plugin.
    pub name: String,
    /// Version of the plugin.
    pub version: String,
    /// Version of the protocol that it speaks.
    pub protocol: String,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// The components in use, as `KIND NAME`.
    pub components: Vec<String>,
}

/// A lock that is to be enforced, and what says so.
struct Claim<'a> {
    lock: &'a Lock,
    /// Its file.
    path: &'a Path,
    /// The command that writes it anew.
    renew: &'a str,
}

fn label(kind: Kind, name: &str) -> String {
    format!("{kind} {name}")
}

impl Registry {
    /// The lock of a configuration: what provides its components.
    ///
    /// # Errors
    /// A component that no plugin provides.
    pub fn lock<T: Settings>(&self, config: &T) -> Result<Lock> {
        let mut lock = Lock { format: FORMAT, linked: None, plugins: Vec::new() };
        for (_, kind, component) in config.components() {
            let entry = self.entry(kind, &component.r#type)?;
            let components = match &entry.provider {
                Provider::Program => {
                    let linked = || LinkedComponents { version: VERSION.to_owned(), components: Vec::new() };
                    &mut lock.linked.get_or_insert_with(linked).components
                }
                Provider::Plugin(file) => {
                    let known = lock.plugins.iter().position(|plugin| plugin.sha256 == file.sha256);
                    let index = known.unwrap_or_else(|| {
                        let header = file.header();
                        lock.plugins.push(LockedPlugin {
                            file: file_name(&file.path),
                            name: header.name().to_owned(),
                            version: header.version().to_owned(),
                            protocol: header.protocol().to_string(),
                            sha256: file.sha256.clone(),
                            components: Vec::new(),
                        });
                        lock.plugins.len() - 1
                    });
                    &mut lock.plugins[index].components
                }
            };
            components.push(label(kind, &component.r#type));
        }
        lock.plugins.sort_by(|a, b| (&a.file, &a.sha256).cmp(&(&b.file, &b.sha256)));
        let linked = lock.linked.iter_mut().map(|linked| &mut linked.components);
        for components in lock.plugins.iter_mut().map(|plugin| &mut plugin.components).chain(linked) {
            components.sort();
            components.dedup();
        }
        Ok(lock)
    }
}

static IN_FORCE: OnceLock<Lock> = OnceLock::new();

impl Lock {
    /// The lock that this process is bound to, if it is.
    pub(crate) fn in_force() -> Option<&'static Self> {
        IN_FORCE.get()
    }

    /// From now on this process loads no plugin but the one of this content: what the process of a locked run's reward is bound
    /// to.
    pub(crate) fn bind_to(sha256: &str) {
        let plugin = LockedPlugin { sha256: sha256.to_owned(), ..LockedPlugin::default() };
        // Once bound, it stays so.
        let _ = IN_FORCE.set(Self { format: FORMAT, linked: None, plugins: vec![plugin] });
    }

    /// Whether a file of this content is in it.
    pub(super) fn knows(&self, sha256: &str) -> bool {
        self.plugins.iter().any(|plugin| plugin.sha256 == sha256)
    }

    /// Where the lock of a configuration lies: beside it.
    #[must_use]
    pub fn beside(config: &Path) -> PathBuf {
        config.with_file_name(LOCK_FILE)
    }

    /// The file's text: sorted, so that it changes only where a plugin did.
    ///
    /// # Errors
    /// None that a lock of this program can have.
    pub fn to_toml(&self) -> Result<String> {
        let table = toml::to_string(self).map_err(Error::failed)?;
        Ok(format!(
            "# The plugins of a run: `advdmd train --locked` loads these and no others. Written by `advdmd plugins pin`.\n{table}"
        ))
    }

    /// Reads a lock; `renew` is the command that writes it.
    ///
    /// # Errors
    /// No such file, or one that is no lock of this format: one line that says so and names the command.
    pub fn read(path: &Path, renew: &str) -> Result<Self> {
        let fail = |found: String| {
            Error::usage(
                format!(
                    "{}: expected the lock of this configuration, found {found}; `{renew}` writes it",
                    path.display()
                ),
                None,
            )
        };
        let text = fs::read_to_string(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => fail("no such file".to_owned()),
            _ => fail(format!("that it cannot be read ({error})")),
        })?;
        let lock: Self = toml::from_str(&text)
            .map_err(|error| fail(format!("a file that is none ({})", error.message().replace('\n', " "))))?;
        if lock.format != FORMAT {
            return Err(fail(format!("format {} instead of {FORMAT}", lock.format)));
        }
        Ok(lock)
    }

    /// Writes it.
    ///
    /// # Errors
    /// Names the file.
    pub fn write(&self, path: &Path) -> Result<()> {
        files::write(path, self.to_toml()?.as_bytes())
    }

    /// Checks a configuration's components and the plugin files at hand against the lock at `path`, loading none of them,
    /// and from then on lets this process load nothing else. `renew` is the command that writes the lock anew.
    ///
    /// # Errors
    /// One line with file, what was expected and what was found: no lock, a component that is not in it, a plugin of a known
    /// name with another content, a plugin that is named but unknown, or one that is not there.
    pub fn enforce<T: Settings>(config: &T, path: &Path, renew: &str) -> Result<()> {
        let lock = Self::read(path, renew)?;
        // Who writes the lock chooses the plugins.
        let real = path.canonicalize().map_err(Error::file("read", path))?;
        trust::check(path, &real).map_err(|reason| Error::usage(format!("{}: {reason}", path.display()), None))?;
        let claim = Claim { lock: &lock, path, renew };
        let linked = provider::linked()?.components;
        let mut used = Vec::new();
        for (key, kind, component) in config.components() {
            let is_linked = linked.iter().any(|known| known.kind == kind && known.name == component.r#type);
            claim.check_component(&key, &label(kind, &component.r#type), is_linked)?;
            used.push(label(kind, &component.r#type));
        }
        let mut found = Vec::new();
        for place in places(&config.plugins().paths)? {
            // A folder that cannot be read gives no plugins.
            for library in search::libraries(&place.path).unwrap_or_default() {
                found.extend(claim.check_file(&library, &place)?);
            }
        }
        let mut needed = lock.plugins.iter().filter(|plugin| plugin.components.iter().any(|name| used.contains(name)));
        if let Some(absent) = needed.find(|plugin| !found.contains(&plugin.sha256)) {
            return Err(claim.refuse(
                path,
                format!("{} ({} {})", absent.file, absent.name, absent.version),
                "no such plugin where plugins are looked for",
            ));
        }
        // A second look at the same configuration finds the same lock.
        let _ = IN_FORCE.set(lock);
        Ok(())
    }
}

impl Claim<'_> {
    /// One line: file, what was expected and found, and the command that renews the lock.
    fn refuse(&self, file: &Path, expected: impl std::fmt::Display, found: impl std::fmt::Display) -> Error {
        let message = format!(
            "{}: expected {expected}, found {found}; if that is right, `{}` renews the lock",
            file.display(),
            self.renew
        );
        Error::usage(message, None)
    }

    fn check_component(&self, key: &KeyPath, name: &str, is_linked: bool) -> Result<()> {
        let linked = self.lock.linked.as_ref().filter(|linked| linked.components.iter().any(|known| known == name));
        let plugin = self.lock.plugins.iter().find(|plugin| plugin.components.iter().any(|known| known == name));
        match (linked, plugin) {
            (Some(linked), _) if !is_linked => {
                let expected = format!("{name} linked into advdmd {}", linked.version);
                Err(self.refuse(self.path, expected, format!("advdmd {VERSION} without it")))
            }
            (Some(linked), _) if linked.version != VERSION => {
                Err(self.refuse(self.path, format!("advdmd {}, which {name} is linked into", linked.version), VERSION))
            }
            (None, Some(plugin)) if is_linked => {
                let expected = format!("{name} of {}", plugin.file);
                Err(self.refuse(self.path, expected, format!("it linked into advdmd {VERSION}")))
            }
            (None, None) => {
                let expected = format!("{name}, which `{key}` of the configuration names");
                Err(self.refuse(self.path, expected, format!("only {}", self.components().join(", "))))
            }
            _ => Ok(()),
        }
    }

    fn components(&self) -> Vec<String> {
        let linked = self.lock.linked.iter().flat_map(|linked| &linked.components);
        self.lock.plugins.iter().flat_map(|plugin| &plugin.components).chain(linked).cloned().collect()
    }

    /// The hash of a plugin file that is in the lock; `None` for what is no plugin, or one of no concern, which is then never
    /// loaded.
    fn check_file(&self, library: &Path, place: &Place) -> Result<Option<String>> {
        let Ok(header) = read_header(library) else { return Ok(None) };
        let bytes = fs::read(library).map_err(Error::file("read", library))?;
        let sha256 = format!("{:x}", Sha256::digest(&bytes));
        if self.lock.knows(&sha256) {
            return Ok(Some(sha256));
        }
        let name = file_name(library);
        let same = self.lock.plugins.iter().find(|plugin| plugin.file == name || plugin.name == header.name());
        if let Some(LockedPlugin { name, version, sha256: expected, .. }) = same {
            let expected = format!("{name} {version} with SHA-256 {expected}");
            return Err(self.refuse(
                library,
                expected,
                format!("{} {} with {sha256}", header.name(), header.version()),
            ));
        }
        if place.path == library {
            let expected = format!("a plugin of {}", self.path.display());
            return Err(self.refuse(
                library,
                expected,
                format!("{} {}, which is not in it", header.name(), header.version()),
            ));
        }
        Ok(None)
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
