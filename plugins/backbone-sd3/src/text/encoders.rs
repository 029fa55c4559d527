//! All text encoders of a pipeline.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use advdmd_nn::clip::ClipTextOutput;
use advdmd_nn::{PromptTokenizer, read_json};
use advdmd_sdk::{Conditioning, Error, Result};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::{ClipEncoder, T5Encoder};
use crate::folder::model_files;

/// How [`TextEncoders::load`] makes the encoders, and what the transformer expects of them.
#[derive(Debug, Clone, Copy)]
pub struct TextOptions {
    /// Type to compute in.
    pub kind: Kind,
    /// Where to compute.
    pub device: Device,
    /// Whether to load T5 where the folder has it. Without it, its tokens are zeros.
    pub t5: bool,
    /// Tokens a prompt of T5, 1 to 512; diffusers' `max_sequence_length`, by default 256.
    pub t5_tokens: i64,
    /// Width D of the context: the transformer's `joint_attention_dim`.
    pub context_width: i64,
    /// Width P of the pooled embedding: the transformer's `pooled_projection_dim`.
    pub pooled_width: i64,
}

impl TextOptions {
    /// What can be refused before anything is loaded.
    ///
    /// # Errors
    /// A number of T5 tokens that diffusers refuses, or T5 in float16 where the pipeline has it and it is asked for.
    pub fn check(&self, pipeline: Option<&Path>) -> Result<()> {
        if !(1..=512).contains(&self.t5_tokens) {
            return Err(Error::config(format!("t5_tokens: expected 1 to 512, found {}", self.t5_tokens)));
        }
        match pipeline {
            Some(folder) if self.t5 && has_t5(folder)? => T5Encoder::check_kind(folder, self.kind),
            _ => Ok(()),
        }
    }
}

/// The text encoders of SD3 and SD3.5: diffusers' `StableDiffusion3Pipeline.encode_prompt`.
#[derive(Debug)]
pub struct TextEncoders {
    clip: [ClipEncoder; 2],
    t5: Option<T5Encoder>,
    options: TextOptions,
}

/// Folders of the encoders and their tokenizers, T5's last.
const PARTS: [(&str, &str); 3] =
    [("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"), ("text_encoder_3", "tokenizer_3")];

/// Prompts encoded at once: enough for the matrix products, few enough that the scores of T5-XXL's heads stay small.
const BATCH: usize = 8;

impl TextEncoders {
    /// Loads a pipeline's `text_encoder`, `text_encoder_2` and, if `options` ask for it and the pipeline has it,
    /// `text_encoder_3`, with their tokenizers; of each the weight files of `variant` where it has them.
    ///
    /// # Errors
    /// A missing or malformed file, weights that are not exactly the configuration's, widths that are not those of the
    /// transformer; T5 in float16. The message names the file.
    pub fn load(folder: &Path, variant: Option<&str>, options: TextOptions) -> Result<Self> {
        let TextOptions { kind, device, t5_tokens, context_width, pooled_width, .. } = options;
        options.check(Some(folder))?;
        let clip = |encoder: &str, tokenizer: &str, length| {
            ClipEncoder::load(&folder.join(encoder), &folder.join(tokenizer), length, variant, kind, device)
        };
        let first = clip("text_encoder", "tokenizer", None)?;
        // As diffusers, which gives both the first one's length.
        let second = clip("text_encoder_2", "tokenizer_2", Some(first.length()))?;
        let [pooled, hidden] = [
            first.config().projection_dim + second.config().projection_dim,
            first.config().hidden_size + second.config().hidden_size,
        ];
        if pooled != pooled_width {
            return Err(Error::config(format!(
                "{}: expected text_encoder and text_encoder_2 with projection_dim of {pooled_width} together, the \
                 transformer's pooled_projection_dim, found {pooled}",
                folder.display()
            )));
        }
        if hidden > context_width {
            return Err(Error::config(format!(
                "{}: expected text_encoder and text_encoder_2 with hidden_size of at most {context_width} together, \
                 the transformer's joint_attention_dim, found {hidden}",
                folder.display()
            )));
        }
        let t5 = (options.t5 && has_t5(folder)?)
            .then(|| T5Encoder::load(folder, t5_tokens as usize, variant, kind, device))
            .transpose()?;
        if let Some(width) = t5.as_ref().map(T5Encoder::width).filter(|width| *width != context_width) {
            return Err(Error::config(format!(
                "{}: expected d_model {context_width}, the transformer's joint_attention_dim, found {width}",
                folder.join("text_encoder_3").display()
            )));
        }
        Ok(Self { clip: [first, second], t5, options })
    }

