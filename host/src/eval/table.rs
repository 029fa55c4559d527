//! Evaluations side by side, as text for a terminal; `serde` gives the JSON, the report the HTML.

use std::cmp::Reverse;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::entry::{Entry, Subject};
use super::scores::Protocol;
use crate::digits::Task;

/// Evaluations in the order in which they are to be read.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// The rows.
    pub rows: Vec<Entry>,
}

/// What the columns mean, for a note below a table.
pub(crate) const LEGEND: &str = "Scores are shares of correct images; overall is the mean of the six tasks, ± its \
     bootstrap standard error over prompts (1,000 resamplings). NFE: network evaluations per image, a guided step \
     counting two. Fréchet: distance to real images in the checker's features, lower is better. Real scenes show digits \
     that are held out from all training.";

impl Table {
    /// A table of these rows.
    pub fn new(rows: Vec<Entry>) -> Self {
        Self { rows }
    }

    /// The newest evaluation of each model of a run: teachers from most to fewest steps, the student, real images.
    pub fn summary(entries: &[Entry]) -> Self {
        let same = |a: &Entry, b: &Entry| {
            let key = |entry: &Entry| (entry.subject, entry.label.clone(), entry.sampler.clone(), entry.steps);
            key(a) == key(b) && a.guidance_scale == b.guidance_scale
        };
        let newest = |(index, entry): &(usize, &Entry)| !entries[index + 1..].iter().any(|later| same(entry, later));
        let mut rows: Vec<Entry> = entries.iter().enumerate().filter(newest).map(|(_, entry)| entry.clone()).collect();
        let place = |entry: &Entry| match entry.subject {
            Subject::Teacher => 0,
            Subject::Student => 1,
            Subject::Real => 2,
        };
        rows.sort_by_key(|entry| (place(entry), Reverse(entry.steps), Reverse(entry.evaluations)));
        Self { rows }
    }

    /// The protocols of the rows, each once, in the order of the rows.
    pub fn protocols(&self) -> Vec<&Protocol> {
        let mut protocols: Vec<&Protocol> = Vec::new();
        for row in &self.rows {
            if !protocols.contains(&&row.scores.protocol) {
                protocols.push(&row.scores.protocol);
            }
        }
        protocols
    }

    /// The lines of the heading and of the rows as cells.
    pub(crate) fn cells(&self) -> Vec<Vec<String>> {
        let mixed = self.protocols().len() > 1;
        let mut heading: Vec<String> =
            ["model", "sampler", "steps", "guidance", "NFE", "images/s"].map(Into::into).into();
        heading.extend(Task::ALL.map(|task| task.name().to_owned()));
        heading.extend(["overall".to_owned(), "Fréchet".to_owned()]);
        if mixed {
            heading.push("protocol".to_owned());
        }
        let mut lines = vec![heading];
        for row in &self.rows {
            let made = |text: String| if row.steps == 0 { "–".to_owned() } else { text };
            let scores = &row.scores;
            let speed = scores.images_per_second().map_or_else(|| "–".to_owned(), |speed| significant(speed, 3));
            let mut line = vec![
                row.label.clone(),
                made(row.sampler.clone()),
                made(row.steps.to_string()),
                made(if row.guidance_scale == 1.0 { "none".to_owned() } else { row.guidance_scale.to_string() }),
                made(row.evaluations.to_string()),
                speed,
            ];
            line.extend(
                Task::ALL
                    .map(|task| scores.tasks.task(task).map_or_else(|| "–".to_owned(), |mean| format!("{mean:.3}"))),
            );
            line.push(overall(row));
            line.push(significant(scores.frechet, 3));
            if mixed {
                let place = self.protocols().iter().position(|protocol| **protocol == scores.protocol);
                line.push(format!("[{}]", place.unwrap_or_default() + 1));
            }
            lines.push(line);
        }
        lines
    }

    /// "Protocol: …", one line for each protocol.
    pub(crate) fn protocol_lines(&self) -> Vec<String> {
        let protocols = self.protocols();
        if let [protocol] = protocols.as_slice() {
            return vec![format!("Protocol: {protocol}.")];
        }
        let numbered =
            protocols.iter().enumerate().map(|(index, protocol)| format!("Protocol [{}]: {protocol}.", index + 1));
        let mut lines: Vec<String> = numbered.collect();
        if lines.len() > 1 {
            lines.push("Rows of different protocols do not compare.".to_owned());
        }
        lines
    }
}

