//! What a run learns from and is shown on, encoded: done before the networks are made, so that the encoders are gone by then.

use std::path::PathBuf;

use advdmd_sdk::{Backbone, DType};
use tch::Device;

use crate::Result;
use crate::cache::{self, Cache};
use crate::config::{Component, Data, Eval, PretrainConfig, RunConfig};
use crate::data::{self, Dataset, Preparation, Scope};
use crate::files::FileDigest;
use crate::prompt_file;
use crate::prompts::PromptTable;
use crate::registry::{RunManifest, UsedFile};

/// Prompts with their ids in a table.
pub type Shown = Vec<(String, usize)>;

/// Prompts, real images and embeddings.
pub struct Material {
    /// Prompts and real images.
    pub data: Box<dyn Dataset>,
    /// The embedded prompts of the data, and of the sample grid behind them.
    pub table: PromptTable,
    /// The prompts of the sample grid with their ids in the table; none where the evaluation has its own.
    pub shown: Shown,
    /// Bytes that the cache holds of it, once all is encoded; 0 without one.
    pub cache_bytes: u64,
}

impl Material {
    /// Of a training run; what is read of a set of files is added to `made_with`.
    ///
    /// # Errors
    /// Data that cannot be used, a prompt that the backbone refuses, the disk's, or Ctrl-C.
    pub fn of_run(
        config: &RunConfig,
        made_with: &mut RunManifest,
        backbone: &dyn Backbone,
        device: Device,
        scope: Scope,
    ) -> Result<Self> {
        let source = Source { data: &config.data, backbone: &config.backbone, dtype: config.compute.dtype };
        let material = Self::new(&source, Some(&config.eval), made_with, backbone, device, scope)?;
        if let Some(summary) = material.data.summary().filter(|_| scope == Scope::All) {
            let (path, sha256) = (PathBuf::from(&summary.source), summary.sha256.clone());
            let digest = FileDigest { bytes: summary.images as u64, sha256 };
            made_with.files.push(UsedFile { key: "data".to_owned(), path, digest });
        }
        Ok(material)
    }

    /// Of a pretraining run.
    ///
    /// # Errors
    /// As [`Material::of_run`].
    pub fn of_pretraining(
        config: &PretrainConfig,
        made_with: &RunManifest,
        backbone: &dyn Backbone,
        device: Device,
    ) -> Result<Self> {
        let source = Source { data: &config.data, backbone: &config.backbone, dtype: config.compute.dtype };
        Self::new(&source, None, made_with, backbone, device, Scope::All)
    }

    fn new(
        source: &Source<'_>,
        eval: Option<&Eval>,
        made_with: &RunManifest,
        backbone: &dyn Backbone,
        device: Device,
        scope: Scope,
    ) -> Result<Self> {
        let images = source.data.images();
        let root = images.map_or(Ok(None), |images| cache::root(images.cache.as_deref()))?;
        let sources = backbone.sources()?;
        let cache = root.map(|root| Cache::new(root, made_with, source.backbone, source.dtype, sources.as_ref()));
        let cache = cache.transpose()?;
        let data = data::open(source.data, &Preparation { backbone, device, cache: cache.as_ref(), scope })?;
        let (shown, more) = match eval.filter(|_| images.is_some()) {
            Some(eval) => shown(eval, data.prompts())?,
            None => (Vec::new(), Vec::new()),
        };
        let prompts: Vec<&str> = data.prompts().iter().chain(&more).map(String::as_str).collect();
        let table = match cache.as_ref().filter(|_| scope == Scope::All) {
            Some(cache) => PromptTable::cached(backbone, &prompts, cache, device)?,
            None => PromptTable::new(backbone, &prompts)?,
        };
        backbone.release_encoders()?;
        let latents: i64 = backbone.spec().latent_shape.iter().product();
        let bytes = data.summary().map_or(0, |summary| {
            let texts = (summary.prompts + more.len() + 1) as u64;
            texts * table.row_bytes() + summary.latents as u64 * latents as u64 * size_of::<f32>() as u64
        });
        Ok(Self { data, table, shown, cache_bytes: if cache.is_some() { bytes } else { 0 } })
    }
}

/// The parts of a configuration that decide what is encoded and how.
struct Source<'a> {
    data: &'a Data,
    backbone: &'a Component,
    dtype: DType,
}

/// The prompts of the sample grid with their ids, and those of them that the data lacks.
fn shown(eval: &Eval, of_data: &[String]) -> Result<(Shown, Vec<String>)> {
    let of_file: Option<Vec<String>> = match &eval.prompts {
        Some(file) => Some(prompt_file::read(file)?.into_iter().map(|row| row.prompt).collect()),
        None => None,
    };
    let all = of_file.as_deref().unwrap_or(of_data);
    let count = eval.grid.min(all.len());
    let chosen: Vec<usize> = (0..count).map(|index| index * all.len() / count).collect();
    if of_file.is_none() {
        return Ok((chosen.into_iter().map(|id| (all[id].clone(), id)).collect(), Vec::new()));
    }
    let more: Vec<String> = chosen.into_iter().map(|index| all[index].clone()).collect();
    let ids = of_data.len()..;
    Ok((more.iter().cloned().zip(ids).collect(), more))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_shows_prompts_evenly() {
        let of_data: Vec<String> = (0..10).map(|id| id.to_string()).collect();
        let mut eval = Eval { every: 0, prompts_per_task: 1, grid: 3, prompts: None, teacher_steps: 40 };
        let ids = |eval: &Eval| shown(eval, &of_data).unwrap().0.into_iter().map(|(_, id)| id).collect::<Vec<_>>();
        assert_eq!(ids(&eval), [0, 3, 6]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompts.txt");
        std::fs::write(&path, "x\ny\n").unwrap();
        eval.prompts = Some(path);
        assert_eq!(ids(&eval), [10, 11]);
        eval.grid = 0;
        assert_eq!(ids(&eval), [0; 0]);
    }
}
