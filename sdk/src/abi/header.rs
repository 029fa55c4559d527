//! The header of a plugin: what the host reads from the file before it runs any of the plugin's code.
//!
//! The layout is frozen for ever: every version of the host must be able to read every plugin's header, if only to
//! say why it does not load. It is plain bytes, so that it has no padding, no alignment and no byte order but the one
//! stated here, and can be written in C and read from any bytes.

use std::fmt;

/// ELF section that holds the header.
pub const SECTION: &str = ".advdmd";

/// First bytes of a header.
pub const MAGIC: [u8; 8] = *b"\x89ADVDMD\n";

/// Version of the protocol between host and plugin. It is not the product's version: it changes only when the edge
/// does. A new major version breaks old plugins; a new minor version appends functions.
pub const PROTOCOL: Protocol = Protocol { major: 1, minor: 0 };

/// The libtorch that crates with feature `torch` are built for (`tch` 0.24 takes this one and no other).
pub const LIBTORCH: &str = if cfg!(feature = "torch") { "2.11.0" } else { "" };

/// A version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Protocol {
    /// Must be the same in host and plugin.
    pub major: u16,
    /// May differ: the newer side does without what the older one lacks.
    pub minor: u16,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The header. Texts are UTF-8, padded with at least one NUL; numbers are little-endian.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub(super) magic: [u8; 8],
    /// Bytes of the header. Later versions may append fields; they never move one.
    pub(super) size: [u8; 4],
    pub(super) protocol_major: [u8; 2],
    pub(super) protocol_minor: [u8; 2],
    pub(super) sdk: [u8; 32],
    pub(super) rustc: [u8; 80],
    pub(super) target: [u8; 48],
    pub(super) libtorch: [u8; 32],
    pub(super) name: [u8; 64],
    pub(super) version: [u8; 32],
    pub(super) entry: [u8; 128],
}

/// Bytes of a header of this version.
pub const HEADER_SIZE: usize = size_of::<Header>();

/// Why bytes are not a header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The bytes begin with something else.
    #[error("the section `{SECTION}` does not begin with AdvDMD's magic bytes")]
    Magic,
    /// Fewer bytes than a header has.
    #[error("the header has {found} bytes, expected at least {HEADER_SIZE}")]
    Short {
        /// Bytes there.
        found: usize,
    },
    /// A text field without an end, not UTF-8, or with control characters, which would reach the user's terminal.
    #[error("the header's field `{field}` is not a NUL-terminated UTF-8 text of printable characters")]
    Text {
        /// The field.
        field: &'static str,
    },
    /// A header without a name or an entry point.
    #[error("the header's field `{field}` is empty")]
    Empty {
        /// The field.
        field: &'static str,
    },
}

impl Header {
    /// The header of the plugin crate that calls `export_plugin!`; too long a text is a compile error.
    #[doc(hidden)]
    #[must_use]
    pub const fn of_plugin(name: &str, version: &str, entry: &str) -> Self {
        Self {
            magic: MAGIC,
            size: (HEADER_SIZE as u32).to_le_bytes(),
            protocol_major: PROTOCOL.major.to_le_bytes(),
            protocol_minor: PROTOCOL.minor.to_le_bytes(),
            sdk: padded(env!("CARGO_PKG_VERSION")),
            rustc: padded(env!("ADVDMD_RUSTC")),
            target: padded(env!("ADVDMD_TARGET")),
            libtorch: padded(LIBTORCH),
            name: padded(name),
            version: padded(version),
            entry: padded(entry),
        }
    }

    /// What the host itself is built with, to compare plugins to.
    #[must_use]
    pub const fn of_host() -> Self {
        Self::of_plugin("advdmd", env!("CARGO_PKG_VERSION"), "")
    }

    /// Reads the header at the start of `bytes`, whatever they are.
    ///
    /// # Errors
    /// Bytes that are not a header; a wrong protocol or target is not an error here.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        if !bytes.starts_with(&MAGIC) {
            return Err(HeaderError::Magic);
        }
        let mut rest = bytes.get(..HEADER_SIZE).ok_or(HeaderError::Short { found: bytes.len() })?;
        let header = Self {
            magic: take(&mut rest),
            size: take(&mut rest),
            protocol_major: take(&mut rest),
            protocol_minor: take(&mut rest),
            sdk: take(&mut rest),
            rustc: take(&mut rest),
            target: take(&mut rest),
            libtorch: take(&mut rest),
            name: take(&mut rest),
            version: take(&mut rest),
            entry: take(&mut rest),
        };
        if header.size() < HEADER_SIZE {
            return Err(HeaderError::Short { found: header.size() });
        }
        for (field, bytes) in header.texts() {
            text(bytes).filter(|text| !text.contains(char::is_control)).ok_or(HeaderError::Text { field })?;
        }
        for (field, value) in [("name", header.name()), ("entry", header.entry())] {
            if value.is_empty() {
                return Err(HeaderError::Empty { field });
            }
        }
        Ok(header)
    }

    fn texts(&self) -> [(&'static str, &[u8]); 7] {
        [
            ("sdk", &self.sdk),
            ("rustc", &self.rustc),
            ("target", &self.target),
            ("libtorch", &self.libtorch),
            ("name", &self.name),
            ("version", &self.version),
            ("entry", &self.entry),
        ]
    }

    /// Bytes that the plugin's own version of the header has.
    pub fn size(&self) -> usize {
        u32::from_le_bytes(self.size) as usize
    }

    /// Version of the protocol that the plugin speaks.
    pub fn protocol(&self) -> Protocol {
        Protocol { major: u16::from_le_bytes(self.protocol_major), minor: u16::from_le_bytes(self.protocol_minor) }
    }

    /// Version of the SDK; empty for a plugin in C.
    pub fn sdk(&self) -> &str {
        text(&self.sdk).unwrap_or_default()
    }

    /// What `rustc --version` said; empty for a plugin in C.
    pub fn rustc(&self) -> &str {
        text(&self.rustc).unwrap_or_default()
    }

    /// Target triple.
    pub fn target(&self) -> &str {
        text(&self.target).unwrap_or_default()
    }

    /// Version of the libtorch that it links; empty for none.
    pub fn libtorch(&self) -> &str {
        text(&self.libtorch).unwrap_or_default()
    }

    /// Name of the plugin: its package's.
    pub fn name(&self) -> &str {
        text(&self.name).unwrap_or_default()
    }

    /// Version of the plugin.
    pub fn version(&self) -> &str {
        text(&self.version).unwrap_or_default()
    }

    /// Symbol of the plugin's [`Entry`](super::Entry); one for each crate, so that plugins also link statically.
    pub fn entry(&self) -> &str {
        text(&self.entry).unwrap_or_default()
    }
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Header");
        out.field("protocol", &self.protocol());
        for (field, bytes) in self.texts() {
            out.field(field, &text(bytes));
        }
        out.finish()
    }
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::ffi::CStr::from_bytes_until_nul(bytes).ok()?.to_str().ok()
}

fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (head, tail) = rest.split_first_chunk().expect("the length was checked");
    *rest = tail;
    *head
}

const fn padded<const N: usize>(text: &str) -> [u8; N] {
    let bytes = text.as_bytes();
    assert!(bytes.len() < N, "a name or version is too long for the plugin's header");
    let mut out = [0; N];
    let mut i = 0;
    while i < bytes.len() {
        out[i] = bytes[i];
        i += 1;
    }
    out
}
