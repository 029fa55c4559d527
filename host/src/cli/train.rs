//! `advdmd train`: a run from a configuration.

use std::path::{Path, PathBuf};
use std::time::Instant;

use advdmd::eval::{Entry, Table};
use advdmd::train::{self, Outcome, TrainOptions};
use advdmd::{Result, files, jsonl};
use clap::Args;

use super::run_config::{ConfigArgs, LockArgs};
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
    #[command(flatten)]
    lock: LockArgs,
    /// Do one of everything on a handful of samples (rollout, critic, reward, student, evaluation, save, resume) in
    /// `DIR.fast-dev-run`, which is removed when all went well
    #[arg(long, conflicts_with = "resume")]
    fast_dev_run: bool,
}

/// What makes a run so short that it tries everything at once.
const FAST: [&str; 13] = [
    "schedule.updates=3",
    "batch.groups=1",
    "batch.group_size=4",
    "batch.micro_batch=4",
    "critic.updates=2",
    "critic.warmup=2",
    "critic.on_schedule=1.0",
    "objective.grpo.warmup=0",
    "objective.grpo.accuracy_gate=[0.0, 1.0]",
    "eval.every=2",
    "eval.prompts_per_task=1",
    "eval.grid=2",
    "checkpoint.every=1",
];

pub fn run(args: &Train) -> Result<()> {
    let out = args.out.clone().unwrap_or_else(|| args.config.default_out());
    args.lock.enforce(&args.config)?;
    if args.fast_dev_run {
        return fast_dev_run(args, &files::sibling(&out, "fast-dev-run"));
    }
    logging::record_in(&out);
    let resolved = args.config.load_run()?;
    let outcome =
        train::run(resolved, &TrainOptions { out: out.clone(), resume: args.resume, allow_drift: args.allow_drift })?;
    let config = args.config.config.display();
    conclude(&out, &outcome, &format!("advdmd train {config} --out {} --resume", out.display()))
}

/// Two updates, then a third after a resume, in a folder that is removed when all went well.
fn fast_dev_run(args: &Train, out: &Path) -> Result<()> {
    let begun = Instant::now();
    files::remove_dir(out)?;
    let load = |more: &[&'static str]| args.config.with(FAST.iter().chain(more).copied()).load_run();
    let options = TrainOptions { out: out.to_owned(), ..TrainOptions::default() };
    let first = train::run(load(&["schedule.updates=2"])?, &options)?;
    let last = train::run(load(&[])?, &TrainOptions { resume: true, ..options })?;
    if !(first.finished && last.finished) {
        tracing::warn!("stopped; what there is lies in {}", out.display());
        return Ok(());
    }
    files::remove_dir(out)?;
    let seconds = begun.elapsed().as_secs_f64();
    tracing::info!("rollout, critic, reward, student, evaluation, saving and resuming work ({seconds:.0} s)");
    Ok(())
}

/// Prints the table of a run and where its report lies, or how to go on.
pub fn conclude(out: &Path, outcome: &Outcome, resume: &str) -> Result<()> {
    if !outcome.finished {
        tracing::warn!("stopped and saved at update {}; `{resume}` goes on", outcome.updates);
        return Ok(());
    }
    // A run on data that nothing judges has sample grids and no scores.
    let scores = out.join("eval.jsonl");
    if scores.exists() {
        output::text(&Table::summary(&jsonl::read::<Entry>(&scores)?).to_string())?;
    }
    tracing::info!(
        "{} updates in {:.0} s; report: {}",
        outcome.updates,
        outcome.seconds,
        out.join("report.html").display()
    );
    Ok(())
}
