//! Files of prompts: one a line, or a JSON list of strings; and files that say which image is whose.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::{Error, Result};

/// A prompt of a file and where it stands there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The prompt.
    pub prompt: String,
    /// `line 3`, or `entry 3` of a JSON list; both count from 1.
    pub place: String,
}

/// The prompts of a file, in its order. A byte order mark is none of them. Empty lines are no prompts; the empty string of a JSON list is one.
///
/// # Errors
/// A file that cannot be read, is not UTF-8, is no list of strings although it begins with `[`, or holds no prompt:
/// names the file, and the line at fault.
pub fn read(path: &Path) -> Result<Vec<Row>> {
    rows(path, &text_of(path)?)
}

/// The text of a file, without the byte order mark that some editors begin it with.
fn text_of(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(Error::file("read", path))?;
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let line = 1 + String::from_utf8_lossy(&bytes[..error.valid_up_to()]).matches('\n').count();
        Error::content(path, format!("line {line} is not UTF-8"))
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text).to_owned())
}

fn rows(path: &Path, text: &str) -> Result<Vec<Row>> {
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

/// Prompts of images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Assigned {
    /// One for each image, in the order of the images.
    InOrder(Vec<String>),
    /// By the end of an image's path, such as its file name.
    ByName(BTreeMap<String, String>),
}

/// Prompts of images: a JSON object of file names and prompts (`.json`), a `metadata.jsonl` of Hugging Face's `imagefolder` with
/// `file_name` and `text` (`.jsonl`), or a file that [`read`] takes, such as the `prompts.json` that `advdmd sample` writes.
///
/// # Errors
/// As [`read`]; a JSON file of another form, or two prompts for one name: names the file and the line.
pub fn read_assigned(path: &Path) -> Result<Assigned> {
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let text = text_of(path)?;
    let named = match ending.as_str() {
        "jsonl" => by_line(path, &text)?,
        "json" if text.trim_start().starts_with('{') => {
            let Named(named) = serde_json::from_str(&text).map_err(|error| {
                Error::content(path, format!("not a JSON object of file names and prompts: {error}"))
            })?;
            named
        }
        _ => return Ok(Assigned::InOrder(rows(path, &text)?.into_iter().map(|row| row.prompt).collect())),
    };
    if named.is_empty() {
        return Err(Error::content(path, "holds no prompt"));
    }
    Ok(Assigned::ByName(named))
}

/// Prompts by name. A map of serde would keep the last of two prompts for one name.
struct Named(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Named;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of file names and prompts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<Named, A::Error> {
                let mut named = BTreeMap::new();
                while let Some((name, prompt)) = pairs.next_entry::<String, String>()? {
                    if named.get(&name).is_some_and(|other| *other != prompt) {
                        return Err(A::Error::custom(format_args!("a second prompt for {name:?}")));
                    }
                    named.insert(name, prompt);
                }
                Ok(Named(named))
            }
        }
        input.deserialize_map(Pairs)
    }
}

fn by_line(path: &Path, text: &str) -> Result<BTreeMap<String, String>> {
    #[derive(Deserialize)]
    struct Line {
        file_name: String,
        text: String,
    }
    let mut named = BTreeMap::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let fail = |message: String| Error::content(path, format!("line {}: {message}", at + 1));
        let Line { file_name, text } = serde_json::from_str(line)
            .map_err(|error| fail(format!("expected a JSON object with `file_name` and `text`: {error}")))?;
        if named.get(&file_name).is_some_and(|other| *other != text) {
            return Err(fail(format!("a second prompt for {file_name:?}")));
        }
        named.insert(file_name, text);
    }
    Ok(named)
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

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_prompt() {
        let folder = tempfile::tempdir().unwrap();
        let of = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, format!("\u{feff}{text}")).unwrap();
            read_assigned(&path).map_err(|error| error.to_string())
        };
        let ordered = Ok(Assigned::InOrder(vec!["a".into(), "b".into()]));
        for (name, text) in [("p.txt", "a\nb\n"), ("p.txt", "[\"a\", \"b\"]"), ("p.json", "[\"a\", \"b\"]")] {
            assert_eq!(of(name, text), ordered, "{name}");
            let path = folder.path().join(name);
            let read: Vec<String> = read(&path).unwrap().into_iter().map(|row| row.prompt).collect();
            assert_eq!(read, ["a", "b"], "{name}");
        }
        let named = Ok(Assigned::ByName([("x.png".into(), "a".into())].into()));
        assert_eq!(of("p.json", "{\"x.png\": \"a\"}"), named);
        assert_eq!(of("p.jsonl", "{\"file_name\": \"x.png\", \"text\": \"a\"}"), named);
    }

    #[test]
    fn prompts_of_images_have_several_forms() {
        let folder = tempfile::tempdir().unwrap();
        let of = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            read_assigned(&path).map_err(|error| error.to_string())
        };
        let named = Ok(Assigned::ByName([("a.png".into(), "a 7".into()), ("b/c.png".into(), String::new())].into()));
        assert_eq!(of("p.json", " {\"a.png\": \"a 7\", \"b/c.png\": \"\"}"), named);
        let lines = "{\"file_name\": \"a.png\", \"text\": \"a 7\", \"more\": 1}\n\n{\"text\": \"\", \"file_name\": \"b/c.png\"}\n";
        assert_eq!(of("metadata.jsonl", lines), named);
        let ordered = Ok(Assigned::InOrder(vec!["a 7".into(), "{b}".into()]));
        assert_eq!(of("q.json", "[\"a 7\", \"{b}\"]"), ordered);
        assert_eq!(of("p.txt", "a 7\n{b}\n"), ordered);
        for (name, text, part) in [
            ("p.json", "{\"a.png\": 3}", "not a JSON object of file names and prompts"),
            ("p.json", "{}", "holds no prompt"),
            ("p.json", "{\"a\": \"x\", \"b\": \"x\", \"a\": \"y\"}", "a second prompt for \"a\""),
            (
                "m.jsonl",
                "{\"file_name\": \"a\", \"text\": \"x\"}\n{\"file_name\": \"a\", \"text\": \"y\"}",
                "line 2: a second prompt",
            ),
            ("m.jsonl", "{\"file_name\": \"a\"}", "line 1: expected a JSON object"),
        ] {
            let message = of(name, text).unwrap_err();
            assert!(message.contains(part), "{part:?} in {message}");
        }
    }
}
