//! The host's side: emits what a plugin sent as events and spans of its own.
//!
//! `tracing` describes each place in the code by a static value. One is made for each place of a plugin when it first
//! logs, so that filters by target, line numbers and typed fields work as for the host's own code.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};

use serde_json::{Map, Value as Json};
use tracing::field::{Field, FieldSet, Value};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Span, dispatcher};
use tracing_core::callsite::{self, Callsite, Identifier};
use tracing_core::metadata::Kind;

use super::Record;

/// Fields that `tracing` can hold in one event.
const MAX_FIELDS: usize = 32;

/// The most verbose level that the host logs now, as a code.
pub(crate) fn level() -> u8 {
    match LevelFilter::current().into_level() {
        None => 0,
        Some(Level::ERROR) => 1,
        Some(Level::WARN) => 2,
        Some(Level::INFO) => 3,
        Some(Level::DEBUG) => 4,
        Some(Level::TRACE) => 5,
    }
}

/// Emits an event of `plugin`.
pub(crate) fn event(plugin: &str, record: &Record<'_>) {
    let fields = object(record.fields);
    let Some(place) = place(record, &fields, Kind::EVENT) else { return };
    with_values(place, plugin, record.message, &fields, |values| {
        dispatcher::get_default(|dispatch| dispatch.event(&Event::new(place, values)));
    });
}

/// Begins a span of `plugin`, unless the host ignores it.
pub(crate) fn span(plugin: &str, record: &Record<'_>) -> Option<Span> {
    let fields = object(record.fields);
    let place = place(record, &fields, Kind::SPAN)?;
    let mut span = None;
    with_values(place, plugin, "", &fields, |values| span = Some(Span::new(place, values)));
    span
}

/// Gives values to fields of a span.
pub(crate) fn record(span: &Span, fields: &str) {
    for (name, json) in object(fields) {
        if let Some(value) = value(&json) {
            span.record(name.as_str(), &*value);
        }
    }
}

fn object(json: &str) -> Map<String, Json> {
    if json.is_empty() { Map::new() } else { serde_json::from_str(json).unwrap_or_default() }
}

/// Calls `act` with the values of all fields of `place`.
fn with_values(
    place: &'static Metadata<'static>,
    plugin: &str,
    message: &str,
    fields: &Map<String, Json>,
    mut act: impl FnMut(&tracing::field::ValueSet<'_>),
) {
    let mut slots: Vec<(Field, Option<Box<dyn Value + '_>>)> = Vec::with_capacity(MAX_FIELDS);
    for field in place.fields() {
        let value = match field.name() {
            "plugin" => Some(Box::new(plugin) as Box<dyn Value>),
            "message" => Some(Box::new(message) as Box<dyn Value>),
            name => fields.get(name).and_then(value),
        };
        slots.push((field, value));
    }
    // `tracing` takes arrays only; what stays empty repeats a field without a value, which it skips.
    let first = &slots[0].0;
    let values: [(&Field, Option<&dyn Value>); MAX_FIELDS] =
        std::array::from_fn(|i| slots.get(i).map_or((first, None), |(field, value)| (field, value.as_deref())));
    act(&place.fields().value_set(&values));
}

fn value(json: &Json) -> Option<Box<dyn Value + '_>> {
    Some(match json {
        Json::Null => return None,
        Json::Bool(value) => Box::new(*value),
        Json::String(value) => Box::new(value.as_str()),
        Json::Number(value) => match (value.as_i64(), value.as_u64(), value.as_f64()) {
            (Some(value), ..) => Box::new(value),
            (_, Some(value), _) => Box::new(value),
            (.., value) => Box::new(value.unwrap_or(f64::NAN)),
        },
        Json::Array(_) | Json::Object(_) => Box::new(json.to_string()),
    })
}

/// The static description of a place in a plugin, if the host logs what comes from there.
fn place(record: &Record<'_>, fields: &Map<String, Json>, kind: Kind) -> Option<&'static Metadata<'static>> {
    let level = *[Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE]
        .get(usize::from(record.level.checked_sub(1)?))?;
    if level > LevelFilter::current() {
        return None;
    }
    let place = Place::known(record, level, fields, kind);
    let metadata = place.metadata();
    (!place.ignored.load(Ordering::Relaxed) && dispatcher::get_default(|dispatch| dispatch.enabled(metadata)))
        .then_some(metadata)
}

/// A place in a plugin that logs.
struct Place {
    metadata: OnceLock<Metadata<'static>>,
    ignored: AtomicBool,
}

impl Callsite for Place {
    fn set_interest(&self, interest: Interest) {
        self.ignored.store(interest.is_never(), Ordering::Relaxed);
    }

    fn metadata(&self) -> &Metadata<'_> {
        self.static_metadata()
    }
}

/// What tells two places apart.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    level: u8,
    line: u32,
    texts: [String; 3],
    fields: Vec<String>,
}

impl Place {
    fn static_metadata(&self) -> &Metadata<'static> {
        self.metadata.get().expect("set before the place is known to anyone")
    }

    /// The place that `record` comes from; never freed, as there are no more of them than lines in the plugins.
    fn known(record: &Record<'_>, level: Level, fields: &Map<String, Json>, kind: Kind) -> &'static Self {
        static PLACES: LazyLock<Mutex<HashMap<Key, &'static Place>>> = LazyLock::new(Mutex::default);
        let key = Key {
            level: record.level,
            line: record.line,
            texts: [record.name, record.target, record.file].map(str::to_owned),
            fields: fields.keys().cloned().collect(),
        };
        let mut places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = places.get(&key) {
            return place;
        }
        let place = Self::leak(record, level, fields, kind);
        places.insert(key, place);
        drop(places);
        // Registering asks the subscriber, which may log itself.
        callsite::register(place);
        place
    }

    fn leak(record: &Record<'_>, level: Level, fields: &Map<String, Json>, kind: Kind) -> &'static Self {
        let place: &'static Self =
            Box::leak(Box::new(Self { metadata: OnceLock::new(), ignored: AtomicBool::new(false) }));
        let own = if kind == Kind::SPAN { &["plugin"][..] } else { &["message", "plugin"] };
        let others = fields.keys().filter(|name| !matches!(name.as_str(), "message" | "plugin"));
        let names: Vec<&'static str> =
            own.iter().copied().chain(others.map(|name| leak(name))).take(MAX_FIELDS).collect();
        let file = (!record.file.is_empty()).then(|| leak(record.file));
        let line = (record.line > 0).then_some(record.line);
        let name = if record.name.is_empty() {
            format!("event {}:{}", record.file, record.line)
        } else {
            record.name.to_owned()
        };
        let fields = FieldSet::new(Vec::leak(names), Identifier(place));
        let target = leak(record.target);
        let metadata = Metadata::new(leak(&name), target, level, file, line, Some(target), fields, kind);
        place.metadata.set(metadata).expect("set once");
        place
    }
}

fn leak(text: &str) -> &'static str {
    String::leak(text.to_owned())
}
