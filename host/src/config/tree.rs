//! A TOML document as a tree in which each value knows its origin.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::Value as Json;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::source::{Origin, Source};
use crate::error::{Error, Fault, Result};

/// A value and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// The key in front of it, or its table header; the value itself in an array.
    pub key: Origin,
    /// The value's own span.
    pub at: Origin,
}

/// A value of the tree.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A table.
    Table(BTreeMap<String, Node>),
    /// An array.
    Array(Vec<Node>),
    /// A string, number or boolean.
    Scalar(Json),
}

/// The place of a value in the tree: `reward.0.weight`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyPath(pub Vec<String>);

impl KeyPath {
    /// The path of dotted segments without quoted keys.
    #[must_use]
    pub fn of(dotted: &str) -> Self {
        Self(dotted.split('.').filter(|segment| !segment.is_empty()).map(str::to_owned).collect())
    }

    /// The path of a JSON pointer such as `/reward/0/weight`.
    #[must_use]
    pub fn of_pointer(pointer: &str) -> Self {
        let unescape = |segment: &str| segment.replace("~1", "/").replace("~0", "~");
        Self(pointer.split('/').skip(1).map(unescape).collect())
    }

    /// This path and one more segment.
    #[must_use]
    pub fn child(&self, segment: impl fmt::Display) -> Self {
        let mut segments = self.0.clone();
        segments.push(segment.to_string());
        Self(segments)
    }

    /// This path and all segments of `rest` behind it.
    #[must_use]
    pub fn join(&self, rest: &Self) -> Self {
        Self(self.0.iter().chain(&rest.0).cloned().collect())
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, segment) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(".")?;
            }
            let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            if !segment.is_empty() && segment.chars().all(bare) {
                f.write_str(segment)?;
            } else {
                write!(f, "{segment:?}")?;
            }
        }
        Ok(())
    }
}

impl Node {
    /// An empty table that stands for the whole of `source`.
    #[must_use]
    pub fn empty(source: &Arc<Source>) -> Self {
        let origin = Origin { source: Arc::clone(source), span: 0..0 };
        Self { value: Value::Table(BTreeMap::new()), key: origin.clone(), at: origin }
    }

    /// Parses a TOML document.
    ///
    /// # Errors
    /// What TOML refuses, and what a configuration has no use for (dates, NaN, infinities), with its line.
    pub fn parse(source: &Arc<Source>) -> Result<Self> {
        let refuse = |error: toml::de::Error| {
            let place = error.span().map_or_else(|| source.whole(), |span| source.place(&span));
            let message = error.message().lines().collect::<Vec<_>>().join(": ");
            Error::Config(vec![Fault { message: format!("not TOML: {message}"), place: Some(place), hint: None }])
        };
        let table = DeTable::parse(&source.text).map_err(refuse)?;
        let mut faults = Vec::new();
        let root = convert_table(table.into_inner(), source, &mut faults);
        let origin = Origin { source: Arc::clone(source), span: 0..0 };
        if faults.is_empty() {
            Ok(Self { value: root, key: origin.clone(), at: origin })
        } else {
            Err(Error::Config(faults))
        }
    }

    /// The node at `path`: keys of tables and indices of arrays.
    #[must_use]
    pub fn get(&self, path: &KeyPath) -> Option<&Self> {
        path.0.iter().try_fold(self, |node, segment| node.child(segment))
    }

    /// The deepest node on the way to `path` that exists.
    #[must_use]
    pub fn nearest(&self, path: &KeyPath) -> &Self {
        let mut node = self;
        for segment in &path.0 {
            match node.child(segment) {
                Some(child) => node = child,
                None => break,
            }
        }
        node
    }

    /// The node at `path`, to change it.
    pub fn get_mut(&mut self, path: &KeyPath) -> Option<&mut Self> {
        path.0.iter().try_fold(self, |node, segment| match &mut node.value {
            Value::Table(table) => table.get_mut(segment),
            Value::Array(items) => items.get_mut(segment.parse::<usize>().ok()?),
            Value::Scalar(_) => None,
        })
    }

    fn child(&self, segment: &str) -> Option<&Self> {
        match &self.value {
            Value::Table(table) => table.get(segment),
            Value::Array(items) => items.get(segment.parse::<usize>().ok()?),
            Value::Scalar(_) => None,
        }
    }

    /// The entries of a table; none for anything else.
    pub fn entries(&self) -> impl Iterator<Item = (&String, &Self)> {
        let table = if let Value::Table(table) = &self.value { Some(table) } else { None };
        table.into_iter().flatten()
    }

    /// The string at key `name` of a table.
    #[must_use]
    pub fn string(&self, name: &str) -> Option<&str> {
        match &self.child(name)?.value {
            Value::Scalar(Json::String(text)) => Some(text),
            _ => None,
        }
    }

