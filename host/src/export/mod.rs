//! Exporting a student to the formats of other tools, and reading back what was written: an export that does not compute
//! what the student computes is an error, and leaves nothing behind.

pub mod comfy;
pub mod diffusers;
pub mod lora;
pub mod peft;
mod readme;
mod verify;

use std::fs;
use std::path::{Path, PathBuf};

use advdmd_nn::load_parameters;
use advdmd_sdk::{Backbone, BackboneInit, DType, OriginalModule, SaveOptions, Tuning};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use crate::config::{Component, RunConfig};
use crate::model::{Model, run_config};
use crate::registry::Registry;
use crate::{Error, Result, device, files};
use lora::Lora;
pub use verify::{Difference, Probe};

/// A format of other tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// diffusers' `LoRA` file.
    Diffusers,
    /// PEFT's adapter folder.
    Peft,
    /// ComfyUI's `LoRA` file, under original names.
    Comfy,
    /// A whole model of the backbone's own layout.
    Merged,
}

/// What to export.
#[derive(Debug, Clone, PartialEq)]
pub struct ExportOptions {
    /// The format.
    pub format: Format,
    /// The folder to write.
    pub out: PathBuf,
    /// Type of the stored numbers; float32 for a `LoRA`, which is small, and the run's own type for a whole model by default.
    pub dtype: Option<DType>,
    /// Replace an older export, and write a whole model even where rounding takes most of what was learned.
    pub force: bool,
}

/// What was exported: `export.json` of the folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Export {
    /// Version of this program.
    pub advdmd: String,
    /// The format.
    pub format: Format,
    /// The backbone's `type`.
    pub backbone: String,
    /// The backbone's `model`, where the run names one.
    pub base: Option<String>,
    /// All keys of the run's `[backbone]` but `type`.
    pub options: Map<String, Json>,
    /// Student updates done.
    pub updates: u64,
    /// Type of the stored numbers.
    pub dtype: DType,
    /// What was trained.
    pub tuning: Tuning,
    /// Steps that the student was trained for.
    pub steps: usize,
    /// Their sigmas, the 0 at the end included.
    pub sigmas: Vec<f64>,
    /// The sampler of the run.
    pub sampler: String,
    /// Height and width of its images in pixels.
    pub image: [i64; 2],
    /// Tensors that were read back and have their place in the student; `None` for a whole model.
    pub matched: Option<usize>,
    /// How far what was read back is from the student.
    pub differences: Vec<Difference>,
}

const INDEX: &str = "export.json";

/// Exports the averaged student of a run's newest checkpoint. `sets` change the run's configuration.
///
/// # Errors
/// A folder that holds no student or a folder `out` that is occupied; a format that the student cannot have; a disk error;
/// an export that, read back, does not compute what the student computes.
pub fn export(run: &Path, sets: &[String], options: &ExportOptions) -> Result<Export> {
    let out = std::path::absolute(&options.out).map_err(Error::file("find", &options.out))?;
    refuse_occupied(&out, options.force)?;
    let config = run_config(run, sets)?;
    let tuning = config.student.tuning.clone();
    if options.format != Format::Merged && !matches!(tuning, Tuning::Lora { .. }) {
        let hint = "`--format merged` writes the whole model".to_owned();
        return Err(Error::usage("the student was fully trained: there is no LoRA to export", hint));
    }
    let registry = Registry::discover(&config.plugins.paths)?;
    let (model, conditioning) = Model::student(&registry, run, &config, verify::conditioning)?;
    let modules = match options.format {
        Format::Comfy => originals(&config.backbone.r#type, model.backbone.as_ref())?,
        _ => Vec::new(),
    };
    let trajectory = model.trajectory(config.sampler.steps, None)?;
    let sigmas = trajectory.sigmas;
    // The first noise level, and one on the way; one between where the only step goes from noise to image.
    let middle = if sigmas.len() > 2 { sigmas[(sigmas.len() - 1) / 2] } else { 0.5 };
    let probe = Probe::new(&model, conditioning, [sigmas[0], middle], config.compute.dtype)?;
    let dtype = options.dtype.unwrap_or(match options.format {
        Format::Merged => config.compute.dtype,
        _ => DType::F32,
    });
    let [_, height, width] = model.backbone.spec().image_shape;
    let mut export = Export {
        advdmd: env!("CARGO_PKG_VERSION").to_owned(),
        format: options.format,
        backbone: config.backbone.r#type.clone(),
        base: config.backbone.options.get("model").and_then(|model| model.as_str()).map(str::to_owned),
        options: config.backbone.options.clone(),
        updates: model.updates,
        dtype,
        tuning,
        steps: sigmas.len() - 1,
        sigmas,
        sampler: model.sampler_type.clone(),
        image: [height, width],
        matched: None,
        differences: Vec::new(),
    };
    files::create_dir(out.parent().unwrap_or(&out))?;
    files::replace_dir(&out, |folder| {
        if options.format == Format::Merged {
            merged(folder, &registry, &config, model, options.force, &mut export, &probe)?;
        } else {
            low_rank(folder, &model, &modules, &mut export, &probe)?;
        }
        judge(&export, &probe)?;
        let base = if export.format == Format::Merged { Some(folder) } else { export.base.as_deref().map(Path::new) };
        let pipeline = base.and_then(|base| readme::Pipeline::of(base, &export.sigmas));
        files::write(&folder.join("README.md"), readme::text(&export, pipeline.as_ref()).as_bytes())?;
        files::write_json(&folder.join(INDEX), &export)
    })?;
    Ok(export)
}

/// Refuses a folder with content; `force` lets an older export be replaced, and nothing else.
fn refuse_occupied(out: &Path, force: bool) -> Result<()> {
    let occupied = match fs::read_dir(out) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => out.exists(),
    };
    let place = out.display();
    if !occupied || (force && out.join(INDEX).is_file()) {
        return Ok(());
    }
    if force {
        let hint = "name another `--out`, or empty this one yourself".to_owned();
        return Err(Error::usage(format!("{place} holds something else than an export, which is not replaced"), hint));
    }
    Err(Error::usage(format!("{place} is occupied"), "`--force` replaces an older export".to_owned()))
}

