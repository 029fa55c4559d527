//! Writing results to stdout.

use std::io::{self, ErrorKind, Write};
use std::path::Path;

use advdmd::{Error, Result};
use serde::Serialize;

/// Writes `text` and a line break to stdout. Ends the program quietly where the reader has gone (`advdmd … | head`).
pub fn text(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.trim_end_matches('\n').as_bytes()).and_then(|()| out.write_all(b"\n"));
    match written.and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.map_err(Error::file("write", Path::new("stdout"))),
    }
}

/// Writes `value` as indented JSON.
pub fn json(value: &impl Serialize) -> Result<()> {
    let json = serde_json::to_string_pretty(value).map_err(Error::failed)?;
    text(&json)
}

/// Aligns rows of cells into columns two spaces apart.
pub fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..count).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Breaks text into lines of up to 100 characters, indented by `indent`.
pub fn wrapped(text: &str, indent: usize) -> String {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= 100 => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(format!("{:indent$}{word}", "")),
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_end_without_blanks() {
        let rows = [vec!["a".to_owned(), "b".to_owned()], vec!["long".to_owned(), String::new()]];
        assert_eq!(columns(&rows), "a     b\nlong");
    }

    #[test]
    fn long_texts_break_at_words() {
        let text = wrapped(&"word ".repeat(30), 2);
        assert!(text.lines().count() == 2 && text.lines().all(|line| line.starts_with("  word") && line.len() <= 100));
    }
}
