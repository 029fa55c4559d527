//! Where the time went, and how many samples went through which network.

use super::run::Run;
use super::svg::number;

/// A phase's share of the time.
#[derive(Debug)]
pub(super) struct Phase {
    pub name: &'static str,
    pub colour: usize,
    /// In percent.
    pub share: f64,
    pub text: String,
}

/// The phases of the update with their shares of the whole run; empty where no time was taken.
pub(super) fn phases(run: &Run) -> Vec<Phase> {
    let names = ["rollout", "critic", "reward", "student", "optimizer", "other"];
    let seconds = names.map(|name| {
        let key = format!("time/{name}");
        run.records.iter().filter_map(|record| record.values.get(&key)).filter(|value| value.is_finite()).sum::<f64>()
    });
    let total: f64 = seconds.iter().sum();
    let phase = |(colour, (name, seconds)): (usize, (&'static str, f64))| {
        let share = 100.0 * seconds / total;
        Phase {
            name,
            colour,
            share,
            text: format!("{share:.0} %, {}", crate::progress::duration(std::time::Duration::from_secs_f64(seconds))),
        }
    };
    let measured = names.into_iter().zip(seconds).enumerate().filter(|(_, (_, seconds))| *seconds > 0.0);
    measured.map(phase).collect()
}

/// A network's passes per update.
#[derive(Debug)]
pub(super) struct Passes {
    pub role: &'static str,
    pub forward: String,
    pub backward: String,
}

/// Samples through each network per update; empty where they were not counted.
pub(super) fn passes(run: &Run) -> Vec<Passes> {
    let Some(last) = run.records.last() else { return Vec::new() };
    let updates = last.update.max(1) as f64;
    let count = |role: &str, way: &str| Some(number(last.values.get(&format!("passes/{role}/{way}"))? / updates));
    let roles = ["student", "teacher", "fake"].into_iter();
    roles
        .filter_map(|role| Some(Passes { role, forward: count(role, "forward")?, backward: count(role, "backward")? }))
        .collect()
}
