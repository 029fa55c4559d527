//! Ctrl-C and SIGTERM ask a run to save and stop; a second one kills the program.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{Error, Result};

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
