//! Tells the crate what it is compiled for and with; both go into the header of every plugin. Its own tests find
//! libtorch through it too.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_TORCH").is_some() {
        advdmd_build::link_libtorch();
    }
    let target = std::env::var("TARGET").expect("cargo sets TARGET");
    let rustc = std::env::var("RUSTC").expect("cargo sets RUSTC");
    let version = Command::new(rustc).arg("--version").output().expect("rustc runs");
    println!("cargo::rustc-env=ADVDMD_TARGET={target}");
    println!("cargo::rustc-env=ADVDMD_RUSTC={}", String::from_utf8_lossy(&version.stdout).trim());
}
