//! A trained model as a pipeline folder of diffusers.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use advdmd_nn::mmdit::MmditConfig;
use advdmd_nn::schedule::FlowMatchEuler;
use advdmd_nn::{Weights, read_json, write_json};
use advdmd_sdk::{Error, Result, SaveOptions};
use serde_json::{Value, json};

use crate::folder::{DIFFUSERS_STEM, ModelFiles};

/// The parts of a pipeline that training leaves as they are.
const UNCHANGED: [&str; 9] = [
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "tokenizer",
    "tokenizer_2",
    "tokenizer_3",
    "vae",
    "image_encoder",
    "feature_extractor",
];

/// Those of them that a student without T5 does without.
const T5_PARTS: [&str; 2] = ["text_encoder_3", "tokenizer_3"];

/// Writes `transformer/`, a scheduler that suits the student, `model_index.json`, and copies of the unchanged parts of the
/// base. The weights come last, so that a folder with weights is
/// complete, and are read back.
///
/// # Errors
/// A disk error; names the file.
pub fn save(
    folder: &Path,
    config: &MmditConfig,
    weights: &Weights,
    base: &ModelFiles,
    with_t5: bool,
    options: &SaveOptions,
) -> Result<()> {
    let transformer = folder.join("transformer");
    create(&transformer)?;
    if let Some(pipeline) = &base.pipeline {
        // A student that never saw T5's tokens must not get them.
        let kept = |part: &&str| with_t5 || !T5_PARTS.contains(part);
        for part in UNCHANGED.into_iter().filter(kept) {
            let from = pipeline.join(part);
            if from.is_dir() {
                copy_folder(&from, &folder.join(part), base.variant.as_deref())?;
            }
        }
        let scheduler = scheduler(pipeline, options)?;
        create(&folder.join("scheduler"))?;
        write_json(&folder.join("scheduler/scheduler_config.json"), &scheduler)?;
        let index = pipeline.join("model_index.json");
        if index.is_file() {
            let mut index: Value = read_json(&index)?;
            for part in T5_PARTS.iter().filter(|part| !kept(part)) {
                index[*part] = json!([null, null]);
            }
            index["scheduler"] = json!(["diffusers", scheduler["_class_name"]]);
            write_json(&folder.join("model_index.json"), &index)?;
        }
    }
    let mut json = serde_json::to_value(config)?;
    json["_class_name"] = "SD3Transformer2DModel".into();
    write_json(&transformer.join("config.json"), &json)?;
    let path = transformer.join(format!("{DIFFUSERS_STEM}.safetensors"));
    weights.save(&path, &BTreeMap::new())?;
    weights.check_saved(&path)
}

/// The base's scheduler, or for a few-step student one that walks its sigmas when a pipeline asks for that many steps.
/// Where none does, one that leaves the sigmas given to it as they are: the base's would shift them.
fn scheduler(pipeline: &Path, options: &SaveOptions) -> Result<Value> {
    let path = pipeline.join("scheduler/scheduler_config.json");
    let mut scheduler = if path.is_file() { read_json(&path)? } else { json!({}) };
    if let Some(sigmas) = &options.sigmas {
        let plain = FlowMatchEuler { shift: 1.0, shift_terminal: None };
        let FlowMatchEuler { shift, shift_terminal } = FlowMatchEuler::walking(sigmas).unwrap_or(plain);
        scheduler["_class_name"] = "FlowMatchEulerDiscreteScheduler".into();
        scheduler["num_train_timesteps"] = 1000.into();
        scheduler["shift"] = shift.into();
        scheduler["shift_terminal"] = shift_terminal.into();
        // What else the base's settings may turn on.
        for key in [
            "use_dynamic_shifting",
            "use_karras_sigmas",
            "use_exponential_sigmas",
            "use_beta_sigmas",
            "invert_sigmas",
            "stochastic_sampling",
        ] {
            scheduler[key] = false.into();
        }
    }
    Ok(scheduler)
}

