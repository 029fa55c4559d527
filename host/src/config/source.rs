//! Where a value came from: the texts that a configuration is made of, and spans in them.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Excerpt, Place};

/// One text of a configuration.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// What it is.
    pub kind: SourceKind,
    /// Its text.
    pub text: String,
}

/// What a text of a configuration is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceKind {
    /// A preset of this program, by name.
    Recipe(String),
    /// The user's file.
    File(PathBuf),
    /// A `--set` option.
    Set,
}

/// A span of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The text.
    pub source: Arc<Source>,
    /// Bytes of it.
    pub span: Range<usize>,
}

impl Source {
    /// A text of a given kind.
    pub fn new(kind: SourceKind, text: impl Into<String>) -> Arc<Self> {
        Arc::new(Self { kind, text: text.into() })
    }

    /// The name that messages use.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.kind {
            SourceKind::Recipe(name) => format!("recipe {name}"),
            SourceKind::File(path) => path.display().to_string(),
            SourceKind::Set => "--set".to_owned(),
        }
    }

    /// The text as a whole, as a place of an error.
    #[must_use]
    pub fn whole(&self) -> Place {
        Place { source: self.name(), excerpt: None }
    }

    /// What relative paths in this text are relative to: the file's folder, or the working directory.
    #[must_use]
    pub fn base(&self) -> &Path {
        match &self.kind {
            SourceKind::File(path) => path.parent().unwrap_or(Path::new("")),
            SourceKind::Recipe(_) | SourceKind::Set => Path::new(""),
        }
    }

    /// The span as a place with its line.
    #[must_use]
    pub fn place(&self, span: &Range<usize>) -> Place {
        let start = self.text.floor_char_boundary(span.start.min(self.text.len()));
        let line_start = self.text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = self.text[start..].find('\n').map_or(self.text.len(), |at| start + at);
        let line = self.text[line_start..line_end].trim_end_matches('\r');
        // The end of a Windows line is not shown, and a span that begins there begins behind what is.
        let line_end = line_start + line.len();
        let start = start.min(line_end);
        let end = self.text.floor_char_boundary(span.end.clamp(start, line_end));
        let excerpt = Excerpt {
            line: self.text[..start].matches('\n').count() + 1,
            column: self.text[line_start..start].chars().count() + 1,
            width: self.text[start..end].chars().count().max(1),
            text: line.to_owned(),
        };
        Place { source: self.name(), excerpt: Some(excerpt) }
    }
}

impl Origin {
    /// The text of the span, if it lies in its source.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        self.source.text.get(self.span.clone())
    }

    /// The origin as a place of an error.
    #[must_use]
    pub fn place(&self) -> Place {
        self.source.place(&self.span)
    }

    /// The origin in one phrase: `recipe advdmd:12:3`, `run.toml:4:1`, `--set batch.groups=4`.
    #[must_use]
    pub fn describe(&self) -> String {
        match self.source.kind {
            SourceKind::Set => format!("--set {}", self.source.text),
            _ => self.place().to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_counts_characters_not_bytes() {
        let source = Source::new(SourceKind::File("run.toml".into()), "a = 1\r\nb = \"µ\" # x = 2\r\n");
        let at = source.text.find("x =").unwrap();
        let place = source.place(&(at..at + 1));
        assert_eq!(place.to_string(), "run.toml:2:11");
        assert_eq!(place.excerpt.unwrap().text, "b = \"µ\" # x = 2");
    }

    #[test]
    fn a_span_beyond_the_text_is_the_end() {
        let source = Source::new(SourceKind::Set, "a=");
        assert_eq!(source.place(&(9..12)).to_string(), "--set:1:3");
        let windows = Source::new(SourceKind::Set, "a =\r\nb = 1\r\n");
        assert_eq!(windows.place(&(4..5)).to_string(), "--set:1:4");
    }
}
