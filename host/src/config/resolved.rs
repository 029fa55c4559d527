//! Reading a configuration: from files to a checked, typed value that knows where each key came from.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::check::Check;
use super::merge::{apply_set, merge};
use super::recipe::{RECIPES, Recipe};
use super::settings::Settings;
use super::source::{Origin, Source, SourceKind};
use super::suggest::nearest;
use super::tree::{KeyPath, Node, Value};
use super::view::{SchemaView, coerce_integers};
use super::{PretrainConfig, RunConfig};
use crate::cache::NONE as NO_CACHE;
use crate::error::{Error, Fault, Result};
use crate::hub::{Hub, Missing};

/// A configuration that was read, merged and checked.
#[derive(Debug, Clone)]
pub struct Resolved<T> {
    /// The typed configuration.
    pub config: T,
    /// All keys as TOML, without recipe and relative paths: what is written beside the run, and can be run again.
    pub toml: String,
    tree: Node,
}

/// Reads the configuration of a training run.
///
/// # Errors
/// Every fault of the files and options at once, each with its place.
pub fn load_run(path: &Path, sets: &[String]) -> Result<Resolved<RunConfig>> {
    load(path, sets)
}

/// The configuration of a training run whose file, named `path`, holds `text`.
///
/// # Errors
/// As [`load_run`].
pub fn parse_run(path: &Path, text: String, sets: &[String]) -> Result<Resolved<RunConfig>> {
    checked(layered::<RunConfig>(path, text, sets)?)
}

/// Reads the configuration of a pretraining run.
///
/// # Errors
/// As [`load_run`].
pub fn load_pretrain(path: &Path, sets: &[String]) -> Result<Resolved<PretrainConfig>> {
    load(path, sets)
}

/// The merged tree of a configuration, unchecked.
///
/// # Errors
/// A file that cannot be read or is no TOML, an unknown recipe, a bad `--set`.
pub fn merged<T: Settings>(path: &Path, sets: &[String]) -> Result<Node> {
    let text = std::fs::read_to_string(path).map_err(Error::file("read", path)).map_err(|error| match error {
        Error::File { source, .. } => Error::usage(
            format!("cannot read the configuration {}: {source}", path.display()),
            Some("give the path of a TOML file; `advdmd recipes show advdmd` prints one to start from".to_owned()),
        ),
        other => other,
    })?;
    layered::<T>(path, text, sets)
}

/// Recipe, file and options as one tree.
fn layered<T: Settings>(path: &Path, text: String, sets: &[String]) -> Result<Node> {
    let schema = json_schema::<T>();
    let view = SchemaView::new(&schema);
    let source = Source::new(SourceKind::File(path.to_owned()), text);
    let file = Node::parse(&source)?;
    // The options are applied to the file alone first, because one of them may name the recipe.
    let mut named = file.clone();
    for option in sets.iter().filter(|option| option.trim_start().starts_with("recipe")) {
        apply_set(&mut named, option, view)?;
    }
    let mut tree = match recipe(&named)? {
        Some(recipe) if T::RECIPES => recipe.tree(view)?,
        _ => Node::empty(&source),
    };
    merge(&mut tree, file, Some(view));
    // A change of `type` takes the old type's keys away, so it comes before the new type's keys are set.
    let (types, others): (Vec<&String>, Vec<&String>) = sets.iter().partition(|option| retypes(option));
    for option in types.into_iter().chain(others) {
        apply_set(&mut tree, option, view)?;
    }
    Ok(tree)
}

fn retypes(option: &str) -> bool {
    option.split('=').next().and_then(|key| key.trim().rsplit('.').next()).is_some_and(|key| key == "type")
}

/// The JSON schema of a configuration, without its plugins' keys.
#[must_use]
pub fn json_schema<T: Settings>() -> Json {
    schemars::schema_for!(T).to_value()
}

fn load<T: Settings>(path: &Path, sets: &[String]) -> Result<Resolved<T>> {
    checked(merged::<T>(path, sets)?)
}