    /// The files that [`TextEncoders::load`] reads, in its order, and whether T5's are among them as `t5` asks.
    ///
    /// # Errors
    /// A folder without weights; a T5 that is asked for, named and missing.
    pub fn files(folder: &Path, variant: Option<&str>, t5: bool) -> Result<(Vec<PathBuf>, bool)> {
        let t5 = t5 && has_t5(folder)?;
        let mut files = Vec::new();
        for (encoder, tokenizer) in PARTS.into_iter().take(if t5 { 3 } else { 2 }) {
            files.extend(PromptTokenizer::files(&folder.join(tokenizer)));
            files.extend(model_files(&folder.join(encoder), "model", variant)?);
        }
        Ok((files, t5))
    }

    /// Whether T5 is among them.
    pub fn has_t5(&self) -> bool {
        self.t5.is_some()
    }

    /// Tokens of one prompt's context: CLIP's and T5's.
    pub fn tokens(&self) -> i64 {
        self.clip[0].length() as i64 + self.options.t5_tokens
    }

    /// Embeds prompts: `context` `[B, 77 + T, D]` and `pooled` `[B, P]`, in the encoders' type, no mask (padding is
    /// attended to).
    ///
    /// # Errors
    /// A prompt that a tokenizer refuses; libtorch's.
    pub fn encode(&self, prompts: &[&str]) -> Result<Conditioning> {
        let options = (self.options.kind, self.options.device);
        if prompts.is_empty() {
            return Ok(Conditioning {
                context: Tensor::f_zeros([0, self.tokens(), self.options.context_width], options)?,
                pooled: Some(Tensor::f_zeros([0, self.options.pooled_width], options)?),
                mask: None,
            });
        }
        let parts = prompts.chunks(BATCH).map(|prompts| self.encode_some(prompts)).collect::<Result<Vec<_>>>()?;
        let (contexts, pooled): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        Ok(Conditioning { context: Tensor::f_cat(&contexts, 0)?, pooled: Some(Tensor::f_cat(&pooled, 0)?), mask: None })
    }

    fn encode_some(&self, prompts: &[&str]) -> Result<(Tensor, Tensor)> {
        let [first, second] = [self.clip[0].encode(prompts)?, self.clip[1].encode(prompts)?];
        let join = |part: fn(&ClipTextOutput) -> &Tensor| -> Result<Tensor> {
            Ok(Tensor::f_cat(&[part(&first), part(&second)], -1)?)
        };
        let clip = join(|output| &output.penultimate)?;
        let width = self.options.context_width;
        let clip = clip.f_constant_pad_nd([0, width - clip.size()[2]])?;
        let t5 = if let Some(t5) = &self.t5 {
            t5.encode(prompts)?
        } else {
            let shape = [prompts.len() as i64, self.options.t5_tokens, width];
            Tensor::f_zeros(shape, (self.options.kind, self.options.device))?
        };
        Ok((Tensor::f_cat(&[clip, t5], 1)?, join(|output| &output.pooled)?))
    }
}

/// Whether the pipeline has a third encoder: its `model_index.json` names one, or in a folder without such a file it is
/// there.
fn has_t5(folder: &Path) -> Result<bool> {
    let there = folder.join("text_encoder_3").is_dir();
    let index = folder.join("model_index.json");
    if !index.exists() {
        return Ok(there);
    }
    let index: BTreeMap<String, Value> = read_json(&index)?;
    // The class names of a part that is left out are null.
    let class = index.get("text_encoder_3").and_then(|names| names.get(1)).and_then(Value::as_str);
    match class {
        // A download that left it out must not pass for a model without it.
        Some(class) if !there => Err(Error::invalid(format!(
            "{}: model_index.json names {class}, but the folder is missing; fetch it, or ask for no T5",
            folder.join("text_encoder_3").display()
        ))),
        class => Ok(class.is_some()),
    }
}
