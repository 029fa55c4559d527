//! Captions as numbers: 26 words, at most eight of them, embedded as fixed one-hot vectors.
//!
//! There is nothing to train here, so the transformer's own input layers learn the meaning of the words, and a
//! caption's embedding is the same in every run.

use advdmd_sdk::{Conditioning, Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

/// Words by id; id 0 pads.
pub const VOCABULARY: [&str; 27] = [
    "<pad>", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "red", "green", "blue", "yellow", "purple", "cyan",
    "two", "three", "four", "a", "and", "left", "right", "above", "below", "of",
];

/// Words of a caption, padding included.
pub const LENGTH: usize = 8;

/// Width of a token's embedding: one-hot word, then one-hot position.
pub const CONTEXT_WIDTH: i64 = (VOCABULARY.len() + LENGTH) as i64;

/// Width of the pooled embedding: a one-hot word for each position.
pub const POOLED_WIDTH: i64 = (VOCABULARY.len() * LENGTH) as i64;

/// Scales of the one-hot embeddings; stored beside the model as `text_encoder.json`.
///
/// The defaults give each token, and each word of the pooled embedding, about unit mean square, as a normalised
/// encoder's output would have.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TextEncoder {
    /// Value of the ones of the token embeddings.
    pub context_scale: f64,
    /// Value of the ones of the pooled embedding.
    pub pooled_scale: f64,
}

impl Default for TextEncoder {
    /// `sqrt(35)` and `sqrt(27)`.
    fn default() -> Self {
        Self { context_scale: (CONTEXT_WIDTH as f64).sqrt(), pooled_scale: (VOCABULARY.len() as f64).sqrt() }
    }
}

impl TextEncoder {
    /// Checks that the scales are finite and not negative; 0 switches an input off.
    ///
    /// # Errors
    /// Names the key.
    pub fn check(&self) -> Result<()> {
        for (key, scale) in [("context_scale", self.context_scale), ("pooled_scale", self.pooled_scale)] {
            if !(scale.is_finite() && scale >= 0.0) {
                return Err(Error::config(format!("{key}: expected a finite number of at least 0, found {scale}")));
            }
        }
        Ok(())
    }

    /// Embeds captions: `context` `[B, 8, 35]` and `pooled` `[B, 216]`, float32, no mask (padding is a word like the
    /// others, as in SD3). The empty caption is the unconditional one: eight times padding.
    ///
    /// # Errors
    /// A caption that [`tokenize`] refuses.
    pub fn encode(&self, prompts: &[&str], device: Device) -> Result<Conditioning> {
        let (words, width) = (VOCABULARY.len(), CONTEXT_WIDTH as usize);
        let mut context = vec![0.0_f32; prompts.len() * LENGTH * width];
        let mut pooled = vec![0.0_f32; prompts.len() * LENGTH * words];
        for (row, prompt) in prompts.iter().enumerate() {
            for (position, id) in tokenize(prompt)?.into_iter().enumerate() {
                let token = row * LENGTH + position;
                context[token * width + id] = self.context_scale as f32;
                context[token * width + words + position] = self.context_scale as f32;
                pooled[token * words + id] = self.pooled_scale as f32;
            }
        }
        let batch = prompts.len() as i64;
        let tensor = |values: &[f32], shape: &[i64]| -> Result<Tensor> {
            Ok(Tensor::f_from_slice(values)?.f_reshape(shape)?.f_to(device)?)
        };
        Ok(Conditioning {
            context: tensor(&context, &[batch, LENGTH as i64, CONTEXT_WIDTH])?,
            pooled: Some(tensor(&pooled, &[batch, POOLED_WIDTH])?),
            mask: None,
        })
    }
}

