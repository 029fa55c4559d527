//! The shape of a libtorch folder: what must be in it, and which version it says it is.

use std::fs;
use std::path::Path;

/// The version that `tch` 0.24 was generated from; it works with no other.
pub const VERSION: &str = "2.11.0";

/// Where the version stands as C macros; the second is the place up to torch 2.8.
const VERSION_HEADERS: [&str; 2] =
    ["include/torch/headeronly/version.h", "include/torch/csrc/api/include/torch/version.h"];

/// Whether `folder` can be built and linked against.
///
/// # Errors
/// What is missing, or which version it is instead: one line that names the folder.
pub fn check(folder: &Path) -> Result<(), String> {
    let name = folder.display();
    if !folder.is_dir() {
        return Err(format!("{name} is not a folder"));
    }
    for part in ["include/torch", "lib/libtorch_cpu.so", "lib/libc10.so"] {
        if !folder.join(part).exists() {
            return Err(format!("{name} is no libtorch: it has no {part}"));
        }
    }
    let version = version_of(folder)?;
    if version == VERSION { Ok(()) } else { Err(format!("{name} is libtorch {version}, and {VERSION} is needed")) }
}

fn version_of(folder: &Path) -> Result<String, String> {
    if let Ok(text) = fs::read_to_string(folder.join("build-version")) {
        return Ok(without_build_tag(text.trim()).to_owned());
    }
    for header in VERSION_HEADERS.map(|header| folder.join(header)) {
        if let Ok(text) = fs::read_to_string(&header) {
            return version_in_header(&text).ok_or_else(|| format!("{} has no version", header.display()));
        }
    }
    Err(format!("{} does not say its version (no build-version, no version.h)", folder.display()))
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
        let folder = &std::env::temp_dir().join(format!("advdmd-build-layout-{}", std::process::id()));
        fs::create_dir_all(folder).unwrap();
        let problem = || check(folder).unwrap_err();
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
        fs::remove_dir_all(folder).unwrap();
    }
}
