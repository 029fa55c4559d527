//! No type of the edge moves: its layout is that of the golden file for as long as the major version of the protocol lasts.
#![cfg(target_pointer_width = "64")]

use std::path::{Path, PathBuf};

use advdmd_sdk::abi::{Layout, PROTOCOL, layouts};
use serde_json::{Value as Json, json};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/layout-{}.json", PROTOCOL.major))
}

/// One line for each type and each field, as the golden file has them.
fn lines(layout: &Layout) -> Vec<(String, String)> {
    let head = (layout.name.to_owned(), format!("{} bytes, aligned to {}", layout.size, layout.align));
    let field = |(name, offset): &(&str, usize)| (format!("{}.{name}", layout.name), format!("at byte {offset}"));
    std::iter::once(head).chain(layout.fields.iter().map(field)).collect()
}

fn now() -> Vec<(String, String)> {
    layouts().iter().flat_map(lines).collect()
}

/// Whether the type is a table of functions, which may grow, alone or with what stands before it.
fn is_table(name: &str) -> bool {
    name.trim_end_matches('>').ends_with("Vtable")
}

/// What differs between the lines of the golden file and those of now, and what to do about each.
fn differences(golden: &[(String, String)], now: &[(String, String)]) -> Vec<String> {
    fn find<'a>(lines: &'a [(String, String)], name: &str) -> Option<&'a str> {
        lines.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
    let mut found = Vec::new();
    for (name, old) in golden {
        match find(now, name) {
            Some(new) if new == old => {}
            // A table that has grown.
            Some(new) if is_table(name) && new.rsplit(' ').next() == old.rsplit(' ').next() => {}
            Some(new) => found.push(format!("{name}: was {old}, is {new}; never move or change what plugins rely on")),
            None => found.push(format!("{name}: was {old}, is gone; never remove or rename what plugins rely on")),
        }
    }
    let appended = now.iter().filter(|(name, _)| find(golden, name).is_none());
    found.extend(appended.map(|(name, new)| {
        format!(
            "{name}: new, {new}; fine behind the last field of a table: raise PROTOCOL.minor and renew the golden file"
        )
    }));
    found
}

#[test]
fn nothing_has_moved() {
    let lines = now();
    let text: Vec<_> = lines.iter().map(|(name, value)| format!("  {}: {}", json!(name), json!(value))).collect();
    let protocol = PROTOCOL.to_string();
    let content = format!("{{\n  \"protocol\": \"{protocol}\",\n{}\n}}\n", text.join(",\n"));
    let renewed = Path::new(env!("CARGO_TARGET_TMPDIR")).join("layout.json");
    std::fs::write(&renewed, &content).unwrap();
    let kept = std::fs::read_to_string(golden()).unwrap_or_default();
    if kept == content {
        return;
    }
    let kept: Json = serde_json::from_str(&kept).unwrap_or_default();
    let pairs = kept.as_object().into_iter().flatten().filter(|(name, _)| *name != "protocol");
    let old: Vec<_> = pairs.map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect();
    let mut found = differences(&old, &lines);
    if kept["protocol"] != protocol.as_str() {
        found.push(format!("protocol: was {}, is {protocol}", kept["protocol"]));
    }
    panic!(
        "the layout of the edge is not that of {}:\n  {}\nWhat is released stays: append functions behind the last one of a \
         table, keep `last_prefix_field` where it is, and raise PROTOCOL.minor. Then renew the file with\n  cp {} {}",
        golden().display(),
        found.join("\n  "),
        renewed.display(),
        golden().display(),
    );
}

/// The check itself: what moves is found and named, what is appended to a table is told apart.
#[test]
fn a_field_that_moves_is_named() {
    let old = now();
    assert_eq!(differences(&old, &old), Vec::<String>::new());
    let edit = |name: &str, value: &str| {
        let lines = old.iter().cloned().map(|(known, kept)| {
            let value = if known == name { value.to_owned() } else { kept };
            (known, value)
        });
        differences(&old, &lines.collect::<Vec<_>>())
    };
    assert_eq!(
        edit("LentBatch.images", "at byte 32"),
        ["LentBatch.images: was at byte 24, is at byte 32; never move or change what plugins rely on"]
    );
    assert_eq!(edit("Sink", "40 bytes, aligned to 8").len(), 1);
    assert_eq!(edit("RewardVtable", "72 bytes, aligned to 8"), Vec::<String>::new());
    assert_eq!(edit("RewardVtable", "72 bytes, aligned to 16").len(), 1);
    let mut longer = old.clone();
    longer.push(("RewardVtable.describe".to_owned(), "at byte 64".to_owned()));
    assert!(differences(&old, &longer)[0].starts_with("RewardVtable.describe: new, at byte 64; fine behind the last"));
    assert!(differences(&longer, &old)[0].starts_with("RewardVtable.describe: was at byte 64, is gone"));
}
