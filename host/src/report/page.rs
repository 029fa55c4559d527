//! The page: what the template shows.

use std::fmt::Write;
use std::time::Duration;

use askama::Template;

use super::catalogue::COST;
use super::cost::{Passes, Phase, passes, phases};
use super::gallery::{Card, Film, cards, film, legend};
use super::notes::notes;
use super::panels::{Section, sections};
use super::run::Run;
use super::svg::grouped;
use super::verdict::{Verdict, unjudged, verdict};
use crate::eval::{Entry, Subject, Table};
use crate::progress::duration;
use crate::{Error, Result};

#[derive(Template)]
#[template(path = "report/page.html")]
struct Page {
    name: String,
    /// (name, value): recipe, updates, time, …
    facts: Vec<(&'static str, String)>,
    verdict: Verdict,
    notes: Vec<String>,
    gaps: Vec<String>,
    heading: Vec<String>,
    rows: Vec<Row>,
    protocols: Vec<String>,
    legend: &'static str,
    samples_update: String,
    rows_legend: Vec<(String, String)>,
    cards: Vec<Card>,
    /// Pictures in a card, at least 3.
    tiles: usize,
    film: Option<Film>,
    sections: Vec<Section>,
    /// The section that gets the panel of phases and passes.
    cost: &'static str,
    phases: Vec<Phase>,
    passes: Vec<Passes>,
    config: Option<String>,
    environment: Vec<(String, String)>,
    version: &'static str,
}

/// A row of the table of scores.
struct Row {
    class: &'static str,
    cells: Vec<String>,
    /// Small print below the first cell.
    note: String,
    /// The overall score on a line from 0 to 1.
    mark: String,
}

/// The report of a run as HTML.
pub(super) fn render(run: &Run) -> Result<String> {
    let table = Table::summary(&run.entries);
    let mut cells = table.cells().into_iter();
    let heading = cells.next().unwrap_or_default();
    let rows = table.rows.iter().zip(cells).map(|(entry, cells)| Row {
        class: class(entry),
        cells,
        note: note(entry),
        mark: mark(entry),
    });
    let page = Page {
        name: run.name.clone(),
        facts: facts(run),
        verdict: if run.is_judged() { verdict(&run.entries) } else { unjudged() },
        notes: notes(run),
        gaps: run.gaps.clone(),
        heading,
        rows: rows.collect(),
        protocols: table.protocol_lines(),
        legend: crate::eval::LEGEND,
        samples_update: run.sheets.last().map_or_else(String::new, |sheet| grouped(sheet.update as f64)),
        tiles: run.sheets.last().map_or(0, |sheet| sheet.rows.len()).max(3),
        rows_legend: legend(&run.sheets),
        cards: cards(&run.sheets),
        film: film(&run.sheets),
        sections: sections(run),
        cost: COST,
        phases: phases(run),
        passes: passes(run),
        config: run.config.clone(),
        environment: run.environment(),
        version: env!("CARGO_PKG_VERSION"),
    };
    page.render().map_err(|error| Error::failed(format!("report: {error}")))
}

fn facts(run: &Run) -> Vec<(&'static str, String)> {
    let text = |path: &[&str]| run.text(path).map(ToOwned::to_owned);
    let updates = run.number(&["schedule", "updates"]).map_or_else(
        || grouped(run.updates() as f64),
        |planned| format!("{} of {}", grouped(run.updates() as f64), grouped(planned)),
    );
    let seconds = run.records.last().and_then(|record| Duration::try_from_secs_f64(record.seconds).ok());
    let steps = run.number(&["sampler", "steps"]).map_or_else(String::new, |steps| format!(", {steps} steps"));
    let data = run
        .data
        .as_ref()
        .map(|data| format!("{} images, {} captions", grouped(data.images as f64), grouped(data.prompts as f64)));
    let group = run.number(&["batch", "groups"]).zip(run.number(&["batch", "group_size"]));
    let all = [
        ("Recipe", text(&["recipe"])),
        ("Backbone", text(&["backbone", "type"])),
        ("Sampler", text(&["sampler", "type"]).map(|sampler| sampler + &steps)),
        ("Data", data),
        ("Updates", Some(updates)),
        ("Training time", seconds.map(duration)),
        ("Samples per update", group.map(|(groups, size)| format!("{groups} prompts × {size}"))),
        ("Device", text(&["compute", "device"])),
        ("Seed", run.number(&["seed"]).map(|seed| seed.to_string())),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

fn class(entry: &Entry) -> &'static str {
    match entry.subject {
        Subject::Student => "student",
        Subject::Teacher => "teacher",
        Subject::Real => "real",
    }
}

fn note(entry: &Entry) -> String {
    if entry.subject == Subject::Student { format!("update {}", grouped(entry.update as f64)) } else { String::new() }
}

/// A dot with its standard error on a line from 0 to 1.
fn mark(entry: &Entry) -> String {
    let tasks = &entry.scores.tasks;
    let mut svg = r#"<svg class="mark" viewBox="-2 0 108 14" aria-hidden="true"><path d="M2 7H102"/>"#.to_owned();
    if let (Some(overall), Some(error)) = (tasks.overall, tasks.overall_standard_error) {
        let x = |value: f64| 2.0 + 100.0 * value.clamp(0.0, 1.0);
        let (low, high) = (x(overall - error), x(overall + error));
        let _ = write!(
            svg,
            r#"<path class="whisker" d="M{low:.1} 7H{high:.1}"/><circle cx="{:.1}" cy="7" r="2.8"/>"#,
            x(overall)
        );
    }
    svg + "</svg>"
}
