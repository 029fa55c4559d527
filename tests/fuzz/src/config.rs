//! A run's configuration: merged, checked and typed.

use std::path::Path;
use std::sync::LazyLock;

use advdmd::Error;
use advdmd::config::parse_run;
use advdmd::registry::Registry;
use advdmd_sdk::{Result, Sampler, SamplerConfig, Transition};

/// Keys of every type that a plugin's schema has.
#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct Keys {
    number: f64,
    #[serde(default)]
    count: Option<u32>,
    #[serde(default)]
    choice: Choice,
    #[serde(default)]
    list: Vec<Choice>,
}

#[derive(Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
enum Choice {
    #[default]
    Plain,
    Ranged {
        range: [f64; 2],
    },
}

impl SamplerConfig for Keys {
    fn build(self) -> Result<Box<dyn Sampler>> {
        Ok(Box::new(self))
    }
}

impl Sampler for Keys {
    fn sigmas(&self, _steps: usize) -> Result<Vec<f64>> {
        Ok(vec![1.0, 0.0])
    }

    fn transition(&self, _sigmas: &[f64], _step: usize) -> Result<Transition> {
        Err(advdmd_sdk::Error::unsupported("it is never made"))
    }
}

advdmd_sdk::register_sampler!("keys", Keys);

static REGISTRY: LazyLock<Registry> = LazyLock::new(|| Registry::linked().expect("one sampler is registered"));

/// Reads the bytes up to the first NUL as a file, and between further NULs as `--set` options.
///
/// # Panics
/// A fault without words or with a place outside its text; a resolved configuration that reads back as another.
pub fn config(bytes: &[u8]) {
    let Ok(input) = std::str::from_utf8(bytes) else { return };
    let mut parts = input.split('\0').map(str::to_owned);
    let (file, path) = (parts.next().unwrap_or_default(), Path::new("run.toml"));
    let sets: Vec<String> = parts.collect();
    match parse_run(path, file, &sets) {
        Ok(resolved) => {
            let again = parse_run(path, resolved.toml.clone(), &[]);
            let again = again.unwrap_or_else(|error| panic!("a resolved configuration is refused: {error}"));
            assert_eq!(again.toml, resolved.toml, "a resolved configuration reads back as another");
            if let Err(error) = REGISTRY.validate(&resolved) {
                check(&error);
            }
        }
        Err(error) => check(&error),
    }
}

fn check(error: &Error) {
    let Error::Config(faults) = error else { panic!("not a fault of the configuration: {error}") };
    assert!(!faults.is_empty());
    for fault in faults {
        assert!(!fault.message.trim().is_empty());
        if let Some(at) = fault.place.as_ref().and_then(|place| place.excerpt.as_ref()) {
            let length = at.text.chars().count();
            assert!(at.line >= 1 && at.column >= 1 && at.width >= 1, "{at:?}");
            assert!(at.column - 1 + at.width <= length + 1, "{at:?}");
            assert!(!at.text.contains('\n'), "{at:?}");
        }
    }
}