/// Copies the files of `from`, which model caches have as links, to `to`. Copies and no hard links: who changes a file of the
/// export must not change the base.
///
/// Weight files with an infix lose it: `from_pretrained` then asks for the plain ones, as it must for the transformer. They
/// stay away where there are plain ones.
fn copy_folder(from: &Path, to: &Path, variant: Option<&str>) -> Result<()> {
    create(to)?;
    let mut names = Vec::new();
    for entry in fs::read_dir(from).map_err(|error| failed(from, error))? {
        names.push(entry.map_err(|error| failed(from, error))?.file_name());
    }
    let infixes: Vec<&str> = names.iter().filter_map(|name| infix(name.to_str()?)).collect();
    let plain = names.iter().filter_map(|name| name.to_str()).any(|name| is_weights(name) && infix(name).is_none());
    let known = variant.into_iter().chain(KNOWN_INFIXES).find(|known| infixes.contains(known));
    let taken = known.filter(|_| !plain);
    for name in &names {
        let source = from.join(name);
        if source.is_dir() {
            copy_folder(&source, &to.join(name), variant)?;
            continue;
        }
        let source = source.canonicalize().map_err(|error| failed(&source, error))?;
        let Some((text, own)) = name.to_str().and_then(|text| Some((text, infix(text)?))) else {
            let target = to.join(name);
            fs::copy(&source, &target).map_err(|error| failed(&target, error))?;
            continue;
        };
        if taken != Some(own) {
            continue;
        }
        let target = to.join(without(text, own));
        if is_index(text) {
            let mut index: Value = read_json(&source)?;
            for file in index["weight_map"].as_object_mut().into_iter().flat_map(|places| places.values_mut()) {
                if let Some(shard) = file.as_str() {
                    *file = without(shard, own).into();
                }
            }
            write_json(&target, &index)?;
        } else {
            fs::copy(&source, &target).map_err(|error| failed(&target, error))?;
        }
    }
    Ok(())
}

/// Infixes that are read where there are no plain files, in that order.
const KNOWN_INFIXES: [&str; 2] = ["fp16", "bf16"];

/// Whether a file is one of safetensors, or their index.
fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors") || is_index(name)
}

fn is_index(name: &str) -> bool {
    name.contains(".safetensors.index.")
}

/// The infix of a weight file: `model.fp16.safetensors`, `model.fp16-00001-of-00002.safetensors`,
/// `model-00001-of-00002.fp16.safetensors`, `model.safetensors.index.fp16.json`.
fn infix(name: &str) -> Option<&str> {
    if !is_weights(name) {
        return None;
    }
    let parts: Vec<&str> = name.split('.').collect();
    let ([_, part, "safetensors"] | [_, "safetensors", "index", part, "json"]) = parts[..] else { return None };
    Some(part.split_once('-').map_or(part, |(infix, _)| infix))
}

/// The name of a weight file without its infix.
fn without(name: &str, infix: &str) -> String {
    name.replacen(&format!(".{infix}."), ".", 1).replacen(&format!(".{infix}-"), "-", 1)
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|error| failed(folder, error))
}

fn failed(path: &Path, error: std::io::Error) -> Error {
    Error::failed(error).context(path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copied(files: &[&str], variant: Option<&str>) -> (tempfile::TempDir, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        create(&from).unwrap();
        for name in files {
            let shards = json!({ "weight_map": { "a": "model.fp16-00001-of-00002.safetensors" } });
            let content = if name.contains(".index.") { shards.to_string() } else { (*name).to_owned() };
            fs::write(from.join(name), content).unwrap();
        }
        copy_folder(&from, &to, variant).unwrap();
        let mut found: Vec<String> =
            fs::read_dir(&to).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        found.sort();
        (folder, found)
    }

    #[test]
    fn infixes_of_weight_files_are_dropped() {
        let (folder, found) = copied(&["config.json", "model.bf16.safetensors", "model.fp16.safetensors"], None);
        assert_eq!(found, ["config.json", "model.safetensors"]);
        let taken = || fs::read_to_string(folder.path().join("to/model.safetensors")).unwrap();
        assert_eq!(taken(), "model.fp16.safetensors");
        let (_, found) = copied(&["model.fp16.safetensors", "model.x.safetensors"], Some("x"));
        assert_eq!(found, ["model.safetensors"]);

        let shards = ["model.fp16-00001-of-00002.safetensors", "model-00002-of-00002.fp16.safetensors"];
        let (folder, found) = copied(&[shards[0], shards[1], "model.safetensors.index.fp16.json"], None);
        let plain = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        assert_eq!(found, [plain[0], plain[1], "model.safetensors.index.json"]);
        let index: Value = read_json(&folder.path().join("to/model.safetensors.index.json")).unwrap();
        assert_eq!(index["weight_map"]["a"], plain[0]);
    }

    #[test]
    fn plain_weight_files_are_taken_first() {
        for variant in [None, Some("fp16")] {
            let (folder, found) = copied(&["model.fp16.safetensors", "model.safetensors", "vocab.json"], variant);
            assert_eq!(found, ["model.safetensors", "vocab.json"]);
            let copy = folder.path().join("to/model.safetensors");
            // What is written into the copy stays there.
            fs::write(&copy, "other").unwrap();
            let base = fs::read_to_string(folder.path().join("from/model.safetensors")).unwrap();
            assert_eq!(base, "model.safetensors");
        }
    }
}
