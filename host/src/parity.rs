//! A backbone against a reference: every tensor of a golden file is computed again and compared.
//!
//! A golden file holds float32 tensors that a reference implementation (diffusers, for the real models) made from the
//! same weights. Each stage starts from the reference's own input, so that an error is found where it arises:
//!
//! - `prompt_embeds`, `pooled`, `prompt_mask`: the prompts, encoded; `negative_prompt_embeds`, `negative_pooled`: the null prompt;
//! - `velocity_0`, `velocity_1`, …: at `noise` with those embeddings, at the noise levels `sigmas_check`;
//! - `latents_ode4_cfg<W>`: Euler from `noise` over `sigmas_4` with guidance W; `image_ode4_cfg<W>`: those latents, decoded;
//! - `encode_mean`: the images `encode_in`, encoded.

use std::path::Path;

use advdmd_nn::Weights;
use advdmd_sdk::{Backbone, Conditioning, Denoiser, LogProb, Transition, Tuning};
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use crate::passes::{PassCounter, Role};
use crate::sampling::{Guidance, Trajectory, generate, sigma_column, velocity};
use crate::{Error, Result};

/// How one tensor compares.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Its name in the golden file.
    pub key: String,
    /// Largest absolute difference; infinite where a number is not finite.
    pub absolute: f64,
    /// Norm of the difference over the reference's norm.
    pub relative: f64,
    /// Largest absolute value of the reference.
    pub largest: f64,
    /// What kept it from being computed.
    pub error: Option<String>,
}

impl Comparison {
    /// Whether the largest absolute difference is at most `tolerance`.
    pub fn holds(&self, tolerance: f64) -> bool {
        self.error.is_none() && self.absolute <= tolerance
    }
}

/// A golden file and what belongs to it.
#[derive(Debug)]
pub struct Golden<'a> {
    values: Weights,
    prompts: Option<Vec<String>>,
    path: &'a Path,
    device: Device,
}

impl<'a> Golden<'a> {
    /// Reads a golden file; `prompts` are those of its `prompt_embeds`.
    ///
    /// # Errors
    /// A file that is no safetensors file, or that holds nothing to compare.
    pub fn read(path: &'a Path, prompts: Option<Vec<String>>, device: Device) -> Result<Self> {
        let values = Weights::load(path, Some(Kind::Float), device)?;
        let golden = Self { values, prompts, path, device };
        if golden.keys().is_empty() {
            return Err(Error::content(path, "holds none of the tensors that a backbone can be held against"));
        }
        Ok(golden)
    }

    /// Names of the tensors that are compared, in the order of the stages.
    pub fn keys(&self) -> Vec<String> {
        let stages: [fn(&str) -> bool; 5] = [
            |key| matches!(key, "prompt_embeds" | "pooled" | "prompt_mask"),
            |key| matches!(key, "negative_prompt_embeds" | "negative_pooled"),
            |key| key.strip_prefix("velocity_").is_some_and(|index| index.parse::<usize>().is_ok()),
            |key| key == "encode_mean",
            |key| guidance_scale(key).is_some(),
        ];
        let of_stage = |stage: fn(&str) -> bool| self.values.iter().map(|(key, _)| key).filter(move |key| stage(key));
        stages.into_iter().flat_map(of_stage).map(str::to_owned).collect()
    }

    /// Computes every tensor again and compares. What cannot be computed is a comparison with an error.
    ///
    /// # Errors
    /// Prompts that are missing although the file holds their embeddings; a denoiser that cannot be made.
    pub fn compare(&self, backbone: &dyn Backbone) -> Result<Vec<Comparison>> {
        let denoiser = backbone.denoiser(&Tuning::Frozen, 0)?;
        let _no_grad = tch::no_grad_guard();
        let mut encoded = self.encoded(backbone)?;
        let compare = |key: String| {
            let found = match encoded.iter_mut().find(|(known, _)| *known == key) {
                Some((_, found)) => std::mem::replace(found, Err(Error::failed("compared before"))),
                None => self.compute(&key, backbone, denoiser.as_ref()),
            };
            self.comparison(key, found)
        };
        Ok(self.keys().into_iter().map(compare).collect())
    }

    fn comparison(&self, key: String, found: Result<Tensor>) -> Comparison {
        let failed = |key, error| Comparison {
            key,
            absolute: f64::INFINITY,
            relative: f64::INFINITY,
            largest: f64::NAN,
            error: Some(error),
        };
        let compared = found.and_then(|found| {
            let expected = self.get(&key)?.to_kind(Kind::Float);
            if found.size() != expected.size() {
                return Err(Error::content(
                    self.path,
                    format!("`{key}` has shape {:?}, the backbone gave {:?}", expected.size(), found.size()),
                ));
            }
            let difference = (found.to_kind(Kind::Float).to_device(self.device) - &expected).to_kind(Kind::Double);
            let number = |tensor: Tensor| if tensor.numel() == 0 { 0.0 } else { tensor.double_value(&[]) };
            let absolute = number(difference.abs().max());
            Ok(Comparison {
                absolute: if absolute.is_nan() { f64::INFINITY } else { absolute },
                relative: number(difference.norm()) / number(expected.to_kind(Kind::Double).norm()).max(1e-30),
                largest: number(expected.abs().max()),
                error: None,
                key: key.clone(),
            })
        });
        compared.unwrap_or_else(|error| failed(key, error.in_one_line()))
    }

