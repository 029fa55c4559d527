//! From the numbers of a run to charts with titles and explanations.

use std::collections::{BTreeMap, BTreeSet};

use super::catalogue::{CATALOGUE, Spec, matches};
use super::run::Run;
use super::svg::{Band, Chart, Colours, Domain, Reference, Scale, Series, Strip, number};
use super::verdict::{best, newest_students};
use crate::digits::Task;
use crate::eval::{Entry, Subject};
use crate::hacking::{Look, Statistics};
use crate::score::Summary;

/// A chart as the page shows it.
#[derive(Debug)]
pub(super) struct Panel {
    pub title: String,
    pub definition: String,
    pub legend: Vec<Key>,
    pub svg: String,
}

/// A curve in a legend.
#[derive(Debug)]
pub(super) struct Key {
    pub name: String,
    pub colour: String,
    /// The last value.
    pub last: String,
}

/// Charts under one heading.
#[derive(Debug)]
pub(super) struct Section {
    pub title: String,
    pub panels: Vec<Panel>,
}

impl Panel {
    fn new(title: String, definition: String, chart: &Chart, domain: Domain) -> Self {
        let key = |(index, series): (usize, &Series)| Key {
            name: series.name.clone(),
            colour: chart.colour(index),
            last: series.last().map_or_else(String::new, number),
        };
        let legend = chart.series.iter().enumerate().map(key).collect();
        Self { svg: chart.render(&title, domain), title, definition, legend }
    }
}

/// All sections that have something to show: scores over time, the charts of the catalogue, and whatever else was
/// measured.
pub(super) fn sections(run: &Run) -> Vec<Section> {
    let mut metrics: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for record in &run.records {
        for (name, value) in &record.values {
            metrics.entry(name).or_default().push((record.update as f64, *value));
        }
    }
    let domain = [0.0, run.updates().max(1) as f64];
    let mut sections = Vec::new();
    let mut add =
        |title: &str, panel: Panel| match sections.iter_mut().find(|section: &&mut Section| section.title == title) {
            Some(section) => section.panels.push(panel),
            None => sections.push(Section { title: title.to_owned(), panels: vec![panel] }),
        };
    for panel in scores(&run.entries, domain) {
        add("Scores over time", panel);
    }
    for panel in watched(&run.looks, domain) {
        add("Reward watch", panel);
    }
    for spec in CATALOGUE {
        for (name, series) in charts(spec, &metrics) {
            add(spec.section, panel(spec, &name, series, &metrics, run, domain));
        }
    }
    let known = |name: &str| {
        let curves = || CATALOGUE.iter().flat_map(|spec| spec.curves);
        name.starts_with("grpo/gate/") || curves().any(|(pattern, _)| matches(pattern, name).is_some())
    };
    for (name, points) in metrics.iter().filter(|(name, _)| !known(name)) {
        let chart = Chart::new(vec![Series::new(*name, points.clone())]);
        let definition = "Not one of the loop's own numbers: whoever wrote it knows what it means.".to_owned();
        add("Other numbers", Panel::new((*name).to_owned(), definition, &chart, domain));
    }
    sections
}

/// The curves of a chart, by the value of `{name}`.
fn charts(spec: &Spec, metrics: &BTreeMap<&str, Vec<(f64, f64)>>) -> BTreeMap<String, Vec<Series>> {
    let mut charts: BTreeMap<String, Vec<(usize, usize, Series)>> = BTreeMap::new();
    for (order, (pattern, curve)) in spec.curves.iter().enumerate() {
        for (metric, points) in metrics {
            let Some(found) = matches(pattern, metric) else { continue };
            let step = found.step.map(|step| format!("step {step}"));
            let name = step.or(found.curve).unwrap_or_else(|| (*curve).to_owned());
            let points = points.iter().map(|(x, y)| (*x, y - spec.offset)).collect();
            let series = Series::new(name, points);
            charts.entry(found.name.unwrap_or_default()).or_default().push((
                order,
                found.step.unwrap_or_default(),
                series,
            ));
        }
    }
    let sorted = |mut curves: Vec<(usize, usize, Series)>| {
        curves.sort_by_key(|(order, step, _)| (*order, *step));
        curves.into_iter().map(|(_, _, series)| series).collect()
    };
    charts.into_iter().map(|(name, curves)| (name, sorted(curves))).collect()
}

