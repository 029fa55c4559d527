//! Which rewards score: named on the command line, or in the `[[reward]]` tables of a file.

use std::path::{Path, PathBuf};

use advdmd_sdk::{Kind, Needs, Reward, RewardInit};
use serde::Deserialize as _;
use serde_json::{Map, Value as Json};
use toml::Value as Toml;

use crate::config::{Component, Containment, OnRewardError};
use crate::containment;
use crate::registry::{Provider, Registry};
use crate::{Error, Result};

/// A reward as the user named it.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// Label in tables; the type by default.
    pub name: String,
    /// `type` and the plugin's keys.
    pub component: Component,
    /// What keeps its faults from the program.
    pub containment: Containment,
    /// The folder that its paths are relative to.
    pub base: PathBuf,
}

/// A reward that is ready to score.
pub struct Ready {
    /// Label in tables.
    pub name: String,
    /// `type` and the plugin's keys, paths and models found.
    pub component: Component,
    /// Who provides it: the plugin's file, or the program.
    pub provider: String,
    /// SHA-256 of the plugin's file; `None` for the program's own.
    pub sha256: Option<String>,
    /// What it needs.
    pub needs: Needs,
    /// The plugin's object.
    pub reward: Box<dyn Reward>,
}

impl Chosen {
    /// Reads `type=remote,endpoints=["http://127.0.0.1:8000/score"],name="my server"`: keys and values that are TOML's numbers,
    /// truth values, quoted strings, arrays and inline tables; what is none of these is a string as it stands.
    ///
    /// # Errors
    /// An item without `=`, a key twice, an open quote or bracket, no `type`: quotes it.
    pub fn parse(text: &str) -> Result<Self> {
        Self::parse_given("--reward ", text)
    }

    /// The same, for a text that stands behind `option` on the command line.
    ///
    /// # Errors
    /// As [`Chosen::parse`].
    pub fn parse_given(option: &str, text: &str) -> Result<Self> {
        let fail = |message: String| {
            let hint = "such as `--reward 'type=hps,model=models/hps'`; a text with commas, or one that begins with a bracket, \
                        stands in quotes; tables may stand in a file as well: `--config FILE.toml`";
            Error::usage(format!("{option}{text}: {message}"), hint.to_owned())
        };
        let mut table = toml::Table::new();
        for item in items(text).map_err(fail)? {
            let (key, value) =
                item.split_once('=').ok_or_else(|| fail(format!("expected key=value, found {item:?}")))?;
            let key = key.trim();
            if key.is_empty() {
                return Err(fail(format!("{item:?} has no key")));
            }
            let value = value_of(value.trim()).map_err(|message| fail(format!("{key}: {message}")))?;
            if table.insert(key.to_owned(), value).is_some() {
                return Err(fail(format!("{key} stands there twice")));
            }
        }
        Self::of_table(table, Path::new("")).map_err(fail)
    }

