//! What differs between a checkpoint and the program that is to go on with it.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::checkpoint::Identity;
use crate::registry::{RunManifest, UsedComponent, UsedFile};

/// Keys that say how long a run goes on and what it shows of itself, not what an update does.
const FREE: [&str; 8] = ["recipe", "plugins", "schedule", "eval", "held_out", "watch", "checkpoint", "data.cache"];
/// Keys that change only the order in which floats are added.
const ROUNDING: [&str; 3] = ["compute.threads", "compute.device", "batch.micro_batch"];

/// Keys of `rewards` tables that say what happens in the case of a fault, not what is computed. Whoever is met by one may mend
/// them and go on.
pub fn containment_keys(rewards: usize) -> impl Iterator<Item = String> {
    let keys = ["time_limit", "restarts", "on_error"];
    (0..rewards).flat_map(move |index| keys.map(|key| format!("reward.{index}.{key}")))
}

/// Every difference that makes the rest of a run another one, a line each; empty when it goes on as it began.
pub fn drift(saved: &Identity, now: &Identity) -> Vec<String> {
    let mut lines = Vec::new();
    programs(&saved.made_with, &now.made_with, &mut lines);
    let free = |key: &str| saved.free.iter().chain(&now.free).any(|free| is_below(key, &[free.as_str()]));
    lines.extend(differences(&saved.config, &now.config, |key| matters(key) && !free(key)));
    components(&saved.made_with, &now.made_with, &mut lines);
    files(&saved.made_with, &now.made_with, &mut lines);
    lines
}

fn programs(saved: &RunManifest, now: &RunManifest, lines: &mut Vec<String>) {
    let parts = [
        ("advdmd", &saved.advdmd, &now.advdmd),
        ("libtorch", &saved.libtorch, &now.libtorch),
        ("target", &saved.target, &now.target),
    ];
    for (name, saved, now) in parts {
        if saved != now {
            lines.push(format!("{name} was {saved}, is {now}"));
        }
    }
}

/// The keys in which two configurations of one run may not differ, a line each.
pub fn config_drift(saved: &Json, now: &Json) -> Vec<String> {
    differences(saved, now, matters)
}

/// Whether a key of the host decides results.
fn matters(key: &str) -> bool {
    !is_below(key, &FREE) && !is_rounding(key)
}

/// Whether a key changes results by rounding alone. A reward in a process of its own computes on the CPU.
fn is_rounding(key: &str) -> bool {
    is_below(key, &ROUNDING) || (key.starts_with("reward.") && key.ends_with(".isolation"))
}

/// The keys in which they may differ at the price of other rounding, a line each.
pub fn rounding_drift(saved: &Json, now: &Json) -> Vec<String> {
    differences(saved, now, is_rounding)
}

fn is_below(key: &str, tables: &[&str]) -> bool {
    tables.iter().any(|table| key == *table || key.strip_prefix(table).is_some_and(|rest| rest.starts_with('.')))
}

fn differences(saved: &Json, now: &Json, matters: impl Fn(&str) -> bool) -> Vec<String> {
    let mut lines = Vec::new();
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    leaves(saved, String::new(), &mut before);
    leaves(now, String::new(), &mut after);
    let keys: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
    for key in keys.into_iter().filter(|key| matters(key)) {
        let text = |value: Option<&&Json>| value.map_or("not set".to_owned(), ToString::to_string);
        let (saved, now) = (before.get(key), after.get(key));
        if saved != now {
            lines.push(format!("{key} was {}, is {}", text(saved), text(now)));
        }
    }
    lines
}

/// Every value that is not a table or an array of tables, by its dotted path. A null is an unset key.
fn leaves<'a>(value: &'a Json, path: String, found: &mut BTreeMap<String, &'a Json>) {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match value {
        Json::Null => {}
        Json::Object(table) => table.iter().for_each(|(key, value)| leaves(value, below(key), found)),
        Json::Array(items) if items.iter().any(Json::is_object) => {
            items.iter().enumerate().for_each(|(index, value)| leaves(value, below(&index.to_string()), found));
        }
        _ => {
            found.insert(path, value);
        }
    }
}

