//! `cargo xtask bench`: every benchmark target of the workspace.

use super::build::{self, Options};
use crate::cargo::cargo;
use crate::project::Project;
use crate::steps::Steps;
use anyhow::{Context, Result, bail};
use serde_json::Value;

pub fn run(project: &Project, args: &[String]) -> Result<()> {
    let output = cargo(project, &["metadata", "--no-deps", "--format-version=1"]).output()?;
    let benchmarks = benchmarks(&serde_json::from_slice(&output.stdout).context("cargo metadata gave no JSON")?);
    if benchmarks.is_empty() {
        bail!("no package of the workspace has a benchmark (a [[bench]] target) yet");
    }
    let mut steps = Steps::default();
    let options = Options { release: true, ..Options::default() };
    steps.run("build", "cargo xtask build --release", || build::run(project, options))?;
    for (package, bench) in &benchmarks {
        let mut command = cargo(project, &["bench", "--package", package, "--bench", bench, "--"]);
        steps.command("bench", command.args(args))?;
    }
    println!("\n{}", steps.summary());
    Ok(())
}

/// The packages and names of all benchmark targets.
fn benchmarks(metadata: &Value) -> Vec<(String, String)> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    let is_bench = |target: &Value| list(&target["kind"]).iter().any(|kind| kind == "bench");
    let packages = list(&metadata["packages"]).into_iter();
    packages
        .flat_map(|package| {
            let targets = list(&package["targets"]).into_iter().filter(is_bench);
            targets.map(|target| (name(&package), name(&target))).collect::<Vec<_>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn benchmarks_are_found_by_their_kind() {
        let metadata = json!({"packages": [
            {"name": "advdmd", "targets": [{"kind": ["lib"], "name": "advdmd"}]},
            {"name": "tests", "targets": [{"kind": ["bench"], "name": "rollout"}, {"kind": ["test"], "name": "cli"}]},
        ]});
        assert_eq!(benchmarks(&metadata), [("tests".to_owned(), "rollout".to_owned())]);
        assert!(benchmarks(&json!({})).is_empty());
    }
}
