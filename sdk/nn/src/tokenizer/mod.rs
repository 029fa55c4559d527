//! Prompts to token ids, as transformers 5 makes them.

mod clip;
mod special;
mod t5;

use std::path::{Path, PathBuf};

use advdmd_sdk::{Error, Result};
use serde::de::DeserializeOwned;
use tch::{Device, Tensor};
use tokenizers::{Tokenizer, TruncationParams};

use special::Special;

/// The file that may hold a tokenizer but for its special tokens.
const WHOLE: &str = "tokenizer.json";

/// A tokenizer that gives every prompt the same number of tokens: special tokens added, cut behind or padded behind.
#[derive(Debug)]
pub struct PromptTokenizer {
    inner: Tokenizer,
    pad: u32,
    /// Number of special tokens added to every prompt.
    special: usize,
    length: usize,
}

impl PromptTokenizer {
    /// A CLIP tokenizer from its folder: `tokenizer.json`, or `vocab.json` and `merges.txt`. Its length is the folder's
    /// `model_max_length`, if it has one.
    ///
    /// # Errors
    /// A missing or malformed file, or one that contradicts another; the message names it.
    pub fn clip(folder: &Path) -> Result<(Self, Option<usize>)> {
        let read = || {
            let special = Special::read(folder, &clip::DEFAULTS)?;
            let tokenizer = match tokenizer_json(folder)? {
                Some(tokenizer) => tokenizer,
                None => clip::from_vocabulary(folder, &special)?,
            };
            let expected = [special.named("bos_token")?, special.named("eos_token")?];
            let max_length = special.max_length();
            Ok((Self::new(tokenizer, &special, &expected)?, max_length))
        };
        read().map_err(|error: Error| error.context(folder.display()))
    }

    /// A T5 tokenizer from its folder's `tokenizer.json`.
    ///
    /// # Errors
    /// A missing or malformed file, or one that contradicts another; the message names it.
    pub fn t5(folder: &Path) -> Result<Self> {
        let read = || {
            let special = Special::read(folder, &t5::DEFAULTS)?;
            let tokenizer = tokenizer_json(folder)?.ok_or_else(|| t5::missing(folder))?;
            Self::new(tokenizer, &special, &[special.named("eos_token")?])
        };
        read().map_err(|error: Error| error.context(folder.display()))
    }

    /// The files of a tokenizer's folder that are read.
    pub fn files(folder: &Path) -> Vec<PathBuf> {
        let vocabulary: &[&str] = if folder.join(WHOLE).exists() { &[WHOLE] } else { &clip::FILES };
        let names = special::FILES.iter().chain(vocabulary);
        names.map(|name| folder.join(name)).filter(|path| path.is_file()).collect()
    }

    /// `expected`: what the empty prompt must become.
    fn new(mut inner: Tokenizer, special: &Special, expected: &[&str]) -> Result<Self> {
        special.add_to(&mut inner)?;
        // A file may hold the padding and truncation of its last use.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(Error::failed)?;
        let pad = special.named("pad_token")?;
        let pad = inner.token_to_id(pad).ok_or_else(|| Error::invalid(format!("pad_token {pad:?} is no token")))?;
        let found = inner.encode("", true).map_err(Error::failed)?;
        if found.get_tokens() != expected {
            let found = found.get_tokens();
            return Err(Error::invalid(format!("the empty prompt: expected the tokens {expected:?}, found {found:?}")));
        }
        Ok(Self { inner, pad, special: expected.len(), length: expected.len() })
    }

    /// The same, giving `length` tokens.
    ///
    /// # Errors
    /// A length without room for a token beside the special ones.
    pub fn with_length(mut self, length: usize) -> Result<Self> {
        if length <= self.special {
            let least = self.special + 1;
            return Err(Error::config(format!("tokens a prompt: expected at least {least}, found {length}")));
        }
        let truncation = TruncationParams { max_length: length, ..TruncationParams::default() };
        self.inner.with_truncation(Some(truncation)).map_err(Error::failed)?;
        Ok(Self { length, ..self })
    }

    /// Token ids `[B, length]`, int64, all below `vocab_size`.
    ///
    /// # Errors
    /// A prompt that the tokenizer refuses or that has tokens which a model of `vocab_size` lacks; the message quotes
    /// it.
    pub fn encode(&self, prompts: &[&str], vocab_size: i64, device: Device) -> Result<Tensor> {
        let mut ids = Vec::with_capacity(prompts.len() * self.length);
        for prompt in prompts {
            let encoding = self.inner.encode(*prompt, true);
            let encoding = encoding.map_err(|error| Error::invalid(format!("prompt {prompt:?}: {error}")))?;
            let tokens = encoding.get_ids();
            let largest = tokens.iter().chain([&self.pad]).max().map_or(0, |&id| i64::from(id));
            if largest >= vocab_size {
                return Err(Error::invalid(format!(
                    "prompt {prompt:?}: the tokenizer gives token {largest}, but the model's vocab_size is {vocab_size}"
                )));
            }
            ids.extend(tokens.iter().map(|&id| i64::from(id)));
            ids.extend(std::iter::repeat_n(i64::from(self.pad), self.length.saturating_sub(tokens.len())));
        }
        let shape = [prompts.len() as i64, self.length as i64];
        Ok(Tensor::f_from_slice(&ids)?.f_view(shape)?.f_to(device)?)
    }
}

fn tokenizer_json(folder: &Path) -> Result<Option<Tokenizer>> {
    let path = folder.join(WHOLE);
    if !path.exists() {
        return Ok(None);
    }
    Tokenizer::from_file(&path).map(Some).map_err(|error| Error::failed(error).context(WHOLE))
}

/// A JSON file of the tokenizer's folder, which callers put before the error; `None` if there is none.
fn read_if_there<T: DeserializeOwned>(folder: &Path, file: &str) -> Result<Option<T>> {
    let path = folder.join(file);
    if !path.exists() {
        return Ok(None);
    }
    let read = || Ok(serde_json::from_str(&std::fs::read_to_string(path).map_err(Error::failed)?)?);
    read().map_err(|error: Error| error.context(file))
}
