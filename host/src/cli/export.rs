//! `advdmd export`: a student in the format of another tool.

use std::path::PathBuf;

use advdmd::export::{self, ExportOptions};
use advdmd::{Error, Result};
use clap::{Args, ValueEnum};

use super::compute_args::device_name;

/// The options of `advdmd export`.
#[derive(Debug, Args)]
pub struct Export {
    /// The run whose student is exported: the averaged one of the newest checkpoint
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// What to write
    #[arg(long, value_enum)]
    format: Format,
    /// The folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Type of the stored numbers [default: f32 for a LoRA, `compute.dtype` of the run for a whole model]
    #[arg(long, value_name = "TYPE", value_parser = ["f32", "bf16", "f16"])]
    dtype: Option<String>,
    /// Replace an older export in the folder; write a whole model even where rounding takes most of what was learned
    #[arg(long)]
    force: bool,
    /// Where to compute the comparison [default: `compute.device` of the run]
    #[arg(long, value_name = "DEVICE", value_parser = device_name)]
    device: Option<String>,
}

/// The formats.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// A LoRA for diffusers' `load_lora_weights`
    Diffusers,
    /// An adapter for PEFT's `PeftModel.from_pretrained`
    Peft,
    /// A LoRA for ComfyUI, under the layer names of the original release
    Comfy,
    /// A whole model, with what was trained merged into it
    Merged,
}

pub fn run(args: &Export) -> Result<()> {
    let format = match args.format {
        Format::Diffusers => export::Format::Diffusers,
        Format::Peft => export::Format::Peft,
        Format::Comfy => export::Format::Comfy,
        Format::Merged => export::Format::Merged,
    };
    let dtype = match &args.dtype {
        Some(name) => Some(serde_json::from_value(name.as_str().into()).map_err(Error::failed)?),
        None => None,
    };
    let options = ExportOptions { format, out: args.out.clone(), dtype, force: args.force };
    let sets: Vec<String> = args.device.iter().map(|device| format!("compute.device={device}")).collect();
    let written = export::export(&args.run, &sets, &options)?;
    if let Some(matched) = written.matched {
        tracing::info!("read back: all {matched} tensors have their place in the student");
    }
    for difference in &written.differences {
        tracing::info!("{difference}");
    }
    tracing::info!("exported to {}; its README.md says how to sample it", args.out.display());
    Ok(())
}
