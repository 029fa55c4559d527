//! `advdmd train`: a run from a configuration.

use std::path::{Path, PathBuf};

use advdmd::eval::{Entry, Table};
use advdmd::train::{self, Outcome, TrainOptions};
use advdmd::{Result, jsonl};
use clap::Args;

use super::run_config::ConfigArgs;
use super::{logging, output};

/// The options of `advdmd train`.
#[derive(Debug, Args)]
pub struct Train {
    #[command(flatten)]
    config: ConfigArgs,
    /// The run's folder [default: runs/CONFIG]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on from the newest checkpoint in the run's folder
    #[arg(long)]
    resume: bool,
    /// Resume although configuration, plugins or model files differ, or the newest checkpoint is damaged
    #[arg(long, requires = "resume")]
    allow_drift: bool,
}

pub fn run(args: &Train) -> Result<()> {
    let out = args.out.clone().unwrap_or_else(|| args.config.default_out());
    logging::record_in(&out);
    let resolved = args.config.load_run()?;
    let outcome =
        train::run(resolved, &TrainOptions { out: out.clone(), resume: args.resume, allow_drift: args.allow_drift })?;
    let config = args.config.config.display();
    conclude(&out, &outcome, &format!("advdmd train {config} --out {} --resume", out.display()))
}

/// Prints the table of a run and where its report lies, or how to go on.
pub fn conclude(out: &Path, outcome: &Outcome, resume: &str) -> Result<()> {
    if !outcome.finished {
        tracing::warn!("stopped and saved at update {}; `{resume}` goes on", outcome.updates);
        return Ok(());
    }
    let entries: Vec<Entry> = jsonl::read(&out.join("eval.jsonl"))?;
    output::text(&Table::summary(&entries).to_string())?;
    tracing::info!(
        "{} updates in {:.0} s; report: {}",
        outcome.updates,
        outcome.seconds,
        out.join("report.html").display()
    );
    Ok(())
}
