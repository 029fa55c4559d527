//! Where the parts of a model are on disk.

use std::path::{Path, PathBuf};

use advdmd_nn::mmdit::{Mmdit, MmditConfig};
use advdmd_nn::{Stored, Weights};
use advdmd_sdk::{Error, Result};
use tch::{Device, Kind};

use crate::single_file;

/// Stem of diffusers' weight files.
pub const DIFFUSERS_STEM: &str = "diffusion_pytorch_model";

/// The files of a model: a pipeline folder of diffusers, the folder of a transformer alone, or an original single
/// file, whose other parts are taken from the folder that it lies in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    /// The pipeline folder, where text encoders, tokenizers, autoencoder and scheduler are; `None` for a transformer
    /// without them.
    pub pipeline: Option<PathBuf>,
    /// The transformer.
    pub transformer: TransformerFiles,
    /// Infix of the weight files, such as `fp16`.
    pub variant: Option<String>,
}

/// The files of a transformer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransformerFiles {
    /// `config.json` and weights of diffusers' `SD3Transformer2DModel`.
    Folder(PathBuf),
    /// One safetensors file, under original or diffusers' names.
    File(PathBuf),
}

impl ModelFiles {
    /// Finds the parts of `model`; `transformer`, a folder or file, takes the place of its own.
    ///
    /// # Errors
    /// A path that is none of the three; says what was looked for.
    pub fn find(model: &Path, transformer: Option<&Path>, variant: Option<String>) -> Result<Self> {
        let mut found = Self::of(model)?;
        if let Some(path) = transformer {
            found.transformer = match Self::of(path)? {
                Self { transformer, .. } if path.is_file() || !is_pipeline(path) => transformer,
                _ => TransformerFiles::Folder(path.join("transformer")),
            };
        }
        Ok(Self { variant, ..found })
    }

    fn of(path: &Path) -> Result<Self> {
        let with = |pipeline: Option<&Path>, transformer| {
            Ok(Self { pipeline: pipeline.map(Path::to_owned), transformer, variant: None })
        };
        if path.is_file() {
            let folder = path.parent().filter(|folder| is_pipeline(folder));
            return with(folder, TransformerFiles::File(path.to_owned()));
        }
        if is_pipeline(path) {
            return with(Some(path), TransformerFiles::Folder(path.join("transformer")));
        }
        if path.join("config.json").is_file() {
            return with(None, TransformerFiles::Folder(path.to_owned()));
        }
        let path = path.display();
        Err(Error::config(format!(
            "model: expected a folder of diffusers (with model_index.json or transformer/), one of its transformer (with \
             config.json) or a .safetensors file, found none of them at {path}"
        )))
    }

    /// The pipeline folder, which holds the part `name`, such as `vae`.
    ///
    /// # Errors
    /// A model without it; names the part and what to do.
    pub fn pipeline_with(&self, name: &str) -> Result<&Path> {
        let Some(pipeline) = &self.pipeline else {
            let transformer = self.transformer.path().display();
            return Err(Error::config(format!(
                "{name}: {transformer} is a transformer alone; give `model` the pipeline's folder, and this path to \
                 `transformer`"
            )));
        };
        let folder = pipeline.join(name);
        if folder.is_dir() { Ok(pipeline) } else { Err(Error::config(format!("{} is not there", folder.display()))) }
    }

    /// Architecture of the transformer.
    ///
    /// # Errors
    /// A configuration that cannot be read or does not fit, or a file that is no SD3 checkpoint.
    pub fn read_config(&self) -> Result<MmditConfig> {
        let path = match &self.transformer {
            TransformerFiles::Folder(folder) => return MmditConfig::read(&folder.join("config.json")),
            TransformerFiles::File(path) => path,
        };
        let beside = self.config_of_pipeline().map(|path| MmditConfig::read(&path)).transpose()?;
        let file = Stored::open(path)?;
        if single_file::is_original(&file) {
            return single_file::config_of(&file, beside.as_ref());
        }
        let own = config_beside(path);
        match (own.is_file(), beside) {
            (true, _) => MmditConfig::read(&own),
            (false, Some(config)) => Ok(config),
            (false, None) => Err(Error::config(format!(
                "{}: not the names of an original SD3 checkpoint; a file with diffusers' names needs their config.json \
                 beside it",
                path.display()
            ))),
        }
    }

    /// Checks that the files hold exactly the transformer of `config`, without reading it.
    ///
    /// # Errors
    /// Files that cannot be read; missing, unexpected and misshapen tensors in one error.
    pub fn check_transformer(&self, config: &MmditConfig) -> Result<()> {
        let stored = self.stored()?;
        if single_file::is_original(&stored) {
            return single_file::check(&stored, config);
        }
        stored.check_layout(&Mmdit::layout(config)?, |name| Some(name.to_owned()))
    }

    /// Weights of the transformer, each tensor straight to `kind` and `device`.
    ///
    /// # Errors
    /// As [`ModelFiles::check_transformer`], before anything is read.
    pub fn read_transformer(&self, config: &MmditConfig, kind: Kind, device: Device) -> Result<Weights> {
        let stored = self.stored()?;
        if single_file::is_original(&stored) {
            return single_file::read(&stored, config, Some(kind), device);
        }
        stored.read_layout(&Mmdit::layout(config)?, |name| Some(name.to_owned()), Some(kind), device)
    }

    /// The files that the transformer is made from: configuration and weights.
    ///
    /// # Errors
    /// Files that cannot be read or are not there.
    pub fn network(&self) -> Result<Vec<PathBuf>> {
        let path = match &self.transformer {
            TransformerFiles::Folder(folder) => {
                let weights = Stored::files_of_folder(folder, DIFFUSERS_STEM, self.variant.as_deref())?;
                return Ok(std::iter::once(folder.join("config.json")).chain(weights).collect());
            }
            TransformerFiles::File(path) => path,
        };
        let own = if single_file::is_original(&Stored::open(path)?) { None } else { Some(config_beside(path)) };
        let config = own.filter(|own| own.is_file()).or_else(|| self.config_of_pipeline());
        Ok(config.into_iter().chain([path.clone()]).collect())
    }

    /// The configuration of the transformer in a file's pipeline, where there is one.
    fn config_of_pipeline(&self) -> Option<PathBuf> {
        let path = self.pipeline.as_ref().map(|pipeline| pipeline.join("transformer/config.json"));
        path.filter(|path| path.is_file())
    }

    fn stored(&self) -> Result<Stored> {
        match &self.transformer {
            TransformerFiles::Folder(folder) => Stored::open_folder(folder, DIFFUSERS_STEM, self.variant.as_deref()),
            TransformerFiles::File(path) => Stored::open(path),
        }
    }
}

impl TransformerFiles {
    /// The folder or file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Folder(path) | Self::File(path) => path,
        }
    }
}

/// The configuration in the folder of a file with diffusers' names.
fn config_beside(file: &Path) -> PathBuf {
    file.with_file_name("config.json")
}

/// Configuration and weights of a part in `folder`, of `variant` where it has them; none where there is no such folder.
///
/// # Errors
/// A folder without weights.
pub fn model_files(folder: &Path, stem: &str, variant: Option<&str>) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let config = folder.join("config.json");
    let weights = Stored::files_of_part(folder, stem, variant)?;
    Ok(Some(config).filter(|config| config.is_file()).into_iter().chain(weights).collect())
}

/// Whether a folder is a pipeline of diffusers.
fn is_pipeline(folder: &Path) -> bool {
    folder.join("model_index.json").is_file() || folder.join("transformer").is_dir()
}
