//! `cargo xtask test`: all that must hold before a merge, from the quickest to the slowest.

use super::{build, fuzz};
use crate::cargo::cargo;
use crate::libtorch;
use crate::project::Project;
use crate::steps::Steps;
use anyhow::Result;

/// Seconds for each fuzz target: enough to see that it still holds what it held.
const FUZZ_SECONDS: u32 = 5;

pub fn run(project: &Project) -> Result<()> {
    let mut steps = Steps::default();
    steps.run("libtorch", "cargo xtask setup", || libtorch::require(project))?;
    steps.command("format", &mut cargo(project, &["fmt", "--all", "--check"]))?;
    // The promise to plugin authors: the SDK alone needs no libtorch.
    steps.command("sdk alone", &mut cargo(project, &["check", "--package", "advdmd-sdk"]))?;
    let lints = ["--all-targets", "--", "-D", "warnings"];
    steps.command("lints", cargo(project, &["clippy", "--workspace"]).args(lints))?;
    let with_static = ["clippy", "--workspace", "--features", "advdmd/static-plugins"];
    steps.command("lints, static", cargo(project, &with_static).args(lints))?;
    let mut documents = cargo(project, &["doc", "--workspace", "--no-deps"]);
    steps.command("documents", documents.env("RUSTDOCFLAGS", "-D warnings"))?;
    steps.run("build", "cargo xtask build", || build::build_for_tests(project).map(drop))?;
    let runner: &[&str] =
        if has_nextest(project) { &["nextest", "run", "--workspace"] } else { &["test", "--workspace", "--tests"] };
    // One thread per test: OpenMP's threads wait by spinning, and tests side by side would wait for each other.
    steps.command("tests", cargo(project, runner).env("OMP_NUM_THREADS", "1"))?;
    let briefly = fuzz::Options { seconds: FUZZ_SECONDS, targets: Vec::new() };
    steps.run("fuzz", &format!("cargo xtask fuzz --seconds {FUZZ_SECONDS}"), || fuzz::run(project, &briefly))?;
    steps.command("doc examples", &mut cargo(project, &["test", "--workspace", "--doc"]))?;
    println!("\n{}", steps.summary());
    Ok(())
}

fn has_nextest(project: &Project) -> bool {
    cargo(project, &["nextest", "--version"]).output().is_ok_and(|output| output.status.success())
}