fn components(saved: &RunManifest, now: &RunManifest, lines: &mut Vec<String>) {
    for after in now.components.iter().filter(|component| !is_below(&component.key, &FREE)) {
        let same = |before: &&UsedComponent| before.key == after.key && before.name == after.name;
        // Another `type` is a difference of the configuration.
        let Some(before) = saved.components.iter().find(same) else { continue };
        if before.sha256 != after.sha256 {
            let provider = |UsedComponent { file, sha256, .. }: &UsedComponent| {
                let place =
                    file.as_ref().map_or("linked into the program".to_owned(), |file| file.display().to_string());
                format!("{place} ({}…)", sha256.get(..12).unwrap_or(sha256))
            };
            let UsedComponent { kind, name, .. } = after;
            lines.push(format!("the plugin of {kind} `{name}` was {}, is {}", provider(before), provider(after)));
        }
    }
}

fn files(saved: &RunManifest, now: &RunManifest, lines: &mut Vec<String>) {
    let matters = |file: &&UsedFile| !is_below(&file.key, &FREE);
    for before in saved.files.iter().filter(matters) {
        match now.files.iter().find(|after| after.key == before.key && after.path == before.path) {
            Some(after) if after.digest == before.digest => {}
            Some(_) => lines.push(format!("{} ({}) has changed", before.path.display(), before.key)),
            None => lines.push(format!("{} ({}) is gone", before.path.display(), before.key)),
        }
    }
    for after in now.files.iter().filter(matters) {
        if !saved.files.iter().any(|before| after.key == before.key && after.path == before.path) {
            lines.push(format!("{} ({}) is new", after.path.display(), after.key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn identity() -> Json {
        json!({
            "made_with": {
                "advdmd": "1", "protocol": "1.0", "rustc": "r", "target": "t", "libtorch": "2",
                "components": [{"key": "reward.0", "kind": "reward", "name": "r", "file": "/p/libr.so", "sha256": "aa"}],
                "files": [{"key": "backbone.model", "path": "/m/x.safetensors", "bytes": 3, "sha256": "bb"}],
            },
            "config": {"seed": 1, "batch": {"groups": 2}, "reward": [{"weight": 1.0}], "schedule": {"updates": 4}},
        })
    }

    fn changed(pointer: &str, value: Json) -> Vec<String> {
        let parse = |value: Json| serde_json::from_value::<Identity>(value).unwrap();
        let mut now = identity();
        *now.pointer_mut(pointer).unwrap() = value;
        drift(&parse(identity()), &parse(now))
    }

    #[test]
    fn each_difference_is_one_line_that_names_it() {
        let cases = [
            ("/config/seed", json!(2), "seed was 1, is 2"),
            ("/config/batch/groups", json!(null), "batch.groups was 2, is not set"),
            ("/config/reward/0/weight", json!(0.5), "reward.0.weight was 1.0, is 0.5"),
            ("/made_with/libtorch", json!("3"), "libtorch was 2, is 3"),
            (
                "/made_with/components/0/sha256",
                json!("cc"),
                "the plugin of reward `r` was /p/libr.so (aa…), is /p/libr.so (cc…)",
            ),
            ("/made_with/files/0/sha256", json!("cc"), "/m/x.safetensors (backbone.model) has changed"),
            ("/made_with/files", json!([]), "/m/x.safetensors (backbone.model) is gone"),
        ];
        for (pointer, value, expected) in cases {
            assert_eq!(changed(pointer, value), [expected]);
        }
    }

    #[test]
    fn what_only_rounds_otherwise_is_said_and_allowed() {
        let [before, now] = [1, 2].map(|n| json!({"batch": {"micro_batch": n}, "compute": {"threads": n}, "seed": n}));
        assert_eq!(rounding_drift(&before, &now), ["batch.micro_batch was 1, is 2", "compute.threads was 1, is 2"]);
        assert_eq!(config_drift(&before, &now), ["seed was 1, is 2"]);
    }

    #[test]
    fn a_longer_run_or_another_compiler_is_no_drift() {
        assert_eq!(changed("/config/schedule/updates", json!(8)), [""; 0]);
        assert_eq!(changed("/made_with/rustc", json!("other")), [""; 0]);
        assert_eq!(changed("/made_with/components/0/file", json!("/elsewhere/libr.so")), [""; 0]);
    }
}
