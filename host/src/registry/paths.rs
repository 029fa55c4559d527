//! What the plugins' tables name on disk: paths relative to their file, and models.

use std::path::Path;

use advdmd_sdk::Kind;
use serde_json::Value as Json;

use super::Registry;
use crate::config::tree::Node;
use crate::config::{
    Component, KeyPath, PathFormat, Resolved, SchemaView, Settings, make_absolute, missing_file, refuse, resolve_model,
};
use crate::error::{Error, Result};
use crate::hub::{Hub, Missing};

impl Registry {
    /// Makes the paths in the plugins' tables absolute: those strings whose schema says `"format": "path"` are
    /// relative to the configuration file, or for a `--set` to the working directory; where it says `"format": "model"`,
    /// the string may also name a repository of the hub that is in this machine's cache.
    ///
    /// # Errors
    /// As [`Registry::validate`], which it does first; a path that leads nowhere, or a model that is not there.
    pub fn resolve<T: Settings>(&self, resolved: &mut Resolved<T>) -> Result<()> {
        self.validate(resolved)?;
        let paths = self.paths(resolved)?;
        let hub = Hub::from_env();
        let mut faults = Vec::new();
        resolved.update(|tree| {
            for (path, format) in &paths {
                let done = match format {
                    PathFormat::Path => make_absolute(tree, path),
                    PathFormat::Model => resolve_model(tree, path, &hub),
                };
                match done {
                    Err(Error::Config(found)) => faults.extend(found),
                    other => other?,
                }
            }
            Ok(())
        })?;
        let files = paths.iter().filter(|(_, format)| *format == PathFormat::Path);
        faults.extend(files.filter_map(|(path, _)| missing_file(resolved.tree(), path)));
        refuse(faults)
    }

    /// The same for a component that was named on the command line, relative to the working directory.
    ///
    /// # Errors
    /// A component that no plugin provides, a path that leads nowhere, or a model that is not there.
    pub fn resolve_component(&self, kind: Kind, component: &mut Component) -> Result<()> {
        self.resolve_component_in(kind, component, Path::new(""))
    }

