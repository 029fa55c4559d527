//! Reading a JSON schema: which keys a table may have, what they mean and what type they take.
//!
//! Covers what `schemars` writes (references, tagged enums as `oneOf`, options as `anyOf` with null), which is
//! what suggestions and explanations need; whether a value is valid is left to a full validator.

use serde_json::Value as Json;

use super::tree::{KeyPath, Node, Value};

/// A place in a schema.
#[derive(Debug, Clone, Copy)]
pub struct SchemaView<'a> {
    root: &'a Json,
    node: &'a Json,
}

/// What a string that names something on disk may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathFormat {
    /// A path, relative to the configuration file: `"format": "path"`.
    Path,
    /// The same, or a repository of the Hugging Face hub: `"format": "model"`.
    Model,
}

impl<'a> SchemaView<'a> {
    /// The schema as a whole.
    pub fn new(root: &'a Json) -> Self {
        Self { root, node: root }
    }

    /// The schema at `path` of `tree`, which tells the variants of tagged enums apart.
    pub fn at(self, tree: &Node, path: &KeyPath) -> Option<Self> {
        let mut view = self;
        let mut node = Some(tree);
        for segment in &path.0 {
            view = view.child(segment, node)?;
            node = node.and_then(|node| node.get(&KeyPath(vec![segment.clone()])));
        }
        Some(view)
    }

    /// The schema of one key or array element; `value` is the table or array that holds it.
    pub fn child(self, segment: &str, value: Option<&Node>) -> Option<Self> {
        let kind = value.and_then(|node| node.string("type"));
        self.variants(kind).into_iter().find_map(|variant| {
            let index = segment.parse::<usize>().ok();
            let keyed = variant.node.get("properties").and_then(|keys| keys.get(segment));
            let prefixed = || variant.node.get("prefixItems").and_then(|items| items.get(index?));
            let item = || index.and_then(|_| variant.node.get("items"));
            keyed.or_else(prefixed).or_else(item).map(|node| Self { root: self.root, node })
        })
    }

