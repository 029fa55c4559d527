//! What a stranger does: a plugin of `advdmd new`, or a copy of an example, in a folder outside of this workspace, built by
//! plain `cargo build` or `make`, found, and used.
//!
//! All builds share `target/strangers`, so that each dependency is compiled once; cargo lets one build wait for another.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use advdmd_sdk::abi::Plugin;
use advdmd_sdk::{Device, RewardBatch, RewardInit, TensorView};
use advdmd_tests::{Installation, PLUGINS, TINY, numbers, profile_dir, repository};
use serde_json::{Value, json};

/// A stranger's machine: the installed program, and a folder to work in.
struct Machine(Installation);

impl Machine {
    fn new() -> Self {
        Self(Installation::with(&PLUGINS))
    }

    /// Runs the program in a folder; it must succeed.
    fn advdmd(&self, folder: &Path, args: &[&str]) -> String {
        succeeded(&mut self.command(folder, args))
    }

    fn command(&self, folder: &Path, args: &[&str]) -> Command {
        let mut command = self.0.command(args);
        command.current_dir(folder);
        command
    }

    /// A plugin of `advdmd new`, with the versions of this workspace.
    fn new_plugin(&self, name: &str, args: &[&str]) -> PathBuf {
        self.advdmd(self.0.folder(), &[&["new", args[0], name], &args[1..]].concat());
        Self::ready(self.0.folder().join(name))
    }

    /// A copy of an example, whose SDK is that of this checkout.
    fn example(&self, name: &str) -> PathBuf {
        let folder = self.0.folder().join(name);
        copy(&repository().join("examples").join(name), &folder);
        let manifest = folder.join("Cargo.toml");
        if let Ok(text) = fs::read_to_string(&manifest) {
            let sdk = repository().join("sdk");
            fs::write(manifest, text.replace("../../sdk", sdk.to_str().unwrap())).unwrap();
        }
        Self::ready(folder)
    }

    /// Without the network, versions must be those that are on this machine.
    fn ready(folder: PathBuf) -> PathBuf {
        if folder.join("Cargo.toml").exists() {
            fs::copy(repository().join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
        }
        folder
    }

    /// Builds a plugin and asks the program what it finds in the folder of the library: its path.
    fn build(&self, folder: &Path, kind: &str, name: &str) -> PathBuf {
        let package = folder.file_name().unwrap().to_str().unwrap().trim_end_matches("-c");
        let file = format!("lib{}.so", package.replace('-', "_"));
        let library = if folder.join("Makefile").exists() {
            let mut make = Command::new("make");
            let include = repository().join("sdk/include");
            make.arg(format!("SDK={}", include.display())).env("CFLAGS", "-O2 -Werror");
            succeeded(make.current_dir(folder));
            folder.join(file)
        } else {
            succeeded(&mut cargo(folder, &["build"]));
            // Where a build of its own leaves it.
            let place = folder.join("target/debug");
            fs::create_dir_all(&place).unwrap();
            fs::copy(target().join("debug").join(&file), place.join(&file)).unwrap();
            place.join(file)
        };
        let path = library.parent().unwrap().to_str().unwrap();
        let listed: Value =
            serde_json::from_str(&self.advdmd(folder, &["plugins", "list", "--path", path, "--json"])).unwrap();
        let found = listed["components"].as_array().unwrap().iter().find(|it| it["name"] == name);
        let found = found.unwrap_or_else(|| panic!("{name} is not listed: {listed:#}"));
        assert_eq!((&found["kind"], &found["plugin"]["path"]), (&json!(kind), &json!(library)));
        assert_eq!(listed["refused"], json!([]));
        library
    }

    /// Trains for two updates with the smallest network; the metrics must know the reward.
    fn train(&self, folder: &Path, config: &str, reward: &str) {
        let sets = ["schedule.updates=2", "eval.every=0", "eval.prompts_per_task=1", "eval.grid=0", "critic.updates=1"];
        let sets = TINY.iter().chain(&sets).flat_map(|set| ["--set", set]);
        let args: Vec<_> = ["train", config, "--out", "run"].into_iter().chain(sets).collect();
        self.advdmd(folder, &args);
        let updates = numbers(&folder.join("run"));
        assert_eq!(updates.len(), 2);
        for (update, values) in updates {
            let known: Vec<_> = values.iter().filter(|(name, _)| name.contains(reward)).collect();
            assert!(!known.is_empty() && known.iter().all(|(_, value)| value.is_finite()), "{update}: {values:?}");
        }
    }
}

fn target() -> PathBuf {
    profile_dir().parent().unwrap().join("strangers")
}

/// Cargo as a stranger calls it, in the folder of a plugin.
fn cargo(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        // What the outer cargo told this test.
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_") && name != "CARGO_HOME") {
            command.env_remove(name);
        }
    }
    command.args(args).arg("--offline").current_dir(folder).env("CARGO_TARGET_DIR", target());
    if std::env::var_os("LIBTORCH").is_none() {
        command.env("LIBTORCH", repository().join(".libtorch").canonicalize().unwrap_or_default());
    }
    command
}

