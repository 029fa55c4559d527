//! Results as they cross the edge: a code, and a text in the sink.

use abi_stable::StableAbi;

use crate::Error;

/// What a function of a plugin returns. The codes never change.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, StableAbi)]
#[must_use]
pub struct Status(pub i32);

impl Status {
    /// The result is in the sink.
    pub const OK: Self = Self(0);
    /// [`Error::Config`]; this and the following: the message is the sink's text.
    pub const CONFIG: Self = Self(1);
    /// [`Error::Invalid`].
    pub const INVALID: Self = Self(2);
    /// [`Error::Unsupported`].
    pub const UNSUPPORTED: Self = Self(3);
    /// [`Error::Panic`].
    pub const PANIC: Self = Self(4);
    /// [`Error::Failed`].
    pub const FAILED: Self = Self(5);

    /// Code and message of an error.
    pub(super) fn of(error: Error) -> (Self, String) {
        match error {
            Error::Config(message) => (Self::CONFIG, message),
            Error::Invalid(message) => (Self::INVALID, message),
            Error::Unsupported(message) => (Self::UNSUPPORTED, message),
            Error::Panic(message) => (Self::PANIC, message),
            Error::Failed(message) => (Self::FAILED, message),
        }
    }

    /// The error that a plugin reported. A code from a later protocol is a failure like any other.
    #[cfg(feature = "loader")]
    pub(super) fn check(self, message: &str) -> crate::Result<()> {
        let message = if message.is_empty() { "no message given" } else { message };
        Err(match self {
            Self::OK => return Ok(()),
            Self::CONFIG => Error::config(message),
            Self::INVALID => Error::invalid(message),
            Self::UNSUPPORTED => Error::unsupported(message),
            Self::PANIC => Error::Panic(message.to_owned()),
            Self::FAILED => Error::failed(message),
            Self(code) => Error::failed(format!("{message} (status {code})")),
        })
    }
}
