//! Checking the plugins' tables of a configuration against the plugins' own schemas, before anything is built.

use serde_json::{Map, Value as Json};

use super::{Entry, Registry};
use crate::config::{Check, KeyPath, Resolved, SchemaView, Settings, json_schema, make_absolute, refuse};
use crate::error::{Error, Fault, Result};

impl Registry {
    /// Checks every component of a configuration against the schema of its plugin.
    ///
    /// # Errors
    /// Every fault at once, each with the line of the user's file: components that no plugin provides, unknown
    /// and missing keys, wrong types.
    pub fn validate<T: Settings>(&self, resolved: &Resolved<T>) -> Result<()> {
        let mut faults = Vec::new();
        for (path, kind, component) in resolved.config.components() {
            match self.entry(kind, &component.r#type) {
                Ok(entry) => faults.extend(table_faults(resolved, &path, entry, &component.options)?),
                Err(Error::Usage { message, hint }) => faults.push(resolved.fault(&path.child("type"), message, hint)),
                Err(other) => return Err(other),
            }
        }
        refuse(faults)
    }

    /// Makes the paths in the plugins' tables absolute: those strings whose schema says `"format": "path"` are
    /// relative to the configuration file, or for a `--set` to the working directory.
    ///
    /// # Errors
    /// As [`Registry::validate`], which it does first.
    pub fn resolve<T: Settings>(&self, resolved: &mut Resolved<T>) -> Result<()> {
        self.validate(resolved)?;
        let mut paths = Vec::new();
        for (path, kind, component) in resolved.config.components() {
            let schema = SchemaView::new(self.schema(kind, &component.r#type)?);
            let Some(table) = resolved.tree().get(&path) else { continue };
            for (inner, _) in table.leaves() {
                paths.extend(path_strings(schema, table, &inner).into_iter().map(|inner| path.join(&inner)));
            }
        }
        resolved.update(|tree| paths.iter().try_for_each(|path| make_absolute(tree, path)))
    }
}

/// The path strings at a leaf: itself, or the elements of an array of paths.
fn path_strings(schema: SchemaView<'_>, table: &crate::config::tree::Node, leaf: &KeyPath) -> Vec<KeyPath> {
    let is_path = |path: &KeyPath| schema.at(table, path).is_some_and(SchemaView::is_path);
    let count = table.get(leaf).map_or(0, |node| node.to_json().as_array().map_or(0, Vec::len));
    let elements = (0..count).map(|index| leaf.child(index));
    std::iter::once(leaf.clone()).chain(elements).filter(is_path).collect()
}

fn table_faults<T: Settings>(
    resolved: &Resolved<T>,
    path: &KeyPath,
    entry: &Entry,
    options: &Map<String, Json>,
) -> Result<Vec<Fault>> {
    let host = json_schema::<T>();
    let host_keys = SchemaView::new(&host).at(resolved.tree(), path).map(|view| view.keys(None)).unwrap_or_default();
    let schema = closed(&entry.schema);
    let check =
        Check { tree: resolved.tree(), at: path.clone(), schema: &schema, more_keys: host_keys, elsewhere: &[] };
    let mut faults = check.faults(&Json::Object(options.clone()))?;
    for fault in &mut faults {
        fault.message = format!("{} ({} `{}`)", fault.message, entry.kind, entry.name);
    }
    Ok(faults)
}

/// The schema with keys that it does not name refused, where it leaves the question open.
fn closed(schema: &Json) -> Json {
    let mut schema = schema.clone();
    if let Some(table) = schema.as_object_mut() {
        let decided = ["additionalProperties", "unevaluatedProperties", "patternProperties"];
        if !decided.iter().any(|keyword| table.contains_key(*keyword)) {
            table.insert("unevaluatedProperties".to_owned(), Json::Bool(false));
        }
    }
    schema
}
