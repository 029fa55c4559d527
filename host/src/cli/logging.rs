//! Log output: people read it on stderr, machines in the run's folder.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use advdmd::progress::LogWriter;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use super::Verbosity;
use super::render::Style;

/// Starts logging; for the whole program, once.
pub fn start(verbosity: Verbosity) {
    let level = match (verbosity.verbose, verbosity.quiet) {
        (0, 0) => LevelFilter::INFO,
        (1, _) => LevelFilter::DEBUG,
        (0, 1) => LevelFilter::WARN,
        (0, _) => LevelFilter::ERROR,
        _ => LevelFilter::TRACE,
    };
    let filter = EnvFilter::builder().with_default_directive(level.into()).from_env_lossy();
    let human = tracing_subscriber::fmt::layer()
        .event_format(Human { style: Style::of_stderr() })
        // Without colours, which a file has no use for. The text says which plugin speaks, where that matters.
        .fmt_fields(debug_fn(|writer, field, value| match field.name() {
            "message" => write!(writer, "{value:?}"),
            "plugin" => Ok(()),
            name => write!(writer, " {name}={value:?}"),
        }))
        .with_writer(LogWriter)
        .with_filter(filter);
    let machine = tracing_subscriber::fmt::layer().json().with_writer(RunLog).with_filter(LevelFilter::DEBUG);
    // Fails only where a logger is installed already.
    let _ = tracing_subscriber::registry().with(human).with(machine).try_init();
}

/// Logs for another process of this program, which says it in its own way: JSON on stderr.
pub fn start_for_run() {
    let machine = tracing_subscriber::fmt::layer().json().with_writer(io::stderr).with_filter(LevelFilter::DEBUG);
    let _ = tracing_subscriber::registry().with(machine).try_init();
}

/// Copies all further log events to `folder/log.jsonl`, as soon as the folder exists.
pub fn record_in(folder: &Path) {
    let mut target = target();
    let early = std::mem::take(&mut target.early);
    *target = Target { path: Some(folder.join("log.jsonl")), early, file: None };
}

/// `warning: text`: no time, no module, since the file has both.
struct Human {
    style: Style,
}

impl<S, N> FormatEvent<S, N> for Human
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let word = match *event.metadata().level() {
            Level::ERROR => self.style.paint("1;31", "error: "),
            Level::WARN => self.style.paint("1;33", "warning: "),
            Level::INFO => String::new(),
            _ => self.style.paint("2", &format!("{}: ", event.metadata().target())),
        };
        writer.write_str(&word)?;
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// Bytes of events kept until the run's folder is there.
const EARLY_LIMIT: usize = 1 << 20;

#[derive(Default)]
struct Target {
    path: Option<PathBuf>,
    early: Vec<u8>,
    file: Option<File>,
}

static TARGET: Mutex<Target> = Mutex::new(Target { path: None, early: Vec::new(), file: None });

fn target() -> std::sync::MutexGuard<'static, Target> {
    TARGET.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The log file of the run, where there is one.
#[derive(Debug, Clone, Copy)]
struct RunLog;

impl Write for RunLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut target = target();
        if target.file.is_none()
            && let Some(path) = &target.path
            && path.parent().is_some_and(Path::exists)
        {
            let mut file = OpenOptions::new().create(true).append(true).open(path)?;
            file.write_all(&target.early)?;
            target.file = Some(file);
            target.early = Vec::new();
        }
        let Target { file, early, .. } = &mut *target;
        match file {
            Some(file) => file.write_all(bytes)?,
            None if early.len() < EARLY_LIMIT => early.extend_from_slice(bytes),
            None => {}
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for RunLog {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}
