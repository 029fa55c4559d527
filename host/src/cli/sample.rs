//! `advdmd sample`: images of prompts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use advdmd::progress::Progress;
use advdmd::{Error, Result, files, png, prompt_file};
use advdmd_nn::Weights;
use clap::Args;
use tch::{Kind, Tensor};

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
    let (model, trajectory) = args.model.load()?;
    let pipeline = model.pipeline(&trajectory, args.model.guidance_scale, args.model.seed);
    let channels = model.backbone.spec().latent_shape[0];
    let given = args.latents.as_deref().map(|path| given(path, &prompts, channels)).transpose()?;
    files::create_dir(&args.out)?;
    let mut progress = Progress::new("sampling", 0, prompts.len() as u64);
    let mut finals = Vec::new();
    for (index, chunk) in prompts.chunks(args.batch).enumerate() {
        let first = index * args.batch;
        let texts: Vec<&str> = chunk.iter().map(String::as_str).collect();
        let noise = match &given {
            Some(latents) => latents.narrow(0, first as i64, chunk.len() as i64).to_device(model.device()),
            None => pipeline.noise(first, chunk.len())?,
        };
        let latents = pipeline.latents(&texts, first, noise)?;
        let images = tch::no_grad(|| model.backbone.decode_latents(&latents))?;
        for offset in 0..chunk.len() {
            let path = args.out.join(format!("{:05}.png", first + offset));
            png::write_png(&path, &images.get(offset as i64))?;
        }
        finals.push(latents.to_device(tch::Device::Cpu));
        progress.advance((first + chunk.len()) as u64, "");
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
    let weights = Weights::load(path, Some(Kind::Float), tch::Device::Cpu)?;
    let latents = weights.get("latents").ok_or_else(|| Error::content(path, "there is no tensor `latents`"))?;
    let (found, count) = (latents.size(), prompts.len() as i64);
    if found.len() != 4 || found[..2] != [count, channels] {
        let expected = format!("[{count}, {channels}, h, w], one for each image");
        return Err(Error::content(path, format!("`latents` has shape {found:?}, expected {expected}")));
    }
    Ok(latents.shallow_clone())
}