/// Ids of a caption's words, split on white space and padded to eight. The plural s of a digit is dropped: `7s` is `7`.
///
/// # Errors
/// A word outside the vocabulary (with the nearest one that is in it), or more than eight words; both quote the caption.
pub fn tokenize(prompt: &str) -> Result<[usize; LENGTH]> {
    let mut ids = [0; LENGTH];
    let count = prompt.split_whitespace().count();
    if count > LENGTH {
        return Err(Error::invalid(format!("prompt {prompt:?}: expected at most {LENGTH} words, found {count}")));
    }
    for (slot, word) in ids.iter_mut().zip(prompt.split_whitespace()) {
        *slot = id_of(word).ok_or_else(|| {
            let nearest = nearest(word);
            Error::invalid(format!("prompt {prompt:?}: unknown word {word:?}; the nearest known word is {nearest:?}"))
        })?;
    }
    Ok(ids)
}

fn id_of(word: &str) -> Option<usize> {
    let singular = word.strip_suffix('s').filter(|digit| digit.len() == 1 && digit.as_bytes()[0].is_ascii_digit());
    let word = singular.unwrap_or(word);
    // Padding is not a word that a caption may hold.
    VOCABULARY.iter().skip(1).position(|known| *known == word).map(|index| index + 1)
}

/// The known word of the smallest edit distance. Digits are compared by their English names as well, so that `seven`
/// leads to `7`.
fn nearest(word: &str) -> &'static str {
    const NAMES: [&str; 10] = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
    let word = word.to_lowercase();
    let words = VOCABULARY.iter().skip(1).map(|known| (*known, *known));
    let names = VOCABULARY[1..].iter().zip(NAMES).map(|(digit, name)| (*digit, name));
    let best = words.chain(names).min_by_key(|(_, spelling)| strsim::osa_distance(&word, spelling));
    best.map_or(VOCABULARY[1], |(known, _)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_the_fixed_ids() {
        assert_eq!(tokenize("a red 7 and a blue 3").unwrap(), [20, 11, 8, 21, 20, 13, 4, 0]);
        assert_eq!(tokenize("two 7s").unwrap(), [17, 8, 0, 0, 0, 0, 0, 0]);
        assert_eq!(tokenize("a 7 left of  a 3").unwrap(), [20, 8, 22, 26, 20, 4, 0, 0]);
        assert_eq!(tokenize("").unwrap(), [0; 8]);
    }

    #[test]
    fn unknown_and_too_many_words_are_refused_by_name() {
        let message = |prompt| tokenize(prompt).unwrap_err().to_string();
        assert_eq!(
            message("a purpel 7"),
            "prompt \"a purpel 7\": unknown word \"purpel\"; the nearest known word is \"purple\""
        );
        assert!(message("a seven").ends_with("is \"7\""));
        assert!(message("a <pad>").contains("unknown word \"<pad>\""));
        assert!(message("reds").ends_with("is \"red\""));
        let long = "a red 7 and a blue 3 and a 4";
        assert_eq!(message(long), format!("prompt {long:?}: expected at most 8 words, found 10"));
    }

    #[test]
    fn embeddings_are_one_hot_at_word_and_position() {
        let text = TextEncoder { context_scale: 2.0, pooled_scale: 3.0 }.encode(&["a 7", ""], Device::Cpu).unwrap();
        assert_eq!(text.context.size(), [2, 8, 35]);
        assert_eq!(text.context.double_value(&[0, 1, 8]), 2.0);
        assert_eq!(text.context.double_value(&[0, 1, 27 + 1]), 2.0);
        assert_eq!(text.context.sum(tch::Kind::Float).double_value(&[]), 2.0 * 2.0 * 16.0);
        let pooled = text.pooled.unwrap();
        assert_eq!(pooled.size(), [2, 216]);
        assert_eq!(pooled.double_value(&[0, 27 + 8]), 3.0);
        assert_eq!(pooled.double_value(&[1, 27]), 3.0);
        assert_eq!(pooled.sum(tch::Kind::Float).double_value(&[]), 3.0 * 16.0);
        assert_eq!(TextEncoder::default().encode(&[], Device::Cpu).unwrap().context.size(), [0, 8, 35]);
    }
}
