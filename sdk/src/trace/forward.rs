//! The plugin's side: a layer that hands everything to the host.

use std::fmt::{Debug, Write as _};
use std::sync::atomic::{AtomicU8, Ordering};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record as Values};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::{HostLog, Record};

/// The most verbose level that the host logs, as a code.
static LEVEL: AtomicU8 = AtomicU8::new(0);

/// Sets the most verbose level that is forwarded; events beyond it cost no more than without a subscriber.
pub(crate) fn set_level(level: u8) {
    if LEVEL.swap(level, Ordering::Relaxed) != level {
        tracing::callsite::rebuild_interest_cache();
    }
}

/// Code of a level: 1 for an error up to 5 for a trace.
fn code(level: Level) -> u8 {
    match level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

/// Forwards events and spans to the host.
pub(crate) struct ForwardLayer<L>(pub L);

/// The host's number of a span, kept with the span.
struct HostSpan(u64);

impl<L: HostLog> ForwardLayer<L> {
    fn with_span<S>(&self, id: &Id, ctx: &Context<'_, S>, act: impl FnOnce(&L, u64))
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let Some(span) = ctx.span(id) else { return };
        // The number is copied out first: the host may log while it acts.
        let number = span.extensions().get::<HostSpan>().map(|span| span.0);
        if let Some(number) = number {
            act(&self.0, number);
        }
    }
}

impl<L, S> Layer<S> for ForwardLayer<L>
where
    L: HostLog,
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn enabled(&self, metadata: &Metadata<'_>, _ctx: Context<'_, S>) -> bool {
        code(*metadata.level()) <= LEVEL.load(Ordering::Relaxed)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match LEVEL.load(Ordering::Relaxed) {
            0 => LevelFilter::OFF,
            1 => LevelFilter::ERROR,
            2 => LevelFilter::WARN,
            3 => LevelFilter::INFO,
            4 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        })
    }

    fn on_event(&self, event: &Event<'_>, _ctx: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let json = fields.json();
        self.0.event(&record(event.metadata(), "", &fields.message, &json));
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, ctx: Context<'_, S>) {
        let mut fields = Fields::default();
        for field in attributes.metadata().fields() {
            fields.map.insert(field.name().to_owned(), Value::Null);
        }
        attributes.record(&mut fields);
        let metadata = attributes.metadata();
        let number = self.0.span_new(&record(metadata, metadata.name(), "", &fields.json()));
        if let (Some(span), 1..) = (ctx.span(id), number) {
            span.extensions_mut().insert(HostSpan(number));
        }
    }

    fn on_record(&self, id: &Id, values: &Values<'_>, ctx: Context<'_, S>) {
        let mut fields = Fields::default();
        values.record(&mut fields);
        self.with_span(id, &ctx, |log, span| log.span_record(span, &fields.json()));
    }

    fn on_enter(&self, id: &Id, ctx: Context<'_, S>) {
        self.with_span(id, &ctx, HostLog::span_enter);
    }

    fn on_exit(&self, id: &Id, ctx: Context<'_, S>) {
        self.with_span(id, &ctx, HostLog::span_exit);
    }

    fn on_close(&self, id: Id, ctx: Context<'_, S>) {
        self.with_span(&id, &ctx, HostLog::span_close);
    }
}

fn record<'a>(metadata: &'a Metadata<'_>, name: &'a str, message: &'a str, fields: &'a str) -> Record<'a> {
    Record {
        level: code(*metadata.level()),
        name,
        target: metadata.target(),
        file: metadata.file().unwrap_or_default(),
        line: metadata.line().unwrap_or_default(),
        message,
        fields,
    }
}

/// The fields of an event or span.
#[derive(Default)]
struct Fields {
    message: String,
    map: Map<String, Value>,
}

impl Fields {
    fn json(&self) -> String {
        if self.map.is_empty() { String::new() } else { Value::Object(self.map.clone()).to_string() }
    }

    fn insert(&mut self, field: &Field, value: Value) {
        self.map.insert(field.name().to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            // Writing to a string cannot fail; a `Debug` that does leaves what it wrote.
            let _ = write!(self.message, "{value:?}");
        } else {
            self.insert(field, format!("{value:?}").into());
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.insert(field, value.into());
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no NaN and no infinities.
        let number = serde_json::Number::from_f64(value);
        self.insert(field, number.map_or_else(|| value.to_string().into(), Value::Number));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, value.into());
    }
}
