//! What a plugin in C logs: bytes that are no UTF-8, and from any of its files. A program of its own: the subscriber is one for
//! the whole process.

mod common;

use std::fmt::Debug;
use std::path::Path;
use std::sync::{Arc, Mutex};

use advdmd_sdk::Error;
use advdmd_sdk::abi::Plugin;
use serde_json::json;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt as _};

/// The messages.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

struct Message<'a>(&'a Log);

impl Visit for Message<'_> {
    fn record_debug(&mut self, _field: &Field, _value: &dyn Debug) {}

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.0.0.lock().unwrap().push(value.to_owned());
        }
    }
}

impl<S: Subscriber> Layer<S> for Log {
    fn on_event(&self, event: &Event<'_>, _ctx: Context<'_, S>) {
        if event.metadata().target() == "plugin" {
            event.record(&mut Message(self));
        }
    }
}

#[test]
fn every_file_logs_and_any_bytes_are_a_text() {
    let log = Log::default();
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(log.clone())).unwrap();
    let sources = ["c_log.c", "c_log_elsewhere.c"];
    let sources = sources.map(|name| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name));
    for (compiler, options) in [("cc", ["-std=c99"].as_slice()), ("c++", &["-xc++", "-std=c++11"])] {
        let library = common::scratch().join(format!("libc_log-{}.so", compiler.replace('+', "p")));
        let sources = sources.each_ref().map(std::path::PathBuf::as_path);
        common::compile(compiler, &[options, &["-fPIC", "-shared"]].concat(), &sources, &library);
        let plugin = Plugin::open(&library).unwrap();
        let error = plugin.reward(&json!({ "type": "any" }), &common::init()).err();
        assert_eq!(error, Some(Error::unsupported("it only logs")));
        let messages = std::mem::take(&mut *log.0.lock().unwrap());
        // 1,023 bytes, the last of which is the first half of a letter where no other stands in front.
        let expected =
            [format!("a{}", "é".repeat(511)), format!("{}\u{fffd}", "é".repeat(511)), "from elsewhere".to_owned()];
        assert_eq!(messages, expected, "{compiler}");
    }
}
