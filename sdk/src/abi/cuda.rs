//! CUDA at run time: programs link libtorch's CPU half alone and load the other when a CUDA device is asked for.

use std::env;
use std::path::PathBuf;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::{Error, Result};

const LIBRARY: &str = "libtorch_cuda.so";
/// Names the folder of libtorch's libraries when they are not on the loader's path.
pub const FOLDER_VARIABLE: &str = "ADVDMD_TORCH_LIB";

/// Loads libtorch's CUDA half for the rest of the process. Call it before the first tensor.
///
/// It is looked for in `$ADVDMD_TORCH_LIB`, then where the dynamic loader looks (`$LD_LIBRARY_PATH`).
///
/// # Errors
/// The library or one that it needs is not found, or fits another libtorch: the dynamic linker's own words.
pub fn load() -> Result<()> {
    let path = match env::var_os(FOLDER_VARIABLE) {
        Some(folder) => PathBuf::from(folder).join(LIBRARY),
        None => PathBuf::from(LIBRARY),
    };
    // SAFETY: the library's initialisers register its kernels with the libtorch that is loaded already; a library of
    // another version lacks symbols or brings its own, and RTLD_NOW then makes dlopen fail instead of a later call.
    let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) }.map_err(|error| {
        // libloading's own text only says that it failed; the system's is its source.
        Error::config(std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string))
    })?;
    // Never unloaded: its kernels are registered in libtorch.
    std::mem::forget(library);
    Ok(())
}
