//! Files of prompts: one a line, or a JSON list of strings.

use std::path::Path;

use crate::{Error, Result};

/// A prompt of a file and where it stands there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The prompt.
    pub prompt: String,
    /// `line 3`, or `entry 3` of a JSON list; both count from 1.
    pub place: String,
}

/// The prompts of a file, in its order. Empty lines are no prompts; the empty string of a JSON list is one.
///
/// # Errors
/// A file that cannot be read, is not UTF-8, is no list of strings although it begins with `[`, or holds no prompt:
/// names the file, and the line at fault.
pub fn read(path: &Path) -> Result<Vec<Row>> {
    let bytes = std::fs::read(path).map_err(Error::file("read", path))?;
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let line = 1 + String::from_utf8_lossy(&bytes[..error.valid_up_to()]).matches('\n').count();
        Error::content(path, format!("line {line} is not UTF-8"))
    })?;
    let rows = if text.trim_start().starts_with('[') {
        let list: Vec<String> = serde_json::from_str(text)
            .map_err(|error| Error::content(path, format!("not a JSON list of strings: {error}")))?;
        list.into_iter().enumerate().map(|(at, prompt)| Row { prompt, place: format!("entry {}", at + 1) }).collect()
    } else {
        let lines = text.lines().enumerate().map(|(at, line)| (at, line.trim_end()));
        let prompts = lines.filter(|(_, line)| !line.is_empty());
        prompts.map(|(at, line)| Row { prompt: line.to_owned(), place: format!("line {}", at + 1) }).collect()
    };
    if Vec::is_empty(&rows) {
        return Err(Error::content(path, "holds no prompt: expected one a line, or a JSON list of strings"));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(bytes: &[u8]) -> Result<Vec<(String, String)>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompts");
        std::fs::write(&path, bytes).unwrap();
        Ok(read(&path)?.into_iter().map(|row| (row.place, row.prompt)).collect())
    }

    #[test]
    fn lines_and_lists_know_their_places() {
        let expected = |places: [&str; 2]| {
            Ok(places.into_iter().zip(["a 7", "[x] b"]).map(|(a, b)| (a.into(), b.into())).collect())
        };
        let found = |bytes| rows(bytes).map_err(|error| error.to_string());
        assert_eq!(found(b"a 7 \r\n\n[x] b\n"), expected(["line 1", "line 3"]));
        assert_eq!(found(b" [\"a 7\",\n\"[x] b\"]"), expected(["entry 1", "entry 2"]));
    }
}