fn checked<T: Settings>(mut tree: Node) -> Result<Resolved<T>> {
    let schema = json_schema::<T>();
    coerce_integers(&mut tree, SchemaView::new(&schema));
    let elsewhere = known_paths(&schema);
    let check =
        Check { tree: &tree, at: KeyPath::default(), schema: &schema, more_keys: Vec::new(), elsewhere: &elsewhere };
    refuse(with_recipe_hint::<T>(check.faults(&tree.to_json())?, &tree))?;
    for (path, must_exist) in host_paths(&tree) {
        make_absolute(&mut tree, &path)?;
        refuse(missing_file(&tree, &path).filter(|_| must_exist).into_iter().collect())?;
    }
    let mut resolved = Resolved { config: typed(&tree)?, toml: String::new(), tree };
    let problems: Vec<_> = T::problems(&resolved.config);
    refuse(problems.into_iter().map(|problem| resolved.fault(&problem.path, problem.message, problem.hint)).collect())?;
    resolved.write()?;
    Ok(resolved)
}

impl<T: Settings> Resolved<T> {
    /// A fault at `path`, for checks that come after loading: it points at the line that set the key.
    pub fn fault(&self, path: &KeyPath, message: impl Into<String>, hint: Option<String>) -> Fault {
        let node = self.tree.nearest(path);
        let exact = self.tree.get(path).is_some();
        let origin = if exact && !matches!(node.value, Value::Table(_)) { &node.at } else { &node.key };
        let place = if origin.span.is_empty() { origin.source.whole() } else { origin.place() };
        Fault { message: message.into(), place: Some(place), hint }
    }

    /// The same as an error.
    pub fn error(&self, path: &KeyPath, message: impl Into<String>, hint: Option<String>) -> Error {
        Error::Config(vec![self.fault(path, message, hint)])
    }

    /// Where the value at `path` came from: `recipe advdmd:12:3`, `run.toml:4:1`, `--set batch.groups=4`.
    #[must_use]
    pub fn origin(&self, path: &KeyPath) -> Option<String> {
        self.tree.get(path).map(|node| node.key.describe())
    }

    /// The merged tree.
    #[must_use]
    pub fn tree(&self) -> &Node {
        &self.tree
    }

    /// Changes values of the tree and types it anew.
    pub(crate) fn update(&mut self, change: impl FnOnce(&mut Node) -> Result<()>) -> Result<()> {
        change(&mut self.tree)?;
        self.config = typed(&self.tree)?;
        self.write()
    }

    fn write(&mut self) -> Result<()> {
        self.toml = toml::to_string(&self.config)
            .map_err(|error| Error::config(format!("cannot write the configuration: {error}")))?;
        Ok(())
    }
}

/// The host's own keys that are paths, and whether there must be something already.
fn host_paths(tree: &Node) -> Vec<(KeyPath, bool)> {
    let elements = |list: &str| {
        let list = KeyPath::of(list);
        let count = tree.get(&list).map_or(0, |node| node.to_json().as_array().map_or(0, Vec::len));
        (0..count).map(move |index| list.child(index)).collect::<Vec<_>>()
    };
    let mut paths: Vec<(KeyPath, bool)> = elements("plugins.paths").into_iter().map(|path| (path, true)).collect();
    paths.extend(["data.prompts", "data.path", "eval.prompts"].map(|path| (KeyPath::of(path), true)));
    // Shards may be patterns; who expands them says what is missing.
    paths.extend(elements("data.shards").into_iter().chain([KeyPath::of("data.shards")]).map(|path| (path, false)));
    let cache = KeyPath::of("data.cache");
    if tree.get(&cache).is_some_and(|node| node.to_json() != NO_CACHE) {
        paths.push((cache, false));
    }
    paths
}

/// The fault of a path that leads nowhere.
pub(crate) fn missing_file(tree: &Node, path: &KeyPath) -> Option<Fault> {
    let node = tree.get(path)?;
    let Value::Scalar(Json::String(file)) = &node.value else { return None };
    let hint = relative_to(&node.at).to_owned();
    let message = format!("`{path}`: {file} does not exist");
    (!Path::new(file).exists()).then(|| Fault { message, place: Some(node.at.place()), hint: Some(hint) })
}

fn relative_to(at: &Origin) -> &'static str {
    match at.source.kind {
        SourceKind::Set => "it is relative to the working directory",
        _ => "it is relative to the configuration file",
    }
}

