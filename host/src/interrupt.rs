//! Ctrl-C and SIGTERM ask a run to save and stop; a second one kills the program.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// How often whoever waits looks whether the user asked to stop.
pub const PATIENCE: Duration = Duration::from_millis(100);

static RAISED: AtomicU32 = AtomicU32::new(0);
static INSTALLED: OnceLock<Result<(), String>> = OnceLock::new();

/// Whether the user asked the run to stop.
#[derive(Debug, Clone, Copy)]
pub struct Flag(());

impl Flag {
    /// True after the first signal.
    pub fn is_raised(self) -> bool {
        RAISED.load(Ordering::Relaxed) > 0
    }
}

/// Installs the handlers, once in a process.
///
/// # Errors
/// The operating system's.
pub fn flag() -> Result<Flag> {
    let install = || {
        ctrlc::set_handler(|| {
            if RAISED.fetch_add(1, Ordering::Relaxed) > 0 {
                std::process::exit(130);
            }
            tracing::warn!("stopping when what is under way is done; once more to stop at once");
        })
        .map_err(|error| error.to_string())
    };
    match INSTALLED.get_or_init(install) {
        Ok(()) => Ok(Flag(())),
        Err(message) => Err(Error::failed(format!("cannot handle Ctrl-C: {message}"))),
    }
}

/// Whether the user asked the run to stop; false where nobody handles signals.
pub fn is_raised() -> bool {
    flag().is_ok_and(Flag::is_raised)
}

/// Why nothing was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// The user asked to stop.
    Stopped,
    /// The time is over.
    TooLong,
    /// Nobody is there to send.
    Gone,
}

/// Waits for a message, for as long as `limit` where there is one.
///
/// # Errors
/// Why there is none.
pub fn receive<T>(from: &Receiver<T>, limit: Option<Duration>) -> Result<T, Waited> {
    let deadline = limit.map(|limit| Instant::now() + limit);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        match from.recv_timeout(left.map_or(PATIENCE, |left| left.min(PATIENCE))) {
            Ok(message) => return Ok(message),
            Err(RecvTimeoutError::Disconnected) => return Err(Waited::Gone),
            Err(RecvTimeoutError::Timeout) if left.is_some_and(|left| left.is_zero()) => return Err(Waited::TooLong),
            Err(RecvTimeoutError::Timeout) if is_raised() => return Err(Waited::Stopped),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}
