//! The numbers as a table and as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::json;

use crate::pairs::{Failure, Sample};

/// All numbers of a run of the benchmark; each is printed as soon as it is there.
pub struct Report {
    threads: usize,
    rows: Vec<Row>,
    notes: Vec<String>,
}

/// One number: a median with its quartiles.
pub struct Row {
    problem: String,
    what: String,
    value: Quartiles,
    unit: &'static str,
}

/// First quartile, median, third quartile.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quartiles([f64; 3]);

impl Quartiles {
    /// Of at least one value.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let place = share * (values.len() - 1) as f64;
            let (low, high) = (values[place.floor() as usize], values[place.ceil() as usize]);
            low + (high - low) * place.fract()
        };
        Self([at(0.25), at(0.5), at(0.75)])
    }

    pub fn median(self) -> f64 {
        self.0[1]
    }
}

impl Row {
    pub fn new(problem: &str, what: impl Into<String>, value: Quartiles, unit: &'static str) -> Self {
        Self { problem: problem.to_owned(), what: what.into(), value, unit }
    }

    /// A number that does not vary.
    pub fn exact(problem: &str, what: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self::new(problem, what, Quartiles([value; 3]), unit)
    }
}

impl Report {
    pub fn new(threads: usize) -> Self {
        println!("medians (and quartiles), {threads} thread(s) on either side");
        Self { threads, rows: Vec::new(), notes: Vec::new() }
    }

    pub fn add(&mut self, rows: Vec<Row>) {
        for row in &rows {
            println!("{row}");
        }
        self.rows.extend(rows);
    }

    /// The rows, or that they were left out for lack of what they need.
    pub fn add_or_note(&mut self, part: &str, rows: Result<Vec<Row>, Failure>) -> anyhow::Result<()> {
        match rows {
            Ok(rows) => self.add(rows),
            Err(Failure::Absent(message)) => self.note(format!("{part} was skipped: {message}")),
            Err(Failure::Other(error)) => return Err(error),
        }
        Ok(())
    }

    /// Says what was left out, and why.
    pub fn note(&mut self, note: String) {
        println!("{note}");
        self.notes.push(note);
    }

    pub fn to_json(&self) -> String {
        let rows: Vec<_> = (self.rows.iter())
            .map(|row| {
                let [low, median, high] = row.value.0;
                json!({"problem": row.problem, "what": row.what, "median": median, "quartiles": [low, high], "unit": row.unit})
            })
            .collect();
        format!("{:#}\n", json!({"threads": self.threads, "rows": rows, "notes": self.notes}))
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [low, median, high] = self.value.0;
        write!(f, "{:13} {:52} {median:>10.4}", self.problem, self.what)?;
        if low < high {
            write!(f, " ({low:.4} to {high:.4})")?;
        }
        write!(f, " {}", self.unit)
    }
}

/// Ratio of the times of neighbours.
pub fn ratio(problem: &str, what: &str, samples: &[(Sample, Sample)]) -> Row {
    Row::new(
        problem,
        what,
        Quartiles::of(samples.iter().map(|(ours, theirs)| ours.seconds / theirs.seconds)),
        "of its time",
    )
}

/// Ratio of the speeds of neighbours, and what both do in a second of `count` that each does.
pub fn rates(problem: &str, what: &str, count: usize, samples: &[(Sample, Sample)]) -> Vec<Row> {
    let rate = |side: fn(&(Sample, Sample)) -> &Sample| {
        Quartiles::of(samples.iter().map(|pair| count as f64 / side(pair).seconds))
    };
    let speeds = samples.iter().map(|(ours, theirs)| theirs.seconds / ours.seconds);
    vec![
        Row::new(problem, what, Quartiles::of(speeds), "of its speed"),
        Row::new(problem, "ours", rate(|pair| &pair.0), "a second"),
        Row::new(problem, "theirs", rate(|pair| &pair.1), "a second"),
    ]
}

/// Samples that pass through each network per update, ours over theirs.
pub fn passes(problem: &str, mode: &str, samples: &[(Sample, Sample)]) -> Vec<Row> {
    let mean = |side: fn(&(Sample, Sample)) -> &Sample| {
        let mut mean: BTreeMap<&str, f64> = BTreeMap::new();
        for pair in samples {
            for (name, count) in &side(pair).passes {
                *mean.entry(name).or_default() += count / samples.len() as f64;
            }
        }
        mean
    };
    let (ours, theirs) = (mean(|pair| &pair.0), mean(|pair| &pair.1));
    let names: BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
    let row = |name: &&&str| {
        let [ours, theirs] = [&ours, &theirs].map(|side| side.get(**name).copied().unwrap_or(0.0));
        let what = format!("{mode}: {name} passes {ours:.1} / {theirs:.1}");
        (ours + theirs > 0.0).then(|| Row::exact(problem, what, ours / theirs, "of its passes"))
    };
    names.iter().filter_map(row).collect()
}

/// Names of the losses that both sides log, ours first.
const LOSSES: [(&str, &str); 6] = [
    ("critic/denoise_loss", "denoise"),
    ("critic/adversarial/loss", "discriminator"),
    ("dmd/loss", "dmd"),
    ("gan/loss", "gan"),
    ("student/grad_norm", "student_grad_norm"),
    ("hps/score", "score"),
];

/// Mean losses of both sides: a reference that computed something else would show here.
pub fn losses(problem: &str, mode: &str, samples: &[(Sample, Sample)]) -> Vec<Row> {
    let mean = |value: &dyn Fn(&(Sample, Sample)) -> Option<f64>| {
        let values: Vec<f64> = samples.iter().filter_map(value).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    };
    let row = |&(our_name, their_name): &(&str, &str)| {
        let ours = mean(&|pair| pair.0.values.get(our_name).copied())?;
        let theirs = mean(&|pair| pair.1.values.get(their_name).copied())?;
        Some(Row::exact(
            problem,
            format!("{mode}: {their_name} {ours:.4} / {theirs:.4}"),
            ours / theirs,
            "of its value",
        ))
    };
    LOSSES.iter().filter_map(row).collect()
}

/// Share of each phase in the time of an update, and of what no phase covers.
pub fn phases(problem: &str, samples: &[Sample]) -> Vec<Row> {
    let times: Vec<BTreeMap<&str, f64>> = samples.iter().map(times).collect();
    let phases: BTreeSet<&str> = times.iter().flat_map(BTreeMap::keys).copied().collect();
    let shares = |share: &dyn Fn(&BTreeMap<&str, f64>) -> f64| {
        Quartiles::of(times.iter().zip(samples).map(|(times, sample)| 100.0 * share(times) / sample.seconds))
    };
    let mut rows: Vec<Row> = (phases.iter())
        .map(|phase| {
            let share = shares(&|times| times.get(phase).copied().unwrap_or(0.0));
            Row::new(problem, format!("phase {phase}"), share, "% of an update")
        })
        .collect();
    let covered = shares(&|times| times.values().sum());
    let rest = Quartiles([2, 1, 0].map(|quartile| 100.0 - covered.0[quartile]));
    rows.push(Row::new(problem, "everything else", rest, "% of an update"));
    rows
}

/// Seconds of the phases of an update.
fn times(sample: &Sample) -> BTreeMap<&str, f64> {
    sample.values.iter().filter_map(|(name, &seconds)| Some((name.strip_prefix("time/")?, seconds))).collect()
}
