//! A backbone against a reference's tensors.

use std::path::Path;

use advdmd::parity::{Comparison, Golden};
use advdmd::registry::Registry;
use advdmd::{Error, Result, files, prompt_file};

use super::CheckBackbone;
use crate::cli::output;

pub fn run(args: &CheckBackbone, golden: &Path) -> Result<()> {
    let prompts = args.prompts.as_deref().map(prompt_file::read).transpose()?;
    let prompts = prompts.map(|rows| rows.into_iter().map(|row| row.prompt).collect());
    let registry = Registry::discover(&args.report.plugin_paths)?;
    let (backbone, device) = args.backbone.load(&registry, &args.compute.compute()?)?;
    let golden = Golden::read(golden, prompts, device)?;
    let comparisons = golden.compare(backbone.as_ref())?;
    if let Some(path) = &args.report.json {
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
