//! Events and spans of a plugin, in the host's log.
//!
//! `tracing` inside a dynamic library is its own copy and has no subscriber: what a plugin logs would vanish. So the
//! plugin installs a layer that forwards everything to the host ([`forward`]), which emits it again as if it were its own,
//! with the plugin's name as a field ([`emit`]).

#[cfg(feature = "loader")]
pub(crate) mod emit;
pub(crate) mod forward;

/// An event, or a span's beginning, on its way from plugin to host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    /// 1 for an error up to 5 for a trace.
    pub level: u8,
    /// Name of the span; empty for an event.
    pub name: &'a str,
    /// Module of the plugin, unless the author chose another.
    pub target: &'a str,
    /// Source file; empty if unknown.
    pub file: &'a str,
    /// Line of the source file; 0 if unknown.
    pub line: u32,
    /// Message of the event; empty for a span.
    pub message: &'a str,
    /// The other fields, as a JSON object; `null` for a span's field that has no value yet.
    pub fields: &'a str,
}

/// The host's log, as a plugin sees it. Spans are known by numbers that the host gives; 0 is a span that it ignores.
pub(crate) trait HostLog: Send + Sync + 'static {
    /// Something happened.
    fn event(&self, record: &Record<'_>);
    /// A span began; gives its number.
    fn span_new(&self, record: &Record<'_>) -> u64;
    /// Fields of a span got values: a JSON object.
    fn span_record(&self, span: u64, fields: &str);
    /// The thread entered a span.
    fn span_enter(&self, span: u64);
    /// The thread left a span.
    fn span_exit(&self, span: u64);
    /// A span ended; its number is not used again.
    fn span_close(&self, span: u64);
}