/// Many missing keys without a recipe are one fault: the missing recipe.
fn with_recipe_hint<T: Settings>(mut faults: Vec<Fault>, tree: &Node) -> Vec<Fault> {
    let missing = |fault: &Fault| fault.message.starts_with("missing key");
    if !T::RECIPES || tree.string("recipe").is_some() || faults.iter().filter(|fault| missing(fault)).count() < 4 {
        return faults;
    }
    let keys = faults.iter().filter(|fault| missing(fault)).filter_map(|fault| fault.message.split('`').nth(1));
    let message = format!("missing keys: {}", keys.collect::<Vec<_>>().join(", "));
    let names: Vec<_> = RECIPES.iter().map(|recipe| recipe.name.to_owned()).collect();
    let hint = format!("start from a preset: write `recipe = ` and one of {} at the top", super::view::quoted(&names));
    faults.retain(|fault| !missing(fault));
    faults.push(Fault { message, place: Some(tree.at.source.whole()), hint: Some(hint) });
    faults
}

/// Turns the path string at `path` into an absolute one, relative to the file (or, for `--set`, to the working
/// directory) that it stands in.
pub(crate) fn make_absolute(tree: &mut Node, path: &KeyPath) -> Result<()> {
    let Some(Node { value: Value::Scalar(Json::String(text)), at, .. }) = tree.get_mut(path) else { return Ok(()) };
    let joined: PathBuf = at.source.base().join(&*text);
    let absolute = std::path::absolute(&joined).map_err(Error::file("find", &joined))?;
    *text = utf8(&absolute, path, at)?;
    Ok(())
}

/// Turns the name of a model at `path` into the absolute path of its folder or file.
pub(crate) fn resolve_model(tree: &mut Node, path: &KeyPath, hub: &Hub) -> Result<()> {
    let Some(Node { value: Value::Scalar(Json::String(text)), at, .. }) = tree.get_mut(path) else { return Ok(()) };
    let found = hub.find(text, at.source.base()).map_err(|Missing { message, hint }| {
        let hint = hint.unwrap_or_else(|| relative_to(at).to_owned());
        Error::Config(vec![Fault {
            message: format!("`{path}`: {message}"),
            place: Some(at.place()),
            hint: Some(hint),
        }])
    })?;
    *text = utf8(&found, path, at)?;
    Ok(())
}

fn utf8(file: &Path, path: &KeyPath, at: &Origin) -> Result<String> {
    file.to_str().map(str::to_owned).ok_or_else(|| {
        let message = format!("`{path}`: {} is not UTF-8", file.display());
        Error::Config(vec![Fault { message, place: Some(at.place()), hint: None }])
    })
}

fn typed<T: Settings>(tree: &Node) -> Result<T> {
    serde_json::from_value(tree.to_json()).map_err(|error| {
        Error::Config(vec![Fault { message: error.to_string(), place: Some(tree.at.source.whole()), hint: None }])
    })
}

/// All faults as one error, in the order of the text; `Ok` without faults.
pub(crate) fn refuse(mut faults: Vec<Fault>) -> Result<()> {
    let key = |fault: &Fault| {
        let line = fault.place.as_ref().and_then(|place| place.excerpt.as_ref()).map(|at| (at.line, at.column));
        (fault.place.as_ref().map(|place| place.source.clone()), line)
    };
    faults.sort_by_key(key);
    if faults.is_empty() { Ok(()) } else { Err(Error::Config(faults)) }
}

fn recipe(tree: &Node) -> Result<Option<Recipe>> {
    let Some(name) = tree.string("recipe") else { return Ok(None) };
    if let Some(recipe) = Recipe::named(name) {
        return Ok(Some(recipe));
    }
    let names: Vec<_> = RECIPES.iter().map(|recipe| recipe.name).collect();
    let place = tree.get(&KeyPath::of("recipe")).map(|node| node.at.place());
    let near = nearest(name, names.iter().copied()).map(|near| format!("did you mean \"{near}\"?"));
    let message = format!("`recipe`: no recipe \"{name}\"; there are {}", names.join(", "));
    Err(Error::Config(vec![Fault { message, place, hint: near }]))
}

/// Every key path of a schema but those below arrays and variants.
fn known_paths(schema: &Json) -> Vec<KeyPath> {
    fn walk(view: SchemaView<'_>, path: &KeyPath, found: &mut Vec<KeyPath>) {
        for key in view.keys(None) {
            let path = path.child(key);
            if path.0.len() <= 4
                && let Some(child) = view.child(key, None)
            {
                walk(child, &path, found);
            }
            found.push(path);
        }
    }
    let mut found = Vec::new();
    walk(SchemaView::new(schema), &KeyPath::default(), &mut found);
    found
}
