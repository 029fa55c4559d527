//! A folder of images with `metadata.jsonl`, as Hugging Face's `imagefolder` has it: one JSON object a line, with
//! `file_name` and the caption.

use std::collections::HashMap;
use std::path::{Component, Path};

use serde_json::{Map, Value as Json};

use super::images::{Item, Source};
use crate::{Error, Result};

const METADATA: &str = "metadata.jsonl";
const FILE_NAME: &str = "file_name";

/// The images of a folder, in the order of its `metadata.jsonl`. Whether they are there is seen when they are read.
///
/// # Errors
/// A missing or empty `metadata.jsonl`; a line that is no JSON object, lacks the file's name or the caption, names a
/// file outside the folder, or repeats another line: names the line.
pub(super) fn list(folder: &Path, text_key: &str) -> Result<Vec<Item>> {
    let path = folder.join(METADATA);
    if !path.exists() {
        let message = format!("{} has no {METADATA}", folder.display());
        let hint = format!(
            "write one JSON object a line: {{\"{FILE_NAME}\": \"a/1.jpg\", \"{text_key}\": \"what the image shows\"}}"
        );
        return Err(Error::usage(message, hint));
    }
    let bytes = std::fs::read(&path).map_err(Error::file("read", &path))?;
    let mut items = Vec::new();
    let mut lines: HashMap<(String, String), usize> = HashMap::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let number = index + 1;
        let fail = |message: String| Error::content(&path, format!("line {number}: {message}"));
        let row: Map<String, Json> = serde_json::from_slice(line).map_err(|error| fail(in_line(&error)))?;
        let name = text_of(&row, FILE_NAME).map_err(&fail)?;
        let caption = text_of(&row, text_key).map_err(&fail)?;
        let relative = Path::new(name);
        if !relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
            return Err(fail(format!("`{FILE_NAME}` {name:?} leads outside the folder: expected a path below it")));
        }
        if let Some(first) = lines.insert((name.to_owned(), caption.trim().to_owned()), number) {
            return Err(fail(format!("the same image with the same caption as line {first}")));
        }
        items.push(Item { caption: caption.trim().to_owned(), source: Source::File(folder.join(relative)) });
    }
    if items.is_empty() {
        return Err(Error::content(&path, "holds no line: expected one JSON object for each image"));
    }
    Ok(items)
}

fn text_of<'a>(row: &'a Map<String, Json>, key: &str) -> Result<&'a str, String> {
    match row.get(key) {
        Some(Json::String(text)) => Ok(text),
        Some(other) => Err(format!("`{key}`: expected a text, found {other}")),
        None => {
            let keys: Vec<String> = row.keys().map(|key| format!("`{key}`")).collect();
            let hint = if key == FILE_NAME { "" } else { "; `data.text_key` names the caption's key" };
            Err(format!("has no `{key}`, its keys are {}{hint}", keys.join(", ")))
        }
    }
}

/// serde's message, which counts lines within this one.
fn in_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or(&text);
    if error.column() == 0 { text.to_owned() } else { format!("{text} at column {}", error.column()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(metadata: &str) -> Result<Vec<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(METADATA), metadata).unwrap();
        let items = list(folder.path(), "text").map_err(|error| error.to_string())?;
        Ok(items.into_iter().map(|item| item.caption).collect())
    }

    #[test]
    fn lines_are_images() {
        let metadata =
            "{\"file_name\": \"a.png\", \"text\": \"a 7 \"}\n\n{\"file_name\":\"b/c.jpg\",\"text\":\"x\",\"more\":1}";
        assert_eq!(listed(metadata).unwrap(), ["a 7", "x"]);
    }

    #[test]
    fn what_is_wrong_names_the_line() {
        let good = "{\"file_name\": \"a.png\", \"text\": \"a 7\"}\n";
        let cases = [
            ("{\"file_name\": \"a.png\", ", "line 2: EOF while parsing a value at column"),
            ("[1]", "line 2: invalid type: sequence, expected a map"),
            ("{\"text\": \"a\"}", "line 2: has no `file_name`, its keys are `text`"),
            ("{\"file_name\": \"b.png\", \"caption\": \"a\"}", "`data.text_key` names the caption's key"),
            ("{\"file_name\": \"b.png\", \"text\": 3}", "line 2: `text`: expected a text, found 3"),
            ("{\"file_name\": \"../b.png\", \"text\": \"a\"}", "line 2: `file_name` \"../b.png\" leads outside"),
            ("{\"file_name\": \"/etc/b.png\", \"text\": \"a\"}", "leads outside the folder"),
            ("{\"file_name\": \"a.png\", \"text\": \"a 7\"}", "the same caption as line 1"),
        ];
        for (line, part) in cases {
            let message = listed(&format!("{good}{line}\n")).unwrap_err();
            assert!(message.contains(part), "{part:?} in {message}");
        }
        assert!(listed("\n").unwrap_err().contains("holds no line"));
        let nowhere = list(Path::new("/nowhere"), "text").unwrap_err().to_string();
        assert!(nowhere.contains("/nowhere has no metadata.jsonl"), "{nowhere}");
    }
}
