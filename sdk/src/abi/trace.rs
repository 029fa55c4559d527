//! The host's log across the edge.

use std::ffi::c_void;

use abi_stable::StableAbi;
use abi_stable::std_types::RStr;
use tracing_subscriber::Registry;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::trace::forward::ForwardLayer;
use crate::trace::{self, Record};

/// Where a plugin's events and spans go: to functions of the host, which live as long as the process.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct HostLog {
    pub(super) ctx: *const c_void,
    /// The address of a static of the host's copy of this crate: equal to the plugin's own when both are linked into
    /// one binary, whose subscriber must stay.
    pub(super) marker: *const u8,
    pub(super) vtable: HostLogVtableRef,
}

/// The functions of the host's log; `ctx` is the log's, a span is a number, and 0 a span that the host ignores.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = HostLogVtableRef)))]
#[sabi(missing_field(option))]
pub struct HostLogVtable {
    /// Something happened.
    pub event: unsafe extern "C" fn(ctx: *const c_void, record: &LogRecord<'_>),
    /// A span began; gives its number.
    pub span_new: unsafe extern "C" fn(ctx: *const c_void, record: &LogRecord<'_>) -> u64,
    /// Fields of a span got values: a JSON object.
    pub span_record: unsafe extern "C" fn(ctx: *const c_void, span: u64, fields: RStr<'_>),
    /// This thread entered a span.
    pub span_enter: unsafe extern "C" fn(ctx: *const c_void, span: u64),
    /// This thread left a span.
    pub span_exit: unsafe extern "C" fn(ctx: *const c_void, span: u64),
    /// A span ended; its number is not used again.
    #[sabi(last_prefix_field)]
    pub span_close: unsafe extern "C" fn(ctx: *const c_void, span: u64),
}

/// An event, or the beginning of a span.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct LogRecord<'a> {
    /// 1 for an error up to 5 for a trace.
    pub(super) level: u8,
    /// 0 if unknown.
    pub(super) line: u32,
    /// Empty for an event.
    pub(super) name: RStr<'a>,
    pub(super) target: RStr<'a>,
    /// Empty if unknown.
    pub(super) file: RStr<'a>,
    /// Empty for a span.
    pub(super) message: RStr<'a>,
    /// A JSON object, or empty.
    pub(super) fields: RStr<'a>,
}

/// Its address tells copies of this crate apart.
static MARKER: u8 = 0;

// SAFETY: the host's functions may be called from any thread, and `ctx` is only handed to them.
unsafe impl Send for HostLog {}
// SAFETY: as above.
unsafe impl Sync for HostLog {}

/// Sends what this binary logs to `log`, unless it is the host itself or has a subscriber of its own.
///
/// # Safety
/// `log` is valid as long as the process lives.
pub(super) unsafe fn install(log: HostLog) {
    if !std::ptr::eq(log.marker, &raw const MARKER) {
        let subscriber = Registry::default().with(ForwardLayer(log));
        // An author who installed a subscriber, for tests or by intent, keeps it.
        let _ = tracing::subscriber::set_global_default(subscriber);
    }
}

impl trace::HostLog for HostLog {
    fn event(&self, record: &Record<'_>) {
        // SAFETY: the functions live as long as the process and take this `ctx`; so do those below.
        unsafe { self.vtable.event()(self.ctx, &record.into()) }
    }

    fn span_new(&self, record: &Record<'_>) -> u64 {
        // SAFETY: as in `event`.
        unsafe { self.vtable.span_new()(self.ctx, &record.into()) }
    }

    fn span_record(&self, span: u64, fields: &str) {
        // SAFETY: as in `event`; the number came from `span_new` and is not closed.
        unsafe { self.vtable.span_record()(self.ctx, span, fields.into()) }
    }

    fn span_enter(&self, span: u64) {
        // SAFETY: as in `span_record`.
        unsafe { self.vtable.span_enter()(self.ctx, span) }
    }

    fn span_exit(&self, span: u64) {
        // SAFETY: as in `span_record`.
        unsafe { self.vtable.span_exit()(self.ctx, span) }
    }

    fn span_close(&self, span: u64) {
        // SAFETY: as in `span_record`; the layer forgets the number now.
        unsafe { self.vtable.span_close()(self.ctx, span) }
    }
}

impl<'a> From<&Record<'a>> for LogRecord<'a> {
    fn from(record: &Record<'a>) -> Self {
        Self {
            level: record.level,
            line: record.line,
            name: record.name.into(),
            target: record.target.into(),
            file: record.file.into(),
            message: record.message.into(),
            fields: record.fields.into(),
        }
    }
}

#[cfg(feature = "loader")]
mod host {
    use abi_stable::prefix_type::WithMetadata;
    use tracing::Span;

