//! A model with its tokenizer and the features of the prompts that it has seen.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use advdmd_nn::PromptTokenizer;
use advdmd_nn::clip::Clip;
use advdmd_sdk::{Error, Result};
use tch::{Device, Kind, Tensor};

/// Prompts whose features are kept: of ViT-H-14 16 MB.
const KEPT_PROMPTS: usize = 4096;

/// A CLIP with its tokenizer.
#[derive(Debug)]
pub struct Model {
    clip: Clip,
    tokenizer: PromptTokenizer,
    kind: Kind,
    device: Device,
    /// Normalised features `[P]` by prompt.
    features: HashMap<String, Tensor>,
    /// The prompts of `features`, oldest first.
    order: VecDeque<String>,
    /// Prompts that were encoded so far.
    encoded: usize,
}

/// Models in use, so that rewards of one process share them.
static IN_USE: Mutex<Vec<(Key, Weak<Mutex<Model>>)>> = Mutex::new(Vec::new());

#[derive(Debug, PartialEq)]
struct Key {
    folder: PathBuf,
    kind: Kind,
    device: Device,
}

impl Model {
    /// The model of a folder of transformers. While one of that folder, type and device is in use, it is the same.
    ///
    /// # Errors
    /// A missing or malformed file, weights that are not exactly the configuration's, or a tokenizer that gives more tokens
    /// than the model has positions.
    pub fn shared(folder: &Path, kind: Kind, device: Device) -> Result<Arc<Mutex<Self>>> {
        let found = std::fs::canonicalize(folder)
            .map_err(|error| Error::config(format!("model: {}: {error}", folder.display())))?;
        let key = Key { folder: found, kind, device };
        // Held while it loads, or two rewards would load it twice.
        let mut in_use = lock(&IN_USE);
        in_use.retain(|(_, model)| model.strong_count() > 0);
        let known = in_use.iter().find(|(other, _)| *other == key).and_then(|(_, model)| model.upgrade());
        if let Some(model) = known {
            return Ok(model);
        }
        let model = Arc::new(Mutex::new(Self::load(folder, kind, device)?));
        in_use.push((key, Arc::downgrade(&model)));
        Ok(model)
    }

    fn load(folder: &Path, kind: Kind, device: Device) -> Result<Self> {
        let (tokenizer, length) = PromptTokenizer::clip(folder)?;
        let clip = Clip::load(folder, kind, device)?;
        let most = clip.config().text.max_position_embeddings;
        let length = length.unwrap_or(most as usize);
        if length as i64 > most {
            return Err(Error::config(format!(
                "{}: the tokenizer's model_max_length is {length}, but config.json has max_position_embeddings = {most}",
                folder.display()
            )));
        }
        let tokenizer = tokenizer.with_length(length)?;
        Ok(Self { clip, tokenizer, kind, device, features: HashMap::new(), order: VecDeque::new(), encoded: 0 })
    }

    /// The networks.
    pub fn clip(&self) -> &Clip {
        &self.clip
    }

    /// Prompts that went through the text encoder so far.
    pub fn encoded(&self) -> usize {
        self.encoded
    }

    /// Features of prompts `[B, P]`, of length 1, without gradients, float32 (float64 for float64 weights). Each is encoded
    /// once, as long as it is among the last that were, and by itself: the last bits of a batch depend on who else is in it,
    /// and a run that is resumed has seen other prompts before.
    ///
    /// # Errors
    /// A prompt that the tokenizer refuses; libtorch's.
    pub fn text_features(&mut self, prompts: &[String]) -> Result<Tensor> {
        let mut rows: HashMap<&str, Tensor> = HashMap::new();
        for prompt in prompts {
            if rows.contains_key(prompt.as_str()) {
                continue;
            }
            let row = match self.features.get(prompt) {
                Some(row) => row.shallow_clone(),
                None => self.encode(prompt)?,
            };
            rows.insert(prompt, row);
        }
        let rows: Vec<&Tensor> = prompts.iter().filter_map(|prompt| rows.get(prompt.as_str())).collect();
        Ok(Tensor::f_stack(&rows, 0)?)
    }

    /// Features `[P]` of one prompt, which are kept.
    fn encode(&mut self, prompt: &str) -> Result<Tensor> {
        let ids = self.tokenizer.encode(&[prompt], self.clip.config().text.vocab_size, self.device)?;
        let row = tch::no_grad(|| unit(&self.clip.text_features(&ids)?))?.f_squeeze_dim(0)?;
        self.encoded += 1;
        self.keep(prompt, &row);
        Ok(row)
    }

    fn keep(&mut self, prompt: &str, row: &Tensor) {
        if self.order.len() >= KEPT_PROMPTS
            && let Some(oldest) = self.order.pop_front()
        {
            self.features.remove(&oldest);
        }
        self.features.insert(prompt.to_owned(), row.shallow_clone());
        self.order.push_back(prompt.to_owned());
    }

    /// Features of normalised pixels `[B, 3, S, S]`, of length 1, `[B, P]`, float32 (float64 for float64 weights).
    ///
    /// # Errors
    /// As [`Clip::image_features`].
    pub fn image_features(&self, pixels: &Tensor) -> Result<Tensor> {
        unit(&self.clip.image_features(&pixels.f_to_kind(self.kind)?)?)
    }
}

/// Rows divided by their length, in at least float32.
fn unit(features: &Tensor) -> Result<Tensor> {
    let features =
        if features.kind() == Kind::Double { features.shallow_clone() } else { features.f_to_kind(Kind::Float)? };
    let length = features.f_norm_scalaropt_dim(2.0, [-1], true)?;
    Ok(features.f_div(&length)?)
}

/// A panic while a model was held leaves nothing half done in it that matters.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