fn panel(
    spec: &Spec,
    name: &str,
    series: Vec<Series>,
    metrics: &BTreeMap<&str, Vec<(f64, f64)>>,
    run: &Run,
    domain: Domain,
) -> Panel {
    let mut chart = Chart { scale: spec.scale, include: spec.include.into(), ..Chart::new(series) };
    if spec.curves.iter().any(|(pattern, _)| pattern.contains("step{k}")) {
        chart.colours = Colours::Order;
    }
    if spec.gate {
        let range = run.pair(&["objective", "grpo", "accuracy_gate"]);
        chart.band = range.map(|range| Band { range, label: "policy gradient may be on".to_owned() });
        chart.strips = gate_strips(&chart.series, metrics);
    }
    Panel::new(spec.title.replace("{name}", name), spec.definition.to_owned(), &chart, domain)
}

/// For each "step k" the states of `grpo/gate/stepk`; none where no gate was recorded.
fn gate_strips(series: &[Series], metrics: &BTreeMap<&str, Vec<(f64, f64)>>) -> Vec<Strip> {
    let states = |series: &Series| {
        let gate =
            series.name.strip_prefix("step ").and_then(|step| metrics.get(format!("grpo/gate/step{step}").as_str()));
        gate.map(|points| points.iter().map(|(x, on)| (*x, *on > 0.5)).collect::<Vec<_>>())
    };
    let strips: Vec<_> = series.iter().map(states).collect();
    if strips.iter().all(Option::is_none) {
        return Vec::new();
    }
    strips.into_iter().map(|states| Strip { states: states.unwrap_or_default() }).collect()
}

/// The student's scores over time, at each number of steps, with the teacher's for comparison.
fn scores(entries: &[Entry], domain: Domain) -> Vec<Panel> {
    let newest = newest_students(entries);
    let Some(main) = newest.first() else { return Vec::new() };
    let students =
        |steps: usize| entries.iter().filter(move |entry| entry.subject == Subject::Student && entry.steps == steps);
    let curve = |name: String, steps: usize, value: &dyn Fn(&Entry) -> Option<f64>| {
        Series::new(
            name,
            students(steps).map(|entry| (entry.update as f64, value(entry).unwrap_or(f64::NAN))).collect(),
        )
    };
    let chart = |value: &dyn Fn(&Entry) -> Option<f64>, error: &dyn Fn(&Entry) -> Option<f64>| {
        let series = newest.iter().map(|student| Series {
            errors: Some(students(student.steps).map(|entry| error(entry).unwrap_or(f64::NAN)).collect()),
            ..curve(format!("{} steps", student.steps), student.steps, value)
        });
        Chart { references: references(entries, value), ..Chart::new(series.collect()) }
    };
    let overall = chart(&|entry| entry.scores.tasks.overall, &|entry| entry.scores.tasks.overall_standard_error);
    let mut frechet = chart(&|entry| Some(entry.scores.frechet), &|_| None);
    frechet.scale = Scale::Log;
    let tasks = Task::ALL.map(|task| curve(task.name().to_owned(), main.steps, &|entry| entry.scores.tasks.task(task)));
    let panel = |title: &str, definition: &str, chart: &Chart| {
        Panel::new(title.to_owned(), definition.to_owned(), chart, domain)
    };
    vec![
        panel(
            "Overall score of the student",
            "Mean of the six tasks' shares of correct images, with bootstrap standard errors over prompts. Dashed: the \
             teacher, with the guidance that suits it best.",
            &overall,
        ),
        panel(
            &format!("Score by task, {} steps", main.steps),
            "Share of the student's images that show what their prompt asks for.",
            &Chart::new(tasks.into()),
        ),
        panel(
            "Fréchet distance of the student",
            "Between the checker's features of the student's images and of real ones, on a logarithmic axis; lower is \
             better. Dashed: the teacher.",
            &frechet,
        ),
    ]
}

