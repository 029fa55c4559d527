//! Progress of a long run: a bar on a terminal, a log line now and then elsewhere.
//!
//! Log lines and the bar share stderr: give [`LogWriter`] to the `tracing` subscriber, and each log line is written
//! above the bar instead of through it.

mod headline;
mod pace;

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tracing_subscriber::fmt::MakeWriter;

pub use headline::headline;
use pace::Pace;
pub use pace::duration;

/// Seconds between log lines where stderr is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// The bar on the screen, which log lines have to step around.
static ON_SCREEN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Shows how far a loop has come, how fast it goes and when it will end.
#[derive(Debug)]
pub struct Progress {
    task: String,
    total: u64,
    pace: Pace,
    bar: Option<ProgressBar>,
    line_every: Duration,
    last_line: Option<Instant>,
}

impl Progress {
    /// Progress of `task` ("training"), of which `done` of `total` units are behind us already: a bar if stderr is a
    /// terminal, lines otherwise.
    pub fn new(task: &str, done: u64, total: u64) -> Self {
        let bar = io::stderr().is_terminal().then(|| bar(task, done, total));
        on_screen(bar.as_ref());
        Self {
            task: task.to_owned(),
            total,
            pace: Pace::new(done, Instant::now()),
            bar,
            line_every: LINE_EVERY,
            last_line: None,
        }
    }

    /// Log lines at least this far apart, where there is no bar; 30 seconds unless told.
    #[must_use]
    pub fn line_every(mut self, interval: Duration) -> Self {
        self.line_every = interval;
        self
    }

    /// Moves to `done` units; `numbers` is the rest of the line, such as [`headline`] makes.
    pub fn advance(&mut self, done: u64, numbers: impl fmt::Display) {
        let now = Instant::now();
        self.pace.advance(done, now);
        let left = self.total.saturating_sub(done);
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(format!("{}  {numbers}", self.pace.describe(left)));
            return;
        }
        let due = self.last_line.is_none_or(|last| now.duration_since(last) >= self.line_every);
        if due || left == 0 {
            self.last_line = Some(now);
            tracing::info!("{} {done}/{}, {}  {numbers}", self.task, self.total, self.pace.describe(left));
        }
    }

    /// Says what goes on meanwhile ("evaluating"); an empty text means the task itself again. The time until the next
    /// [`Progress::advance`] does not count for the speed.
    pub fn meanwhile(&mut self, activity: &str) {
        self.pace.pause();
        match &self.bar {
            Some(bar) if activity.is_empty() => bar.set_prefix(self.task.clone()),
            Some(bar) => bar.set_prefix(activity.to_owned()),
            None if activity.is_empty() => {}
            None => tracing::info!("{activity}"),
        }
    }

    /// Runs `f`, which may write to the terminal, with the bar out of the way.
    pub fn suspend<R>(&self, f: impl FnOnce() -> R) -> R {
        match &self.bar {
            Some(bar) => bar.suspend(f),
            None => f(),
        }
    }
}

impl Drop for Progress {
    /// Takes the bar off the screen.
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            on_screen(None);
            bar.finish_and_clear();
        }
    }
}

fn bar(task: &str, done: u64, total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} {bar:24.green/dim} {pos}/{len}  {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─");
    let bar = ProgressBar::new(total).with_style(style).with_prefix(task.to_owned());
    bar.set_position(done);
    bar
}

fn on_screen(bar: Option<&ProgressBar>) {
    *ON_SCREEN.lock().unwrap_or_else(PoisonError::into_inner) = bar.cloned();
}

/// Stderr for a `tracing` subscriber: `tracing_subscriber::fmt().with_writer(LogWriter)`.
#[derive(Debug, Default, Clone, Copy)]
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bar = ON_SCREEN.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let write = || io::stderr().lock().write_all(bytes).map(|()| bytes.len());
        bar.map_or_else(write, |bar| bar.suspend(write))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        *self
    }
}