    /// What the backbone's text encoders make of the prompts, as far as the file holds the reference's.
    fn encoded(&self, backbone: &dyn Backbone) -> Result<Vec<(String, Result<Tensor>)>> {
        let mut encoded = Vec::new();
        let mut add = |names: [&str; 3], prompts: &[&str]| {
            let held: Vec<usize> = (0..3).filter(|&index| self.values.get(names[index]).is_some()).collect();
            if held.is_empty() {
                return;
            }
            let result = backbone.encode_text(prompts);
            for index in held {
                let part = match &result {
                    Err(error) => Err(Error::from(error.clone())),
                    Ok(Conditioning { context, pooled, mask }) => [Some(context), pooled.as_ref(), mask.as_ref()]
                        [index]
                        .map(Tensor::shallow_clone)
                        .ok_or_else(|| Error::contract(format!("the backbone has no {}", names[index]))),
                };
                encoded.push((names[index].to_owned(), part));
            }
        };
        if ["prompt_embeds", "pooled", "prompt_mask"].iter().any(|name| self.values.get(name).is_some()) {
            let Some(prompts) = &self.prompts else {
                let message = format!("{} holds embeddings of prompts, and no prompts were given", self.path.display());
                return Err(Error::usage(
                    message,
                    "name the JSON list that they were made from: `--prompts FILE`".to_owned(),
                ));
            };
            add(["prompt_embeds", "pooled", "prompt_mask"], &prompts.iter().map(String::as_str).collect::<Vec<_>>());
        }
        let null = backbone.spec().null_prompt;
        let rows = self.values.get("negative_prompt_embeds").or_else(|| self.values.get("negative_pooled"));
        let rows = rows.and_then(|tensor| tensor.size().first().copied()).unwrap_or(0);
        add(["negative_prompt_embeds", "negative_pooled", "negative_prompt_mask"], &vec![null.as_str(); rows as usize]);
        Ok(encoded)
    }

    fn compute(&self, key: &str, backbone: &dyn Backbone, denoiser: &dyn Denoiser) -> Result<Tensor> {
        if let Some(index) = key.strip_prefix("velocity_") {
            let index: usize = index.parse().map_err(Error::failed)?;
            let sigmas: Vec<f64> = Vec::try_from(self.get("sigmas_check")?.to_kind(Kind::Double))?;
            let sigma = sigmas.get(index).ok_or_else(|| {
                Error::content(self.path, format!("`sigmas_check` has {} numbers, `{key}` needs more", sigmas.len()))
            })?;
            let noise = self.get("noise")?;
            let (sigma, conditioning) = (sigma_column(*sigma, &noise), self.conditioning(&noise)?);
            return velocity(denoiser, Role::Teacher, &noise, &sigma, &conditioning, None, &PassCounter::default());
        }
        if key == "encode_mean" {
            return Ok(backbone.encode_images(&self.get("encode_in")?)?);
        }
        let (scale, image) = guidance_scale(key).ok_or_else(|| Error::failed(format!("no rule for {key}")))?;
        let latents = match self.get(&key.replacen("image_", "latents_", 1)) {
            Ok(latents) if image => latents,
            _ => self.euler(denoiser, scale)?,
        };
        if image { Ok(backbone.decode_latents(&latents)?) } else { Ok(latents) }
    }

    /// Euler from `noise` over `sigmas_4` with guidance.
    fn euler(&self, denoiser: &dyn Denoiser, scale: f64) -> Result<Tensor> {
        let sigmas: Vec<f64> = Vec::try_from(self.get("sigmas_4")?.to_kind(Kind::Double))?;
        let noise = self.get("noise")?;
        let euler = |pair: &[f64]| Transition { a: 1.0, b: vec![pair[1] - pair[0]], c: 0.0, log_prob: LogProb::None };
        let transitions = sigmas.windows(2).map(euler).collect();
        let trajectory = Trajectory { sigmas, transitions };
        let null = self.expanded("negative_prompt_embeds", "negative_pooled", "negative_prompt_mask", &noise)?;
        let guidance = Guidance { scale, null: &null };
        let no_noise = |_| Err(Error::failed("a step without noise asked for it"));
        generate(denoiser, &trajectory, noise.shallow_clone(), &self.conditioning(&noise)?, Some(&guidance), no_noise)
    }

    fn conditioning(&self, noise: &Tensor) -> Result<Conditioning> {
        self.expanded("prompt_embeds", "pooled", "prompt_mask", noise)
    }

    /// Embeddings of the file, one row for each sample of `noise`; a single row goes for all.
    fn expanded(&self, context: &str, pooled: &str, mask: &str, noise: &Tensor) -> Result<Conditioning> {
        let rows = noise.size()[0];
        let expand = |tensor: &Tensor| -> Result<Tensor> {
            let mut size = tensor.size();
            if size.first() == Some(&1) {
                size[0] = rows;
                return Ok(tensor.f_expand(size, false)?);
            }
            Ok(tensor.shallow_clone())
        };
        Ok(Conditioning {
            context: expand(&self.get(context)?)?,
            pooled: self.values.get(pooled).map(expand).transpose()?,
            mask: self.values.get(mask).map(|mask| expand(&mask.to_kind(Kind::Bool))).transpose()?,
        })
    }

    fn get(&self, key: &str) -> Result<Tensor> {
        let found = self.values.get(key).map(Tensor::shallow_clone);
        found
            .ok_or_else(|| Error::content(self.path, format!("there is no tensor `{key}`, which others are made from")))
    }
}

/// The guidance scale in `latents_ode4_cfg3.5` or `image_ode4_cfg3.5`, and whether it is the image.
fn guidance_scale(key: &str) -> Option<(f64, bool)> {
    let latents = key.strip_prefix("latents_ode4_cfg").map(|scale| (scale, false));
    let (scale, image) = latents.or_else(|| key.strip_prefix("image_ode4_cfg").map(|scale| (scale, true)))?;
    Some((scale.parse().ok()?, image))
}
