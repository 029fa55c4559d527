//! Finds the one libtorch that `tch` works with, or brings it.
//!
//! | order | source | what is used |
//! |---|---|---|
//! | 1 | `LIBTORCH` | the folder as it is; an unfit one is an error, never passed over |
//! | 2 | a Python with torch | a cache folder of links into it, see [`python`] |
//! | 3 | the cache | the folder of an earlier download |
//! | 4 | pip | the wheels, unpacked into the cache, see [`download`] |
//!
//! What is found is named by the link `.libtorch` in the repository, which `.cargo/config.toml` gives as LIBTORCH to
//! every cargo that runs there.

mod cache;
mod download;
mod layout;
mod python;
mod wheel;

use crate::project::{Project, cache_folder};
pub use advdmd_build::libtorch::VERSION;
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::{env, fs};

/// A usable libtorch and where it came from.
pub struct Libtorch {
    /// The folder with `include/` and `lib/`.
    pub folder: PathBuf,
    /// For a human: "from LIBTORCH".
    pub source: String,
}

/// What a build needs: keeps the libtorch that was set up before, so that its choice does not change from run to run.
pub fn require(project: &Project) -> Result<()> {
    if project.libtorch_of_user().is_none() && layout::check(&project.libtorch_link()).is_ok() {
        return Ok(());
    }
    let found = setup(project)?;
    eprintln!("libtorch {VERSION} {}: {}", found.source, found.folder.display());
    Ok(())
}

/// Finds or brings libtorch, and points the repository's link at it.
pub fn setup(project: &Project) -> Result<Libtorch> {
    require_compiler()?;
    let found = find(project)?;
    link(&project.libtorch_link(), &found.folder)?;
    Ok(found)
}

fn find(project: &Project) -> Result<Libtorch> {
    if let Some(folder) = project.libtorch_of_user() {
        check_choice(&folder)
            .context("LIBTORCH cannot be used; unset it, and `cargo xtask setup` brings a libtorch")?;
        return Ok(Libtorch { folder, source: "from LIBTORCH".into() });
    }
    let cache = cache::open(&cache_folder()?)?;
    let pythons = python::installed();
    if let Some((python, folder)) = python::link_torch(&pythons, &cache) {
        return Ok(Libtorch { folder, source: format!("from the torch of {}", python.program.display()) });
    }
    let folder = cache.folder.join(format!("libtorch-{VERSION}-cpu"));
    if folder.exists() {
        match layout::check(&folder) {
            Ok(()) => return Ok(Libtorch { folder, source: "from the cache".into() }),
            Err(problem) => eprintln!("the cached libtorch is not whole and is fetched again: {problem:#}"),
        }
    }
    download::into(&folder, &pythons, &cache)?;
    Ok(Libtorch { folder, source: "downloaded".into() })
}

fn check_choice(folder: &Path) -> Result<()> {
    ensure!(folder.is_absolute(), "{} is not an absolute path", folder.display());
    layout::check(folder)
}

/// `torch-sys` compiles a C++ part, and says little where it cannot.
fn require_compiler() -> Result<()> {
    let compiler = env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let works = Command::new(&compiler).arg("--version").output().is_ok_and(|output| output.status.success());
    ensure!(
        works,
        "no C++ compiler: {} does not run; install one (Debian, Ubuntu: apt install g++), or set CXX",
        compiler.display()
    );
    Ok(())
}

/// Points `link` at `folder` in one step, so that a build beside this one sees the old or the new.
fn link(link: &Path, folder: &Path) -> Result<()> {
    if fs::read_link(link).is_ok_and(|target| target == folder) {
        return Ok(());
    }
    if link.is_dir() && !link.is_symlink() {
        bail!("{} is a folder: cargo xtask keeps a link there; move it away", link.display());
    }
    let fresh = link.with_extension(format!("{}.tmp", process::id()));
    std::os::unix::fs::symlink(folder, &fresh)
        .and_then(|()| fs::rename(&fresh, link))
        .with_context(|| format!("cannot make the link {}", link.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_is_replaced_and_a_folder_is_not() {
        let base = tempfile::tempdir().unwrap();
        let [name, first, second] = ["link", "first", "second"].map(|name| base.path().join(name));
        for target in [&first, &second] {
            fs::create_dir(target).unwrap();
            link(&name, target).unwrap();
            assert_eq!(&fs::read_link(&name).unwrap(), target);
        }
        assert!(link(&first, &second).unwrap_err().to_string().contains("move it away"));
    }
}
