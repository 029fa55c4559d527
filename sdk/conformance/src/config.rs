//! Checks of every kind of component: its place in the manifest, its schema, what it refuses.

use advdmd_sdk::Error;
use serde_json::Value;

use crate::report::{Examiner, Passed, Verdict, described, fail, ok, skip};
use crate::subject::Subject;

/// A key that no component has.
const UNKNOWN: &str = "no_such_key_of_conformance";

/// Runs the checks that all kinds share. Tells whether there is a component to go on with.
pub(crate) fn examine(subject: &Subject<'_>, examiner: &mut Examiner) -> bool {
    examiner.check("header", || ok(subject.header()));
    let mut schema = None;
    let found = examiner.check("manifest", || {
        schema = Some(listed(subject)?);
        ok("listed once")
    });
    let Some(schema) = schema.filter(|_| found) else {
        examiner.skip(&["schema", "documented", "made", "unknown_key", "missing_key"], "it is not in the manifest");
        return false;
    };
    let valid = examiner.check("schema", || valid(&schema));
    examiner.check("documented", || documented(&schema));
    let made = examiner.check("made", || {
        if valid {
            fits(&schema, &subject.config)?;
        }
        subject.try_make(&subject.config)?;
        ok("its table fits the schema")
    });
    if made {
        examiner.check("unknown_key", || unknown_key(subject));
        examiner.check("missing_key", || missing_key(subject, &schema));
    } else {
        examiner.skip(&["unknown_key", "missing_key"], "it could not be made (`made`)");
    }
    made
}

fn listed(subject: &Subject<'_>) -> Result<Value, crate::report::Failure> {
    let manifest = subject.manifest()?;
    let of_kind = manifest.components.iter().filter(|component| component.kind == subject.kind);
    let named: Vec<_> = of_kind.clone().filter(|component| component.name == subject.name).collect();
    match named[..] {
        [component] => Ok(component.schema.clone().to_value()),
        [] => {
            let names: Vec<_> = of_kind.map(|component| component.name.as_str()).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let kind = subject.kind;
            fail(
                format!("a {kind} `{}` in the manifest", subject.name),
                format!("{kind}s: {names}"),
                format!("register it: `advdmd_sdk::register_{kind}!(\"{}\", …)`", subject.name),
            )
        }
        _ => fail("one component of the name", named.len(), "give each component a name of its own"),
    }
}

fn valid(schema: &Value) -> Verdict {
    match jsonschema::meta::validate(schema) {
        Ok(()) => ok("a valid JSON Schema"),
        Err(error) => fail(
            "a valid JSON Schema",
            format!("{error} at {:?}", error.instance_path().to_string()),
            "derive `schemars::JsonSchema`, and look at what `#[schemars(extend(…))]` adds",
        ),
    }
}

fn documented(schema: &Value) -> Verdict {
    let Some(keys) = schema.get("properties").and_then(Value::as_object).filter(|keys| !keys.is_empty()) else {
        return ok("no keys");
    };
    let bare: Vec<_> =
        keys.iter().filter(|(_, key)| key.get("description").is_none()).map(|(name, _)| name.as_str()).collect();
    if bare.is_empty() {
        return ok(format!("all of {} keys", keys.len()));
    }
    let bare = bare.join(", ");
    Ok(Passed::Note(format!("no documentation of {bare}: `///` above the field becomes what `config explain` shows")))
}

/// Whether the table, without its `type`, is what the schema describes.
fn fits(schema: &Value, config: &Value) -> Result<(), crate::report::Failure> {
    let mut table = config.clone();
    table.as_object_mut().map(|table| table.remove("type"));
    let validator = jsonschema::validator_for(schema)
        .or_else(|error| fail("a usable schema", error, "derive `schemars::JsonSchema`"))?;
    match validator.validate(&table) {
        Ok(()) => Ok(()),
        Err(error) => fail(
            "a table that fits the component's schema",
            format!("{error} at {:?}", error.instance_path().to_string()),
            "change the configuration that is checked, or the schema if the component takes it",
        ),
    }
}

fn refused(subject: &Subject<'_>, config: &Value, key: &str, how: &str, advice: &str) -> Verdict {
    let expected = format!("a configuration error that names the {how} key `{key}`");
    match subject.try_make(config) {
        Ok(()) => fail(expected, "the component, made all the same", advice),
        Err(Error::Config(message)) if message.contains(key) => ok(message),
        Err(error) => fail(expected, described(&error), advice),
    }
}

fn unknown_key(subject: &Subject<'_>) -> Verdict {
    let mut config = subject.config.clone();
    config[UNKNOWN] = 1.into();
    let advice = "put `#[serde(deny_unknown_fields)]` on the configuration: a misspelt key must not become a default";
    refused(subject, &config, UNKNOWN, "unknown", advice)
}

fn missing_key(subject: &Subject<'_>, schema: &Value) -> Verdict {
    let required = schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let required: Vec<_> = required.filter(|&key| key != "type").collect();
    if required.is_empty() {
        return skip("no key is required");
    }
    for key in &required {
        let mut config = subject.config.clone();
        config.as_object_mut().map(|table| table.remove(*key));
        let advice = "no `#[serde(default)]` on a key that the schema requires; or let the schema say that it may be left out";
        refused(subject, &config, key, "missing", advice)?;
    }
    ok(format!("refused without {}", required.join(", ")))
}
