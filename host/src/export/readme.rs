//! The `README.md` of an export: how to load and to sample it. A few-step student needs the sigmas that it was trained on,
//! and no tool guesses those.

use std::fmt::Write as _;
use std::fs;
use std::path::{Component as Part, Path};

use advdmd_nn::schedule::FlowMatchEuler;
use serde_json::Value as Json;

use super::{Export, Format, comfy};
use crate::files;

/// What diffusers knows of a pipeline folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pipeline {
    /// The class that `model_index.json` names.
    pub class: String,
    /// Whether it has no T5: diffusers wants to be told.
    pub without_t5: bool,
    /// Whether its own scheduler walks the student's sigmas when it is asked for that many steps.
    pub walks: bool,
    /// The infix of its weight files, where they have one.
    pub variant: Option<String>,
}

impl Pipeline {
    /// Of the pipeline in `folder`, if there is one.
    pub fn of(folder: &Path, sigmas: &[f64]) -> Option<Self> {
        let index: Json = files::read_json(&folder.join("model_index.json")).ok()?;
        let class = index["_class_name"].as_str()?.to_owned();
        let scheduler: Json = files::read_json(&folder.join("scheduler/scheduler_config.json")).unwrap_or_default();
        let without_t5 = index.get("text_encoder_3").is_some_and(|names| names[1].is_null());
        Some(Self { class, without_t5, walks: walks(&scheduler, sigmas), variant: variant(folder) })
    }
}

/// The infix of the transformer's weight files, where there are none without one.
fn variant(folder: &Path) -> Option<String> {
    let names = fs::read_dir(folder.join("transformer")).ok()?;
    let names = names.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let weights: Vec<String> = names.filter(|name| name.ends_with(".safetensors")).collect();
    let infix = |name: &str| {
        let (_, infix) = name.strip_suffix(".safetensors")?.rsplit_once('.')?;
        Some(infix.split_once('-').map_or(infix, |(infix, _)| infix).to_owned())
    };
    let infixes: Option<Vec<String>> = weights.iter().map(|name| infix(name)).collect();
    infixes?.into_iter().max()
}

