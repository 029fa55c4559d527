//! The files of each plugin, with `{{…}}` where names stand.

use advdmd_sdk::{Kind, abi};

use super::Language;
use crate::error::{Error, Result};

/// Path and text of a file.
type Template = (&'static str, &'static str);

macro_rules! template {
    ($path:literal, $file:literal) => {
        ($path, include_str!(concat!("../../templates/new/", $file)))
    };
}

const RUST: [Template; 4] = [
    template!("Cargo.toml", "rust/Cargo.toml.in"),
    template!("README.md", "rust/README.md"),
    template!(".gitignore", "rust/gitignore"),
    template!("tests/conformance.rs", "rust/conformance.rs.in"),
];

/// Beside [`RUST`], in the place of files of the same path.
const TORCH: [Template; 3] = [
    template!("Cargo.toml", "rust-torch/Cargo.toml.in"),
    template!("build.rs", "rust-torch/build.rs"),
    template!(".cargo/config.toml", "rust-torch/cargo-config.toml"),
];

const C: [Template; 4] = [
    template!("Makefile", "c/Makefile"),
    template!("README.md", "c/README.md"),
    template!(".gitignore", "c/gitignore"),
    ("advdmd.h", abi::C_HEADER),
];

const REWARD: Template = template!("src/lib.rs", "reward/lib.rs");
const REWARD_TORCH: Template = template!("src/lib.rs", "reward-torch/lib.rs");
const REWARD_C: Template = template!("{{name}}.c", "c/reward.c");
const REWARD_RUN: Template = template!("train.toml", "reward/train.toml");
const SAMPLER: Template = template!("src/lib.rs", "sampler/lib.rs");
const SAMPLER_C: Template = template!("{{name}}.c", "c/sampler.c");
const BACKBONE: [Template; 5] = [
    template!("Cargo.toml", "backbone/Cargo.toml.in"),
    template!("src/lib.rs", "backbone/lib.rs"),
    template!("src/backbone.rs", "backbone/backbone.rs"),
    template!("src/network.rs", "backbone/network.rs"),
    template!("pretrain.toml", "backbone/pretrain.toml"),
];

/// The files of a plugin, each path once.
///
/// # Errors
/// A kind that the language does not have.
pub fn of(kind: Kind, language: Language) -> Result<Vec<Template>> {
    let layers: Vec<&[Template]> = match (kind, language) {
        (Kind::Reward, Language::Rust) => vec![&RUST, &[REWARD, REWARD_RUN]],
        (Kind::Reward, Language::Torch) => vec![&RUST, &TORCH, &[REWARD_TORCH, REWARD_RUN]],
        (Kind::Reward, Language::C) => vec![&C, &[REWARD_C, REWARD_RUN]],
        (Kind::Sampler, Language::Rust) => vec![&RUST, &[SAMPLER]],
        (Kind::Sampler, Language::C) => vec![&C, &[SAMPLER_C]],
        (Kind::Sampler, Language::Torch) => {
            return Err(Error::usage("a sampler is numbers and needs no libtorch", "leave `--torch` out".to_owned()));
        }
        (Kind::Backbone, Language::Torch) => vec![&RUST, &TORCH, &BACKBONE],
        (Kind::Backbone, _) => return Err(Error::usage("a backbone is written in Rust with libtorch", None)),
    };
    let mut files: Vec<Template> = Vec::new();
    for &(path, text) in layers.into_iter().flatten() {
        match files.iter_mut().find(|(known, _)| *known == path) {
            Some(file) => file.1 = text,
            None => files.push((path, text)),
        }
    }
    Ok(files)
}
