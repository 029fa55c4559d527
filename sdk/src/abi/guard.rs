//! What stands between a plugin's code and its exported functions: panics become errors.
//!
//! A panic that leaves a dynamic library ends the process, because each library has its own copy of the standard
//! library and none catches another's. So every exported function catches its own.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::sync::Once;

use super::{Sink, Status};
use crate::{Error, Result};

thread_local! {
    /// How many guarded calls this thread is in.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    /// Message and place of the panic that is being caught.
    static REPORT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs the body of an exported function, with its error or panic as the status and the sink's text.
pub(super) fn guard(out: &Sink, body: impl FnOnce() -> Result<()>) -> Status {
    match catch(body).and_then(|result| result) {
        Ok(()) => Status::OK,
        Err(error) => {
            let (status, message) = Status::of(error);
            out.text(&message);
            status
        }
    }
}

/// Runs `body` and gives its panic as an error, without the message that a panic prints.
pub(super) fn catch<T>(body: impl FnOnce() -> T) -> Result<T> {
    install_hook();
    DEPTH.set(DEPTH.get() + 1);
    let caught = panic::catch_unwind(AssertUnwindSafe(body));
    DEPTH.set(DEPTH.get() - 1);
    caught.map_err(|payload| {
        let report = REPORT.take().unwrap_or_else(|| message(&*payload).to_owned());
        // Dropping a payload runs the plugin's code, which may panic again; leaking a message does no harm.
        std::mem::forget(payload);
        Error::Panic(report)
    })
}

/// Keeps the message and place of guarded panics instead of printing them. Other panics, and all panics when
/// `RUST_BACKTRACE` asks for more, are reported as before.
fn install_hook() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let guarded = DEPTH.get() > 0;
            if guarded {
                REPORT.set(Some(report(info)));
            }
            if !guarded || std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
                previous(info);
            }
        }));
    });
}

fn report(info: &PanicHookInfo<'_>) -> String {
    let message = message(info.payload());
    info.location().map_or_else(|| message.to_owned(), |place| format!("{message} (at {place})"))
}

fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// libtorch's gradient mode of this thread, restored on drop.
#[cfg(all(feature = "torch", feature = "loader"))]
pub(super) struct GradMode(i32);

#[cfg(all(feature = "torch", feature = "loader"))]
impl GradMode {
    pub(super) fn save() -> Self {
        // libtorch's C interface only tells the mode when it is set.
        // SAFETY: the function sets a thread-local flag and has no preconditions.
        let mode = unsafe { torch_sys::at_grad_set_enabled(0) };
        let saved = Self(mode);
        saved.restore();
        saved
    }

    fn restore(&self) {
        // SAFETY: as in `save`.
        unsafe { torch_sys::at_grad_set_enabled(self.0) };
    }
}

#[cfg(all(feature = "torch", feature = "loader"))]
impl Drop for GradMode {
    fn drop(&mut self) {
        // SAFETY: as in `save`.
        let left = unsafe { torch_sys::at_grad_set_enabled(self.0) };
        SWITCHED.set(SWITCHED.get() || left != self.0);
    }
}

#[cfg(all(feature = "torch", feature = "loader"))]
thread_local! {
    /// Whether a call of this thread came back with another gradient mode.
    static SWITCHED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a plugin has left libtorch's gradient mode switched in a call of this thread since this was last asked. The mode
/// itself was restored.
#[cfg(all(feature = "torch", feature = "loader"))]
pub fn take_switched_grad_mode() -> bool {
    SWITCHED.take()
}