fn walks(scheduler: &Json, sigmas: &[f64]) -> bool {
    let turned_on = |key: &str| scheduler[key] == true;
    let Some(shift) = scheduler["shift"].as_f64() else { return false };
    let own = FlowMatchEuler { shift, shift_terminal: scheduler["shift_terminal"].as_f64() }.sigmas(sigmas.len() - 1);
    let other = ["use_dynamic_shifting", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"];
    scheduler["_class_name"] == "FlowMatchEulerDiscreteScheduler"
        && !other.into_iter().any(turned_on)
        && own.iter().zip(sigmas).all(|(own, given)| (own - given).abs() < 1e-6)
}

/// The text. `pipeline` is the base's, or that of the export itself where it is a whole model.
pub fn text(export: &Export, pipeline: Option<&Pipeline>) -> String {
    let Export { format, backbone, steps, updates, sampler, .. } = export;
    let sigmas = list(&export.sigmas);
    let [height, width] = export.image;
    let mut text = format!(
        "# A {steps}-step student of `{backbone}`\n\nDistilled by AdvDMD {}, {updates} updates. It was trained for exactly \
         these steps: {steps} at the sigmas {sigmas}, on images of {height}x{width} (height x width), without guidance \
         (`guidance_scale=1.0`).\n",
        export.advdmd
    );
    if *sampler != "ode-euler" {
        let _ = writeln!(
            text,
            "In training it was sampled with `{sampler}`; what follows walks the same sigmas with plain Euler steps, as \
             `--sampler ode-euler --sigmas {sigmas}` of `advdmd sample` does."
        );
    }
    // Another transformer than the base's own may be among them.
    if !export.options.is_empty() {
        let options = export.options.iter().map(|(key, value)| format!("`{key} = {value}`")).collect::<Vec<_>>();
        let _ = writeln!(text, "The run's `[backbone]` had {}.", options.join(", "));
    }
    text.push('\n');
    text += &match (format, pipeline) {
        (Format::Comfy, _) => comfyui(export),
        (_, Some(pipeline)) => python(export, pipeline),
        (Format::Merged, None) => String::new(),
        (_, None) => {
            "The base is no pipeline of diffusers. Its transformer takes these files with `load_lora_adapter` or `PeftModel`; \
             the loop over the sigmas is yours: `x = x + (next - sigma) * velocity`.\n"
                .to_owned()
        }
    };
    if *format == Format::Merged {
        // A model's own size need not be the one that was trained.
        let sized = |key: &str| Some(format!("--backbone-set {key}={} ", export.options.get(key)?));
        let size: String = ["height", "width"].into_iter().filter_map(sized).collect();
        let _ = writeln!(
            text,
            "\nThe folder is a whole model: `advdmd sample --backbone {backbone} --model FOLDER {size}--sampler ode-euler \
             --sigmas {sigmas} --prompt TEXT --out IMAGES`."
        );
    }
    text += "\n`export.json` holds the same facts for programs.\n";
    text
}

/// The sigmas as a command line takes them, the 0 at the end included.
fn list(sigmas: &[f64]) -> String {
    sigmas.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Loading and sampling with diffusers.
fn python(export: &Export, Pipeline { class, without_t5, walks, variant }: &Pipeline) -> String {
    let merged = export.format == Format::Merged;
    let from = match &export.base {
        Some(base) if !merged => origin(Path::new(base)),
        _ => "\"PATH/TO/THIS/FOLDER\"".to_owned(),
    };
    // What the run chose among the base's files; a merged folder has plain ones.
    let variant = export.options.get("variant").and_then(Json::as_str).or(variant.as_deref()).filter(|_| !merged);
    let variant = variant.map(|variant| format!(", variant={variant:?}")).unwrap_or_default();
    let load = match export.format {
        Format::Diffusers => "pipe.load_lora_weights(\"PATH/TO/THIS/FOLDER\")\n",
        Format::Peft => {
            "pipe.transformer = PeftModel.from_pretrained(pipe.transformer, \"PATH/TO/THIS/FOLDER\").merge_and_unload()\n"
        }
        Format::Comfy | Format::Merged => "",
    };
    let peft = if export.format == Format::Peft { "from peft import PeftModel\n" } else { "" };
    // The student never saw T5's tokens, or another number of them.
    let t5 = !without_t5 && export.options.get("t5") != Some(&Json::Bool(false));
    let parts = if t5 { "" } else { "text_encoder_3=None, tokenizer_3=None, " };
    let tokens = export.options.get("t5_tokens").and_then(Json::as_u64).map(|n| format!(", max_sequence_length={n}"));
    let tokens = tokens.unwrap_or_default();
    let (steps, [height, width]) = (export.steps, export.image);
    // diffusers appends the 0 at the end itself.
    let sigmas = &export.sigmas[..steps];
    let (import, scheduler, call, warning) = if merged && *walks {
        let warning = format!(
            "The folder's own scheduler walks the student's sigmas at {steps} steps, and others at another number of steps. It \
             must not be given `sigmas=` on top, which it would move."
        );
        (String::new(), "", String::new(), warning)
    } else {
        (
            "FlowMatchEulerDiscreteScheduler, ".to_owned(),
            "# Takes the sigmas as they are given, without another shift.\n\
             pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)\n",
            format!(", sigmas={sigmas:?}"),
            "With the base's own scheduler, or without `sigmas=`, the steps lie elsewhere and the pictures are bad."
                .to_owned(),
        )
    };
    let noise = if export.sampler.starts_with("sde-") {
        "`FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config, stochastic_sampling=True)` draws new noise at \
         each step, which is nearer to the training.\n"
    } else {
        ""
    };
    format!(
        "```python\nimport torch\nfrom diffusers import {import}{class}\n{peft}\n\
         pipe = {class}.from_pretrained({from}{variant}, {parts}torch_dtype=torch.bfloat16).to(\"cuda\")\n{load}{scheduler}\
         image = pipe(\n    \"a prompt\", num_inference_steps={steps}{call}, guidance_scale=1.0, height={height}, \
         width={width}{tokens}\n).images[0]\n```\n\n{warning}\n{noise}"
    )
}

/// Loading and sampling in ComfyUI.
fn comfyui(export: &Export) -> String {
    let file = comfy::FILE;
    let steps = export.steps;
    let [height, width] = export.image;
    let schedule = match shift_of(&export.sigmas) {
        Some(shift) => format!(
            "`ModelSamplingSD3` with shift {shift}, and a `KSampler` with {steps} steps, cfg 1.0, sampler `euler`, scheduler \
             `simple`"
        ),
        None => format!(
            "`SamplerCustomAdvanced` with sampler `euler`, cfg 1.0 and the sigmas {} (a node for manual sigmas)",
            list(&export.sigmas)
        ),
    };
    format!(
        "Copy `{file}` to `models/loras` of ComfyUI and load it on the base's own checkpoint with `LoraLoaderModelOnly` at \
         strength 1.0. Then an `EmptySD3LatentImage` of {width}x{height}, {schedule}. Should ComfyUI log `lora key not loaded`, the base is of another kind.\n"
    )
}

/// The base as `from_pretrained` takes it: a hub id and its commit, where it lies in the hub's cache, or a path.
fn origin(base: &Path) -> String {
    let mut parts = base.components().filter_map(|part| match part {
        Part::Normal(name) => name.to_str(),
        _ => None,
    });
    let id = parts.find_map(|part| part.strip_prefix("models--"));
    match (id, parts.next(), parts.next()) {
        (Some(id), Some("snapshots"), Some(commit)) => {
            format!("{:?}, revision={commit:?}", id.replacen("--", "/", 1))
        }
        _ => format!("{:?}", base.display().to_string()),
    }
}

/// The shift k of sigmas that are evenly spaced u = 1 - i / n, moved to k u / (1 + (k - 1) u).
fn shift_of(sigmas: &[f64]) -> Option<f64> {
    let steps = sigmas.len() - 1;
    if steps < 2 {
        return Some(1.0);
    }
    let even = |i: usize| 1.0 - i as f64 / steps as f64;
    // From the second sigma, and then all must agree.
    let (s, u) = (sigmas[1], even(1));
    let shift = s * (1.0 - u) / (u * (1.0 - s));
    let fits = |i: usize| (shift * even(i) / (1.0 + (shift - 1.0) * even(i)) - sigmas[i]).abs() < 1e-6;
    // A number to type, not one with the rounding of a division.
    (0..=steps).all(fits).then(|| (shift * 1e6).round() / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export(format: Format, sigmas: &[f64]) -> Export {
        Export {
            advdmd: "1".to_owned(),
            format,
            backbone: "sd3".to_owned(),
            base: Some("/c/hub/models--org--a--b/snapshots/abc".to_owned()),
            options: [("height".to_owned(), 512.into())].into_iter().collect(),
            updates: 7,
            dtype: advdmd_sdk::DType::F32,
            tuning: advdmd_sdk::Tuning::Full,
            steps: sigmas.len() - 1,
            sigmas: sigmas.to_vec(),
            sampler: "sde-cps".to_owned(),
            image: [512, 768],
            matched: None,
            differences: Vec::new(),
        }
    }

    #[test]
    fn python_names_base_sigmas_and_scheduler() {
        let sigmas = [1.0, 0.9, 0.75, 0.5, 0.0];
        let pipeline =
            Pipeline { class: "StableDiffusion3Pipeline".to_owned(), without_t5: false, walks: true, variant: None };
        let merged = text(&export(Format::Merged, &sigmas), Some(&pipeline));
        assert!(
            merged.contains("\"a prompt\", num_inference_steps=4, guidance_scale=1.0, height=512, width=768\n"),
            "{merged}"
        );
        assert!(merged.contains("--model FOLDER --backbone-set height=512 --sampler ode-euler"), "{merged}");
        let text = text(&export(Format::Peft, &sigmas), Some(&pipeline));
        for part in [
            "StableDiffusion3Pipeline.from_pretrained(\"org/a--b\", revision=\"abc\", ",
            "PeftModel.from_pretrained(pipe.transformer, ",
            "num_inference_steps=4, sigmas=[1.0, 0.9, 0.75, 0.5], guidance_scale=1.0",
            "`--sampler ode-euler --sigmas 1,0.9,0.75,0.5,0`",
            "had `height = 512`.",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn python_leaves_out_t5_where_the_student_had_none() {
        let mut export = export(Format::Diffusers, &[1.0, 0.5, 0.0]);
        let mut pipeline =
            Pipeline { class: "StableDiffusion3Pipeline".to_owned(), without_t5: false, walks: false, variant: None };
        let none = "text_encoder_3=None, tokenizer_3=None, ";
        assert!(!text(&export, Some(&pipeline)).contains(none));
        export.options.insert("t5_tokens".to_owned(), 77.into());
        assert!(text(&export, Some(&pipeline)).contains(", max_sequence_length=77\n"));
        export.options.insert("t5".to_owned(), false.into());
        assert!(text(&export, Some(&pipeline)).contains(none));
        export.options.remove("t5");
        pipeline.without_t5 = true;
        assert!(text(&export, Some(&pipeline)).contains(none));
    }

    #[test]
    fn weight_files_with_an_infix_are_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let transformer = folder.path().join("transformer");
        fs::create_dir(&transformer).unwrap();
        assert_eq!(variant(folder.path()), None);
        for name in ["a.fp16-00001-of-00002.safetensors", "a.fp16-00002-of-00002.safetensors"] {
            fs::write(transformer.join(name), "").unwrap();
        }
        let found = variant(folder.path());
        assert_eq!(found.as_deref(), Some("fp16"));
        let pipeline = Pipeline { class: "P".to_owned(), without_t5: false, walks: true, variant: found };
        let call = "revision=\"abc\", variant=\"fp16\", torch_dtype";
        assert!(text(&export(Format::Diffusers, &[1.0, 0.0]), Some(&pipeline)).contains(call));
        assert!(!text(&export(Format::Merged, &[1.0, 0.0]), Some(&pipeline)).contains("variant="));
        fs::write(transformer.join("a.safetensors"), "").unwrap();
        assert_eq!(variant(folder.path()), None);
    }

    #[test]
    fn comfyui_gets_a_shift_where_there_is_one() {
        assert_eq!(shift_of(&[1.0, 0.9, 0.75, 0.5, 0.0]), Some(3.0));
        assert_eq!(shift_of(&[1.0, 0.5, 0.0]), Some(1.0));
        assert_eq!(shift_of(&[1.0, 0.0]), Some(1.0));
        assert_eq!(shift_of(&[1.0, 0.9, 0.5, 0.25, 0.0]), None);
        let custom = text(&export(Format::Comfy, &[1.0, 0.9, 0.5, 0.25, 0.0]), None);
        assert!(custom.contains("the sigmas 1,0.9,0.5,0.25,0 ("), "{custom}");
        assert!(text(&export(Format::Comfy, &[1.0, 0.75, 0.0]), None).contains("shift 3, "));
    }

    #[test]
    fn a_scheduler_that_walks_the_sigmas_is_known() {
        let sigmas = [1.0, 0.9, 0.75, 0.5, 0.0];
        let scheduler = |shift: f64, terminal: Option<f64>, dynamic: bool| {
            let class = "FlowMatchEulerDiscreteScheduler";
            let mut config = serde_json::json!({ "_class_name": class, "shift": shift, "shift_terminal": terminal });
            config["use_dynamic_shifting"] = dynamic.into();
            config
        };
        let own = FlowMatchEuler::walking(&sigmas).unwrap();
        assert!(walks(&scheduler(own.shift, own.shift_terminal, false), &sigmas));
        assert!(!walks(&scheduler(own.shift, own.shift_terminal, true), &sigmas));
        assert!(!walks(&scheduler(3.0, None, false), &sigmas));
        assert!(!walks(&Json::Null, &sigmas));
    }

    #[test]
    fn other_bases_keep_their_path() {
        assert_eq!(origin(Path::new("/models/sd3")), "\"/models/sd3\"");
    }
}
