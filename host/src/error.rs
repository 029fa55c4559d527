//! The host's one error type, by concern, and the exit code of each.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::digits::DigitsError;
use crate::train::Finding;

/// `Result` with the host's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration holds what cannot be run: every fault that was found, in the order of the file.
    #[error("{}", lines(.0))]
    Config(Vec<Fault>),
    /// The command line asks for what cannot be done.
    #[error("{message}")]
    Usage {
        /// What is wrong.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// A component could not be made from its configuration.
    #[error("{kind} `{name}` (provided by {provider})")]
    Component {
        /// Reward, sampler or backbone.
        kind: advdmd_sdk::Kind,
        /// The `type` that the configuration names.
        name: String,
        /// The plugin's file, or the program itself.
        provider: String,
        /// What the plugin says.
        source: advdmd_sdk::Error,
    },
    /// A reward failed while it scored.
    #[error("reward `{reward}` at step {step} (provided by {provider})")]
    Reward {
        /// The reward's label.
        reward: String,
        /// The plugin's file, or the program itself.
        provider: String,
        /// The step whose result was scored, from 0.
        step: usize,
        /// What the plugin says, or what the host refused.
        source: advdmd_sdk::Error,
    },
    /// The user asked to stop, and what was under way can be gone on with.
    #[error("stopped")]
    Stopped,
    /// A loss, a gradient or a reward's mean is not finite.
    #[error("update {update}: {name} is {value}{}{}", found(finding.as_deref()), kept_in(kept.as_deref()))]
    NotFinite {
        /// The update, from 0.
        update: u64,
        /// The number, as the metrics call it.
        name: String,
        /// NaN or an infinity.
        value: f64,
        /// The first tensor of the update that is not finite.
        finding: Option<Box<Finding>>,
        /// Where the update is kept for replay.
        kept: Option<PathBuf>,
    },
    /// A plugin's call failed.
    #[error(transparent)]
    Plugin(#[from] advdmd_sdk::Error),
    /// A plugin broke its contract with the host.
    #[error("contract broken: {0}")]
    Contract(String),
    /// A file could not be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried: `read`, `write`, `create`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file's content is not what it should be.
    #[error("{}: {message}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        message: String,
    },
    /// The digit scenes.
    #[error(transparent)]
    Digits(#[from] DigitsError),
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(String),
    /// Anything else that ends a run; the text says what and where.
    #[error("{0}")]
    Failed(String),
}

/// One thing wrong in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The key, what was found and what was expected.
    pub message: String,
    /// Where it stands, if it stands anywhere.
    pub place: Option<Place>,
    /// What to do about it.
    pub hint: Option<String>,
}

/// A place in a file, a recipe or a `--set` option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file's path, the recipe or the option.
    pub source: String,
    /// The line at fault; `None` for the source as a whole.
    pub excerpt: Option<Excerpt>,
}

/// The line of a [`Place`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Characters at fault, at least 1.
    pub width: usize,
    /// The whole line.
    pub text: String,
}

impl Error {
    /// A fault of the configuration that no line stands for.
    pub fn config(message: impl fmt::Display) -> Self {
        Self::Config(vec![Fault { message: message.to_string(), place: None, hint: None }])
    }

    /// A command line that cannot be obeyed.
    pub fn usage(message: impl fmt::Display, hint: impl Into<Option<String>>) -> Self {
        Self::Usage { message: message.to_string(), hint: hint.into() }
    }

    /// A plugin that did not do what its trait promises.
    pub fn contract(message: impl fmt::Display) -> Self {
        Self::Contract(message.to_string())
    }

    /// For `map_err`: what was tried on which file.
    pub fn file(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::File { action, path, source }
    }

    /// A file that does not hold what it should.
    pub fn content(path: impl AsRef<Path>, message: impl fmt::Display) -> Self {
        Self::Content { path: path.as_ref().to_owned(), message: message.to_string() }
    }

    /// Anything else that ends a run.
    pub fn failed(message: impl fmt::Display) -> Self {
        Self::Failed(message.to_string())
    }

    /// The error with its causes, in one line.
    pub fn in_one_line(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(next) = cause {
            text += &format!(": {next}");
            cause = next.source();
        }
        text
    }

    /// The exit code of the program: 2 for a command line or configuration that must be changed first, else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        use advdmd_sdk::Error as Sdk;
        match self {
            Self::Config(_)
            | Self::Usage { .. }
            | Self::Component { source: Sdk::Config(_), .. }
            | Self::Plugin(Sdk::Config(_)) => 2,
            _ => 1,
        }
    }
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        // libtorch appends its C++ stack to the message; the first line says what happened.
        let text = error.to_string();
        let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("unknown error");
        Self::Torch(first.to_owned())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        match &self.excerpt {
            Some(excerpt) => write!(f, ":{}:{}", excerpt.line, excerpt.column),
            None => Ok(()),
        }
    }
}

fn found(finding: Option<&Finding>) -> String {
    finding.map_or_else(String::new, |finding| format!("\n  first tensor at fault: {finding}"))
}

fn kept_in(folder: Option<&Path>) -> String {
    folder.map_or_else(String::new, |folder| {
        format!(
            "\n  kept for replay: `advdmd replay {}` shows every tensor on the way\n  nothing moved from there on, and \
             what was saved before is whole; a lower learning rate or weight may help",
            folder.display()
        )
    })
}

fn lines(faults: &[Fault]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
