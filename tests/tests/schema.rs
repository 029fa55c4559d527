//! The schema that editors read: the shipped examples fit it, and what the program would refuse in a plugin's table does not.

use advdmd_tests::{Installation, PLUGINS, repository};
use serde_json::Value as Json;

/// The examples whose plugins are shipped.
const EXAMPLES: [&str; 4] = ["digits", "gamed", "hybrid", "sd35-medium"];

fn example(name: &str) -> String {
    std::fs::read_to_string(repository().join("examples").join(name).with_extension("toml")).unwrap()
}

fn json(text: &str) -> Json {
    serde_json::to_value(toml::from_str::<toml::Table>(text).unwrap()).unwrap()
}

#[test]
fn the_schema_for_editors_takes_the_examples_and_nothing_else() {
    let output = Installation::with(&PLUGINS).run(&["config", "schema"]);
    let schema: Json = serde_json::from_slice(&output.stdout).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    for name in EXAMPLES {
        let errors: Vec<_> = validator.iter_errors(&json(&example(name))).map(|error| error.to_string()).collect();
        assert_eq!(errors, Vec::<String>::new(), "{name}");
    }
    let digits = example("digits");
    let reward = |table: &str| format!("{digits}\n[[reward]]\n{table}");
    let held_out = |table: &str| format!("{digits}\n[[held_out]]\n{table}");
    let good = [reward("type = \"adversarial\"\nweight = 1.0"), held_out("type = \"clipscore\"\nmodel = \"m\"")];
    for text in good {
        assert!(validator.is_valid(&json(&text)), "{text}");
    }
    let wrong = [
        ("/sampler", digits.replace("eta = 0.9", "etta = 0.9")),
        ("/sampler", digits.replace("eta = 0.9", "eta = \"much\"")),
        ("/backbone", digits.replacen("type = \"digits\"", "type = \"digits\"\nmodle = \"x\"", 1)),
        ("/reward/0", reward("type = \"remote\"\nweight = 1.0\nendpoint = \"http://localhost\"")),
        ("/reward/0", reward("type = \"nobody\"\nweight = 1.0")),
        ("/held_out/0", held_out("type = \"clipscore\"\nmodel = \"m\"\nweigh = 1.0")),
        ("/batch", digits.replace("groups = 8", "grups = 8")),
    ];
    for (place, text) in wrong {
        assert_ne!(text, digits, "the example holds what is replaced");
        let places: Vec<_> =
            validator.iter_errors(&json(&text)).map(|error| error.instance_path().to_string()).collect();
        assert_eq!(places, [place], "{text}");
    }
}

/// The text over a field of a plugin is what the editor shows.
#[test]
fn the_schema_tells_what_the_keys_of_plugins_mean() {
    let advdmd = Installation::with(&PLUGINS);
    let schema: Json = serde_json::from_slice(&advdmd.run(&["config", "schema"]).stdout).unwrap();
    let own: Json =
        serde_json::from_slice(&advdmd.run(&["plugins", "schema", "reward", "adversarial"]).stdout).unwrap();
    let branches = schema.pointer("/properties/reward/items/anyOf").unwrap().as_array().unwrap();
    let branch = branches.iter().find(|branch| branch["title"] == "adversarial").unwrap();
    let keys = own["properties"].as_object().unwrap();
    assert!(keys.len() > 5);
    for (key, described) in keys {
        assert!(described["description"].is_string(), "{key}");
        assert_eq!(branch["properties"][key]["description"], described["description"], "{key}");
    }
    assert_eq!(branch["properties"]["type"]["description"], own["description"]);
}
