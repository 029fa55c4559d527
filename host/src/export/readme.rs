//! The `README.md` of an export: how to load and to sample it. A few-step student needs the sigmas that it was trained on,
//! and no tool guesses those.

use std::fmt::Write as _;
use std::path::{Component as Part, Path};

use super::{Export, Format, comfy};

/// The text. `pipeline` is the class that the base's `model_index.json` names, where it has one.
pub fn text(export: &Export, pipeline: Option<&str>) -> String {
    let Export { format, backbone, steps, updates, sampler, .. } = export;
    let sigmas = list(&export.sigmas);
    let mut text = format!(
        "# A {steps}-step student of `{backbone}`\n\nDistilled by AdvDMD {}, {updates} updates. It was trained for exactly \
         these steps: {steps} at the sigmas {sigmas}, without guidance (`guidance_scale=1.0`).\n",
        export.advdmd
    );
    if *sampler != "ode-euler" {
        let _ = writeln!(
            text,
            "In training it was sampled with `{sampler}`; what follows walks the same sigmas with plain Euler steps, as \
             `--sampler ode-euler --sigmas {sigmas}` of `advdmd sample` does."
        );
    }
    text.push('\n');
    text += &match (format, pipeline) {
        (Format::Comfy, _) => comfyui(export),
        (_, Some(pipeline)) => python(export, pipeline),
        (Format::Merged, None) => format!(
            "The folder is a whole model: `advdmd sample --backbone {backbone} --model FOLDER --sampler ode-euler --sigmas \
             {sigmas} --prompt TEXT --out IMAGES`.\n"
        ),
        (_, None) => {
            "The base is no pipeline of diffusers. Its transformer takes these files with `load_lora_adapter` or `PeftModel`; \
             the loop over the sigmas is yours: `x = x + (next - sigma) * velocity`.\n"
                .to_owned()
        }
    };
    text += "\n`export.json` holds the same facts for programs.\n";
    text
}

/// The sigmas as a command line takes them, the 0 at the end included.
fn list(sigmas: &[f64]) -> String {
    sigmas.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Loading and sampling with diffusers.
fn python(export: &Export, pipeline: &str) -> String {
    let base = export.base.as_deref().unwrap_or("BASE");
    let from = match export.format {
        Format::Merged => "\"PATH/TO/THIS/FOLDER\"".to_owned(),
        _ => origin(Path::new(base)),
    };
    let load = match export.format {
        Format::Diffusers => "pipe.load_lora_weights(\"PATH/TO/THIS/FOLDER\")\n",
        Format::Peft => {
            "pipe.transformer = PeftModel.from_pretrained(pipe.transformer, \"PATH/TO/THIS/FOLDER\").merge_and_unload()\n"
        }
        _ => "",
    };
    let import = if export.format == Format::Peft { "from peft import PeftModel\n" } else { "" };
    let sigmas = &export.sigmas[..export.sigmas.len() - 1];
    // diffusers appends the 0; its own shift would move the sigmas that it is given.
    format!(
        "```python\nimport torch\nfrom diffusers import FlowMatchEulerDiscreteScheduler, {pipeline}\n{import}\n\
         pipe = {pipeline}.from_pretrained({from}, torch_dtype=torch.bfloat16).to(\"cuda\")\n{load}\
         # Takes the sigmas as they are given, without another shift.\n\
         pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)\n\
         image = pipe(\n    \"a prompt\", num_inference_steps={}, sigmas={sigmas:?}, guidance_scale=1.0\n).images[0]\n```\n\n\
         With the base's own scheduler and without `sigmas=`, the same steps lie elsewhere and the pictures are bad.\n",
        export.steps
    )
}

/// Loading and sampling in ComfyUI.
fn comfyui(export: &Export) -> String {
    let file = comfy::FILE;
    let steps = export.steps;
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
         strength 1.0. Then {schedule}. Should ComfyUI log `lora key not loaded`, the base is of another kind.\n"
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
            updates: 7,
            dtype: advdmd_sdk::DType::F32,
            tuning: advdmd_sdk::Tuning::Full,
            steps: sigmas.len() - 1,
            sigmas: sigmas.to_vec(),
            sampler: "sde-cps".to_owned(),
            matched: None,
            differences: Vec::new(),
        }
    }

    #[test]
    fn python_names_base_sigmas_and_scheduler() {
        let text = text(&export(Format::Peft, &[1.0, 0.9, 0.75, 0.5, 0.0]), Some("StableDiffusion3Pipeline"));
        for part in [
            "StableDiffusion3Pipeline.from_pretrained(\"org/a--b\", revision=\"abc\", ",
            "PeftModel.from_pretrained(pipe.transformer, ",
            "num_inference_steps=4, sigmas=[1.0, 0.9, 0.75, 0.5], guidance_scale=1.0",
            "`--sampler ode-euler --sigmas 1,0.9,0.75,0.5,0`",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
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
    fn other_bases_keep_their_path() {
        assert_eq!(origin(Path::new("/models/sd3")), "\"/models/sd3\"");
    }
}
