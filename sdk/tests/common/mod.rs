//! What the tests of the edge share.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use advdmd_sdk::{BackboneSpec, Device, RewardInit};

/// What a reward is told.
pub fn init() -> RewardInit {
    let backbone = BackboneSpec {
        latent_shape: [3, 8, 8],
        image_shape: [3, 8, 8],
        depth: 4,
        feature_channels: 16,
        feature_grid: [2, 2],
        null_prompt: String::new(),
    };
    RewardInit { device: Device::Cpu, seed: 7, backbone: Some(backbone) }
}

/// The fixture `minimal_plugin`, built with the features of this test and left in a folder of its own.
pub fn plugin() -> &'static Path {
    static PLUGIN: OnceLock<PathBuf> = OnceLock::new();
    PLUGIN.get_or_init(|| build(if cfg!(feature = "torch") { "torch,loader" } else { "loader" }))
}

/// Builds the fixture with `features` and copies it away, as builds with other features write to the same place.
pub fn build(features: &str) -> PathBuf {
    let mut command = Command::new(env!("CARGO"));
    command.args(["build", "--quiet", "--message-format=json", "--example", "minimal_plugin", "--features", features]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let messages = String::from_utf8(output.stdout).expect("cargo prints JSON");
    let built = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "minimal_plugin")
        .find_map(|message| message["filenames"][0].as_str().map(PathBuf::from))
        .expect("cargo names the library");
    let copy = scratch().join(format!("libminimal_plugin-{}.so", features.replace(',', "-")));
    std::fs::copy(built, &copy).expect("the copy is written");
    copy
}

/// A folder for files of this test program.
pub fn scratch() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(std::process::id().to_string());
    std::fs::create_dir_all(&folder).expect("the folder is made");
    folder
}

/// Compiles C or C++ with `advdmd.h`, warnings being errors.
pub fn compile(compiler: &str, options: &[&str], sources: &[&Path], out: &Path) {
    let mut command = Command::new(compiler);
    command.args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O1"]).args(options);
    command
        .arg("-I")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("include"))
        .args(sources)
        .arg("-o")
        .arg(out)
        .arg("-lm");
    let output = command.output().unwrap_or_else(|error| panic!("{compiler}: {error}"));
    assert!(output.status.success(), "{compiler}: {}", String::from_utf8_lossy(&output.stderr));
}
