//! `cargo xtask demo`, `teacher` and `checker`: the program's own commands, built for release first.

use super::build::{self, Options};
use crate::project::Project;
use anyhow::{Context, Result};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// How the shipped teacher was trained.
pub const TEACHER_CONFIG: &str = "plugins/backbone-digits/teacher/pretrain.toml";

/// Builds, then becomes the program, so that its signals and exit code are those of this command.
pub fn run(project: &Project, command: &[&str], args: &[String]) -> Result<()> {
    let made = build::build(project, Options { release: true, ..Options::default() })?;
    let program = made.program.context("the build made no program `advdmd`")?;
    let error = Command::new(&program).current_dir(&project.root).args(command).args(args).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}
