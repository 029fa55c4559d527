//! `cargo xtask fuzz`: libFuzzer on the targets of `tests/fuzz`, on the stable toolchain.
//!
//! Only this workspace is instrumented (`tests/fuzz/rustc.sh`): its dependencies, libtorch's bindings among them, stay as
//! they were built. What a run finds anew goes to `target/fuzz`; the corpus of the repository is only read.

use crate::cargo::cargo;
use crate::libtorch;
use crate::project::Project;
use crate::steps::Steps;
use anyhow::{Context, Result};
use clap::Args;
use std::fs;
use std::process::Command;

/// Bytes of the longest input that libFuzzer makes.
const LONGEST: usize = 4096;

#[derive(Args)]
pub struct Options {
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    pub seconds: u32,
    /// The targets [default: all]
    pub targets: Vec<String>,
}

/// All targets, the names of the programs in `tests/fuzz`.
const TARGETS: [&str; 5] = ["header", "config", "index", "weights", "pickle"];

pub fn run(project: &Project, options: &Options) -> Result<()> {
    libtorch::require(project)?;
    let mut steps = Steps::default();
    let all: Vec<String> = TARGETS.map(str::to_owned).into();
    steps.command("build", instrumented(project, "build").arg("--bins"))?;
    let folder = project.root.join("tests/fuzz");
    for target in if options.targets.is_empty() { &all } else { &options.targets } {
        let found = project.root.join("target/fuzz").join(target);
        fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
        let mut command = instrumented(project, "run");
        command.args(["--bin", target, "--"]);
        command.arg(&found).arg(folder.join("corpus").join(target));
        let words = folder.join(target).with_extension("dict");
        if words.exists() {
            command.arg(format!("-dict={}", words.display()));
        }
        command.arg(format!("-max_total_time={}", options.seconds)).arg(format!("-max_len={LONGEST}"));
        command.arg(format!("-artifact_prefix={}/", project.root.join("target/fuzz").display()));
        steps.command("fuzz", command.args(["-print_final_stats=1", "-verbosity=0"]))?;
    }
    println!("\n{}", steps.summary());
    Ok(())
}

fn instrumented(project: &Project, command: &str) -> Command {
    let mut cargo = cargo(project, &[command, "--quiet", "--package", "advdmd-fuzz", "--features", "libfuzzer"]);
    cargo.env("RUSTC_WORKSPACE_WRAPPER", project.root.join("tests/fuzz/rustc.sh"));
    cargo
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_a_program_and_a_corpus() {
        let folder = Project::locate().unwrap().root.join("tests/fuzz");
        let names = |part: &str| {
            let entries = fs::read_dir(folder.join(part)).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_owned()).collect();
            names.sort();
            names
        };
        let mut expected = TARGETS;
        expected.sort_unstable();
        assert_eq!(names("corpus"), expected);
        assert_eq!(names("fuzz_targets"), expected);
    }
}