/// What the watch for reward hacking saw.
fn watched(looks: &[Look], domain: Domain) -> Vec<Panel> {
    if looks.is_empty() {
        return Vec::new();
    }
    let panel = |title: &str, definition: &str, chart: &Chart| {
        Panel::new(title.to_owned(), definition.to_owned(), chart, domain)
    };
    let curves = |label: &'static str, of: fn(&Look) -> &BTreeMap<String, Vec<f32>>| {
        let names: BTreeSet<&String> = looks.iter().flat_map(|look| of(look).keys()).collect();
        names.into_iter().map(move |name| {
            // A held-out reward may have joined later.
            let first = looks.iter().find_map(|look| of(look).get(name)).map_or(&[][..], Vec::as_slice);
            let (start, std) = Summary::of(first).map_or((f64::NAN, 0.0), |summary| (summary.mean, summary.std));
            // A reward that told nothing apart at first has no unit but its own.
            let spread = if std > 0.0 { std } else { 1.0 };
            let numbers = |look: &Look| of(look).get(name).and_then(|scores| mean_and_error(scores));
            let points = looks.iter().map(|look| {
                let mean = numbers(look).map_or(f64::NAN, |(mean, _)| mean);
                (look.update as f64, (mean - start) / spread)
            });
            let errors = looks.iter().map(|look| numbers(look).map_or(f64::NAN, |(_, error)| error / spread));
            Series { errors: Some(errors.collect()), ..Series::new(format!("{name}{label}"), points.collect()) }
        })
    };
    let rewards: Vec<Series> =
        curves("", |look| &look.trained).chain(curves(", held out", |look| &look.held_out)).collect();
    let statistic = |of: fn(&Statistics) -> f64| {
        let points = looks.iter().map(|look| (look.update as f64, of(&look.images))).collect();
        let teacher = looks.iter().find_map(|look| look.teacher.as_ref());
        let references = teacher.map(|images| Reference { value: of(images), label: "teacher".to_owned() });
        let chart = Chart::new(vec![Series::new("student", points)]);
        Chart { references: references.into_iter().collect(), include: vec![0.0], ..chart }
    };
    let mut panels = Vec::new();
    if !rewards.is_empty() {
        panels.push(panel(
            "Rewards of the student's images",
            "Change of the mean score since the first evaluation, in standard deviations between images then; with standard \
             errors. Held-out rewards are never trained on: where they fall while the others rise, the others are being \
             gamed.",
            &Chart::new(rewards),
        ));
    }
    panels.push(panel(
        "Saturation",
        "Mean saturation of the colours of the student's images. Dashed: the teacher's.",
        &statistic(|images| images.saturation),
    ));
    panels.push(panel(
        "Power at the patch frequency",
        "Share of the brightness' variance that repeats from patch to patch: a grid or texture over the whole image. Dashed: \
         the teacher's images.",
        &statistic(|images| images.patch_power),
    ));
    panels
}

/// Mean of scores and its standard error.
fn mean_and_error(scores: &[f32]) -> Option<(f64, f64)> {
    Summary::of(scores).map(|summary| (summary.mean, summary.std / (scores.len() as f64).sqrt()))
}

/// The teacher's best evaluation at each number of steps.
fn references(entries: &[Entry], value: &dyn Fn(&Entry) -> Option<f64>) -> Vec<Reference> {
    let teachers = entries.iter().filter(|entry| entry.subject == Subject::Teacher);
    let steps: BTreeSet<usize> = teachers.map(|entry| entry.steps).collect();
    let marked = steps.into_iter().filter_map(|steps| {
        let entry = best(entries, |entry| entry.steps == steps)?;
        Some(Reference { value: value(entry)?, label: format!("teacher, {steps} steps") })
    });
    marked.collect()
}
