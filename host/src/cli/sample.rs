//! `advdmd sample`: images of prompts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use advdmd::progress::Progress;
use advdmd::prompts::PromptTable;
use advdmd::{Error, Result, files, png, prompt_file};
use advdmd_nn::Weights;
use advdmd_sdk::Backbone;
use clap::Args;
use tch::{Device, Kind, Tensor};

use super::model_args::ModelArgs;

/// The options of `advdmd sample`.
#[derive(Debug, Args)]
pub struct Sample {
    #[command(flatten)]
    model: ModelArgs,
    /// A prompt; may be repeated
    #[arg(long, value_name = "TEXT", required_unless_present = "prompts", conflicts_with = "prompts")]
    prompt: Vec<String>,
    /// A file with one prompt a line, or a JSON list of strings
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Images per prompt
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = super::at_least_one)]
    count: usize,
    /// Images per forward pass
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = super::at_least_one)]
    batch: usize,
    /// Initial latents `[B, C, h, w]` (tensor `latents`) instead of noise from the seed
    #[arg(long, value_name = "IN.safetensors")]
    latents: Option<PathBuf>,
    /// Write the final latents (tensor `latents`)
    #[arg(long, value_name = "OUT.safetensors")]
    save_latents: Option<PathBuf>,
    /// The folder for the images: `00000.png`, `00001.png`, …, and `prompts.json`
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub fn run(args: &Sample) -> Result<()> {
    let prompts = prompts(args)?;
    // A card need not hold the text encoders beside the network. One table for each batch, as its images are made, on
    // the CPU: many prompts are large.
    let encode = |backbone: &dyn Backbone| {
        let texts: Vec<&str> = prompts.iter().map(String::as_str).collect();
        let table = |texts: &[&str]| Ok(PromptTable::new(backbone, texts)?.on(Device::Cpu));
        let tables = texts.chunks(args.batch).map(table).collect::<Result<Vec<_>>>()?;
        backbone.release_encoders()?;
        Ok(tables)
    };
    let (model, trajectory, tables) = args.model.load(encode)?;
    let pipeline = model.pipeline(&trajectory, args.model.guidance_scale, args.model.seed);
    let channels = model.backbone.spec().latent_shape[0];
    let given = args.latents.as_deref().map(|path| given(path, &prompts, channels)).transpose()?;
    files::create_dir(&args.out)?;
    let mut progress = Progress::new("sampling", 0, prompts.len() as u64);
    let mut finals = Vec::new();
    for (index, table) in tables.into_iter().enumerate() {
        let (first, table) = (index * args.batch, table.on(model.device()));
        let ids: Vec<usize> = (0..table.len()).collect();
        let noise = match &given {
            Some(latents) => latents.narrow(0, first as i64, ids.len() as i64).to_device(model.device()),
            None => pipeline.noise(first, ids.len())?,
        };
        let latents = pipeline.latents_of(&table, &ids, first, noise)?;
        let images = tch::no_grad(|| model.backbone.decode_latents(&latents))?;
        for offset in ids {
            let path = args.out.join(format!("{:05}.png", first + offset));
            png::write_png(&path, &images.get(offset as i64))?;
        }
        finals.push(latents.to_device(Device::Cpu));
        progress.advance((first + table.len()) as u64, "");
    }
    drop(progress);
    files::write_json(&args.out.join("prompts.json"), &prompts)?;
    if let Some(path) = &args.save_latents {
        let latents: Weights = [("latents".to_owned(), Tensor::cat(&finals, 0))].into_iter().collect();
        latents.save(path, &BTreeMap::new())?;
    }
    tracing::info!("{} images in {}", prompts.len(), args.out.display());
    Ok(())
}

fn prompts(args: &Sample) -> Result<Vec<String>> {
    let list = match &args.prompts {
        None => args.prompt.clone(),
        Some(path) => prompt_file::read(path)?.into_iter().map(|row| row.prompt).collect(),
    };
    Ok(list.into_iter().flat_map(|prompt| std::iter::repeat_n(prompt, args.count)).collect())
}

/// Initial latents from a file, one for each image, of any height and width that the backbone can do.
fn given(path: &Path, prompts: &[String], channels: i64) -> Result<Tensor> {
    let weights = Weights::load(path, Some(Kind::Float), Device::Cpu)?;
    let latents = weights.get("latents").ok_or_else(|| Error::content(path, "there is no tensor `latents`"))?;
    let (found, count) = (latents.size(), prompts.len() as i64);
    if found.len() != 4 || found[..2] != [count, channels] {
        let expected = format!("[{count}, {channels}, h, w], one for each image");
        return Err(Error::content(path, format!("`latents` has shape {found:?}, expected {expected}")));
    }
    Ok(latents.shallow_clone())
}
