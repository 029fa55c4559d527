//! `advdmd digits`: the embedded digit scenes.

use std::path::PathBuf;

use advdmd::Result;
use advdmd::digits::train::TrainOptions;
use advdmd::digits::train_to_file;
use advdmd::progress::Progress;
use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train the classifier that reads generated scenes back, and measure it
    TrainChecker(TrainChecker),
}

/// The options of `advdmd digits train-checker`; the defaults made the shipped weights.
#[derive(Debug, Args)]
pub struct TrainChecker {
    /// All randomness comes from it
    #[arg(long, value_name = "S", default_value_t = TrainOptions::default().seed)]
    seed: u64,
    /// Updates
    #[arg(long, value_name = "N", default_value_t = TrainOptions::default().steps)]
    steps: usize,
    /// The file of weights to write; how well they read is written beside it, as `.json`
    #[arg(long, value_name = "FILE", default_value = "checker.safetensors")]
    out: PathBuf,
}

pub fn run(command: Command) -> Result<()> {
    match command {
        Command::TrainChecker(args) => train(&args),
    }
}

fn train(args: &TrainChecker) -> Result<()> {
    let options = TrainOptions { seed: args.seed, steps: args.steps, ..TrainOptions::default() };
    let command =
        format!("advdmd digits train-checker --out {} --seed {} --steps {}", args.out.display(), args.seed, args.steps);
    let mut bar = Progress::new("training", 0, options.steps as u64);
    let report = train_to_file(&args.out, &command, &options, |at| {
        bar.advance(at.step as u64, format_args!("loss {:.4}", at.loss));
    })?;
    drop(bar);
    tracing::info!("held-out digits read right: {:.2} %", 100.0 * report.held_out_accuracy);
    tracing::info!("wrote {}", args.out.display());
    Ok(())
}
