//! `advdmd check`: a component against a reference.

use std::path::PathBuf;

use advdmd::parity::{Comparison, Golden};
use advdmd::registry::Registry;
use advdmd::{Error, Result, files, prompt_file};
use clap::{Args, Subcommand};

use super::compute_args::ComputeArgs;
use super::model_args::BackboneArgs;
use super::output;

/// What to check.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Compute the tensors of a golden file again, which a reference implementation made, and compare
    Backbone(CheckBackbone),
}

/// The options of `advdmd check backbone`.
#[derive(Debug, Args)]
pub struct CheckBackbone {
    #[command(flatten)]
    backbone: BackboneArgs,
    /// The reference's tensors: `noise`, `prompt_embeds`, `velocity_0`, …
    #[arg(long, value_name = "G.safetensors")]
    golden: PathBuf,
    /// The prompts of `prompt_embeds`: a JSON list of strings, or one a line
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// The largest absolute difference that passes
    #[arg(long, value_name = "X", default_value_t = 1e-4)]
    tolerance: f64,
    /// Write the comparisons as JSON as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    compute: ComputeArgs,
}

pub fn run(command: &Command) -> Result<()> {
    let Command::Backbone(args) = command;
    let prompts = args.prompts.as_deref().map(prompt_file::read).transpose()?;
    let prompts = prompts.map(|rows| rows.into_iter().map(|row| row.prompt).collect());
    let registry = Registry::discover(&[])?;
    let (backbone, device) = args.backbone.load(&registry, &args.compute.compute()?)?;
    let golden = Golden::read(&args.golden, prompts, device)?;
    let comparisons = golden.compare(backbone.as_ref())?;
    if let Some(path) = &args.json {
        files::write_json(path, &comparisons)?;
    }
    output::text(&table(&comparisons, args.tolerance))?;
    let over = comparisons.iter().filter(|comparison| !comparison.holds(args.tolerance)).count();
    if over > 0 {
        let (all, tolerance) = (comparisons.len(), args.tolerance);
        return Err(Error::failed(format!("{over} of {all} tensors differ by more than {tolerance}")));
    }
    tracing::info!("{} tensors agree within {}", comparisons.len(), args.tolerance);
    Ok(())
}

fn table(comparisons: &[Comparison], tolerance: f64) -> String {
    let heading = ["tensor", "absolute", "relative", "largest", ""].map(str::to_owned).to_vec();
    let rows = comparisons.iter().map(|comparison| {
        let verdict = if comparison.holds(tolerance) { "ok" } else { "DIFFERS" };
        let Comparison { key, absolute, relative, largest, error } = comparison;
        match error {
            Some(error) => vec![key.clone(), format!("failed: {error}")],
            None => vec![
                key.clone(),
                format!("{absolute:.2e}"),
                format!("{relative:.2e}"),
                format!("{largest:.3}"),
                verdict.to_owned(),
            ],
        }
    });
    output::columns(&[heading].into_iter().chain(rows).collect::<Vec<_>>())
}
