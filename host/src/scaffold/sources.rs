//! What a plugin is built from: the SDK and libtorch.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use advdmd_sdk::abi;

use crate::error::{Error, Result};

/// The project's folder when this program was built.
const CHECKOUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Where a plugin's crates come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sdk {
    /// A folder with the SDK and its companions.
    Folder(PathBuf),
    /// The registry, in this version.
    Published(&'static str),
}

impl Sdk {
    /// The SDK at `named` (its own folder, or a checkout with a folder `sdk`), else of the checkout that this program was
    /// built from, else the published one.
    ///
    /// # Errors
    /// `named` holds no SDK.
    pub fn find(named: Option<&Path>) -> Result<Self> {
        let Some(named) = named else {
            let folder = sdk_at(Path::new(CHECKOUT));
            return Ok(folder.map_or(Self::Published(env!("CARGO_PKG_VERSION")), Self::Folder));
        };
        sdk_at(named).map(Self::Folder).ok_or_else(|| {
            let message = format!("`--sdk`: {} holds no package advdmd-sdk", named.display());
            Error::usage(message, "name the folder `sdk` of a checkout of AdvDMD".to_owned())
        })
    }

    /// The value of a dependency on the crate in that folder of the SDK, without braces.
    ///
    /// # Errors
    /// A folder whose name is not UTF-8.
    pub(super) fn dependency(&self, folder: &str) -> Result<String> {
        match self {
            Self::Folder(sdk) => {
                let path = if folder.is_empty() { sdk.clone() } else { sdk.join(folder) };
                Ok(format!("path = \"{}\"", toml_text(&path)?))
            }
            Self::Published(version) => Ok(format!("version = \"{version}\"")),
        }
    }
}

/// The folder of the SDK: `folder` itself, or `sdk` in it.
fn sdk_at(folder: &Path) -> Option<PathBuf> {
    let is_sdk = |folder: &PathBuf| {
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).ok();
        let manifest = manifest.and_then(|text| text.parse::<toml::Table>().ok());
        manifest.is_some_and(|manifest| {
            let name = manifest.get("package").and_then(|package| package.get("name"));
            name.and_then(toml::Value::as_str) == Some("advdmd-sdk")
        })
    };
    [folder.join("sdk"), folder.to_owned()].into_iter().find(is_sdk)?.canonicalize().ok()
}

/// The libtorch to build against: `$LIBTORCH`, that of the checkout, or the one that this program has loaded.
///
/// # Errors
/// None of them has what a build needs.
pub(super) fn libtorch() -> Result<PathBuf> {
    let named = env::var_os("LIBTORCH").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let checkout = Path::new(CHECKOUT).join(".libtorch");
    // `lib/libtorch_cpu.so` in it.
    let loaded = abi::libtorch::file().and_then(|file| Some(Path::new(&file).parent()?.parent()?.to_owned()));
    let mut problems = Vec::new();
    for folder in [named, Some(checkout), loaded].into_iter().flatten() {
        match advdmd_build::libtorch::check(&folder) {
            Ok(()) => return folder.canonicalize().map_err(Error::file("find", &folder)),
            Err(problem) => problems.push(problem),
        }
    }
    let version = advdmd_build::libtorch::VERSION;
    Err(Error::usage(
        format!("no libtorch to build against: {}", problems.join("; ")),
        format!("set LIBTORCH to a folder with the headers and libraries of libtorch {version}"),
    ))
}

/// A path as it stands between the quotes of a TOML string.
///
/// # Errors
/// One that is not UTF-8.
pub(super) fn toml_text(path: &Path) -> Result<String> {
    let text = path.to_str().filter(|text| !text.contains(char::is_control));
    let text = text.ok_or_else(|| {
        Error::usage(format!("{} cannot be written in a Cargo.toml: it is no plain text", path.display()), None)
    })?;
    Ok(text.replace('\\', "\\\\").replace('"', "\\\""))
}
