//! A trained model as a pipeline folder of diffusers.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use advdmd_nn::Weights;
use advdmd_nn::mmdit::MmditConfig;
use advdmd_nn::schedule::FlowMatchEuler;
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

/// Writes `transformer/`, a scheduler that suits the student, `model_index.json`, and the unchanged parts of the base:
/// as hard links where the disk allows it, else as copies. The weights come last, so that a folder with weights is
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
                link_folder(&from, &folder.join(part))?;
            }
        }
        let scheduler = scheduler(pipeline, options)?;
        create(&folder.join("scheduler"))?;
        write_json(&folder.join("scheduler/scheduler_config.json"), &scheduler)?;
        let index = pipeline.join("model_index.json");
        if index.is_file() {
            let mut index = read_json(&index)?;
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

/// The files of `from`, which model caches have as links, in `to`.
fn link_folder(from: &Path, to: &Path) -> Result<()> {
    create(to)?;
    for entry in fs::read_dir(from).map_err(|error| failed(from, error))? {
        let entry = entry.map_err(|error| failed(from, error))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            link_folder(&source, &target)?;
            continue;
        }
        let source = source.canonicalize().map_err(|error| failed(&source, error))?;
        if fs::hard_link(&source, &target).is_err() {
            fs::copy(&source, &target).map_err(|error| failed(&target, error))?;
        }
    }
    Ok(())
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|error| failed(folder, error))
}

fn read_json(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).map_err(|error| failed(path, error))?;
    serde_json::from_str(&text).map_err(|error| Error::from(error).context(path.display()))
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    fs::write(path, text).map_err(|error| failed(path, error))
}

fn failed(path: &Path, error: std::io::Error) -> Error {
    Error::failed(error).context(path.display())
}
