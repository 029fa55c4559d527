//! What a reader should know before trusting the curves.

use std::collections::BTreeMap;

use super::run::Run;
use super::svg::grouped;
use super::verdict::newest_students;
use crate::data::Summary;
use crate::eval::{Entry, Subject};
use crate::hacking::alarms;
use crate::metrics::Record;

/// Remarks in words, the gravest first; empty for a run without trouble.
pub(super) fn notes(run: &Run) -> Vec<String> {
    let mut notes = Vec::new();
    notes.extend(not_finite(&run.records));
    notes.extend(hacking(run));
    notes.extend(past_its_best(run));
    notes.extend(policy_gradient(run));
    notes.extend(dead_groups(&run.records));
    notes.extend(run.data.iter().flat_map(data));
    notes.extend(unfinished(run));
    notes
}

fn not_finite(records: &[Record]) -> Option<String> {
    let mut broken: BTreeMap<&str, (u64, usize)> = BTreeMap::new();
    for record in records {
        for (name, _) in record.values.iter().filter(|(_, value)| !value.is_finite()) {
            broken.entry(name).or_insert((record.update, 0)).1 += 1;
        }
    }
    let list: Vec<String> = broken
        .iter()
        .map(|(name, (first, count))| format!("{name} ({count} times, first at update {first})"))
        .collect();
    (!list.is_empty()).then(|| format!("Not finite: {}. The curves mark these places in red.", list.join(", ")))
}

/// What the watch is alarmed about at the end.
fn hacking(run: &Run) -> Vec<String> {
    let patience = run.number(&["watch", "patience"]).unwrap_or(1.0);
    alarms(&run.looks, patience as usize).iter().map(|alarm| capitalised(&alarm.to_string()) + ".").collect()
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// The student was clearly better before; a reward that rose meanwhile was perhaps hacked.
fn past_its_best(run: &Run) -> Option<String> {
    let newest = *newest_students(&run.entries).first()?;
    let students = run.entries.iter().filter(|entry| entry.subject == Subject::Student && entry.steps == newest.steps);
    let score = |entry: &Entry| entry.scores.tasks.overall.unwrap_or(f64::NEG_INFINITY);
    let best = students.max_by(|a, b| score(a).total_cmp(&score(b)))?;
    let loss = newest.scores.difference(&best.scores).filter(|loss| loss.is_clear() && loss.mean < 0.0)?;
    let since: Vec<&Record> = run.records.iter().filter(|record| record.update >= best.update).collect();
    let (early, late) = since.split_at(since.len() / 2);
    let rewards = |records: &[&Record]| {
        mean(
            records
                .iter()
                .flat_map(|record| &record.values)
                .filter(|(name, _)| name.starts_with("reward/") && name.ends_with("/mean")),
        )
    };
    let rose = rewards(early).zip(rewards(late)).is_some_and(|(early, late)| late > early);
    let suspicion =
        if rose { " The training reward rose meanwhile: look for reward hacking in the samples." } else { "" };
    Some(format!(
        "The student was better at update {} ({:.3}) than at update {} ({:.3}), by {:.3} ± {:.3}.{suspicion}",
        grouped(best.update as f64),
        score(best),
        grouped(newest.update as f64),
        score(newest),
        -loss.mean,
        loss.standard_error,
    ))
}

/// GRPO is configured, and its gate stayed shut.
fn policy_gradient(run: &Run) -> Option<String> {
    let weight = run.number(&["objective", "grpo", "weight"])?;
    let warmup = run.number(&["objective", "grpo", "warmup"]).unwrap_or(0.0);
    if weight == 0.0 || run.records.is_empty() {
        return None;
    }
    if (run.updates() as f64) <= warmup {
        return Some(format!(
            "The policy gradient has not been on: the run is within its warm-up of {} updates.",
            grouped(warmup)
        ));
    }
    let after = || run.records.iter().filter(|record| record.update as f64 > warmup);
    let gates = || after().flat_map(|record| &record.values).filter(|(name, _)| name.starts_with("grpo/gate/"));
    let open = mean(gates())?;
    (open < 0.2).then(|| {
        format!(
            "The policy gradient was on in only {:.0} % of the steps after its warm-up: the discriminator's accuracy \
             was outside the gate.",
            100.0 * open
        )
    })
}

fn dead_groups(records: &[Record]) -> Option<String> {
    let last = &records[records.len() - records.len() / 10..];
    let dead =
        mean(last.iter().flat_map(|record| &record.values).filter(|(name, _)| *name == "advantage/dead_groups"))?;
    (dead > 0.3).then(|| {
        format!(
            "In the last tenth of the run {:.0} % of the prompt groups had equal rewards and taught nothing.",
            100.0 * dead
        )
    })
}

/// Images that were left out or enlarged.
fn data(data: &Summary) -> Vec<String> {
    const NAMED: usize = 3;
    let (broken, all) = (data.broken.len(), data.images + data.broken.len());
    let mut notes = Vec::new();
    if broken > 0 {
        let named = data.broken.iter().take(NAMED).map(|image| format!("{} ({})", image.name, image.why));
        let more = if broken > NAMED { ", …" } else { "." };
        let list = named.collect::<Vec<_>>().join(", ");
        notes.push(format!("{} of {} images were left out: {list}{more}", grouped(broken as f64), grouped(all as f64)));
    }
    if data.enlarged > 0 {
        let (enlarged, images) = (grouped(data.enlarged as f64), grouped(data.images as f64));
        notes.push(format!("{enlarged} of {images} images are smaller than the model's and were enlarged."));
    }
    notes
}

fn unfinished(run: &Run) -> Option<String> {
    let planned = run.number(&["schedule", "updates"]).or_else(|| run.number(&["steps"]))?;
    let done = run.updates() as f64;
    (done < planned).then(|| {
        format!(
            "{} of {} updates done: the run was stopped, reached its time limit, or is still going.",
            grouped(done),
            grouped(planned)
        )
    })
}

fn mean<'a>(values: impl Iterator<Item = (&'a String, &'a f64)>) -> Option<f64> {
    let (sum, count) = values
        .filter(|(_, value)| value.is_finite())
        .fold((0.0, 0.0), |(sum, count), (_, value)| (sum + value, count + 1.0));
    (count > 0.0).then(|| sum / count)
}
