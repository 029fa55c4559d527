//! What a plugin logs stands in the host's log. A program of its own: the subscriber is one for the whole process.

mod common;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use advdmd_sdk::abi::Plugin;
use advdmd_sdk::{RewardBatch, TensorView};
use serde_json::json;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

/// A line for each thing that happened.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

#[derive(Default)]
struct Fields(BTreeMap<&'static str, String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name(), format!("{value}u"));
    }
}

impl Log {
    fn add(&self, what: &str, record: impl FnOnce(&mut Fields)) {
        let mut fields = Fields::default();
        record(&mut fields);
        let fields: Vec<_> = fields.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
        self.0.lock().unwrap().push(format!("{what} {}", fields.join(" ")));
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Log {
    fn on_event(&self, event: &Event<'_>, ctx: Context<'_, S>) {
        let metadata = event.metadata();
        let within = ctx.event_span(event).map_or_else(String::new, |span| format!(" in {}", span.name()));
        let line = metadata.line().map_or(0, |line| line);
        assert!(line > 0 && metadata.file().is_some_and(|file| file.ends_with("minimal_plugin.rs")), "{metadata:?}");
        let what = format!("{} {}{within}:", metadata.level(), metadata.target());
        self.add(&what, |fields| event.record(fields));
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, _id: &Id, _ctx: Context<'_, S>) {
        self.add(&format!("new {}:", attributes.metadata().name()), |fields| attributes.record(fields));
    }

    fn on_record(&self, _id: &Id, values: &Record<'_>, _ctx: Context<'_, S>) {
        self.add("record", |fields| values.record(fields));
    }

    fn on_enter(&self, _id: &Id, _ctx: Context<'_, S>) {
        self.add("enter", |_| ());
    }

    fn on_exit(&self, _id: &Id, _ctx: Context<'_, S>) {
        self.add("exit", |_| ());
    }

    fn on_close(&self, _id: Id, _ctx: Context<'_, S>) {
        self.add("close", |_| ());
    }
}

#[test]
fn events_and_spans_reach_the_host() {
    let plugin = Plugin::open(common::plugin()).unwrap();
    // The plugin is loaded first: its log level must follow the host's.
    let log = Log::default();
    let filter = tracing_subscriber::filter::Targets::new().with_target("minimal_plugin", Level::DEBUG);
    let subscriber = tracing_subscriber::registry().with(log.clone()).with(filter);
    tracing::subscriber::set_global_default(subscriber).unwrap();

    let config = json!({ "type": "brightness", "scale": 0.5 });
    let mut reward = plugin.reward(&config, &common::init()).unwrap();
    let pixels = [1.0; 12];
    let images = TensorView::from_f32(&pixels, &[1, 3, 2, 2]).unwrap();
    let batch = RewardBatch { prompts: vec![""], images: Some(images), ..RewardBatch::default() };
    for _ in 0..2 {
        log.0.lock().unwrap().truncate(1);
        reward.score(&batch).unwrap();
    }
    let lines = log.0.lock().unwrap().clone();
    assert_eq!(
        lines,
        [
            "INFO minimal_plugin: message=made a reward plugin=advdmd-sdk scale=0.5",
            "new score: plugin=advdmd-sdk samples=1",
            "enter ",
            "DEBUG minimal_plugin in score: label=a \"quoted\" one message=scoring pixels=12 plugin=advdmd-sdk",
            "record mean=0.5",
            "exit ",
            "close ",
        ]
    );
}
