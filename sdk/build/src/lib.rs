//! For the build scripts of crates that use libtorch through `tch`.
//!
//! `tch` tells the linker where libtorch lies but not the finished program: without a run path it starts with
//! "cannot open shared object file". Cargo passes link arguments to the targets of one package only, so each package
//! with a program, a dynamic library or tests that use `tch` needs a `build.rs` whose `main` is this one line:
//!
//! ```no_run
//! advdmd_build::link_libtorch();
//! ```

pub mod libtorch;

use std::env;
use std::path::{Path, PathBuf};

/// Sets the run path of the package's programs, tests and dynamic libraries to the folder of libtorch.
///
/// The folder is `$LIBTORCH/lib` with links resolved, so that the program keeps working when the link that LIBTORCH may
/// name goes away. Stops the build with one line that says what to do when there is no libtorch there, or another version;
/// this build script runs before `torch-sys` compiles, so that line comes instead of a page of C++ errors.
pub fn link_libtorch() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    match library_folder(env::var_os("LIBTORCH").map(PathBuf::from).as_deref()) {
        Ok(folder) => {
            // A file that is watched and gone makes cargo run this again.
            println!("cargo::rerun-if-changed={}", folder.join("libtorch_cpu.so").display());
            println!("cargo::rustc-link-arg=-Wl,-rpath,{}", folder.display());
        }
        Err(message) => println!("cargo::error={message}"),
    }
}

/// The same where libtorch is optional: does nothing when there is none.
///
/// For packages that do not use `tch` themselves. When the workspace is built as a whole, cargo gives them the SDK with
/// feature `torch`, and their tests then need libtorch to start.
pub fn link_libtorch_if_present() {
    if library_folder(env::var_os("LIBTORCH").map(PathBuf::from).as_deref()).is_ok() {
        link_libtorch();
    }
}

/// The real path of `<libtorch>/lib`, or what is wrong with it and what to do.
fn library_folder(libtorch: Option<&Path>) -> Result<PathBuf, String> {
    let remedy = |problem: String| {
        format!("{problem}; run `cargo xtask setup`, or set LIBTORCH to an installed libtorch {}", libtorch::VERSION)
    };
    let libtorch = libtorch.ok_or_else(|| remedy("LIBTORCH is not set".to_owned()))?;
    libtorch::check(libtorch).map_err(|problem| remedy(format!("LIBTORCH: {problem}")))?;
    let folder = libtorch.join("lib");
    folder.canonicalize().map_err(|error| format!("{}: {error}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, process};

    #[test]
    fn a_missing_libtorch_says_what_to_do() {
        let remedy = "run `cargo xtask setup`, or set LIBTORCH to an installed libtorch 2.11.0";
        assert_eq!(library_folder(None), Err(format!("LIBTORCH is not set; {remedy}")));
        let absent = library_folder(Some(Path::new("/no/such/folder")));
        assert_eq!(absent, Err(format!("LIBTORCH: /no/such/folder is not a folder; {remedy}")));
    }

    #[test]
    fn links_are_resolved() {
        let base = env::temp_dir().join(format!("advdmd-build-{}", process::id()));
        for folder in ["real/lib", "real/include/torch"] {
            fs::create_dir_all(base.join(folder)).unwrap();
        }
        for (file, text) in [("lib/libtorch_cpu.so", ""), ("lib/libc10.so", ""), ("build-version", "2.11.0")] {
            fs::write(base.join("real").join(file), text).unwrap();
        }
        std::os::unix::fs::symlink(base.join("real"), base.join("link")).unwrap();
        let folder = library_folder(Some(&base.join("link"))).unwrap();
        assert_eq!(folder, base.join("real/lib").canonicalize().unwrap());
        fs::remove_dir_all(base).unwrap();
    }
}