    /// Reads the `[[reward]]` tables of a file, which may be the configuration of a run, and its `[plugins] paths`. Other
    /// sections are not looked at, nor are weights.
    ///
    /// # Errors
    /// A file that is no TOML or has no such tables; a table without `type`.
    pub fn of_file(path: &Path) -> Result<(Vec<Self>, Vec<PathBuf>)> {
        let text = std::fs::read_to_string(path).map_err(Error::file("read", path))?;
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| Error::content(path, error))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let Some(Toml::Array(rewards)) = table.get("reward") else {
            return Err(Error::content(path, "holds no reward: expected tables [[reward]], each with a `type`"));
        };
        let rewards = rewards.iter().enumerate().map(|(index, reward)| {
            let fail = |message: String| Error::content(path, format!("[[reward]] {}: {message}", index + 1));
            match reward {
                Toml::Table(table) => Self::of_table(table.clone(), folder).map_err(fail),
                other => Err(fail(format!("expected a table, found {other}"))),
            }
        });
        let paths = table.get("plugins").and_then(|plugins| plugins.get("paths")).and_then(Toml::as_array);
        let paths = paths.into_iter().flatten().filter_map(Toml::as_str).map(|path| folder.join(path));
        Ok((rewards.collect::<Result<_>>()?, paths.collect()))
    }

    fn of_table(mut table: toml::Table, base: &Path) -> Result<Self, String> {
        // What only a run has a use for.
        for key in ["weight", "discount", "std_floor", "on_error"] {
            table.remove(key);
        }
        let own: toml::Table = ["isolation", "time_limit", "restarts"]
            .into_iter()
            .filter_map(|key| Some((key.to_owned(), table.remove(key)?)))
            .collect();
        let containment = Containment::deserialize(own).map_err(|error| error.message().to_owned())?;
        let mut text = |key: &str| match table.remove(key) {
            None => Ok(None),
            Some(Toml::String(text)) => Ok(Some(text)),
            Some(other) => Err(format!("{key}: expected a text, found {other}")),
        };
        let r#type = text("type")?.ok_or("names no `type`; `advdmd plugins list` shows the rewards that there are")?;
        let name = text("name")?.unwrap_or_else(|| r#type.clone());
        if let Some((key, _)) = table.iter().find(|(_, value)| !has_json(value)) {
            return Err(format!("{key}: dates and numbers that are not finite are not taken"));
        }
        let options: Map<String, Json> = match serde_json::to_value(table).map_err(|error| error.to_string())? {
            Json::Object(options) => options,
            other => return Err(format!("expected a table, found {other}")),
        };
        Ok(Self { name, component: Component { r#type, options }, containment, base: base.to_owned() })
    }

    /// Makes the reward.
    ///
    /// # Errors
    /// The registry's and the plugin's; a reward that reads what only a run has.
    pub fn make(mut self, registry: &Registry, device: advdmd_sdk::Device) -> Result<Ready> {
        registry.resolve_component_in(Kind::Reward, &mut self.component, &self.base)?;
        let entry = registry.entry(Kind::Reward, &self.component.r#type)?;
        let init = RewardInit { device, seed: 0, backbone: None };
        let (name, on_error) = (&self.name, OnRewardError::Stop);
        let reward = containment::reward(name, &self.component, &self.containment, on_error, registry, &init)?;
        let needs = reward.needs();
        let lacking = match (&needs.features, needs.latents) {
            (Some(_), _) => Some("features of a diffusion network"),
            (None, true) => Some("latents"),
            (None, false) if needs.groupwise => Some("whole groups of a prompt"),
            (None, false) => None,
        };
        if let Some(what) = lacking {
            let message = format!("reward `{}` reads {what}, which images in files do not have", self.name);
            return Err(Error::usage(message, "it scores the samples of `advdmd train` alone".to_owned()));
        }
        let sha256 = match &entry.provider {
            Provider::Plugin(file) => Some(file.sha256.clone()),
            Provider::Program => None,
        };
        let provider = entry.provider.to_string();
        Ok(Ready { name: self.name, component: self.component, provider, sha256, needs, reward })
    }
}

/// Refuses two rewards with one label.
///
/// # Errors
/// Names the label.
pub fn distinct(rewards: &[Chosen]) -> Result<()> {
    let twice =
        rewards.iter().enumerate().find(|(at, reward)| rewards[..*at].iter().any(|other| other.name == reward.name));
    match twice {
        Some((_, reward)) => {
            let hint = "give one of them another: `name=...`".to_owned();
            Err(Error::usage(format!("two rewards are called `{}`", reward.name), hint))
        }
        None => Ok(()),
    }
}

/// Whether JSON has such a value.
fn has_json(value: &Toml) -> bool {
    match value {
        Toml::Float(number) => number.is_finite(),
        Toml::Datetime(_) => false,
        Toml::Array(values) => values.iter().all(has_json),
        Toml::Table(table) => table.values().all(has_json),
        Toml::String(_) | Toml::Integer(_) | Toml::Boolean(_) => true,
    }
}

/// The parts of a list between commas that do not stand in quotes or brackets.
fn items(text: &str) -> Result<Vec<&str>, String> {
    let mut items = Vec::new();
    let (mut start, mut quote, mut escaped) = (0, None, false);
    // What closes the brackets that are open.
    let mut closers = Vec::new();
    for (at, letter) in text.char_indices() {
        // Quotes and brackets open where a value begins, and inside of brackets; elsewhere they are letters.
        let opens =
            !closers.is_empty() || text[start..at].split_once('=').is_some_and(|(_, value)| value.trim().is_empty());
        match (quote, letter) {
            (Some('"'), '\\') => {
                escaped = !escaped;
                continue;
            }
            (Some(open), letter) if open == letter && !escaped => quote = None,
            (None, '"' | '\'') if opens => quote = Some(letter),
            (None, '[') if opens => closers.push(']'),
            (None, '{') if opens => closers.push('}'),
            (None, ']' | '}') if !closers.is_empty() => {
                let expected = closers.pop();
                if expected != Some(letter) {
                    let expected = expected.unwrap_or_default();
                    return Err(format!("{:?}: expected {expected} before {letter}", &text[start..=at]));
                }
            }
            (None, ',') if closers.is_empty() => {
                items.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
        escaped = false;
    }
    if let Some(open) = quote {
        return Err(format!("a quote {open} is not closed"));
    }
    if let Some(closer) = closers.last() {
        return Err(format!("{:?} is not closed: expected {closer}", &text[start..]));
    }
    items.push(&text[start..]);
    Ok(items)
}

/// A value: a number, truth value, quoted string, array or inline table of TOML, else the text itself.
fn value_of(text: &str) -> Result<Toml, String> {
    if text.is_empty() {
        return Err("has no value; an empty text is `\"\"`".to_owned());
    }
    let parsed = format!("value = {text}").parse::<toml::Table>().ok().filter(|table| table.len() == 1);
    let parsed = parsed.and_then(|mut table| table.remove("value"));
    if text.starts_with(['"', '\'', '[', '{']) {
        // To TOML, what follows the closing letter would be a comment.
        let closed = text.ends_with(['"', '\'', ']', '}']);
        return parsed.filter(|_| closed).ok_or_else(|| format!("{text} is no text, list or table of TOML"));
    }
    match parsed {
        Some(value @ (Toml::Integer(_) | Toml::Float(_) | Toml::Boolean(_)))
            if has_json(&value) && !text.contains(['#', '\n']) =>
        {
            Ok(value)
        }
        _ => Ok(Toml::String(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn options(text: &str) -> Json {
        Chosen::parse(text).unwrap().component.options.into()
    }

    fn refused(text: &str) -> String {
        let error = Chosen::parse(text).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    #[test]
    fn values_are_toml_or_stand_as_they_are() {
        let found = Chosen::parse("type=hps, model=models/HPS v2.1 ,scale=2,weight=3,name='two, words'").unwrap();
        assert_eq!((found.name.as_str(), found.component.r#type.as_str()), ("two, words", "hps"));
        assert_eq!(Json::from(found.component.options), json!({ "model": "models/HPS v2.1", "scale": 2 }));
        assert_eq!(Chosen::parse("type=hps").unwrap().name, "hps");
        let text =
            r#"type=x,a=1.5,b=true,c="1",d=nan,e=-3,f=it's,g="a \" , =b",h=org/name@main,i=1979-05-27,j='C:\d',k=5#1"#;
        let expected = json!({
            "a": 1.5, "b": true, "c": "1", "d": "nan", "e": -3, "f": "it's", "g": "a \" , =b", "h": "org/name@main",
            "i": "1979-05-27", "j": "C:\\d", "k": "5#1",
        });
        assert_eq!(options(text), expected);
    }

    #[test]
    fn lists_and_tables_are_values() {
        let found = Chosen::parse("type=remote,endpoints=['http://127.0.0.1:8000/score'],timeout=3").unwrap();
        let endpoints = ["http://127.0.0.1:8000/score"];
        assert_eq!(Json::from(found.component.options), json!({ "endpoints": endpoints, "timeout": 3 }));
        let text = r#"type=x, a = ["http://a/b?c=[1,2", 'd}'] ,b={ c = { d = [1, [2.5, true]], e = "," }, f = 'g' },h=i[1],j={},k=[]"#;
        let expected = json!({
            "a": ["http://a/b?c=[1,2", "d}"], "b": { "c": { "d": [1, [2.5, true]], "e": "," }, "f": "g" }, "h": "i[1]",
            "j": {}, "k": [],
        });
        assert_eq!(options(text), expected);
    }

    #[test]
    fn what_is_wrong_is_quoted() {
        for (text, part) in [
            ("hps", "expected key=value, found \"hps\""),
            ("type=hps,", "expected key=value, found \"\""),
            ("model=x", "names no `type`"),
            ("type=hps,a=1,a=2", "a stands there twice"),
            ("type=hps,a=", "a: has no value"),
            ("type=hps,=1", "has no key"),
            ("type=hps,a=[1,2", "\"a=[1,2\" is not closed: expected ]"),
            ("type=hps,a={b=[1},c=2", "\"a={b=[1}\": expected ] before }"),
            ("type=hps,a=[1]x", "a: [1]x is no text, list or table of TOML"),
            ("type=hps,a=[b]", "a: [b] is no text, list or table of TOML"),
            ("type=hps,a=[1.0, nan]", "a: dates and numbers that are not finite are not taken"),
            ("type=hps,a=\"x", "a quote \" is not closed"),
            ("type=3", "type: expected a text, found 3"),
            ("type=hps,a=\"x\"y", "is no text, list or table of TOML"),
        ] {
            let message = refused(text);
            assert!(message.contains(part) && message.contains(text), "{part:?} in {message}");
        }
    }

    #[test]
    fn tables_of_a_file_may_hold_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.toml");
        let text = "seed = 1\n[plugins]\npaths = [\"more\"]\n[[reward]]\ntype = \"a\"\nweight = 0.5\nlist = [1, 2]\n[[reward]]\ntype = \"a\"\nname = \"b\"\n";
        std::fs::write(&path, text).unwrap();
        let (rewards, paths) = Chosen::of_file(&path).unwrap();
        assert_eq!(paths, [folder.path().join("more")]);
        assert_eq!(rewards.iter().map(|reward| reward.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(Json::from(rewards[0].component.options.clone()), json!({ "list": [1, 2] }));
        distinct(&rewards).unwrap();
        let twice = [rewards[0].clone(), rewards[0].clone()];
        assert_eq!(distinct(&twice).unwrap_err().to_string(), "two rewards are called `a`");
        for (text, part) in [
            ("seed = 1", "holds no reward"),
            ("[[reward]]\nname = \"x\"", "[[reward]] 1: names no `type`"),
            ("x", "expected"),
        ] {
            std::fs::write(&path, text).unwrap();
            let message = Chosen::of_file(&path).unwrap_err().to_string();
            assert!(message.contains(part), "{part:?} in {message}");
        }
    }
}