fn overall(row: &Entry) -> String {
    let tasks = &row.scores.tasks;
    match (tasks.overall, tasks.overall_standard_error) {
        (Some(overall), Some(error)) => format!("{overall:.3} ± {error:.3}"),
        _ => "–".to_owned(),
    }
}

/// A positive number with so many significant digits, without an exponent.
fn significant(value: f64, digits: i32) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    let decimals = (digits - 1 - value.abs().log10().floor() as i32).max(0) as usize;
    format!("{value:.decimals$}")
}

impl fmt::Display for Table {
    /// The first two columns to the left, numbers to the right; the protocol and the meaning of the columns below.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rows.is_empty() {
            return out.write_str("no evaluations\n");
        }
        let lines = self.cells();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default();
        let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
        for line in &lines {
            let padded = line.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
                if column < 2 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            writeln!(out, "{}", padded.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        writeln!(out)?;
        for line in self.protocol_lines() {
            writeln!(out, "{line}")?;
        }
        writeln!(out, "{LEGEND}")
    }
}

#[cfg(test)]
mod tests {
    use super::super::scores::tests::scores;
    use super::*;

    fn entry(label: &str, steps: usize, guidance_scale: f64, share: f64) -> Entry {
        let guided = if guidance_scale == 1.0 { 1 } else { 2 };
        Entry {
            update: 0,
            label: label.into(),
            subject: Subject::Teacher,
            sampler: "euler".into(),
            steps,
            guidance_scale,
            evaluations: steps * guided,
            scores: scores(share, 4.0 - share, 0.5 * steps as f64),
        }
    }

    #[test]
    fn text_is_aligned_and_names_its_protocol() {
        let real = Entry::real(scores(1.0, 0.25, 0.0));
        let table = Table::new(vec![entry("teacher", 40, 3.5, 0.8), entry("student", 4, 1.0, 0.7), real]);
        let expected = "\
model        sampler  steps  guidance  NFE  images/s  single    two  counting  colours  position  attribute        overall  Fréchet
teacher      euler       40       3.5   80      15.0   0.800  0.780     0.760    0.740     0.720      0.700  0.800 ± 0.020     3.20
student      euler        4      none    4       150   0.700  0.680     0.660    0.640     0.620      0.600  0.700 ± 0.020     3.30
real scenes  –            –         –    –         –   1.000  0.980     0.960    0.940     0.920      0.900  1.000 ± 0.020    0.250

Protocol: digits v1, 50 prompts per task, seed 0, 4200 reference images, checker 0a1b2c3d.
";
        assert_eq!(table.to_string(), format!("{expected}{LEGEND}\n"));
    }

    #[test]
    fn rows_of_two_protocols_are_told_apart() {
        let mut other = entry("student", 4, 1.0, 0.7);
        other.scores.protocol.version = 2;
        let text = Table::new(vec![entry("teacher", 4, 1.0, 0.8), other]).to_string();
        for part in ["[1]\n", "[2]\n", "Protocol [2]: digits v2", "do not compare"] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
    }

    #[test]
    fn a_summary_keeps_the_newest_of_each_model() {
        let student = |update, share| Entry { update, subject: Subject::Student, ..entry("student", 4, 1.0, share) };
        let entries = [
            Entry::real(scores(1.0, 0.2, 0.0)),
            student(0, 0.3),
            entry("teacher", 4, 3.5, 0.5),
            entry("teacher", 40, 3.5, 0.8),
            student(9, 0.7),
        ];
        let rows = Table::summary(&entries).rows;
        let seen: Vec<(&str, usize, u64)> =
            rows.iter().map(|row| (row.label.as_str(), row.steps, row.update)).collect();
        assert_eq!(seen, [("teacher", 40, 0), ("teacher", 4, 0), ("student", 4, 9), ("real scenes", 0, 0)]);
    }

    #[test]
    fn an_empty_table_says_so() {
        assert_eq!(Table::default().to_string(), "no evaluations\n");
    }
}