    /// The tree as JSON.
    #[must_use]
    pub fn to_json(&self) -> Json {
        match &self.value {
            Value::Table(table) => {
                Json::Object(table.iter().map(|(key, node)| (key.clone(), node.to_json())).collect())
            }
            Value::Array(items) => Json::Array(items.iter().map(Self::to_json).collect()),
            Value::Scalar(value) => value.clone(),
        }
    }

    /// Every value that is not a table, or an array of tables, with its path.
    #[must_use]
    pub fn leaves(&self) -> Vec<(KeyPath, &Self)> {
        let mut found = Vec::new();
        self.collect(&KeyPath::default(), &mut found);
        found
    }

    fn collect<'a>(&'a self, path: &KeyPath, found: &mut Vec<(KeyPath, &'a Self)>) {
        match &self.value {
            Value::Table(table) => {
                for (key, node) in table {
                    node.collect(&path.child(key), found);
                }
            }
            Value::Array(items) if items.iter().any(|item| matches!(item.value, Value::Table(_))) => {
                for (index, node) in items.iter().enumerate() {
                    node.collect(&path.child(index), found);
                }
            }
            _ => found.push((path.clone(), self)),
        }
    }
}

fn convert_table(table: DeTable<'_>, source: &Arc<Source>, faults: &mut Vec<Fault>) -> Value {
    let entry = |(key, value): (Spanned<_>, _)| {
        let origin = Origin { source: Arc::clone(source), span: key.span() };
        let name: String = String::from(key.into_inner());
        (name, convert(value, source, origin, faults))
    };
    Value::Table(table.into_iter().map(entry).collect())
}

fn convert(value: Spanned<DeValue<'_>>, source: &Arc<Source>, key: Origin, faults: &mut Vec<Fault>) -> Node {
    let at = Origin { source: Arc::clone(source), span: value.span() };
    let mut refuse = |expected: &str| {
        // The key as it is written; an element of an array has only itself.
        let name = key.text().filter(|_| key != at).map(|name| format!("`{}`: ", name.trim())).unwrap_or_default();
        let found = at.text().unwrap_or_default();
        let message = format!("{name}expected {expected}, found {found}");
        faults.push(Fault { message, place: Some(at.place()), hint: None });
        Value::Scalar(Json::Null)
    };
    let value = match value.into_inner() {
        DeValue::String(text) => Value::Scalar(Json::String(text.into_owned())),
        DeValue::Boolean(flag) => Value::Scalar(Json::Bool(flag)),
        DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) => Value::Scalar(number.into()),
            Err(_) => refuse("an integer of 64 bits"),
        },
        DeValue::Float(float) => match float.as_str().parse().ok().and_then(serde_json::Number::from_f64) {
            Some(number) => Value::Scalar(Json::Number(number)),
            None => refuse("a finite number"),
        },
        DeValue::Datetime(_) => refuse("a number, string, boolean, array or table (quotes make a date a string)"),
        DeValue::Array(items) => {
            let item = |item: Spanned<_>| {
                let origin = Origin { source: Arc::clone(source), span: item.span() };
                convert(item, source, origin, faults)
            };
            Value::Array(items.into_iter().map(item).collect())
        }
        DeValue::Table(table) => convert_table(table, source, faults),
    };
    Node { value, key, at }
}

#[cfg(test)]
mod tests {
    use super::super::source::SourceKind;
    use super::*;

    fn parse(text: &str) -> Result<Node> {
        Node::parse(&Source::new(SourceKind::File("run.toml".into()), text))
    }

    #[test]
    fn values_keep_their_places() {
        let tree = parse("seed = 1\n[batch]\ngroups = 4\n[[reward]]\nweight = 0.5\n").unwrap();
        let at = |path: &str| tree.get(&KeyPath::of(path)).unwrap().key.describe();
        assert_eq!(at("seed"), "run.toml:1:1");
        assert_eq!(at("batch.groups"), "run.toml:3:1");
        assert_eq!(at("reward.0.weight"), "run.toml:5:1");
        let leaves: Vec<_> = tree.leaves().iter().map(|(path, _)| path.to_string()).collect();
        assert_eq!(leaves, ["batch.groups", "reward.0.weight", "seed"]);
    }

    #[test]
    fn what_is_no_toml_is_refused_with_its_place() {
        let message = parse("seed = 1\ngroups = = 4\n").unwrap_err().to_string();
        assert!(message.starts_with("run.toml:2:10: not TOML: "), "{message}");
    }

    #[test]
    fn dates_and_infinities_are_refused_together() {
        let message = parse("a = 2026-11-01\nb = [1.0, nan]\nc = 99999999999999999999\n").unwrap_err().to_string();
        let places: Vec<_> = message.lines().map(|line| line.split(": ").next().unwrap()).collect();
        assert_eq!(places, ["run.toml:1:5", "run.toml:2:11", "run.toml:3:5"]);
    }
}