fn succeeded(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    assert!(status.success(), "{command:?}\n{stdout}{}", String::from_utf8_lossy(&stderr));
    stdout
}

/// Copies the sources of an example.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name());
        let built = name == "target" || name == "Cargo.lock" || path.extension().is_some_and(|end| end == "so");
        match entry.file_type().unwrap().is_dir() {
            _ if built => {}
            true => copy(&path, &to.join(name)),
            false => drop(fs::copy(&path, to.join(name)).unwrap()),
        }
    }
}

/// Three images of 4x4 pixels, of which the last is of one colour.
fn pixels() -> Vec<f32> {
    let varied = (0..96).map(|index| ((index * index * 7 + index * 3) % 101) as f32 / 128.0);
    varied.chain([0.375; 48]).collect()
}

/// What a reward's library says of them.
fn scores(library: &Path, config: &Value) -> Vec<f32> {
    let init = RewardInit { device: Device::Cpu, seed: 0, backbone: None };
    let mut reward = Plugin::open(library).unwrap().reward(config, &init).unwrap();
    let pixels = pixels();
    let images = Some(TensorView::from_f32(&pixels, &[3, 3, 4, 4]).unwrap());
    reward.score(&RewardBatch { prompts: vec!["a", "b", "c"], images, ..RewardBatch::default() }).unwrap()
}

fn assert_close(found: &[f32], expected: &[f32]) {
    let close = found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5);
    assert!(close, "{found:?}, expected {expected:?}");
}

/// The whole path of the README: `new`, build, train. And a reward in C and one on libtorch that say the same.
#[test]
fn rewards_of_new_build_train_and_agree() {
    let machine = Machine::new();
    let rust = machine.new_plugin("my-reward", &["reward"]);
    let rust_library = machine.build(&rust, "reward", "my-reward");
    machine.train(&rust, "train.toml", "my-reward");

    let c = machine.new_plugin("my-c-reward", &["reward", "--c"]);
    let c_library = machine.build(&c, "reward", "my-c-reward");
    machine.train(&c, "train.toml", "my-c-reward");

    let expected: Vec<f32> = pixels().chunks(48).map(|image| -(contrast(image) - 0.1).abs()).collect();
    assert!(expected[0] < -0.01 && expected[0] != expected[1], "{expected:?}");
    for (name, library) in [("my-reward", rust_library), ("my-c-reward", c_library)] {
        assert_close(&scores(&library, &json!({ "type": name, "target": 0.1 })), &expected);
        let folder = library.parent().unwrap();
        let mut command = machine.command(folder, &["score", "--reward", &format!("type={name},goal=1")]);
        command.args(["--prompt", "x", "--images"]).arg(repository().join("examples/photos/cat.jpg"));
        let output = command.env("ADVDMD_PLUGIN_PATH", folder).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains("goal"), "{message}");
    }
}

/// Standard deviation of the brightness of an image `[3, 4, 4]`.
fn contrast(image: &[f32]) -> f32 {
    let brightness: Vec<f32> = (0..16).map(|at| (image[at] + image[at + 16] + image[at + 32]) / 3.0).collect();
    let mean = brightness.iter().sum::<f32>() / 16.0;
    (brightness.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / 16.0).sqrt()
}

#[test]
fn a_reward_of_new_on_libtorch_builds_and_scores() {
    let machine = Machine::new();
    let folder = machine.new_plugin("my-torch-reward", &["reward", "--torch"]);
    let library = machine.build(&folder, "reward", "my-torch-reward");
    let expected: Vec<f32> = pixels().chunks(48).map(|image| -(contrast(image) - 0.1).abs()).collect();
    assert_close(&scores(&library, &json!({ "type": "my-torch-reward", "target": 0.1 })), &expected);
}

#[test]
fn samplers_of_new_build_and_sample() {
    let machine = Machine::new();
    for (name, args) in [("my-sampler", &["sampler"] as &[&str]), ("my-c-sampler", &["sampler", "--c"])] {
        let folder = machine.new_plugin(name, args);
        let library = machine.build(&folder, "sampler", name);
        let sampler = Plugin::open(&library).unwrap().sampler(&json!({ "type": name, "power": 2.0 })).unwrap();
        assert_eq!(sampler.sigmas(2).unwrap(), [1.0, 0.75, 0.0]);
        assert_eq!(sampler.transition(&[1.0, 0.75, 0.0], 1).unwrap().b, [-0.75]);
        let args = ["sample", "--backbone", "digits", "--sampler", name, "--prompt", "a red 7", "--out", "pictures"];
        let mut command = machine.command(&folder, &args);
        succeeded(command.args(["--steps", "4"]).env("ADVDMD_PLUGIN_PATH", library.parent().unwrap()));
        assert!(folder.join("pictures/00000.png").exists());
    }
}

#[test]
fn a_backbone_of_new_builds_and_pretrains() {
    let machine = Machine::new();
    let folder = machine.new_plugin("my-backbone", &["backbone"]);
    machine.build(&folder, "backbone", "my-backbone");
    let sets = ["steps=2", "batch_size=2", "eval_prompts_per_task=1", "compute.threads=1"];
    let args = ["pretrain", "pretrain.toml", "--out", "run"].into_iter();
    let args: Vec<_> = args.chain(sets.into_iter().flat_map(|set| ["--set", set])).collect();
    machine.advdmd(&folder, &args);
}

