//! Requests and replies as JSON; `examples/reward-server/openapi.yaml` describes them.

use serde::Serialize;
use serde_json::{Map, Value};

/// Version of the protocol that is spoken here.
pub(crate) const VERSION: u64 = 1;

/// A request for scores.
#[derive(Debug, Serialize)]
pub(crate) struct Request<'a> {
    /// [`VERSION`].
    pub version: u64,
    /// What to score.
    pub samples: Vec<Sample<'a>>,
    /// What the configuration says.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub metadata: &'a Map<String, Value>,
}

/// An image and its prompt.
#[derive(Debug, Serialize)]
pub(crate) struct Sample<'a> {
    /// The prompt.
    pub prompt: &'a str,
    /// A PNG file in base64.
    pub image: String,
}

/// Who answers: what an endpoint says of its scorer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scorer {
    /// What it computes.
    pub name: String,
    /// Which release of it.
    pub release: Option<String>,
}

impl std::fmt::Display for Scorer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}`", self.name.escape_debug())?;
        self.release.as_ref().map_or(Ok(()), |release| write!(f, " {}", release.escape_debug()))
    }
}

/// The `count` scores of a reply.
///
/// # Errors
/// What is wrong with the reply.
pub(crate) fn scores(reply: &[u8], count: usize) -> Result<Vec<f64>, String> {
    let reply = object(reply)?;
    if let Some(version) = reply.get("version") {
        check_version(version)?;
    }
    let scores = match reply.get("scores") {
        Some(Value::Array(scores)) => scores,
        Some(other) => return Err(format!("expected a list `scores`, found {}", kind(other))),
        None => return Err("expected a list `scores`, found none".to_owned()),
    };
    if scores.len() != count {
        return Err(format!("expected {count} scores, found {}", scores.len()));
    }
    let number = |(index, score): (usize, &Value)| match score.as_f64() {
        Some(number) if number.is_finite() => Ok(number),
        _ => Err(format!("score {index} is {}, expected a finite number", kind(score))),
    };
    scores.iter().enumerate().map(number).collect()
}

/// What a healthy endpoint says of itself.
///
/// # Errors
/// What is wrong with the reply.
pub(crate) fn scorer(reply: &[u8]) -> Result<Scorer, String> {
    let reply = object(reply)?;
    check_version(reply.get("version").unwrap_or(&Value::Null))?;
    let text = |key: &str| match reply.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(format!("expected a text `{key}`, found {}", kind(other))),
    };
    let name = text("name")?.ok_or("expected a text `name`, found none")?;
    Ok(Scorer { name, release: text("release")? })
}

fn object(reply: &[u8]) -> Result<Map<String, Value>, String> {
    match serde_json::from_slice(reply) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(format!("expected a JSON object, found {}", kind(&other))),
        Err(error) => {
            let text = String::from_utf8_lossy(reply);
            // What Python's json writes for numbers that JSON does not have.
            let hint =
                if text.contains("NaN") || text.contains("Infinity") { ": a score is NaN or infinite" } else { "" };
            Err(format!("expected JSON, found something else ({error}){hint}"))
        }
    }
}

fn check_version(version: &Value) -> Result<(), String> {
    match version.as_u64() {
        Some(VERSION) => Ok(()),
        Some(other) => Err(format!("speaks version {other} of the protocol, expected {VERSION}")),
        None => Err(format!("expected a number `version` of the protocol, found {}", kind(version))),
    }
}

fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => format!("the text {:?}", text.chars().take(40).collect::<String>()),
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(_) => "an object".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn scores_are_read() {
        let read = |reply: &str, count| scores(reply.as_bytes(), count);
        assert_eq!(read(r#"{"scores": [0, -1.5, 3e-2]}"#, 3), Ok(vec![0.0, -1.5, 0.03]));
        assert_eq!(read(r#"{"version": 1, "scores": [], "took": 3}"#, 0), Ok(vec![]));
    }

    #[test]
    fn every_other_reply_is_refused() {
        for (reply, expected) in [
            ("", "expected JSON, found something else"),
            ("<html>", "expected JSON, found something else"),
            (r#"{"scores": [NaN, 1]}"#, "a score is NaN or infinite"),
            (r#"{"scores": [-Infinity, 1]}"#, "a score is NaN or infinite"),
            (r#"{"scores": [1e999, 1]}"#, "expected JSON"),
            (r#"{"scores": [1, 2]} {}"#, "expected JSON"),
            ("[1, 2]", "expected a JSON object, found a list of 2"),
            (r#"{"score": [1, 2]}"#, "expected a list `scores`, found none"),
            (r#"{"scores": 1}"#, "expected a list `scores`, found 1"),
            (r#"{"scores": [1]}"#, "expected 2 scores, found 1"),
            (r#"{"scores": [[1, 2]]}"#, "expected 2 scores, found 1"),
            (r#"{"scores": [1, 2, 3]}"#, "expected 2 scores, found 3"),
            (r#"{"scores": [1, null]}"#, "score 1 is null, expected a finite number"),
            (r#"{"scores": ["NaN", 1]}"#, "score 0 is the text \"NaN\", expected a finite number"),
            (r#"{"scores": [1, true]}"#, "score 1 is true, expected a finite number"),
            (r#"{"scores": [1, [2]]}"#, "score 1 is a list of 1, expected a finite number"),
            (r#"{"version": 2, "scores": [1, 2]}"#, "speaks version 2 of the protocol, expected 1"),
            (r#"{"version": "1", "scores": [1, 2]}"#, "expected a number `version`"),
        ] {
            let message = scores(reply.as_bytes(), 2).unwrap_err();
            assert!(message.contains(expected), "{message:?} for {reply}");
        }
    }

    #[test]
    fn a_scorer_names_itself_and_its_protocol() {
        let read = |reply: &str| scorer(reply.as_bytes()).map(|scorer| scorer.to_string());
        assert_eq!(read(r#"{"version": 1, "name": "hps", "release": "v2.1"}"#), Ok("`hps` v2.1".to_owned()));
        assert_eq!(read(r#"{"version": 1, "name": "a\nb", "release": null}"#), Ok("`a\\nb`".to_owned()));
        for bad in ["ok", "{}", r#"{"name": "x"}"#, r#"{"version": 1}"#, r#"{"version": 2, "name": "x"}"#] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        /// Any bytes: an error with words on one line, or as many finite numbers as were asked for.
        #[test]
        fn any_bytes(reply: Vec<u8>, count in 0_usize..4) {
            sound(&reply, count)?;
        }

        /// Replies that are almost right.
        #[test]
        fn damaged_replies(list in prop::collection::vec("[0-9eE.+-]{1,8}|null|NaN|\"1\"|true", 0..4), at: prop::sample::Index, byte: u8) {
            let mut reply = format!("{{\"version\": 1, \"scores\": [{}]}}", list.join(", ")).into_bytes();
            sound(&reply, list.len())?;
            let at = at.index(reply.len());
            reply[at] = byte;
            sound(&reply, list.len())?;
            sound(&reply[..at], list.len())?;
        }

        /// Finite numbers come back to the last bit.
        #[test]
        fn numbers_are_read_exactly(list in prop::collection::vec(prop::num::f64::NORMAL | prop::num::f64::SUBNORMAL | prop::num::f64::ZERO, 0..8)) {
            let reply = serde_json::to_vec(&serde_json::json!({ "scores": list })).unwrap();
            let read = scores(&reply, list.len()).unwrap();
            prop_assert!(read.iter().zip(&list).all(|(read, sent)| read.to_bits() == sent.to_bits()));
        }
    }

    fn sound(reply: &[u8], count: usize) -> Result<(), TestCaseError> {
        match scores(reply, count) {
            Ok(scores) => {
                prop_assert_eq!(scores.len(), count);
                prop_assert!(scores.iter().all(|score| score.is_finite()));
            }
            Err(message) => prop_assert!(!message.is_empty() && !message.contains(char::is_control), "{:?}", message),
        }
        prop_assert!(scorer(reply).err().is_none_or(|message| !message.is_empty()));
        Ok(())
    }
}
