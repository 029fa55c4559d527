//! The JSON schema of a whole configuration: the host's keys and those of every plugin at hand, for editors.

use serde_json::{Map, Value as Json, json};

use super::{Entry, Registry};
use crate::config::{Settings, json_schema};

impl Registry {
    /// The schema of a configuration file, in which each component's table is one of those that were found, told
    /// apart by `type`. Nothing is required that a recipe can fill in.
    #[must_use]
    pub fn config_schema<T: Settings>(&self) -> Json {
        let mut schema = json_schema::<T>();
        let mut definitions = Map::new();
        for (section, kind) in T::SECTIONS {
            let entries: Vec<&Entry> = self.components().filter(|entry| entry.kind == *kind).collect();
            let host = section_schema(&schema, section).cloned().unwrap_or_default();
            // A recipe's table is merged with the file's, but its array of tables is replaced.
            let whole = !T::RECIPES || slot(&schema, section).ends_with("/items");
            let table_of = |entry: &&Entry| branch(entry, &host, whole, &mut definitions);
            let branches: Vec<Json> = entries.iter().map(table_of).collect();
            if branches.is_empty() {
                continue;
            }
            let mut merged = json!({ "anyOf": branches });
            if let Some(doc) = host.get("description") {
                merged["description"] = doc.clone();
            }
            if let Some(place) = section_slot(&mut schema, section) {
                *place = merged;
            }
        }
        if let Some(known) = schema.get_mut("$defs").and_then(Json::as_object_mut) {
            known.extend(definitions);
        }
        if T::RECIPES {
            relax(&mut schema);
        }
        schema
    }
}

/// The schema of a section's table as the host knows it, with a reference followed.
fn section_schema<'a>(schema: &'a Json, section: &str) -> Option<&'a Json> {
    let node = schema.pointer(&slot(schema, section))?;
    match node.get("$ref").and_then(Json::as_str).and_then(|name| name.strip_prefix('#')) {
        Some(pointer) => schema.pointer(pointer),
        None => Some(node),
    }
}

fn section_slot<'a>(schema: &'a mut Json, section: &str) -> Option<&'a mut Json> {
    let pointer = slot(schema, section);
    schema.pointer_mut(&pointer)
}

/// JSON pointer to a section's place, or to its items where it is an array of tables.
fn slot(schema: &Json, section: &str) -> String {
    let pointer = format!("/properties/{section}");
    let items = format!("{pointer}/items");
    if schema.pointer(&items).is_some() { items } else { pointer }
}

/// The table of one component: its own keys, `type`, and the host's keys of that section.
fn branch(entry: &Entry, host: &Json, whole: bool, definitions: &mut Map<String, Json>) -> Json {
    let mut own = entry.schema.clone();
    let prefix = format!("{}.{}", entry.kind, entry.name);
    if let Some(table) = own.as_object_mut() {
        table.remove("$schema");
        if let Some(Json::Object(inner)) = table.remove("$defs") {
            for (name, mut definition) in inner {
                relocate(&mut definition, &prefix);
                definitions.insert(format!("{prefix}.{name}"), definition);
            }
        }
    }
    relocate(&mut own, &prefix);
    let mut keys = host.get("properties").and_then(Json::as_object).cloned().unwrap_or_default();
    keys.insert("type".to_owned(), json!({ "const": entry.name, "description": own.get("description") }));
    let required: Vec<Json> = if whole {
        let lists = [host.get("required"), own.get("required")];
        lists.into_iter().flatten().filter_map(Json::as_array).flatten().cloned().collect()
    } else {
        Vec::new()
    };
    let plain = ["oneOf", "anyOf", "allOf", "$ref"].iter().all(|keyword| own.get(keyword).is_none());
    if plain {
        let properties = own.get("properties").and_then(Json::as_object).cloned().unwrap_or_default();
        keys.extend(properties);
        json!({
            "title": entry.name, "type": "object", "properties": keys, "required": required,
            "additionalProperties": false,
        })
    } else {
        // `additionalProperties: false` of the plugin would refuse the host's keys beside its own.
        if let Some(table) = own.as_object_mut() {
            table.remove("additionalProperties");
            table.remove("required");
        }
        json!({
            "title": entry.name, "type": "object", "properties": keys, "required": required, "allOf": [own],
            "unevaluatedProperties": false,
        })
    }
}

/// Makes references to a plugin's definitions point to where they stand in the merged schema.
fn relocate(schema: &mut Json, prefix: &str) {
    match schema {
        Json::Object(table) => {
            if let Some(Json::String(reference)) = table.get_mut("$ref")
                && let Some(name) = reference.strip_prefix("#/$defs/")
            {
                *reference = format!("#/$defs/{prefix}.{name}");
            }
            table.values_mut().for_each(|value| relocate(value, prefix));
        }
        Json::Array(items) => items.iter_mut().for_each(|value| relocate(value, prefix)),
        _ => {}
    }
}

/// Requires nothing: what a file leaves out comes from its recipe.
fn relax(schema: &mut Json) {
    let Some(table) = schema.as_object_mut() else { return };
    table.remove("required");
    for definition in table.get_mut("$defs").and_then(Json::as_object_mut).into_iter().flat_map(Map::values_mut) {
        // Tagged variants keep their `type`: without it they could not be told apart.
        if let Some(definition) = definition.as_object_mut()
            && !definition.contains_key("oneOf")
        {
            definition.remove("required");
        }
    }
}
