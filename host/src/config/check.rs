//! Validating a tree against a JSON schema, with faults that point into the user's text.

use jsonschema::ValidationError;
use jsonschema::error::{TypeKind, ValidationErrorKind};
use serde_json::Value as Json;

use super::suggest::nearest;
use super::tree::{KeyPath, Node};
use super::view::{SchemaView, quoted};
use crate::error::{Error, Fault, Result};

/// What to validate and where it stands.
pub struct Check<'a> {
    /// The whole configuration, for places.
    pub tree: &'a Node,
    /// Where the validated value stands in it.
    pub at: KeyPath,
    /// The schema.
    pub schema: &'a Json,
    /// Further keys that are valid in the value's table, for suggestions: the host's own beside a plugin's.
    pub more_keys: Vec<&'a str>,
    /// Paths that are valid elsewhere, to say where a misplaced key belongs.
    pub elsewhere: &'a [KeyPath],
}

impl Check<'_> {
    /// Every fault of `value`.
    ///
    /// # Errors
    /// A schema that is not one.
    pub fn faults(&self, value: &Json) -> Result<Vec<Fault>> {
        let validator = jsonschema::validator_for(self.schema)
            .map_err(|error| Error::contract(format!("the schema of `{}` is not a JSON schema: {error}", self.at)))?;
        let mut faults = Vec::new();
        for error in validator.iter_errors(value) {
            self.explain(&error, &mut faults);
        }
        faults.dedup();
        Ok(faults)
    }

    fn explain(&self, error: &ValidationError<'_>, faults: &mut Vec<Fault>) {
        let inner = KeyPath::of_pointer(error.instance_path().as_str());
        let path = self.at.join(&inner);
        let mut say = |message: String, hint: Option<String>| {
            let place = self.tree.get(&path).map(|node| node.at.place());
            faults.push(Fault { message, place, hint });
        };
        let found = shown(error.instance());
        match error.kind() {
            ValidationErrorKind::AdditionalProperties { unexpected }
            | ValidationErrorKind::UnevaluatedProperties { unexpected } => {
                faults.extend(unexpected.iter().map(|key| self.unknown(&inner, key)));
            }
            ValidationErrorKind::Required { property } => {
                faults.push(self.missing(&inner, property.as_str().unwrap_or_default()));
            }
            ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } => {
                self.explain_choice(error, context, faults);
            }
            ValidationErrorKind::Type { kind } => {
                let expected = self.view(&inner).map_or_else(|| type_words(kind), SchemaView::type_text);
                say(format!("`{path}`: expected {}, found {found}", with_article(&expected)), None);
            }
            ValidationErrorKind::Enum { options } => {
                let options: Vec<String> = options.as_array().into_iter().flatten().map(plain).collect();
                say(expected_one_of(&path, &options, &found), slip(error.instance(), &options));
            }
            ValidationErrorKind::Constant { expected_value } => {
                say(expected_one_of(&path, &[plain(expected_value)], &found), None);
            }
            ValidationErrorKind::Minimum { limit } => {
                say(format!("`{path}`: expected {limit} or more, found {found}"), None);
            }
            ValidationErrorKind::Maximum { limit } => {
                say(format!("`{path}`: expected {limit} or less, found {found}"), None);
            }
            ValidationErrorKind::ExclusiveMinimum { limit } => {
                say(format!("`{path}`: expected more than {limit}, found {found}"), None);
            }
            ValidationErrorKind::ExclusiveMaximum { limit } => {
                say(format!("`{path}`: expected less than {limit}, found {found}"), None);
            }
            ValidationErrorKind::MinItems { .. } | ValidationErrorKind::MaxItems { .. } => {
                let expected =
                    self.view(&inner).map_or_else(|| "another number of entries".to_owned(), SchemaView::type_text);
                say(
                    format!("`{path}`: expected {}, found {}", with_article(&expected), length(error.instance())),
                    None,
                );
            }
            _ => say(format!("`{path}`: {error}"), None),
        }
    }

    /// A value that fits none of several alternatives: the errors of the one that was meant, or the choices.
    fn explain_choice(
        &self,
        error: &ValidationError<'_>,
        context: &[Vec<ValidationError<'static>>],
        faults: &mut Vec<Fault>,
    ) {
        let inner = KeyPath::of_pointer(error.instance_path().as_str());
        let possible = |branch: &&Vec<ValidationError<'static>>| {
            // Only one that says "another type" or "another constant" cannot have been meant.
            !branch.iter().any(|one| {
                let path = KeyPath::of_pointer(one.instance_path().as_str());
                let at_tag = path == inner.child("type");
                match one.kind() {
                    ValidationErrorKind::Constant { .. } | ValidationErrorKind::Enum { .. } => at_tag || path == inner,
                    ValidationErrorKind::Type { .. } => path == inner,
                    ValidationErrorKind::Required { property } => path == inner && property == "type",
                    _ => false,
                }
            })
        };
        let meant: Vec<_> = context.iter().filter(possible).collect();
        if let [branch] = meant.as_slice() {
            for one in *branch {
                self.explain(one, faults);
            }
            return;
        }
        let Some(view) = self.view(&inner) else {
            faults.push(self.fault_at(&inner, format!("`{}`: {error}", self.at.join(&inner)), None));
            return;
        };
        let choices = view.choices();
        let tagged = error.instance().is_object() && !choices.is_empty();
        if tagged && error.instance().get("type").is_none() {
            let mut fault = self.missing(&inner, "type");
            fault.hint = Some(format!("it is {}", quoted(&choices)));
            faults.push(fault);
            return;
        }
        let (at, value) = match error.instance().get("type") {
            Some(value) if tagged => (inner.child("type"), value),
            _ => (inner, error.instance().as_ref()),
        };
        let path = self.at.join(&at);
        let message = if choices.is_empty() || (!tagged && !value.is_string()) {
            format!("`{path}`: expected {}, found {}", with_article(&view.type_text()), shown(value))
        } else {
            expected_one_of(&path, &choices, &shown(value))
        };
        faults.push(self.fault_at(&at, message, slip(value, &choices)));
    }

    fn unknown(&self, inner: &KeyPath, key: &str) -> Fault {
        let path = self.at.join(&inner.child(key));
        let table = self.tree.get(&self.at.join(inner));
        let kind = table.and_then(|node| node.string("type"));
        let mut valid = self.view(inner).map(|view| view.keys(kind)).unwrap_or_default();
        if inner.0.is_empty() {
            valid.extend(&self.more_keys);
        }
        let other_type = || {
            let owners = self.view(inner)?.owners(key);
            let kind = kind.filter(|kind| !owners.is_empty() && !owners.iter().any(|owner| owner == kind))?;
            Some(format!("it belongs to type {}, and this is type \"{kind}\"", quoted(&owners)))
        };
        let misplaced = || {
            let homes =
                self.elsewhere.iter().filter(|home| home.0.last().is_some_and(|last| last == key) && **home != path);
            let homes: Vec<_> = homes.map(|home| format!("`{home}`")).collect();
            (!homes.is_empty() && homes.len() <= 3).then(|| format!("the key exists as {}", homes.join(", ")))
        };
        let listed = || {
            let keys: Vec<_> = valid.iter().map(|key| format!("`{key}`")).collect();
            (!keys.is_empty()).then(|| format!("valid here: {}", keys.join(", ")))
        };
        let near = nearest(key, valid.iter().copied()).map(|near| format!("did you mean `{near}`?"));
        let place = self.tree.get(&path).map(|node| node.key.place());
        Fault {
            message: format!("unknown key `{path}`"),
            place,
            hint: other_type().or(near).or_else(misplaced).or_else(listed),
        }
    }

    fn missing(&self, inner: &KeyPath, key: &str) -> Fault {
        let at = inner.child(key);
        let view = self.view(&at);
        let what = view.map(|view| format!(" ({})", view.type_text())).unwrap_or_default();
        let hint = view.and_then(SchemaView::doc).map(|doc| format!("it is: {}", first_sentence(doc)));
        let table = self.tree.nearest(&self.at.join(inner));
        let root = table.at.span.is_empty();
        let place = if root { table.at.source.whole() } else { table.key.place() };
        Fault { message: format!("missing key `{}`{what}", self.at.join(&at)), place: Some(place), hint }
    }

    fn fault_at(&self, inner: &KeyPath, message: String, hint: Option<String>) -> Fault {
        let place = self.tree.get(&self.at.join(inner)).map(|node| node.at.place());
        Fault { message, place, hint }
    }

    fn view(&self, inner: &KeyPath) -> Option<SchemaView<'_>> {
        let value = self.tree.get(&self.at)?;
        SchemaView::new(self.schema).at(value, inner)
    }
}

