//! `cargo xtask build`: the program, with the plugins in the folder `plugins` beside it, where it looks for them.

use crate::cargo::{self, Artifacts};
use crate::libtorch;
use crate::project::Project;
use anyhow::{Context, Result};
use clap::Args;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;

#[derive(Args, Clone, Copy, Default)]
pub struct Options {
    /// Optimise fully, into target/release
    #[arg(long)]
    pub release: bool,
    /// Link the shipped plugins into the program instead of building them as dynamic libraries
    #[arg(long)]
    pub static_plugins: bool,
}

pub fn run(project: &Project, options: Options) -> Result<()> {
    let made = build(project, options)?;
    for path in made.program.iter().chain(&made.plugins) {
        println!("{}", path.display());
    }
    Ok(())
}

/// Builds, and gives the program and the plugins at their final places.
pub fn build(project: &Project, options: Options) -> Result<Artifacts> {
    let mut args: Vec<&str> = if options.static_plugins {
        vec!["--package", "advdmd", "--features", "static-plugins"]
    } else {
        vec!["--workspace"]
    };
    args.extend(options.release.then_some("--release"));
    build_with(project, &args)
}

/// Like [`build`], with the tests: what it compiles, the tests that follow do not compile again.
pub fn build_for_tests(project: &Project) -> Result<Artifacts> {
    build_with(project, &["--workspace", "--lib", "--bins", "--tests"])
}

fn build_with(project: &Project, args: &[&str]) -> Result<Artifacts> {
    libtorch::require(project)?;
    let mut made = cargo::build(project, args)?;
    let program = made.program.as_ref().context("the build made no program `advdmd`")?;
    let folder = program.with_file_name("plugins");
    made.plugins = place(&made.plugins, &folder)?;
    Ok(made)
}

/// Makes `plugins` the only dynamic libraries in `folder`: one of an older build would be loaded as well.
fn place(plugins: &[PathBuf], folder: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let placed: Vec<PathBuf> =
        plugins.iter().filter_map(|plugin| plugin.file_name()).map(|name| folder.join(name)).collect();
    for file in fs::read_dir(folder)? {
        let path = file?.path();
        if path.extension().is_some_and(|end| end == std::env::consts::DLL_EXTENSION) && !placed.contains(&path) {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    for (plugin, place) in plugins.iter().zip(&placed) {
        // A program that runs keeps the file that it has loaded: the new one takes its name, not its contents.
        let fresh = place.with_extension(format!("{}.tmp", process::id()));
        fs::copy(plugin, &fresh)
            .and_then(|_| fs::rename(&fresh, place))
            .with_context(|| format!("cannot copy {} to {}", plugin.display(), place.display()))?;
    }
    Ok(placed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_holds_the_plugins_of_this_build() {
        let base = tempfile::tempdir().unwrap();
        let folder = base.path().join("plugins");
        let built = ["libnew.so", "libold.so"].map(|name| base.path().join(name));
        for plugin in &built {
            fs::write(plugin, plugin.to_str().unwrap()).unwrap();
        }
        place(&built, &folder).unwrap();
        fs::write(folder.join("notes.txt"), "mine").unwrap();
        let placed = place(&built[..1], &folder).unwrap();
        assert_eq!(placed, [folder.join("libnew.so")]);
        assert_eq!(fs::read_to_string(&placed[0]).unwrap(), built[0].to_str().unwrap());
        let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|file| file.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["libnew.so", "notes.txt"]);
    }
}
