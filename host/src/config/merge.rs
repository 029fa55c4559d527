//! Laying one part of a configuration over another: recipe, then file, then `--set` options.

use std::sync::Arc;

use serde_json::Value as Json;
use toml::de::{DeTable, DeValue};

use super::source::{Origin, Source, SourceKind};
use super::tree::{KeyPath, Node, Value};
use super::view::SchemaView;
use crate::error::{Error, Fault, Result};

/// Lays `over` upon `base`. Tables are merged key by key; anything else, arrays included, is replaced.
///
/// Where a table's `type` changes, the keys that belonged to the old type go: only those that the host itself
/// knows there (`sampler.steps`) stay.
pub fn merge(base: &mut Node, over: Node, schema: Option<SchemaView<'_>>) {
    let retyped = matches!((base.string("type"), over.string("type")), (Some(old), Some(new)) if old != new);
    let host_keys = match schema {
        Some(schema) if retyped && schema.is_open() => schema.keys(None),
        _ => Vec::new(),
    };
    match (&mut base.value, over.value) {
        (Value::Table(kept), Value::Table(new)) => {
            if retyped {
                kept.retain(|key, _| host_keys.contains(&key.as_str()));
            }
            for (key, node) in new {
                let child_schema = schema.and_then(|schema| schema.child(&key, None));
                if let Some(old) = kept.get_mut(&key) {
                    merge(old, node, child_schema);
                } else {
                    kept.insert(key, node);
                }
            }
            (base.key, base.at) = (over.key, over.at);
        }
        (_, value) => *base = Node { value, ..over },
    }
}

/// Applies one `--set key=value` option.
///
/// # Errors
/// An option that is not `key=value`, a value that is not TOML, an index beyond an array, a key inside a value
/// that is not a table.
pub fn apply_set(tree: &mut Node, option: &str, schema: SchemaView<'_>) -> Result<()> {
    let source = Source::new(SourceKind::Set, option);
    let refuse = |message: String, span: std::ops::Range<usize>, hint: Option<String>| {
        Error::Config(vec![Fault { message, place: Some(source.place(&span)), hint }])
    };
    let Some((key, text)) = option.split_once('=') else {
        let hint = "write `--set key=value`, such as `--set batch.groups=4`".to_owned();
        return Err(refuse("no `=` in the option".to_owned(), 0..option.len(), Some(hint)));
    };
    let Some(path) = parse_key(key) else {
        let hint = "keys are dotted, such as `batch.groups` or `reward.0.weight`".to_owned();
        return Err(refuse(format!("`{}` is not a key", key.trim()), 0..key.len(), Some(hint)));
    };
    let key_origin = Origin { source: Arc::clone(&source), span: 0..key.trim_end().len() };
    let at = Origin { source: Arc::clone(&source), span: key.len() + 1..option.len() };
    let value = match Node::parse(&source) {
        Ok(document) => document.get(&path).cloned(),
        // A word that is no TOML value (`cuda:0`) is a string, because shells eat quotes.
        Err(_) if !text.trim().is_empty() && !text.trim_start().starts_with(['"', '\'', '[', '{']) => None,
        Err(Error::Config(mut faults)) => {
            for fault in &mut faults {
                fault.hint = Some("values are TOML: 4, 0.5, true, \"text\", [1, 2]".to_owned());
            }
            return Err(Error::Config(faults));
        }
        Err(other) => return Err(other),
    };
    let word = || Node { value: Value::Scalar(Json::String(text.trim().to_owned())), key: key_origin.clone(), at };
    let mut value = value.unwrap_or_else(word);
    value.key = key_origin.clone();
    graft(tree, &path, 0, value, Some(schema))
        .map_err(|message| refuse(message, key_origin.span.clone(), None))
}

/// Puts `value` at `path[depth..]` below `node`, making tables on the way.
fn graft(node: &mut Node, path: &KeyPath, depth: usize, value: Node, schema: Option<SchemaView<'_>>) -> Result<(), String> {
    let Some(segment) = path.0.get(depth) else {
        merge(node, value, schema);
        return Ok(());
    };
    let here = KeyPath(path.0[..depth].to_vec());
    let child_schema = schema.and_then(|schema| schema.child(segment, Some(node)));
    // A new `type` takes the old type's keys away, as it does in a file.
    if let Value::Table(_) = node.value
        && segment == "type"
        && depth + 1 == path.0.len()
    {
        let key = value.key.clone();
        let table = [("type".to_owned(), value)].into_iter().collect();
        let (at, at_key) = (node.at.clone(), node.key.clone());
        merge(node, Node { value: Value::Table(table), key: key.clone(), at: key }, schema);
        (node.at, node.key) = (at, at_key);
        return Ok(());
    }
    let fresh = |value: &Node| Node { value: Value::Table(std::collections::BTreeMap::new()), ..value.clone() };
    let child = match &mut node.value {
        Value::Table(table) => table.entry(segment.clone()).or_insert_with(|| fresh(&value)),
        Value::Array(items) => {
            let count = items.len();
            let index = segment.parse::<usize>().ok().filter(|index| *index <= count).ok_or_else(|| {
                format!("`{here}` has {count} entries: expected an index from 0 to {count} (to add one), found `{segment}`")
            })?;
            if index == count {
                items.push(fresh(&value));
            }
            &mut items[index]
        }
        Value::Scalar(_) => return Err(format!("`{here}` is a single value and has no key `{segment}`")),
    };
    graft(child, path, depth + 1, value, child_schema)
}

/// A dotted key with TOML's quoting.
fn parse_key(key: &str) -> Option<KeyPath> {
    let document = format!("{key} = 0");
    let mut table = DeTable::parse(&document).ok()?.into_inner();
    let mut path = KeyPath::default();
    loop {
        let (key, value) = table.into_iter().next()?;
        path.0.push(key.into_inner().into_owned());
        match value.into_inner() {
            DeValue::Table(inner) => table = inner,
            _ => return Some(path),
        }
    }
}
