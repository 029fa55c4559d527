//! The shape of a libtorch folder: what must be in it, and which version it says it is.
//!
//! Ours leaves `libtorch_cuda.so` out: with it, `torch-sys` would link CUDA into each program. The program loads it from
//! an installed torch when a run asks for a CUDA device.

use super::VERSION;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::Path;

/// Where the version stands as C macros; the second is the place up to torch 2.8.
const VERSION_HEADERS: [&str; 2] =
    ["include/torch/headeronly/version.h", "include/torch/csrc/api/include/torch/version.h"];

/// The linker is asked for `-ltorch`; all that a CPU program needs of it is in `libtorch_cpu.so`.
const LINKER_SCRIPT: &str = "INPUT(-ltorch_cpu)\n";

/// Whether `folder` can be built and linked against.
pub fn check(folder: &Path) -> Result<()> {
    ensure!(folder.is_dir(), "{} is not a folder", folder.display());
    for part in ["include/torch", "lib/libtorch_cpu.so", "lib/libc10.so"] {
        ensure!(folder.join(part).exists(), "{} has no {part}", folder.display());
    }
    let version = version_of(folder)?;
    ensure!(version == VERSION, "{} is libtorch {version}, and {VERSION} is needed", folder.display());
    Ok(())
}

/// Adds to headers and libraries what no wheel has, and checks the whole.
pub fn complete(folder: &Path) -> Result<()> {
    let script = folder.join("lib/libtorch.so");
    fs::write(&script, LINKER_SCRIPT).with_context(|| format!("cannot write {}", script.display()))?;
    check(folder)
}

fn version_of(folder: &Path) -> Result<String> {
    if let Ok(text) = fs::read_to_string(folder.join("build-version")) {
        return Ok(without_build_tag(text.trim()).to_owned());
    }
    for header in VERSION_HEADERS.map(|header| folder.join(header)) {
        if let Ok(text) = fs::read_to_string(&header) {
            return version_in_header(&text).with_context(|| format!("{} has no version", header.display()));
        }
    }
    bail!("{} does not say its version (no build-version, no version.h)", folder.display())
}

/// `2.11.0+cpu` is 2.11.0.
pub fn without_build_tag(version: &str) -> &str {
    version.split_once('+').map_or(version, |(version, _tag)| version)
}

/// Reads `#define TORCH_VERSION_MAJOR 2` and its two siblings.
fn version_in_header(text: &str) -> Option<String> {
    let part = |name: &str| {
        text.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            let (directive, macro_name, value) = (words.next()?, words.next()?, words.next()?);
            (directive == "#define" && macro_name == name).then(|| value.parse::<u32>().ok())?
        })
    };
    let [major, minor, patch] = ["MAJOR", "MINOR", "PATCH"].map(|name| part(&format!("TORCH_VERSION_{name}")));
    Some(format!("{}.{}.{}", major?, minor?, patch?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "#pragma once\n/// Indicates the major version\n#define TORCH_VERSION_MAJOR 2\n\
        #define TORCH_VERSION_MINOR 11\n# define OTHER 3\n#define TORCH_VERSION_PATCH 0\n\
        #define TORCH_VERSION \\\n  \"2.11.0\"\n#define TORCH_VERSION_ABI_TAG 0\n";

    #[test]
    fn the_version_is_read_from_the_macros() {
        assert_eq!(version_in_header(HEADER).as_deref(), Some("2.11.0"));
        assert_eq!(version_in_header("#define TORCH_VERSION_MAJOR 2\n"), None);
        assert_eq!(version_in_header(&HEADER.replace("MINOR 11", "MINOR x")), None);
    }

    #[test]
    fn the_build_tag_does_not_count() {
        assert_eq!(without_build_tag("2.11.0+cu130"), "2.11.0");
        assert_eq!(without_build_tag("2.11.0"), "2.11.0");
    }

    #[test]
    fn a_folder_is_checked_part_by_part() {
        let base = tempfile::tempdir().unwrap();
        let folder = base.path();
        let problem = || format!("{:#}", check(folder).unwrap_err());
        assert!(problem().contains("include/torch"));
        fs::create_dir_all(folder.join("include/torch/headeronly")).unwrap();
        fs::create_dir(folder.join("lib")).unwrap();
        assert!(problem().contains("libtorch_cpu.so"));
        fs::write(folder.join("lib/libtorch_cpu.so"), "").unwrap();
        fs::write(folder.join("lib/libc10.so"), "").unwrap();
        assert!(problem().contains("does not say its version"));
        fs::write(folder.join(VERSION_HEADERS[0]), HEADER.replace("MINOR 11", "MINOR 9")).unwrap();
        assert!(problem().contains("is libtorch 2.9.0, and 2.11.0 is needed"));
        fs::write(folder.join("build-version"), "2.11.0+cpu\n").unwrap();
        check(folder).unwrap();
    }
}
