//! Cargo, called as a user at the root of the repository would call it.

use crate::project::Project;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::env;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// They would lead `torch-sys` away from LIBTORCH.
const LIBTORCH_VARIABLES: [&str; 4] = ["LIBTORCH_USE_PYTORCH", "LIBTORCH_INCLUDE", "LIBTORCH_LIB", "LIBTORCH_STATIC"];

/// `cargo` with the given arguments.
///
/// What the outer `cargo run` put into the environment is taken out again. Otherwise build scripts would see other values
/// than in a plain `cargo build`, and each change between the two would build libtorch's bindings anew.
pub fn cargo(project: &Project, args: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(&project.root).args(args);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") || text == "CARGO_PRIMARY_PACKAGE" {
            command.env_remove(&name);
        }
    }
    for name in LIBTORCH_VARIABLES {
        command.env_remove(name);
    }
    if project.libtorch_of_user().is_none() {
        // `.cargo/config.toml` sets it.
        command.env_remove("LIBTORCH");
    }
    command
}

/// What a build made.
#[derive(Debug, Default, PartialEq)]
pub struct Artifacts {
    /// The program `advdmd`.
    pub program: Option<PathBuf>,
    /// The dynamic libraries of the packages in `plugins/`.
    pub plugins: Vec<PathBuf>,
}

/// Runs a `cargo build` and reads which files it made; warnings and errors appear as usual.
pub fn build(project: &Project, args: &[&str]) -> Result<Artifacts> {
    let mut command = cargo(project, &["build", "--message-format=json-render-diagnostics"]);
    let mut child = command.args(args).stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let mut artifacts = Artifacts::default();
    for line in BufReader::new(child.stdout.take().context("cargo has no output")?).lines() {
        artifacts.read(&line?, &project.root.join("plugins"));
    }
    if !child.wait()?.success() {
        bail!("`cargo build {}` failed", args.join(" "));
    }
    Ok(artifacts)
}

impl Artifacts {
    /// Takes one of cargo's messages into account.
    fn read(&mut self, message: &str, plugins: &Path) {
        // What is not JSON is the output of a build script or a wrapper.
        let Ok(message) = serde_json::from_str::<Value>(message) else { return };
        if message["reason"] != "compiler-artifact" {
            return;
        }
        let is_kind =
            |kind: &str| message["target"]["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|k| k == kind));
        // A program's own tests are built under its name too.
        let is_test = message["profile"]["test"] == true;
        if is_kind("bin") && !is_test && message["target"]["name"] == "advdmd" {
            self.program = message["executable"].as_str().map(PathBuf::from);
        }
        let below_plugins = message["manifest_path"].as_str().is_some_and(|path| Path::new(path).starts_with(plugins));
        if is_kind("cdylib") && below_plugins {
            let files = message["filenames"].as_array().into_iter().flatten().filter_map(Value::as_str).map(Path::new);
            let libraries = files.filter(|file| file.extension().is_some_and(|end| end == env::consts::DLL_EXTENSION));
            self.plugins.extend(libraries.map(Path::to_path_buf));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn artifacts_are_the_program_and_the_plugins() {
        let artifact = |package: &str, kinds: &[&str], name: &str, files: &[&str]| {
            json!({
                "reason": "compiler-artifact", "manifest_path": format!("/r/{package}/Cargo.toml"),
                "target": {"kind": kinds, "name": name}, "filenames": files, "profile": {"test": false},
                "executable": kinds.contains(&"bin").then_some(files[0]),
            })
            .to_string()
        };
        let both = ["cdylib", "rlib"];
        let messages = [
            artifact("plugins/a", &both, "a", &["/r/target/debug/liba.so", "/r/target/debug/liba.rlib"]),
            artifact("examples/b", &both, "b", &["/r/target/debug/libb.so"]),
            artifact("plugins-old/c", &both, "c", &["/r/target/debug/libc.so"]),
            artifact("plugins/a", &["custom-build"], "build-script-build", &["/r/target/x"]),
            artifact("host", &["bin"], "advdmd", &["/r/target/debug/advdmd"]),
            artifact("host", &["bin"], "advdmd", &["/r/target/debug/deps/advdmd-1"])
                .replace("\"test\":false", "\"test\":true"),
            artifact("xtask", &["bin"], "xtask", &["/r/target/debug/xtask"]),
            "warning: not a message".into(),
            json!({"reason": "build-finished", "success": true}).to_string(),
        ];
        let mut artifacts = Artifacts::default();
        for message in &messages {
            artifacts.read(message, Path::new("/r/plugins"));
        }
        let expected = Artifacts {
            program: Some("/r/target/debug/advdmd".into()),
            plugins: vec!["/r/target/debug/liba.so".into()],
        };
        assert_eq!(artifacts, expected);
    }
}
