//! A CLIP text encoder with its tokenizer.

use std::path::Path;

use advdmd_nn::clip::{ClipText, ClipTextConfig, ClipTextOutput};
use advdmd_nn::{Params, PromptTokenizer, Stored};
use advdmd_sdk::{Error, Result, Tuning};
use tch::{Device, Kind};

/// CLIP's text encoder with its tokenizer.
#[derive(Debug)]
pub struct ClipEncoder {
    tokenizer: PromptTokenizer,
    model: ClipText,
    length: usize,
    device: Device,
}

impl ClipEncoder {
    /// From the folders of the model and of its tokenizer, giving `length` tokens a prompt, or if `None` as many as the
    /// tokenizer's folder says.
    ///
    /// # Errors
    /// A missing or malformed file, or weights that are not exactly the configuration's.
    pub fn load(
        folder: &Path,
        tokenizer_folder: &Path,
        length: Option<usize>,
        variant: Option<&str>,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        let (tokenizer, own_length) = PromptTokenizer::clip(tokenizer_folder)?;
        let config = ClipTextConfig::read(&folder.join("config.json"))?;
        let most = config.max_position_embeddings;
        let length = length.or(own_length).unwrap_or(most as usize);
        if length as i64 > most {
            return Err(Error::config(format!(
                "{}: {length} tokens a prompt, but {} has max_position_embeddings = {most}",
                tokenizer_folder.display(),
                folder.display()
            )));
        }
        let tokenizer = tokenizer.with_length(length)?;
        // Older files hold the positions' numbers.
        let name_of = |name: &str| (!name.ends_with(".position_ids")).then(|| name.to_owned());
        let stored = Stored::open_part(folder, "model", variant)?;
        let weights = stored.read_layout(&ClipText::layout(&config)?, name_of, Some(kind), device)?;
        let model = ClipText::new(&config, &Params::new(&weights, &Tuning::Frozen, &[], 0)?)?;
        Ok(Self { tokenizer, model, length, device })
    }

    /// Tokens a prompt.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The model's configuration.
    pub fn config(&self) -> &ClipTextConfig {
        self.model.config()
    }

    /// Embeds prompts, in the weights' type.
    ///
    /// # Errors
    /// A prompt that the tokenizer refuses, or that has tokens outside the model's vocabulary; libtorch's.
    pub fn encode(&self, prompts: &[&str]) -> Result<ClipTextOutput> {
        self.model.forward(&self.tokenizer.encode(prompts, self.config().vocab_size, self.device)?)
    }
}
