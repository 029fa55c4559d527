//! `advdmd report`: the HTML report of a run, written anew.

use std::path::PathBuf;

use advdmd::{Result, report};
use clap::Args;

use super::output;

/// The options of `advdmd report`.
#[derive(Debug, Args)]
pub struct Report {
    /// The run's folder
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
}

pub fn run(args: &Report) -> Result<()> {
    output::text(&report::write(&args.run)?.display().to_string())
}
