//! How fast an update is, against the same algorithm in PyTorch and against two loops run apart, and where its time goes.
//!
//! Absolute times depend on the machine and on what else runs there. So two sides take turns, one update each, and what is
//! reported is the median of the ratios of neighbours.

mod counts;
mod edge;
mod hps;
mod isolation;
mod pairs;
mod problem;
mod report;
mod transformer;
mod worker;

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};

use pairs::Side;
use problem::{Problem, Size, Tuning};
use report::{Report, Row};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Against the same algorithm in Python
    OneLoop,
    /// Against DMD2's and Flow-GRPO's loops run apart, in Python
    TwoLoops,
    /// Shares of an update's phases
    Phases,
    /// Plugins linked into the program against plugins loaded into it
    Edge,
    /// Reads of the device, uploads and tensor allocations in an update
    Counts,
    /// One pass of a transformer of SD3.5's width, against diffusers
    Transformer,
    /// Scores of `hps` at its real size, against `open_clip`
    Hps,
    /// A reward in a process of its own against one in the run
    Isolation,
}

/// Measures the speed of an update.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only these parts
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// Only this size
    #[arg(long)]
    size: Option<Size>,
    /// Only this tuning of student and fake-score network
    #[arg(long)]
    tuning: Option<Tuning>,
    /// Pairs of updates
    #[arg(long, default_value_t = 15)]
    pairs: usize,
    /// Threads of libtorch on either side
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Also write the numbers, as JSON, to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Be one side: read commands, run updates of the problem in this folder
    #[arg(long, hide = true)]
    worker: Option<PathBuf>,
    /// With `--worker`: passes of the transformer, or scores, in its place
    #[arg(long, hide = true)]
    pass: Option<String>,
    /// What cargo passes to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    if std::env::args().nth(1).as_deref() == Some(advdmd::containment::COMMAND) {
        return Ok(advdmd::containment::serve()?);
    }
    let arguments = Arguments::parse();
    if let Some(folder) = &arguments.worker {
        return match arguments.pass.as_deref() {
            Some(hps::MODE) => hps::serve(folder),
            Some(mode) => transformer::serve(folder, mode),
            None => worker::serve(folder),
        };
    }
    ensure!(arguments.pairs > 0, "--pairs: expected 1 or more");
    let mut report = Report::new(arguments.threads);
    for size in Size::ALL {
        for tuning in Tuning::ALL {
            let fits =
                arguments.size.is_none_or(|only| only == size) && arguments.tuning.is_none_or(|only| only == tuning);
            if fits {
                measure(&arguments, size, tuning, &mut report)?;
            }
        }
    }
    // Its sizes are its own.
    let of_any_size = arguments.size.is_none() && arguments.tuning.is_none();
    if arguments.only.contains(&Part::Transformer) || (arguments.only.is_empty() && of_any_size) {
        report.add_or_note("transformer", transformer::measure(arguments.pairs, arguments.threads))?;
    }
    if arguments.only.contains(&Part::Isolation) || (arguments.only.is_empty() && of_any_size) {
        report.add(isolation::measure(arguments.pairs)?);
    }
    // Minutes and 14 GB of memory: only where it is asked for.
    if arguments.only.contains(&Part::Hps) {
        report.add_or_note("hps", hps::measure(arguments.pairs, arguments.threads))?;
    }
    if let Some(path) = &arguments.json {
        std::fs::write(path, report.to_json())?;
    }
    Ok(())
}

fn measure(arguments: &Arguments, size: Size, tuning: Tuning, report: &mut Report) -> Result<()> {
    let wanted = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    let problem = Problem { size, tuning, threads: arguments.threads };
    let folder = tempfile::tempdir()?;
    problem.write(folder.path())?;
    let name = problem.name();
    for (part, mode) in [(Part::OneLoop, "one-loop"), (Part::TwoLoops, "two-loops")] {
        if wanted(part) {
            report.add_or_note(mode, against(folder.path(), mode, arguments.pairs, &name))?;
        }
    }
    if wanted(Part::Phases) {
        let mut ours = Side::ours(folder.path(), None)?;
        let samples = (0..arguments.pairs.max(3) + 2).map(|_| ours.update()).collect::<Result<Vec<_>, _>>()?;
        report.add(report::phases(&name, &samples[2..]));
    }
    if wanted(Part::Edge) {
        report.add(edge::measure(folder.path(), &name, arguments.pairs)?);
    }
    if wanted(Part::Counts) {
        report.add(counts::measure(folder.path(), &name)?);
    }
    Ok(())
}

/// Our update against the reference's, and the samples that pass through each network on either side.
fn against(folder: &Path, mode: &str, pairs: usize, name: &str) -> Result<Vec<Row>, pairs::Failure> {
    let mut theirs = Side::python("reference.py", folder, mode)?;
    let mut ours = Side::ours(folder, None)?;
    let samples = pairs::interleave(&mut ours, &mut theirs, pairs)?;
    let mut rows = vec![report::ratio(name, &format!("against {mode}"), &samples)];
    rows.extend(report::passes(name, mode, &samples));
    rows.extend(report::losses(name, mode, &samples));
    Ok(rows)
}
