//! Checking the plugins' tables of a configuration against the plugins' own schemas, before anything is built.

use serde_json::{Map, Value as Json};

use super::{Entry, Registry};
use crate::config::{Check, KeyPath, Resolved, SchemaView, Settings, json_schema, refuse};
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

#[cfg(test)]
pub(super) mod tests {
    use std::path::PathBuf;

    use advdmd_sdk::{Sampler, SamplerConfig, Transition};
    use schemars::JsonSchema;
    use serde::Deserialize;

    use super::*;
    use crate::config::load_run;

    /// A sampler that is linked into the tests.
    #[derive(Deserialize, JsonSchema)]
    #[allow(dead_code, reason = "only its schema matters")]
    struct Linked {
        /// Share of noise.
        eta: f64,
        /// A file.
        #[schemars(extend("format" = "path"))]
        table: Option<PathBuf>,
        /// More files.
        #[schemars(extend("format" = "path"))]
        #[serde(default)]
        more: Vec<PathBuf>,
        /// A model.
        #[schemars(extend("format" = "model"))]
        model: Option<PathBuf>,
    }

    impl SamplerConfig for Linked {
        fn build(self) -> advdmd_sdk::Result<Box<dyn Sampler>> {
            if self.eta > 1.0 {
                return Err(advdmd_sdk::Error::config(format!("eta: expected at most 1, found {}", self.eta)));
            }
            Ok(Box::new(self))
        }
    }

    impl Sampler for Linked {
        fn sigmas(&self, _steps: usize) -> advdmd_sdk::Result<Vec<f64>> {
            Ok(vec![1.0, 0.0])
        }

        fn transition(&self, _sigmas: &[f64], _step: usize) -> advdmd_sdk::Result<Transition> {
            Err(advdmd_sdk::Error::unsupported("only its schema matters"))
        }
    }

    advdmd_sdk::register_sampler!("linked-in-tests", Linked);

    pub(crate) const FILE: &str = "recipe = \"advdmd\"\n[backbone]\ntype = \"nowhere\"\n[data]\ntype = \"digits\"\n\
                        task_weights = [1, 1, 1, 1, 1, 1]\n[sampler]\ntype = \"linked-in-tests\"\n";

    fn faults(extra: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.toml");
        std::fs::write(&path, format!("{FILE}{extra}")).unwrap();
        let resolved = load_run(&path, &[]).unwrap();
        match Registry::linked().unwrap().validate(&resolved).unwrap_err() {
            Error::Config(faults) => {
                let text = faults.iter().map(|fault| fault.to_string().replace(&*folder.path().to_string_lossy(), ""));
                text.filter(|text| !text.contains("no backbone") && !text.contains("no reward")).collect()
            }
            other => panic!("{other}"),
        }
    }

    #[test]
    fn faults_point_at_the_users_line() {
        assert_eq!(faults("eta = 0.5\n"), Vec::<String>::new());
        let unknown = faults("eta = 0.5\netta = 1\n");
        assert_eq!(
            unknown,
            ["/run.toml:10:1: unknown key `sampler.etta` (sampler `linked-in-tests`) (did you mean `eta`?)"]
        );
        let host_key = faults("eta = 0.5\nstep = 1\n");
        assert!(host_key[0].contains("did you mean `steps`?"), "{host_key:?}");
        let missing = faults("table = 'x'\n");
        assert!(missing[0].starts_with("/run.toml:7:2: missing key `sampler.eta` (number)"), "{missing:?}");
        let wrong = faults("eta = \"much\"\n");
        assert!(
            wrong[0].starts_with("/run.toml:9:7: `sampler.eta`: expected a number, found the string \"much\""),
            "{wrong:?}"
        );
    }

    #[test]
    fn a_refused_value_names_component_and_provider() {
        let component = crate::config::Component {
            r#type: "linked-in-tests".to_owned(),
            options: [("eta".to_owned(), serde_json::json!(2.0))].into_iter().collect(),
        };
        let error = Registry::linked().unwrap().sampler(&component).err().unwrap();
        assert_eq!(error.exit_code(), 2);
        assert_eq!(error.to_string(), "sampler `linked-in-tests` (provided by this program)");
    }

    #[test]
    fn the_schema_for_editors_knows_linked_components() {
        let schema = Registry::linked().unwrap().config_schema::<crate::config::RunConfig>();
        let sampler = schema.pointer("/properties/sampler/anyOf").unwrap().as_array().unwrap();
        let ours = sampler.iter().find(|branch| branch["title"] == "linked-in-tests").unwrap();
        for key in ["type", "steps", "sigmas", "eta", "table"] {
            assert!(ours["properties"].get(key).is_some(), "{key}");
        }
        assert!(jsonschema::validator_for(&schema).is_ok());
    }
}