    /// The keys that a table of this schema may have, in the order of the schema.
    pub fn keys(self, kind: Option<&str>) -> Vec<&'a str> {
        let mut keys: Vec<&str> = Vec::new();
        for variant in self.variants(kind) {
            let properties = variant.node.get("properties").and_then(Json::as_object);
            for key in properties.into_iter().flat_map(|properties| properties.keys()) {
                if !keys.contains(&key.as_str()) {
                    keys.push(key);
                }
            }
        }
        keys
    }

    /// Whether a table of this schema must have a key.
    pub fn requires(self, key: &str) -> bool {
        let required = |variant: &Self| variant.node.get("required").and_then(Json::as_array).cloned();
        self.variants(None).iter().filter_map(required).flatten().any(|name| name == key)
    }

    /// Whether a table of this schema takes keys that the schema does not name (a plugin's).
    pub fn is_open(self) -> bool {
        self.variants(None)
            .iter()
            .any(|variant| variant.node.get("additionalProperties").is_some_and(|extra| extra != &Json::Bool(false)))
    }

    /// The values of an enum without data, or the `type` names of a tagged one.
    pub fn choices(self) -> Vec<String> {
        let mut found = Vec::new();
        for variant in self.variants(None) {
            let tag = variant.node.get("properties").and_then(|keys| keys.get("type"));
            for node in [Some(variant.node), tag].into_iter().flatten() {
                let one = node.get("const").into_iter();
                let many = node.get("enum").and_then(Json::as_array).into_iter().flatten();
                found.extend(one.chain(many).filter_map(Json::as_str).map(str::to_owned));
            }
        }
        found
    }

    /// The `type` names of those variants of a tagged enum that have a key.
    pub fn owners(self, key: &str) -> Vec<String> {
        let tagged = |variant: &Self| {
            let keys = variant.node.get("properties")?;
            keys.get(key)?;
            keys.get("type")?.get("const")?.as_str().map(str::to_owned)
        };
        self.variants(None).iter().filter_map(tagged).collect()
    }

    /// The description: what stands at the key itself, or else at the type that it refers to.
    pub fn doc(self) -> Option<&'a str> {
        let text = |node: &'a Json| node.get("description").and_then(Json::as_str);
        text(self.node).or_else(|| self.variants(None).into_iter().find_map(|variant| text(variant.node)))
    }

    /// The default, where the schema has one.
    pub fn default(self) -> Option<&'a Json> {
        self.node.get("default").filter(|value| !value.is_null())
    }

    /// What the schema says that the string names on disk, if anything.
    pub fn path_format(self) -> Option<PathFormat> {
        self.variants(None).iter().find_map(|variant| match variant.node.get("format")?.as_str()? {
            "path" => Some(PathFormat::Path),
            "model" => Some(PathFormat::Model),
            _ => None,
        })
    }

    /// Whether the schema says that the value changes no result, such as the address of a server.
    pub fn is_free(self) -> bool {
        self.variants(None).iter().any(|variant| variant.node.get("x-changes-no-result") == Some(&Json::Bool(true)))
    }

    /// Whether every number that fits is an integer.
    pub fn is_integer(self) -> bool {
        let types = self.types();
        types.contains(&"integer") && !types.contains(&"number")
    }

    /// The type in words: `integer`, `array of 2 numbers`, `one of "f32", "bf16"`.
    pub fn type_text(self) -> String {
        let choices = self.choices();
        let types = self.types();
        if types.contains(&"object") && !choices.is_empty() {
            return format!("table with type {}", quoted(&choices));
        }
        if !choices.is_empty() {
            return quoted(&choices);
        }
        let words: Vec<String> = types.iter().filter(|name| **name != "null").map(|name| self.word(name)).collect();
        if words.is_empty() { "any value".to_owned() } else { words.join(" or ") }
    }

    fn word(self, name: &str) -> String {
        match name {
            "array" => {
                let limit =
                    |keyword| self.variants(None).iter().find_map(|variant| variant.node.get(keyword)?.as_u64());
                let item = self.child("0", None).map_or_else(|| "value".to_owned(), Self::type_text);
                match (limit("minItems"), limit("maxItems")) {
                    (Some(least), Some(most)) if least == most => format!("array of {least} {item}s"),
                    (Some(least), Some(most)) => format!("array of {least} to {most} {item}s"),
                    (Some(least), None) => format!("array of {least} or more {item}s"),
                    (None, Some(most)) => format!("array of at most {most} {item}s"),
                    (None, None) => format!("array of {item}s"),
                }
            }
            "object" => "table".to_owned(),
            other => match self.path_format() {
                Some(PathFormat::Path) => "path".to_owned(),
                Some(PathFormat::Model) => "path or hub id".to_owned(),
                None => other.to_owned(),
            },
        }
    }

    fn types(self) -> Vec<&'a str> {
        let mut found: Vec<&str> = Vec::new();
        for variant in self.variants(None) {
            match variant.node.get("type") {
                Some(Json::String(name)) => found.push(name),
                Some(Json::Array(names)) => found.extend(names.iter().filter_map(Json::as_str)),
                _ => {}
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// This schema with references followed and alternatives laid out; those whose `type` constant is not
    /// `kind` are left out, unless none has it.
    fn variants(self, kind: Option<&str>) -> Vec<Self> {
        let mut found = Vec::new();
        self.spread(&mut found, 0);
        let tag = |view: &Self| view.node.get("properties")?.get("type")?.get("const")?.as_str();
        if let Some(kind) = kind
            && found.iter().any(|view| tag(view) == Some(kind))
        {
            found.retain(|view| tag(view).is_none_or(|name| name == kind));
        }
        found
    }

    fn spread(self, found: &mut Vec<Self>, depth: usize) {
        // A schema may refer to itself; no key lies this deep.
        if depth > 16 {
            return;
        }
        found.push(self);
        let reference = self.node.get("$ref").and_then(Json::as_str).and_then(|name| name.strip_prefix('#'));
        if let Some(target) = reference.and_then(|pointer| self.root.pointer(pointer)) {
            Self { node: target, ..self }.spread(found, depth + 1);
        }
        for keyword in ["allOf", "anyOf", "oneOf"] {
            for node in self.node.get(keyword).and_then(Json::as_array).into_iter().flatten() {
                Self { node, ..self }.spread(found, depth + 1);
            }
        }
    }
}

/// `"a", "b" or "c"`.
pub fn quoted(choices: &[String]) -> String {
    let words: Vec<_> = choices.iter().map(|choice| format!("\"{choice}\"")).collect();
    match words.as_slice() {
        [one] => one.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
        [] => String::new(),
    }
}

/// Writes floats without a fraction as integers where the schema wants an integer, so that `1e3` is a count.
pub fn coerce_integers(node: &mut Node, schema: SchemaView<'_>) {
    if let Value::Scalar(Json::Number(number)) = &mut node.value
        && let Some(float) = number.as_f64().filter(|float| number.is_f64() && float.fract() == 0.0)
        && float.abs() < 9.0e15
        && schema.is_integer()
    {
        *number = (float as i64).into();
        return;
    }
    let keys: Vec<String> = match &node.value {
        Value::Table(table) => table.keys().cloned().collect(),
        Value::Array(items) => (0..items.len()).map(|index| index.to_string()).collect(),
        Value::Scalar(_) => return,
    };
    for key in keys {
        if let Some(schema) = schema.child(&key, Some(node))
            && let Some(child) = node.get_mut(&KeyPath(vec![key]))
        {
            coerce_integers(child, schema);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::source::{Source, SourceKind};
    use super::*;

    fn view(root: &Json) -> SchemaView<'_> {
        SchemaView::new(root)
    }

    fn schema() -> Json {
        super::super::json_schema::<super::super::RunConfig>()
    }

    fn tree(text: &str) -> Node {
        Node::parse(&Source::new(SourceKind::File("run.toml".into()), text)).unwrap()
    }

    #[test]
    fn types_read_as_words() {
        let schema = schema();
        let text = |path: &str| view(&schema).at(&tree(""), &KeyPath::of(path)).unwrap().type_text();
        assert_eq!(text("batch.groups"), "integer");
        assert_eq!(text("objective.dmd.sigma_range"), "array of 2 numbers");
        assert_eq!(text("objective.dmd"), "table");
        assert_eq!(text("student.tuning.type"), "\"frozen\"");
        assert_eq!(text("sampler.sigmas"), "array of numbers");
        assert_eq!(text("schedule.max_minutes"), "number");
    }

    #[test]
    fn variants_are_told_apart_by_their_type() {
        let schema = schema();
        let tuning = view(&schema).at(&tree(""), &KeyPath::of("student.tuning")).unwrap();
        assert_eq!(tuning.choices(), ["frozen", "lora", "full"]);
        assert_eq!(tuning.keys(Some("lora")), ["alpha", "rank", "targets", "type"]);
        assert_eq!(tuning.keys(Some("full")), ["type"]);
        assert_eq!(tuning.owners("rank"), ["lora"]);
    }

    #[test]
    fn counts_may_be_written_as_floats() {
        let schema = schema();
        let mut node = tree("seed = 1e3\n[batch]\ngroups = 2.5\n[objective.dmd]\nweight = 2.0\n");
        coerce_integers(&mut node, view(&schema));
        let expected = serde_json::json!({
            "seed": 1000, "batch": { "groups": 2.5 }, "objective": { "dmd": { "weight": 2.0 } },
        });
        assert_eq!(node.to_json(), expected);
    }
}
