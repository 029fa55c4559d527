//! A libtorch folder as this repository makes one.
//!
//! Ours leaves `libtorch_cuda.so` out: with it, `torch-sys` would link CUDA into each program. The program loads it from
//! an installed torch when a run asks for a CUDA device.

use advdmd_build::libtorch;
use anyhow::{Context, Error, Result};
use std::fs;
use std::path::Path;

/// The linker is asked for `-ltorch`; all that a CPU program needs of it is in `libtorch_cpu.so`.
const LINKER_SCRIPT: &str = "INPUT(-ltorch_cpu)\n";

/// Whether `folder` can be built and linked against.
pub fn check(folder: &Path) -> Result<()> {
    libtorch::check(folder).map_err(Error::msg)
}

/// Adds to headers and libraries what no wheel has, and checks the whole.
pub fn complete(folder: &Path) -> Result<()> {
    let script = folder.join("lib/libtorch.so");
    fs::write(&script, LINKER_SCRIPT).with_context(|| format!("cannot write {}", script.display()))?;
    check(folder)
}
