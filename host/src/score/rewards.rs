//! Which rewards score: named on the command line, or in the `[[reward]]` tables of a file.

use std::path::{Path, PathBuf};

use advdmd_sdk::{Kind, Needs, Reward, RewardInit};
use serde_json::{Map, Value as Json};
use toml::Value as Toml;

use crate::config::Component;
use crate::registry::{Provider, Registry};
use crate::{Error, Result};

/// A reward as the user named it.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// Label in tables; the type by default.
    pub name: String,
    /// `type` and the plugin's keys.
    pub component: Component,
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
    /// Reads `type=hps,model=DIR,name="my hps"`: keys and values that are TOML's numbers, truth values and quoted strings;
    /// what is none of these is a string as it stands.
    ///
    /// # Errors
    /// An item without `=`, a key twice, an open quote, an array or table, no `type`: quotes it.
    pub fn parse(text: &str) -> Result<Self> {
        let fail = |message: String| {
            let hint = "such as `--reward 'type=hps,model=models/hps'`; tables that hold more go into a file: `--config FILE.toml`";
            Error::usage(format!("--reward {text}: {message}"), hint.to_owned())
        };
        let mut table = toml::Table::new();
        for item in items(text).map_err(fail)? {
            let (key, value) =
                item.split_once('=').ok_or_else(|| fail(format!("expected key=value, found {item:?}")))?;
            let key = key.trim();
            if key.is_empty() {
                return Err(fail(format!("{item:?} has no key")));
            }
            let value = scalar(value.trim()).map_err(|message| fail(format!("{key}: {message}")))?;
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
        table.remove("weight");
        let mut text = |key: &str| match table.remove(key) {
            None => Ok(None),
            Some(Toml::String(text)) => Ok(Some(text)),
            Some(other) => Err(format!("{key}: expected a text, found {other}")),
        };
        let r#type = text("type")?.ok_or("names no `type`; `advdmd plugins list` shows the rewards that there are")?;
        let name = text("name")?.unwrap_or_else(|| r#type.clone());
        let options: Map<String, Json> = match serde_json::to_value(table).map_err(|error| error.to_string())? {
            Json::Object(options) => options,
            other => return Err(format!("expected a table, found {other}")),
        };
        Ok(Self { name, component: Component { r#type, options }, base: base.to_owned() })
    }

    /// Makes the reward.
    ///
    /// # Errors
    /// The registry's and the plugin's; a reward that reads what only a run has.
    pub fn make(mut self, registry: &Registry, device: advdmd_sdk::Device) -> Result<Ready> {
        registry.resolve_component_in(Kind::Reward, &mut self.component, &self.base)?;
        let entry = registry.entry(Kind::Reward, &self.component.r#type)?;
        let init = RewardInit { device, seed: 0, backbone: None };
        let reward = registry.reward(&self.component, &init)?;
        let needs = reward.needs();
        let lacking = match (&needs.features, needs.latents) {
            (Some(_), _) => Some("features of a diffusion network"),
            (None, true) => Some("latents"),
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

/// The parts of a list between commas that do not stand in quotes.
fn items(text: &str) -> Result<Vec<&str>, String> {
    let mut items = Vec::new();
    let (mut start, mut quote, mut escaped) = (0, None, false);
    for (at, letter) in text.char_indices() {
        match (quote, letter) {
            (Some('"'), '\\') => {
                escaped = !escaped;
                continue;
            }
            (Some(open), letter) if open == letter && !escaped => quote = None,
            // A quote opens where a value begins; one in the middle is a letter.
            (None, '"' | '\'') if text[start..at].trim_end().ends_with('=') => quote = Some(letter),
            (None, ',') => {
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
    items.push(&text[start..]);
    Ok(items)
}

/// A value: a number, truth value or quoted string of TOML, else the text itself.
fn scalar(text: &str) -> Result<Toml, String> {
    if text.is_empty() {
        return Err("has no value; an empty text is `\"\"`".to_owned());
    }
    let parsed = format!("value = {text}").parse::<toml::Table>().ok().and_then(|mut table| table.remove("value"));
    match parsed {
        // To TOML, what follows would be a comment or another line.
        Some(value) if !value.is_str() && text.contains(['#', '\n']) => Ok(Toml::String(text.to_owned())),
        Some(Toml::Float(number)) if !number.is_finite() => Ok(Toml::String(text.to_owned())),
        Some(value @ (Toml::String(_) | Toml::Integer(_) | Toml::Float(_) | Toml::Boolean(_))) => Ok(value),
        Some(Toml::Array(_) | Toml::Table(_)) => Err("is a list or table".to_owned()),
        None if text.starts_with(['"', '\'', '[', '{']) => Err(format!("{text} is no text of TOML")),
        Some(Toml::Datetime(_)) | None => Ok(Toml::String(text.to_owned())),
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
    fn what_is_wrong_is_quoted() {
        for (text, part) in [
            ("hps", "expected key=value, found \"hps\""),
            ("type=hps,", "expected key=value, found \"\""),
            ("model=x", "names no `type`"),
            ("type=hps,a=1,a=2", "a stands there twice"),
            ("type=hps,a=", "a: has no value"),
            ("type=hps,=1", "has no key"),
            ("type=hps,a=[1]", "a: is a list or table"),
            ("type=hps,a=\"x", "a quote \" is not closed"),
            ("type=3", "type: expected a text, found 3"),
            ("type=hps,a=\"x\"y", "is no text of TOML"),
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
