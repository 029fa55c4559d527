//! One side of the benchmark: the program's own update, in a process that sleeps between commands.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use advdmd::registry::Registry;
use advdmd::train::Trainer;
use advdmd_tests::{PLUGINS, plugin};
use anyhow::Result;
use serde_json::json;

use crate::problem::configuration;

/// A trainer of the problem in `folder`, with plugins of `registry`.
pub fn trainer(folder: &Path, registry: &Registry) -> Result<Trainer> {
    Ok(Trainer::new(&configuration(folder, registry)?, registry)?)
}

/// The shipped plugins, loaded.
pub fn loaded() -> Result<Registry> {
    Ok(Registry::of_files(&PLUGINS.map(plugin))?)
}

/// Reads lines `update` and answers each with a line of JSON, as `reference.py` does.
pub fn serve(folder: &Path) -> Result<()> {
    let mut trainer = trainer(folder, &loaded()?)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", json!({"ready": "ours"}))?;
    out.flush()?;
    let mut before: BTreeMap<String, f64> = BTreeMap::new();
    for line in std::io::stdin().lock().lines() {
        line?;
        let begun = Instant::now();
        let values = trainer.update()?;
        let seconds = begun.elapsed().as_secs_f64();
        let (counts, values): (BTreeMap<_, _>, BTreeMap<_, _>) =
            values.into_iter().partition(|(name, _)| name.starts_with("passes/"));
        // Counted since the run began.
        let passes: BTreeMap<_, _> = (counts.iter())
            .map(|(name, count)| (name["passes/".len()..].to_owned(), count - before.get(name).unwrap_or(&0.0)))
            .collect();
        before = counts;
        writeln!(out, "{}", json!({"seconds": seconds, "passes": passes, "values": values}))?;
        out.flush()?;
    }
    Ok(())
}