    /// The same, relative to the folder `base`.
    ///
    /// # Errors
    /// As [`Registry::resolve_component`].
    pub fn resolve_component_in(&self, kind: Kind, component: &mut Component, base: &Path) -> Result<()> {
        let schema = SchemaView::new(self.schema(kind, &component.r#type)?);
        let hub = Hub::from_env();
        for (key, value) in &mut component.options {
            if let Some(view) = schema.child(key, None) {
                resolve_json(value, &KeyPath::of(key), view, None, (&hub, base))?;
            }
        }
        Ok(())
    }

    /// The plugins' keys that may change in the middle of a run: their schemas say that no result depends on them.
    ///
    /// # Errors
    /// A component that no plugin provides.
    pub fn free_keys<T: Settings>(&self, config: &T) -> Result<Vec<String>> {
        let mut keys = Vec::new();
        for (path, kind, component) in config.components() {
            let schema = SchemaView::new(self.schema(kind, &component.r#type)?);
            // Those that are not set may be so later.
            let free =
                schema.keys(None).into_iter().filter(|key| schema.child(key, None).is_some_and(SchemaView::is_free));
            keys.extend(free.map(|key| path.child(key).to_string()));
        }
        Ok(keys)
    }

    /// Where the plugins' tables hold paths, and of which kind.
    ///
    /// # Errors
    /// A component that no plugin provides.
    pub(super) fn paths<T: Settings>(&self, resolved: &Resolved<T>) -> Result<Vec<(KeyPath, PathFormat)>> {
        let mut paths = Vec::new();
        for (path, kind, component) in resolved.config.components() {
            let schema = SchemaView::new(self.schema(kind, &component.r#type)?);
            let Some(table) = resolved.tree().get(&path) else { continue };
            for (inner, _) in table.leaves() {
                let found = path_strings(schema, table, &inner).into_iter();
                paths.extend(found.map(|(inner, format)| (path.join(&inner), format)));
            }
        }
        Ok(paths)
    }
}

/// The path strings at a leaf: itself, or the elements of an array of paths.
fn path_strings(schema: SchemaView<'_>, table: &Node, leaf: &KeyPath) -> Vec<(KeyPath, PathFormat)> {
    let format = |path: &KeyPath| schema.at(table, path).and_then(SchemaView::path_format);
    let count = table.get(leaf).map_or(0, |node| node.to_json().as_array().map_or(0, Vec::len));
    let elements = (0..count).map(|index| leaf.child(index));
    // The mark may stand at the array or at its elements.
    let all = format(leaf);
    let marked = |path: KeyPath| all.or_else(|| format(&path)).map(|format| (path, format));
    std::iter::once(leaf.clone()).chain(elements).filter_map(marked).collect()
}

/// Resolves the paths of a value, with the hub and the folder that they are relative to; `outer` is the mark of the array
/// around it.
fn resolve_json(
    value: &mut Json,
    key: &KeyPath,
    view: SchemaView<'_>,
    outer: Option<PathFormat>,
    from: (&Hub, &Path),
) -> Result<()> {
    let (hub, base) = from;
    let format = view.path_format().or(outer);
    match value {
        Json::String(text) => match format {
            Some(PathFormat::Model) => {
                let found = hub.find(text, base);
                let found =
                    found.map_err(|Missing { message, hint }| Error::usage(format!("`{key}`: {message}"), hint))?;
                *text = found.to_string_lossy().into_owned();
            }
            Some(PathFormat::Path) => {
                let path = base.join(&*text);
                if !path.exists() {
                    return Err(Error::usage(format!("`{key}`: {} does not exist", path.display()), None));
                }
                *text = path.to_string_lossy().into_owned();
            }
            _ => {}
        },
        Json::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                let index = index.to_string();
                let inner = view.child(&index, None).unwrap_or(view);
                resolve_json(item, &key.child(&index), inner, format, from)?;
            }
        }
        Json::Object(table) => {
            for (name, item) in table {
                if let Some(inner) = view.child(name, None) {
                    resolve_json(item, &key.child(name), inner, None, from)?;
                }
            }
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::validate::tests::FILE;
    use super::*;
    use crate::config::load_run;

    #[test]
    fn paths_are_relative_to_their_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.toml");
        std::fs::write(&path, format!("{FILE}eta = 0.5\ntable = \"t.bin\"\nmore = [\"a\", \"/b\"]\n")).unwrap();
        let mut resolved = load_run(&path, &[]).unwrap();
        let registry = Registry::linked().unwrap();
        let entry = registry.entry(Kind::Sampler, "linked-in-tests").unwrap();
        let table = resolved.tree().get(&KeyPath::of("sampler")).unwrap();
        let schema = SchemaView::new(&entry.schema);
        let mut paths = Vec::new();
        for (leaf, _) in table.leaves() {
            let found = path_strings(schema, table, &leaf).into_iter();
            paths.extend(found.map(|(path, _)| KeyPath::of("sampler").join(&path)));
        }
        resolved.update(|tree| paths.iter().try_for_each(|path| make_absolute(tree, path))).unwrap();
        let options = &resolved.config.sampler.component.options;
        let beside = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        assert_eq!(options["table"], beside("t.bin"));
        assert_eq!(options["more"], serde_json::json!([beside("a"), "/b"]));
        assert!(resolved.toml.contains(&beside("t.bin")));
    }

    #[test]
    fn models_may_be_folders_and_what_is_missing_is_told() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("org/model")).unwrap();
        let path = folder.path().join("run.toml");
        std::fs::write(&path, format!("{FILE}eta = 0.5\nmodel = \"org/model\"\n")).unwrap();
        let mut resolved = load_run(&path, &[]).unwrap();
        let hub = Hub::from_env();
        let key = KeyPath::of("sampler.model");
        resolved.update(|tree| resolve_model(tree, &key, &hub)).unwrap();
        let expected = folder.path().join("org/model");
        assert_eq!(resolved.config.sampler.component.options["model"], expected.to_str().unwrap());
        let component = |model: &str| Component {
            r#type: "linked-in-tests".to_owned(),
            options: [("model".to_owned(), model.into()), ("more".to_owned(), serde_json::json!(["/"]))]
                .into_iter()
                .collect(),
        };
        let registry = Registry::linked().unwrap();
        let mut found = component(expected.to_str().unwrap());
        registry.resolve_component(Kind::Sampler, &mut found).unwrap();
        assert_eq!(found, component(expected.to_str().unwrap()));
        let error = registry.resolve_component(Kind::Sampler, &mut component("no-org/no-model")).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        for part in ["`model`: no model \"no-org/no-model\"", "the cache has no", "models--no-org--no-model"] {
            assert!(text.contains(part), "{text}");
        }
        let mut lost = component(expected.to_str().unwrap());
        lost.options["more"] = serde_json::json!(["/", "/no-such-file"]);
        let error = registry.resolve_component(Kind::Sampler, &mut lost).unwrap_err();
        assert_eq!(error.to_string(), "`more.1`: /no-such-file does not exist");
    }
}