#[test]
fn examples_without_libtorch_build_and_work() {
    let machine = Machine::new();
    let folder = machine.example("reward-colorfulness");
    let library = machine.build(&folder, "reward", "colorfulness");
    // Far above the limit, and the last image is grey.
    assert_eq!(scores(&library, &json!({ "type": "colorfulness", "limit": 20.0 })), [20.0, 20.0, 0.0]);
    let release = folder.join("target/release");
    fs::create_dir_all(&release).unwrap();
    fs::rename(&library, release.join(library.file_name().unwrap())).unwrap();
    let config = include_str!("../../examples/digits-colorfulness.toml");
    machine.0.write("digits-colorfulness.toml", config);
    machine.train(machine.0.folder(), "digits-colorfulness.toml", "colorfulness");

    let folder = machine.example("reward-symmetry-c");
    let library = machine.build(&folder, "reward", "symmetry");
    let mirrored = |image: &[f32]| {
        let rows = image.chunks(4).flat_map(|row| row.iter().zip(row.iter().rev()).map(|(a, b)| (a - b).abs()));
        -rows.sum::<f32>() / 48.0
    };
    let expected: Vec<_> = pixels().chunks(48).map(mirrored).collect();
    assert!(expected[0] < -0.01 && expected[2] == 0.0);
    assert_close(&scores(&library, &json!({ "type": "symmetry" })), &expected);

    let folder = machine.example("sampler-ab2");
    let library = machine.build(&folder, "sampler", "ode-ab2");
    let sampler = Plugin::open(&library).unwrap().sampler(&json!({ "type": "ode-ab2" })).unwrap();
    // Exact for a velocity that is a line in sigma, whatever the steps: x' - x is its integral.
    let sigmas = [1.0, 0.9, 0.6, 0.5, 0.0];
    for step in 1..4 {
        let b = sampler.transition(&sigmas, step).unwrap().b;
        let line = |sigma: f64| 0.3 + 2.0 * sigma;
        let integral = |sigma: f64| 0.3 * sigma + sigma * sigma;
        let found = b[0] * line(sigmas[step]) + b[1] * line(sigmas[step - 1]);
        let expected = integral(sigmas[step + 1]) - integral(sigmas[step]);
        assert!((found - expected).abs() < 1e-12, "step {step}: {found}, expected {expected}");
    }
}

#[test]
fn the_example_on_libtorch_builds_and_works() {
    let machine = Machine::new();
    let folder = machine.example("reward-sharpness-torch");
    let library = machine.build(&folder, "reward", "sharpness");
    // A Laplacian on the four inner pixels.
    let expected = |image: &[f32]| {
        let at = |y: usize, x: usize| (0..3).map(|c| image[c * 16 + y * 4 + x]).sum::<f32>() / 3.0;
        let laplacian = |y, x| at(y - 1, x) + at(y + 1, x) + at(y, x - 1) + at(y, x + 1) - 4.0 * at(y, x);
        let values = [laplacian(1, 1), laplacian(1, 2), laplacian(2, 1), laplacian(2, 2)];
        let mean = values.iter().sum::<f32>() / 4.0;
        (values.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / 4.0 + 1e-4).ln()
    };
    let expected: Vec<_> = pixels().chunks(48).map(expected).collect();
    assert_close(&scores(&library, &json!({ "type": "sharpness" })), &expected);
}

/// The plugins' own tests, and the program's.
#[test]
fn all_pass_their_checks() {
    let machine = Machine::new();
    let new = |name: &str, args: &[&str]| machine.new_plugin(name, args);
    let plugins = [
        (new("my-reward", &["reward"]), "reward", "my-reward"),
        (new("my-torch-reward", &["reward", "--torch"]), "reward", "my-torch-reward"),
        (new("my-c-reward", &["reward", "--c"]), "reward", "my-c-reward"),
        (new("my-sampler", &["sampler"]), "sampler", "my-sampler"),
        (new("my-c-sampler", &["sampler", "--c"]), "sampler", "my-c-sampler"),
        (new("my-backbone", &["backbone"]), "backbone", "my-backbone"),
        (machine.example("reward-colorfulness"), "reward", "colorfulness"),
        (machine.example("reward-sharpness-torch"), "reward", "sharpness"),
        (machine.example("reward-symmetry-c"), "reward", "symmetry"),
        (machine.example("sampler-ab2"), "sampler", "ode-ab2"),
    ];
    for (folder, kind, name) in plugins {
        let library = machine.build(&folder, kind, name);
        let path = library.parent().unwrap().to_str().unwrap().to_owned();
        machine.advdmd(&folder, &["check", kind, &format!("type={name}"), "--plugin-path", &path]);
        // One of each sort: the kit itself is compiled with libtorch and without.
        if ["my-sampler", "my-reward", "colorfulness", "my-torch-reward"].contains(&name) {
            succeeded(&mut cargo(&folder, &["test"]));
        }
    }
}
