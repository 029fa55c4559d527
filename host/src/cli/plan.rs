//! `advdmd plan`: what a run would do and need.

use advdmd::Result;
use advdmd::plan::Plan;
use advdmd::registry::Registry;
use advdmd::train::Trainer;
use clap::Args;

use super::output;
use super::run_config::ConfigArgs;

/// The options of `advdmd plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Loads the backbone, probes each phase of an update on a few samples, and writes nothing.
pub fn run(args: &PlanArgs) -> Result<()> {
    let resolved = args.config.load_run()?;
    let registry = Registry::discover(&resolved.config.plugins.paths)?;
    let plan = Plan::of(&mut Trainer::sketch(&resolved, &registry)?)?;
    if args.json { output::json(&plan) } else { output::text(&plan.to_string()) }
}