/// Writes one of the `LoRA` formats and reads it back into a fresh denoiser.
fn low_rank(
    folder: &Path,
    model: &Model,
    modules: &[OriginalModule],
    export: &mut Export,
    probe: &Probe,
) -> Result<()> {
    let Tuning::Lora { alpha, ref targets, .. } = export.tuning else {
        return Err(Error::failed("the student is no LoRA"));
    };
    let lora = Lora::of_parameters(&model.denoiser.parameters(), alpha)?;
    let kind = export.dtype.into();
    let read = match export.format {
        Format::Diffusers => diffusers::write(folder, &lora, kind).and_then(|()| diffusers::read(folder))?,
        Format::Peft => peft::write(folder, &lora, kind).and_then(|()| peft::read(folder))?,
        Format::Comfy | Format::Merged => {
            comfy::write(folder, &lora, modules, kind)?;
            comfy::read(folder, modules, &lora.layers.keys().cloned().collect::<Vec<_>>())?
        }
    };
    // The comparison of velocities can not see a small fault where the student computes in half precision; this can.
    lora.to_kind(kind)?.check_same(&read)?;
    // The alpha of the file has a rounding of its own, which half precision would make a larger one.
    let tuning = Tuning::Lora { rank: read.rank, alpha, targets: targets.clone() };
    let fresh = model.backbone.denoiser(&tuning, 1)?;
    let (parameters, found) = (fresh.parameters(), read.pairs(lora::PREFIX));
    let matched = parameters.iter().filter(|(name, _)| found.get(name).is_some()).count();
    if matched == 0 {
        return Err(Error::failed("read back, none of the export's tensors has its place in the student"));
    }
    load_parameters(&parameters, &found)?;
    export.matched = Some(matched);
    export.differences = probe.compare(fresh.as_ref())?;
    Ok(())
}

/// The original names of a backbone's layers.
///
/// # Errors
/// None: says what works.
fn originals(name: &str, backbone: &dyn Backbone) -> Result<Vec<OriginalModule>> {
    let modules = backbone.original_modules();
    if modules.is_empty() {
        let message = format!(
            "backbone `{name}` has no other names for its layers than diffusers', and ComfyUI has no model to load them into"
        );
        return Err(Error::usage(message, "`--format diffusers`, `peft` and `merged` work".to_owned()));
    }
    Ok(modules)
}

/// Lets the backbone write a whole model, and loads that as a backbone of its own.
fn merged(
    folder: &Path,
    registry: &Registry,
    config: &RunConfig,
    model: Model,
    lossy: bool,
    export: &mut Export,
    probe: &Probe,
) -> Result<()> {
    let options =
        SaveOptions { dtype: export.dtype, tuning: export.tuning.clone(), sigmas: Some(export.sigmas.clone()), lossy };
    model.backbone.save(folder, &model.denoiser.parameters(), &options)?;
    let init = BackboneInit { device: device::sdk(model.device()), dtype: config.compute.dtype, seed: config.seed };
    // Two large models need not fit into memory at once.
    drop(model);
    let path = folder.to_str().ok_or_else(|| Error::failed(format!("{} is not UTF-8", folder.display())))?;
    let component = Component {
        r#type: export.backbone.clone(),
        options: [("model".to_owned(), path.into())].into_iter().collect(),
    };
    let backbone = registry.backbone(&component, &init)?;
    export.differences = probe.compare(backbone.denoiser(&Tuning::Frozen, 0)?.as_ref())?;
    Ok(())
}

/// Refuses an export that computes something else than the student, and warns of one that hardly differs from the base.
fn judge(export: &Export, probe: &Probe) -> Result<()> {
    let low_rank = export.format != Format::Merged;
    let tolerance = if low_rank { verify::rounding(export.dtype) } else { probe.tolerance_of_sums(export.dtype) };
    for difference in &export.differences {
        let Difference { relative, from_base, .. } = *difference;
        // The factors of a LoRA are rounded on their own, so that even a small update arrives whole; whether it was lost can
        // be told where it is larger than the rounding. Of a whole model, the backbone compares the weights.
        let lost = low_rank && from_base > tolerance && relative > from_base / 5.0;
        if relative > tolerance || lost {
            return Err(Error::failed(format!(
                "read back, the export does not compute what the student computes; {difference}; expected at most \
                 {tolerance:.0e} of the largest velocity. Nothing was kept"
            )));
        }
    }
    if export.differences.iter().all(|difference| difference.from_base == 0.0) {
        tracing::warn!(
            "the student computes what its base computes: {} updates have changed nothing that the export could hold",
            export.updates
        );
    }
    Ok(())
}
