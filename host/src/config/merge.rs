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
    graft(tree, &path, 0, value, Some(schema)).map_err(|message| refuse(message, key_origin.span.clone(), None))
}

/// Puts `value` at `path[depth..]` below `node`, making tables on the way.
fn graft(
    node: &mut Node,
    path: &KeyPath,
    depth: usize,
    value: Node,
    schema: Option<SchemaView<'_>>,
) -> Result<(), String> {
    let Some(segment) = path.0.get(depth) else {
        merge(node, value, schema);
        return Ok(());
    };
    // A new `type` takes the old type's keys away, as it does in a file.
    if segment == "type" && depth + 1 == path.0.len() && matches!(node.value, Value::Table(_)) {
        let (key, at) = (node.key.clone(), node.at.clone());
        merge(node, Node { value: Value::Table([(segment.clone(), value)].into()), key, at }, schema);
        return Ok(());
    }
    let child_schema = schema.and_then(|schema| schema.child(segment, Some(node)));
    let here = || KeyPath(path.0[..depth].to_vec());
    let empty = Node { value: Value::Table([].into()), key: value.key.clone(), at: value.at.clone() };
    let child = match &mut node.value {
        Value::Table(entries) => entries.entry(segment.clone()).or_insert(empty),
        Value::Array(items) => {
            let (count, here) = (items.len(), here());
            let expected = format!("`{here}` has {count} entries: expected an index from 0 to {count} (to add one)");
            let index = segment.parse::<usize>().ok().filter(|index| *index <= count);
            let index = index.ok_or_else(|| format!("{expected}, found `{segment}`"))?;
            if index == count {
                items.push(empty);
            }
            &mut items[index]
        }
        Value::Scalar(_) => return Err(format!("`{}` is a single value and has no key `{segment}`", here())),
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

#[cfg(test)]
mod tests {
    use super::super::{RunConfig, json_schema};
    use super::*;

    fn tree(text: &str) -> Node {
        Node::parse(&Source::new(SourceKind::File("run.toml".into()), text)).unwrap()
    }

    fn merged(base: &str, over: &str) -> Json {
        let schema = json_schema::<RunConfig>();
        let mut node = tree(base);
        merge(&mut node, tree(over), Some(SchemaView::new(&schema)));
        node.to_json()
    }

    fn set(base: &str, option: &str) -> Result<Node> {
        let schema = json_schema::<RunConfig>();
        let mut node = tree(base);
        apply_set(&mut node, option, SchemaView::new(&schema)).map(|()| node)
    }

    #[test]
    fn tables_merge_and_arrays_are_replaced() {
        let found = merged("a = 1\n[t]\nx = 1\ny = [1, 2]\n", "[t]\ny = [3]\nz = 4\n");
        assert_eq!(found, serde_json::json!({ "a": 1, "t": { "x": 1, "y": [3], "z": 4 } }));
    }

    #[test]
    fn a_new_type_takes_the_old_keys_away_but_not_the_hosts() {
        let base = "[sampler]\ntype = \"sde-cps\"\nsteps = 4\neta = 0.9\n";
        let expected = serde_json::json!({ "sampler": { "type": "ode-euler", "steps": 4 } });
        assert_eq!(merged(base, "[sampler]\ntype = \"ode-euler\"\n"), expected);
        assert_eq!(set(base, "sampler.type=ode-euler").unwrap().to_json(), expected);
        let lora = "[student.tuning]\ntype = \"lora\"\nrank = 4\n";
        let expected = serde_json::json!({ "student": { "tuning": { "type": "full" } } });
        assert_eq!(merged(lora, "[student.tuning]\ntype = \"full\"\n"), expected);
    }

    #[test]
    fn options_reach_into_tables_and_arrays() {
        let base = "[[reward]]\ntype = \"a\"\nweight = 1.0\n";
        let json = |option: &str| set(base, option).unwrap().to_json();
        assert_eq!(json("reward.0.weight=0.5")["reward"][0]["weight"], 0.5);
        assert_eq!(json("reward.1.type=\"b\"")["reward"][1]["type"], "b");
        assert_eq!(json("compute.device = cuda:0")["compute"]["device"], "cuda:0");
        assert_eq!(json("backbone={type=\"digits\", model=\"m\"}")["backbone"]["model"], "m");
        assert_eq!(json("sampler.sigmas=[1, 0.5, 0]")["sampler"]["sigmas"][1], 0.5);
    }

    #[test]
    fn values_remember_their_option() {
        let node = set("", "batch.groups=4").unwrap();
        assert_eq!(node.get(&KeyPath::of("batch.groups")).unwrap().key.describe(), "--set batch.groups=4");
    }

    #[test]
    fn wrong_options_say_what_is_wrong() {
        let base = "seed = 1\n[[reward]]\nweight = 1.0\n";
        let message = |option: &str| set(base, option).unwrap_err().to_string();
        assert!(message("batch.groups").contains("no `=` in the option"));
        assert!(message("=4").contains("`` is not a key"));
        assert!(message("seed.x=4").contains("`seed` is a single value and has no key `x`"));
        assert!(message("reward.2.weight=1").contains("`reward` has 1 entries: expected an index from 0 to 1"));
        let unclosed = message("sampler.sigmas=[1, 0.5");
        assert!(unclosed.starts_with("--set:1:") && unclosed.contains("values are TOML"), "{unclosed}");
    }
}
