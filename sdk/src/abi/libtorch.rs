//! The libtorch that is loaded, which need not be the one that this crate was built for: `LD_LIBRARY_PATH` may bring
//! another, whose functions of the same names take other arguments.

use libloading::os::unix::Library;

use super::LIBTORCH;
use crate::{Error, Result};

/// libtorch's own function for its version: major, minor and patch in the three highest bytes.
const VERSION: &str = "aoti_torch_abi_version";

/// Checks that the loaded libtorch is the version that this crate was built for.
///
/// # Errors
/// Another version, or one so old that it cannot tell: names both.
pub fn check() -> Result<()> {
    let found = loaded();
    if found.as_deref() == Some(LIBTORCH) {
        return Ok(());
    }
    let found = found.unwrap_or_else(|| "a version too old to tell its number".to_owned());
    let file = file().unwrap_or_else(|| "libtorch_cpu.so".to_owned());
    Err(Error::config(format!("{file} is libtorch {found}, and {LIBTORCH} is needed")))
}

fn loaded() -> Option<String> {
    // SAFETY: the function takes nothing, returns a number and has been so since it exists; libtorch is never unloaded.
    let version = unsafe { Library::this().get::<extern "C" fn() -> u64>(VERSION).ok()?() };
    let [major, minor, patch, ..] = version.to_be_bytes();
    Some(format!("{major}.{minor}.{patch}"))
}

/// The file `libtorch_cpu.so` that was loaded, as the system tells it.
pub fn file() -> Option<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let path =
        maps.lines().filter_map(|line| Some(&line[line.find('/')?..])).find(|path| path.ends_with("/libtorch_cpu.so"));
    path.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_loaded_libtorch_is_the_one_of_the_build() {
        assert_eq!(super::loaded().as_deref(), Some(super::LIBTORCH));
        assert_eq!(super::check(), Ok(()));
    }
}
