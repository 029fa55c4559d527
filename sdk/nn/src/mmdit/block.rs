//! One joint block.

use advdmd_sdk::{Error, Result};
use tch::Tensor;

use super::MmditConfig;
use crate::attention::AttentionConfig;
use crate::{FeedForward, JointAttention, Linear, Params, layer_norm, modulate};

/// diffusers' `JointTransformerBlock`: joint attention and a feed-forward layer per stream, each normalised, modulated
/// and gated by the conditioning vector; in some models also a second attention of the image alone.
#[derive(Debug)]
pub struct Block {
    modulation: Linear,
    text: TextStream,
    attention: JointAttention,
    dual_attention: Option<JointAttention>,
    feed_forward: FeedForward,
}

/// The text's half of a block.
#[derive(Debug)]
enum TextStream {
    Full {
        modulation: Linear,
        feed_forward: FeedForward,
    },
    /// In the last block the text is only attended to (`context_pre_only`).
    AttendedOnly {
        modulation: Linear,
    },
}

impl Block {
    /// Block `index` of the model, at its path.
    ///
    /// # Errors
    /// A missing or misshapen weight.
    pub fn new(config: &MmditConfig, index: usize, p: &Params<'_>) -> Result<Self> {
        let dim = config.dim();
        let last = index + 1 == config.num_layers;
        let dual = config.dual_attention_layers.contains(&index);
        let attention = AttentionConfig { dim, heads: config.num_attention_heads, qk_norm: config.qk_norm.is_some() };
        let text_modulation = p.pp("norm1_context.linear").linear(dim, if last { 2 * dim } else { 6 * dim })?;
        Ok(Self {
            modulation: p.pp("norm1.linear").linear(dim, if dual { 9 * dim } else { 6 * dim })?,
            text: if last {
                TextStream::AttendedOnly { modulation: text_modulation }
            } else {
                let feed_forward = FeedForward::new(dim, &p.pp("ff_context"))?;
                TextStream::Full { modulation: text_modulation, feed_forward }
            },
            attention: JointAttention::joint(attention, last, &p.pp("attn"))?,
            dual_attention: dual.then(|| JointAttention::image_only(attention, &p.pp("attn2"))).transpose()?,
            feed_forward: FeedForward::new(dim, &p.pp("ff"))?,
        })
    }

    /// Image tokens `[B, N, C]`, text tokens `[B, L, C]` and the activated conditioning `silu(c)` `[B, 1, C]` to the
    /// streams after the block. The text comes back only if `want_text`; the last block has none.
    ///
    /// # Errors
    /// libtorch's.
    pub fn forward(
        &self,
        image: &Tensor,
        text: &Tensor,
        conditioning: &Tensor,
        want_text: bool,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let want_text = want_text && matches!(self.text, TextStream::Full { .. });
        // shift, scale, gate of the attention, then of the feed-forward layer, then of the dual attention
        let modulation = chunks(&self.modulation, conditioning, if self.dual_attention.is_some() { 9 } else { 6 })?;
        let normed = layer_norm(image)?;
        let image_in = modulate(&normed, &modulation[0], &modulation[1])?;
        let text_modulation;
        let text_in = match &self.text {
            TextStream::Full { modulation, .. } => {
                text_modulation = chunks(modulation, conditioning, 6)?;
                modulate(&layer_norm(text)?, &text_modulation[0], &text_modulation[1])?
            }
            // diffusers' AdaLayerNormContinuous: scale before shift
            TextStream::AttendedOnly { modulation } => {
                text_modulation = chunks(modulation, conditioning, 2)?;
                modulate(&layer_norm(text)?, &text_modulation[1], &text_modulation[0])?
            }
        };
        let (image_out, text_out) = self.attention.forward(&image_in, Some(&text_in), want_text)?;

        let mut image = image.f_addcmul(&modulation[2], &image_out)?;
        if let Some(dual) = &self.dual_attention {
            let (out, _) = dual.forward(&modulate(&normed, &modulation[6], &modulation[7])?, None, false)?;
            image = image.f_addcmul(&modulation[8], &out)?;
        }
        let image = feed(&self.feed_forward, &image, &modulation)?;
        let text = match (&self.text, text_out) {
            (TextStream::Full { feed_forward, .. }, Some(out)) => {
                Some(feed(feed_forward, &text.f_addcmul(&text_modulation[2], &out)?, &text_modulation)?)
            }
            _ => None,
        };
        Ok((image, text))
    }
}

/// The gated feed-forward half of a stream.
fn feed(feed_forward: &FeedForward, x: &Tensor, modulation: &[Tensor]) -> Result<Tensor> {
    let out = feed_forward.forward(&modulate(&layer_norm(x)?, &modulation[3], &modulation[4])?)?;
    Ok(x.f_addcmul(&modulation[5], &out)?)
}

/// The conditioning `[B, 1, C]` through one linear layer, as `count` tensors `[B, 1, C]`.
pub(super) fn chunks(linear: &Linear, conditioning: &Tensor, count: usize) -> Result<Vec<Tensor>> {
    let parts = linear.forward(conditioning)?.f_chunk(count as i64, -1)?;
    if parts.len() != count {
        return Err(Error::failed(format!("modulation: expected {count} parts, found {}", parts.len())));
    }
    Ok(parts)
}
