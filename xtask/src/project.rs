//! Where things lie: the repository, its link to libtorch, the cache.

use anyhow::{Context, Result};
use std::env;
use std::path::{Path, PathBuf};

/// The repository that is worked on.
pub struct Project {
    /// The folder of the workspace's Cargo.toml.
    pub root: PathBuf,
}

impl Project {
    /// The workspace that this program was built in.
    pub fn locate() -> Result<Self> {
        // Cargo sets it when it runs a program; otherwise the place at build time stands in.
        let manifest = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = Path::new(&manifest).parent().context("xtask is not in a workspace")?;
        Ok(Self { root: root.to_path_buf() })
    }

    /// The link to libtorch that `.cargo/config.toml` names.
    pub fn libtorch_link(&self) -> PathBuf {
        self.root.join(".libtorch")
    }

    /// The LIBTORCH of the user; the one that `.cargo/config.toml` sets is not theirs.
    pub fn libtorch_of_user(&self) -> Option<PathBuf> {
        let path = PathBuf::from(env::var_os("LIBTORCH")?);
        (!path.as_os_str().is_empty() && path != self.libtorch_link()).then_some(path)
    }
}

/// The folder that outlives `cargo clean`: `$ADVDMD_CACHE`, `$XDG_CACHE_HOME/advdmd` or `~/.cache/advdmd`.
pub fn cache_folder() -> Result<PathBuf> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    cache_folder_from(variable("ADVDMD_CACHE"), variable("XDG_CACHE_HOME"), variable("HOME"))
}

fn cache_folder_from(own: Option<PathBuf>, xdg: Option<PathBuf>, home: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(folder) = own {
        return std::path::absolute(&folder).with_context(|| format!("ADVDMD_CACHE={}", folder.display()));
    }
    // The XDG specification asks to ignore a relative path.
    xdg.filter(|folder| folder.is_absolute())
        .or_else(|| home.map(|home| home.join(".cache")))
        .map(|folder| folder.join("advdmd"))
        .context("no folder for the cache: set ADVDMD_CACHE, or HOME")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_cache_variable_wins() {
        let path = |text: &str| Some(PathBuf::from(text));
        let folder = |own, xdg, home| cache_folder_from(own, xdg, home).unwrap();
        assert_eq!(folder(path("/a"), path("/b"), path("/c")), Path::new("/a"));
        assert_eq!(folder(None, path("/b"), path("/c")), Path::new("/b/advdmd"));
        assert_eq!(folder(None, path("relative"), path("/c")), Path::new("/c/.cache/advdmd"));
        assert!(cache_folder_from(None, None, None).is_err());
    }
}
