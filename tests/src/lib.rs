//! Where the built program and plugins lie, and a small run, for tests of the whole system.

use std::path::{Path, PathBuf};

use advdmd::config::{Resolved, RunConfig, load_run};

/// The shipped plugins, by the stem of their library.
pub const PLUGINS: [&str; 3] = ["sampler_flow", "reward_adversarial", "backbone_digits"];

/// A run of a few seconds on the digit scenes.
pub const CONFIG: &str = include_str!("../digits.toml");

/// Changes to [`CONFIG`] that make the network as small as it gets: what is saved and resumed matters, not what it learns.
pub const TINY: [&str; 2] = [
    "backbone.init=\"random\"",
    "backbone.architecture={ num_layers = 2, num_attention_heads = 2, attention_head_dim = 16, patch_size = 8 }",
];

/// [`CONFIG`] with changes, written to `folder`.
///
/// # Panics
/// Changes that do not fit.
pub fn resolved(folder: &Path, sets: &[&str]) -> Resolved<RunConfig> {
    let path = folder.join("run.toml");
    std::fs::write(&path, CONFIG).expect("the folder can be written");
    let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
    load_run(&path, &sets).unwrap_or_else(|error| panic!("{error}"))
}

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
