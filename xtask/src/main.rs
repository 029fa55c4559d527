//! `cargo xtask`: set-up, build, test and the shipped runs of this repository.
//!
//! The CI and the documents call only these commands, so what passes here passes there. This crate depends on nothing
//! heavy: it compiles in seconds and does not need libtorch, which it brings.

mod cargo;
mod libtorch;
mod project;
mod steps;
mod task;

use clap::{Args, Parser, Subcommand};
use project::Project;
use std::process::ExitCode;
use task::program::TEACHER_CONFIG;

/// Sets up, builds and tests this repository.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make libtorch available, and print where it is
    ///
    /// Takes the libtorch that LIBTORCH names, else the one of an installed Python torch,
    /// else the cached download, else downloads one with pip (550 MB). The cache is
    /// `$ADVDMD_CACHE`, `$XDG_CACHE_HOME/advdmd` or `~/.cache/advdmd`.
    ///
    /// After it, plain `cargo build`, `cargo test` and rust-analyzer work as well, through
    /// the link `.libtorch`.
    #[command(verbatim_doc_comment)]
    Setup,
    /// Build the program and the plugins, and put the plugins where the program looks for them
    Build(task::build::Options),
    /// Run all checks: format, lints, documents, build, tests, documentation examples
    Test,
    /// Feed the readers of foreign files with random bytes, found by libFuzzer
    Fuzz(task::fuzz::Options),
    /// Build for release, then run `advdmd demo`
    Demo(Rest),
    /// Build for release, then train the shipped teacher of the digit scenes from scratch
    Teacher(Rest),
    /// Build for release, then train the classifier that checks digit scenes
    Checker(Rest),
    /// Build for release, then run the benchmarks
    Bench(Rest),
}

/// What is passed on as it is.
#[derive(Args)]
struct Rest {
    /// Passed on to what is run
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let project = Project::locate()?;
    match &cli.command {
        Command::Setup => task::setup::run(&project),
        Command::Build(options) => task::build::run(&project, *options),
        Command::Test => task::test::run(&project),
        Command::Fuzz(options) => task::fuzz::run(&project, options),
        Command::Demo(rest) => task::program::run(&project, &["demo"], &rest.args),
        Command::Teacher(rest) => task::program::run(&project, &["pretrain", TEACHER_CONFIG], &rest.args),
        Command::Checker(rest) => task::program::run(&project, &["digits", "train-checker"], &rest.args),
        Command::Bench(rest) => task::bench::run(&project, &rest.args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_follows_the_command_is_passed_on() {
        let cli = Cli::parse_from(["xtask", "demo", "--steps", "4", "--out=runs/x"]);
        let Command::Demo(rest) = cli.command else { panic!("not the demo") };
        assert_eq!(rest.args, ["--steps", "4", "--out=runs/x"]);
    }
}
