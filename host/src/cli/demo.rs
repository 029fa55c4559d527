//! `advdmd demo`: the digit teacher distilled into a 4-step student, from nothing but this program and its plugins.

use std::path::PathBuf;

use advdmd::config::load_run;
use advdmd::train::{self, TrainOptions};
use advdmd::{Result, files};
use clap::Args;

use super::compute_args::ComputeArgs;
use super::{logging, train as command};

/// The configuration of the demo.
const CONFIG: &str = include_str!("../../../examples/digits.toml");

/// The options of `advdmd demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// The run's folder
    #[arg(long, value_name = "DIR", default_value = "runs/demo")]
    out: PathBuf,
    /// Minutes of training [default: 9]
    #[arg(long, value_name = "M")]
    minutes: Option<f64>,
    /// Change a key, such as `--set objective.grpo.weight=0.0`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Go on after Ctrl-C
    #[arg(long)]
    resume: bool,
}

pub fn run(args: &Demo) -> Result<()> {
    files::create_dir(&args.out)?;
    let config = args.out.join("demo.toml");
    files::write(&config, CONFIG.as_bytes())?;
    logging::record_in(&args.out);
    let minutes = args.minutes.map(|minutes| format!("schedule.max_minutes={minutes:?}"));
    let sets: Vec<String> = args.sets.iter().cloned().chain(args.compute.sets()).chain(minutes).collect();
    let options = TrainOptions { out: args.out.clone(), resume: args.resume, allow_drift: false };
    let outcome = train::run(load_run(&config, &sets)?, &options)?;
    command::conclude(&args.out, &outcome, &format!("advdmd demo --out {} --resume", args.out.display()))
}