    use super::{HostLog, HostLogVtable, HostLogVtableRef, LogRecord, MARKER, RStr, c_void};
    use crate::abi::guard::catch;
    use crate::abi::sink::lossy;
    use crate::trace::{Record, emit};

    static VTABLE: WithMetadata<HostLogVtable> =
        WithMetadata::new(HostLogVtable { event, span_new, span_record, span_enter, span_exit, span_close });

    impl HostLog {
        /// The log of this process for the plugin of that name.
        pub(in crate::abi) fn of_plugin(name: &str) -> Self {
            // Lives as long as the process, as the plugin does.
            let name: &'static String = Box::leak(Box::new(name.to_owned()));
            let vtable = HostLogVtableRef(VTABLE.static_as_prefix());
            Self { ctx: (&raw const *name).cast(), marker: &raw const MARKER, vtable }
        }
    }

    impl LogRecord<'_> {
        /// Gives the record to `act`; a plugin in another language may send anything as a text.
        fn read<T>(&self, act: impl FnOnce(&Record<'_>) -> T) -> T {
            act(&Record {
                level: self.level,
                name: &lossy(self.name),
                target: &lossy(self.target),
                file: &lossy(self.file),
                line: self.line,
                message: &lossy(self.message),
                fields: &lossy(self.fields),
            })
        }
    }

    // A subscriber that panics must not unwind into the plugin, and the log is no place to report it.

    unsafe extern "C" fn event(ctx: *const c_void, record: &LogRecord<'_>) {
        // SAFETY: `ctx` is the name that `of_plugin` leaked; so it is below.
        let plugin = unsafe { &*ctx.cast::<String>() };
        let _ = catch(|| record.read(|record| emit::event(plugin, record)));
    }

    unsafe extern "C" fn span_new(ctx: *const c_void, record: &LogRecord<'_>) -> u64 {
        // SAFETY: as in `event`.
        let plugin = unsafe { &*ctx.cast::<String>() };
        match catch(|| record.read(|record| emit::span(plugin, record))) {
            // The number is the span's address, so that no table is needed to find it.
            Ok(Some(span)) => Box::into_raw(Box::new(span)) as u64,
            _ => 0,
        }
    }

    /// The span of a number; none for 0.
    ///
    /// # Safety
    /// `span` came from `span_new`, and is not closed.
    unsafe fn known<'a>(span: u64) -> Option<&'a Span> {
        // SAFETY: the caller's.
        unsafe { (span as *const Span).as_ref() }
    }

    unsafe extern "C" fn span_record(_ctx: *const c_void, span: u64, fields: RStr<'_>) {
        // SAFETY: the plugin passes numbers of its open spans.
        let Some(span) = (unsafe { known(span) }) else { return };
        let _ = catch(|| emit::record(span, &lossy(fields)));
    }

    unsafe extern "C" fn span_enter(_ctx: *const c_void, span: u64) {
        // SAFETY: as in `span_record`.
        let Some(span) = (unsafe { known(span) }) else { return };
        let _ = catch(|| span.with_subscriber(|(id, dispatch)| dispatch.enter(id)));
    }

    unsafe extern "C" fn span_exit(_ctx: *const c_void, span: u64) {
        // SAFETY: as in `span_record`.
        let Some(span) = (unsafe { known(span) }) else { return };
        let _ = catch(|| span.with_subscriber(|(id, dispatch)| dispatch.exit(id)));
    }

    unsafe extern "C" fn span_close(_ctx: *const c_void, span: u64) {
        // SAFETY: as in `span_record`, and the plugin does not use the number again.
        let span = (span != 0).then(|| unsafe { Box::from_raw(span as *mut Span) });
        let _ = catch(|| drop(span));
    }
}
