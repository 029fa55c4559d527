//! `advdmd config`: schema, explanation and comparison of configurations.

use std::path::{Path, PathBuf};

use advdmd::config::recipe::{RECIPES, Recipe};
use advdmd::config::tree::Node;
use advdmd::config::{self, KeyPath, PretrainConfig, RunConfig, SchemaView};
use advdmd::registry::Registry;
use advdmd::{Error, Result};
use clap::Subcommand;
use serde_json::Value as Json;

use super::output;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the JSON schema of a configuration, with the keys of all plugins that are found
    Schema {
        /// The schema of a pretraining configuration instead
        #[arg(long)]
        pretrain: bool,
        /// Look for plugins in this folder or file too
        #[arg(long = "plugin-path", value_name = "PATH")]
        paths: Vec<PathBuf>,
        /// Print JSON, which it does anyway
        #[arg(long)]
        json: bool,
    },
    /// Say what a key means, what type it takes, its value and where that was set
    Explain {
        /// The key, such as `objective.dmd.weight` or `reward.0.weight`
        key: String,
        /// The configuration to look in; without one, the presets
        #[arg(value_name = "CONFIG.toml")]
        config: Option<PathBuf>,
        /// Change a key of the configuration first
        #[arg(long = "set", value_name = "KEY=VALUE", requires = "config")]
        sets: Vec<String>,
    },
    /// Show the keys in which two configurations differ; exit code 0 in any case
    Diff {
        /// A configuration, or the name of a preset
        a: PathBuf,
        /// Another
        b: PathBuf,
    },
}

pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Schema { pretrain, paths, json: _ } => {
            let registry = Registry::discover(&paths)?;
            let schema = if pretrain {
                registry.config_schema::<PretrainConfig>()
            } else {
                registry.config_schema::<RunConfig>()
            };
            output::json(&schema)
        }
        Command::Explain { key, config, sets } => explain(&key, config.as_deref(), &sets),
        Command::Diff { a, b } => diff(&a, &b),
    }
}

fn explain(key: &str, file: Option<&Path>, sets: &[String]) -> Result<()> {
    let trees = if let Some(file) = file {
        vec![config::merged::<RunConfig>(file, sets)?]
    } else {
        let schema = config::json_schema::<RunConfig>();
        RECIPES.iter().map(|recipe| recipe.tree(SchemaView::new(&schema))).collect::<Result<_>>()?
    };
    let registry = Registry::discover(&file.map(|_| plugin_paths(&trees[0])).unwrap_or_default())?;
    let schema = registry.config_schema::<RunConfig>();
    let view = SchemaView::new(&schema);
    let path = indexed(view, &trees[0], &KeyPath::of(key));
    let found = trees.iter().find_map(|tree| view.at(tree, &path)).ok_or_else(|| unknown(view, &trees[0], &path))?;
    let mut text = format!("{path}: {}", found.type_text());
    if let Some(default) = found.default() {
        text += &format!(", default {default}");
    }
    if let Some(doc) = found.doc() {
        text += &format!("\n  {}", doc.replace('\n', "\n  "));
    }
    let keys = found.keys(trees[0].get(&path).and_then(|node| node.string("type")));
    if !keys.is_empty() {
        text += &format!("\n  keys: {}", keys.join(", "));
    }
    for tree in &trees {
        if let Some(node) = tree.get(&path) {
            text += &format!("\n  {} ({})", toml_text(&node.to_json()), node.key.describe());
        }
    }
    if trees.iter().all(|tree| tree.get(&path).is_none()) {
        text += if file.is_some() { "\n  not set" } else { "\n  set in no preset" };
    }
    output::text(&text)
}

/// The path with the first element meant where an array is named without one: `reward.weight`.
fn indexed(view: SchemaView<'_>, tree: &Node, path: &KeyPath) -> KeyPath {
    let mut full = KeyPath::default();
    for segment in &path.0 {
        let table = view.at(tree, &full);
        let first = full.child(0);
        if table.is_some_and(|table| table.keys(None).is_empty())
            && view.at(tree, &first).is_some()
            && segment.parse::<usize>().is_err()
        {
            full = first;
        }
        full = full.child(segment);
    }
    full
}

/// `plugins.paths` of an unchecked tree, as far as they exist.
fn plugin_paths(tree: &Node) -> Vec<PathBuf> {
    let node = tree.get(&KeyPath::of("plugins.paths"));
    let paths = node.map(Node::to_json).and_then(|value| serde_json::from_value::<Vec<PathBuf>>(value).ok());
    let base = node.map(|node| node.at.source.base().to_owned()).unwrap_or_default();
    paths.unwrap_or_default().into_iter().map(|path| base.join(path)).filter(|path| path.exists()).collect()
}

fn unknown(view: SchemaView<'_>, tree: &Node, path: &KeyPath) -> Error {
    // The deepest table on the way that exists, and the key that it lacks.
    let mut parent = KeyPath::default();
    for segment in &path.0 {
        if view.at(tree, &parent.child(segment)).is_none() {
            let table = view.at(tree, &parent);
            if table.is_some_and(SchemaView::is_open) {
                let hint = "it may be a key of a plugin that was not found; see `advdmd plugins list`";
                return Error::usage(format!("no key `{path}`"), hint.to_owned());
            }
            let keys = table.map(|table| table.keys(None)).unwrap_or_default();
            let near = config::nearest(segment, keys.iter().copied())
                .map(|near| format!("did you mean `{}`?", parent.child(near)));
            let hint = near.or_else(|| (!keys.is_empty()).then(|| format!("valid there: {}", keys.join(", "))));
            return Error::usage(format!("no key `{path}`"), hint);
        }
        parent = parent.child(segment);
    }
    Error::usage(format!("no key `{path}`"), None)
}

fn diff(a: &Path, b: &Path) -> Result<()> {
    let (left, right) = (tree_of(a)?, tree_of(b)?);
    let (left, right) = (left.leaves(), right.leaves());
    let value = |leaves: &[(KeyPath, &Node)], path: &KeyPath| {
        leaves.iter().find(|(key, _)| key == path).map(|(_, node)| toml_text(&node.to_json()))
    };
    let mut paths: Vec<&KeyPath> = left.iter().chain(&right).map(|(path, _)| path).collect();
    paths.sort();
    paths.dedup();
    let mut rows = vec![vec!["KEY".to_owned(), a.display().to_string(), b.display().to_string()]];
    for path in paths {
        let (old, new) = (value(&left, path), value(&right, path));
        if old != new {
            let shown = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
            rows.push(vec![path.to_string(), shown(old), shown(new)]);
        }
    }
    if rows.len() == 1 {
        return output::text("the configurations are the same");
    }
    output::text(&output::columns(&rows))
}

/// The merged tree of a file, or of the preset of that name where there is no such file.
fn tree_of(name: &Path) -> Result<Node> {
    let recipe = name.to_str().and_then(Recipe::named).filter(|_| !name.exists());
    match recipe {
        Some(recipe) => recipe.tree(SchemaView::new(&config::json_schema::<RunConfig>())),
        None => config::merged::<RunConfig>(name, &[]),
    }
}

/// A value as TOML writes it in one line.
fn toml_text(value: &Json) -> String {
    match value {
        Json::Array(items) => format!("[{}]", items.iter().map(toml_text).collect::<Vec<_>>().join(", ")),
        Json::Object(table) => {
            let entries: Vec<_> = table.iter().map(|(key, value)| format!("{key} = {}", toml_text(value))).collect();
            format!("{{ {} }}", entries.join(", "))
        }
        scalar => scalar.to_string(),
    }
}
