//! Where the built program and plugins lie, for tests of the whole system.

use std::path::PathBuf;

/// The shipped plugins, by the stem of their library.
pub const PLUGINS: [&str; 3] = ["sampler_flow", "reward_adversarial", "backbone_digits"];

/// The folder of the profile that this test was built with, `target/<profile>`.
///
/// # Panics
/// Outside a cargo target folder.
pub fn profile_dir() -> PathBuf {
    let test = std::env::current_exe().expect("the test has a path");
    let deps = test.parent().expect("the test lies in a folder");
    deps.parent().expect("`deps` lies in the profile's folder").to_owned()
}

/// The program `advdmd`.
pub fn program() -> PathBuf {
    existing(profile_dir().join("advdmd"))
}

/// A shipped plugin's library.
pub fn plugin(stem: &str) -> PathBuf {
    existing(profile_dir().join("plugins").join(format!("lib{stem}.so")))
}

fn existing(path: PathBuf) -> PathBuf {
    assert!(path.exists(), "{} is missing: `cargo xtask build` makes it", path.display());
    path
}
