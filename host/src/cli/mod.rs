//! The command line: one file per command, each of which calls the library.

mod check;
mod compute_args;
mod config;
mod convert;
mod demo;
mod digits;
mod eval;
mod export;
mod logging;
mod model_args;
mod new;
mod output;
mod plan;
mod plugins;
mod pretrain;
mod recipes;
mod render;
mod replay;
mod report;
mod run_config;
mod sample;
mod score;
mod train;

use std::process::ExitCode;

use advdmd::Error;
use clap::{ArgAction, Args, Parser, Subcommand};

/// Distils text-to-image diffusion models into few-step ones with DMD and GRPO
#[derive(Debug, Parser)]
#[command(name = "advdmd", version, max_term_width = 100, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    verbosity: Verbosity,
    #[command(subcommand)]
    command: Command,
}

/// How much is said on stderr.
#[derive(Debug, Clone, Copy, Args)]
struct Verbosity {
    /// Say more; twice for everything. The variable `RUST_LOG` chooses in detail
    #[arg(short, long, action = ArgAction::Count, global = true)]
    verbose: u8,
    /// Say only warnings; twice for errors alone
    #[arg(short, long, action = ArgAction::Count, global = true, conflicts_with = "verbose")]
    quiet: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Distil a student as a configuration says
    Train(train::Train),
    /// Say what a run would do and need: batch arithmetic, passes, memory, disk, time
    Plan(plan::PlanArgs),
    /// Train a small backbone from scratch by flow matching
    Pretrain(pretrain::Pretrain),
    /// Make images of prompts with a student or a backbone
    Sample(sample::Sample),
    /// Score a student or a backbone on a suite
    Eval(eval::Eval),
    /// Score images in files with rewards
    Score(score::Score),
    /// Write a student in the format of another tool, and prove that it arrived
    Export(export::Export),
    /// Bring weights of other tools to the layout that plugins read
    #[command(subcommand)]
    Convert(convert::Command),
    /// Distil the digit teacher into a 4-step student and show the result
    Demo(demo::Demo),
    /// Go once more through an update that was not finite, and show every tensor on the way
    Replay(replay::Replay),
    /// Write a plugin to start from: a reward, a sampler or a backbone
    #[command(subcommand)]
    New(new::Command),
    /// Hold a component against a reference
    #[command(subcommand)]
    Check(check::Command),
    /// Write the HTML report of a run anew
    Report(report::Report),
    /// List and describe the plugins that are found
    #[command(subcommand)]
    Plugins(plugins::Command),
    /// Explain, compare and describe configurations
    #[command(subcommand)]
    Config(config::Command),
    /// List and show the presets that a configuration can start from
    #[command(subcommand)]
    Recipes(recipes::Command),
    /// The embedded digit scenes
    #[command(subcommand)]
    Digits(digits::Command),
    /// The process of a reward with `isolation = "process"`
    #[command(hide = true)]
    PluginHost,
}

/// Runs the program: exit code 0, 1 for a failure, 2 for a command line or configuration that must be changed.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if matches!(cli.command, Command::PluginHost) {
        logging::start_for_run();
    } else {
        logging::start(cli.verbosity);
    }
    match loaded_libtorch().and_then(|()| dispatch(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            render::error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// Another libtorch than that of the build may start and then compute anything.
fn loaded_libtorch() -> Result<(), Error> {
    advdmd_sdk::abi::libtorch::check().map_err(|error| {
        let hint = "it comes from LD_LIBRARY_PATH: take its folder out, or put libtorch's own first".to_owned();
        Error::usage(error, hint)
    })
}

/// For options that count something.
fn at_least_one(text: &str) -> Result<usize, String> {
    let count: usize = text.parse().map_err(|_| "expected a whole number, 1 or more".to_owned())?;
    if count == 0 { Err("expected 1 or more".to_owned()) } else { Ok(count) }
}

fn dispatch(command: Command) -> Result<(), Error> {
    match command {
        Command::Train(args) => train::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Pretrain(args) => pretrain::run(&args),
        Command::Sample(args) => sample::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Score(args) => score::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Convert(command) => convert::run(&command),
        Command::Demo(args) => demo::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::New(command) => new::run(command),
        Command::Check(command) => check::run(&command),
        Command::Report(args) => report::run(&args),
        Command::Plugins(command) => plugins::run(command),
        Command::Config(command) => config::run(command),
        Command::Recipes(command) => recipes::run(command),
        Command::Digits(command) => digits::run(command),
        Command::PluginHost => advdmd::containment::serve(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