fn expected_one_of(path: &KeyPath, choices: &[String], found: &str) -> String {
    format!("`{path}`: expected {}, found {found}", quoted(choices))
}

fn slip(found: &Json, choices: &[String]) -> Option<String> {
    let near = nearest(found.as_str()?, choices.iter().map(String::as_str))?;
    Some(format!("did you mean \"{near}\"?"))
}

fn first_sentence(doc: &str) -> String {
    let text = doc.split("\n\n").next().unwrap_or(doc).replace('\n', " ");
    text.trim_end_matches('.').to_owned()
}

/// A found value in words.
fn shown(value: &Json) -> String {
    match value {
        Json::String(text) => format!("the string {text:?}"),
        Json::Array(items) => format!("an array of {}", items.len()),
        Json::Object(_) => "a table".to_owned(),
        other => other.to_string(),
    }
}

fn length(value: &Json) -> usize {
    value.as_array().map_or(0, Vec::len)
}

fn plain(value: &Json) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn type_words(kind: &TypeKind) -> String {
    match kind {
        TypeKind::Single(kind) => kind.to_string(),
        TypeKind::Multiple(kinds) => kinds.iter().map(|kind| kind.to_string()).collect::<Vec<_>>().join(" or "),
    }
}

fn with_article(words: &str) -> String {
    match words.chars().next() {
        Some('"') | None => words.to_owned(),
        Some(first) if "aeiou".contains(first) => format!("an {words}"),
        Some(_) => format!("a {words}"),
    }
}
