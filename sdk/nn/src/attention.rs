//! Attention over image tokens, or over image and text tokens jointly.

use advdmd_sdk::Result;
use tch::Tensor;

use crate::norm::{EPS, RmsNorm};
use crate::{Linear, Params};

/// Multi-head attention of MMDiT (Esser et al., arXiv:2403.03206; diffusers `JointAttnProcessor2_0`): each stream has
/// its own projections, all tokens attend to all, in the order image, text, without a mask.
#[derive(Debug)]
pub struct JointAttention {
    heads: i64,
    image: Stream,
    text: Option<Stream>,
}

/// The projections of one stream of tokens.
#[derive(Debug)]
struct Stream {
    query: Linear,
    key: Linear,
    value: Linear,
    /// `None` in the last block, whose text output is dropped.
    output: Option<Linear>,
    norms: Option<[RmsNorm; 2]>,
}

/// What [`JointAttention::new`] needs to know.
#[derive(Debug, Clone, Copy)]
pub struct AttentionConfig {
    /// Width of the tokens, `heads x head_dim`.
    pub dim: i64,
    /// Number of heads.
    pub heads: i64,
    /// Whether queries and keys are RMS-normalised per head.
    pub qk_norm: bool,
}

impl JointAttention {
    /// Attention of the image with itself: `to_q`, `to_k`, `to_v`, `to_out.0`, `norm_q`, `norm_k`.
    ///
    /// # Errors
    /// A missing or misshapen weight.
    pub fn image_only(config: AttentionConfig, p: &Params<'_>) -> Result<Self> {
        let image = Stream::new(config, p, ["to_q", "to_k", "to_v"], Some("to_out.0"), ["norm_q", "norm_k"])?;
        Ok(Self { heads: config.heads, image, text: None })
    }

    /// Joint attention: as [`JointAttention::image_only`], and for the text `add_q_proj`, `add_k_proj`, `add_v_proj`,
    /// `norm_added_q`, `norm_added_k`, and `to_add_out` unless `context_pre_only`.
    ///
    /// # Errors
    /// A missing or misshapen weight.
    pub fn joint(config: AttentionConfig, context_pre_only: bool, p: &Params<'_>) -> Result<Self> {
        let output = (!context_pre_only).then_some("to_add_out");
        let names = ["add_q_proj", "add_k_proj", "add_v_proj"];
        let text = Stream::new(config, p, names, output, ["norm_added_q", "norm_added_k"])?;
        Ok(Self { text: Some(text), ..Self::image_only(config, p)? })
    }

    /// Image tokens `[B, N, C]` and, for joint attention, text tokens `[B, L, C]` to the outputs of both; that of the
    /// text is computed only if `want_text`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn forward(&self, image: &Tensor, text: Option<&Tensor>, want_text: bool) -> Result<(Tensor, Option<Tensor>)> {
        let image_tokens = image.size()[1];
        let mut streams = vec![self.image.project(image, self.heads, true)?];
        if let (Some(stream), Some(text)) = (&self.text, text) {
            // A text output that nobody reads needs keys and values, but no queries.
            streams.push(stream.project(text, self.heads, want_text)?);
        }
        let joined = |pick: fn(&[Option<Tensor>; 3]) -> &Option<Tensor>| -> Result<Tensor> {
            let parts: Vec<_> = streams.iter().filter_map(|stream| pick(stream).as_ref()).collect();
            let tokens = if let [only] = parts[..] { only.shallow_clone() } else { Tensor::f_cat(&parts, 1)? };
            Ok(tokens.f_transpose(1, 2)?) // [B, heads, tokens, head_dim]
        };
        let (query, key, value) = (joined(|s| &s[0])?, joined(|s| &s[1])?, joined(|s| &s[2])?);
        let attended =
            Tensor::f_scaled_dot_product_attention(&query, &key, &value, None::<&Tensor>, 0.0, false, None, false)?;
        let attended = attended.f_transpose(1, 2)?.f_flatten(2, 3)?;
        let text_tokens = attended.size()[1] - image_tokens;
        if text_tokens == 0 {
            return Ok((self.image.emit(&attended)?, None));
        }
        // One split, whose gradient is one concatenation; two slices would each make a gradient of full size.
        let parts = attended.f_split_with_sizes([image_tokens, text_tokens], 1)?;
        let text = self.text.as_ref().map(|stream| stream.emit(&parts[1])).transpose()?;
        Ok((self.image.emit(&parts[0])?, text))
    }
}

impl Stream {
    fn new(
        config: AttentionConfig,
        p: &Params<'_>,
        [query, key, value]: [&str; 3],
        output: Option<&str>,
        norms: [&str; 2],
    ) -> Result<Self> {
        let linear = |name: &str| p.pp(name).linear(config.dim, config.dim);
        let norm = |name: &str| -> Result<RmsNorm> {
            Ok(RmsNorm::new(p.pp(name).get("weight", &[config.dim / config.heads])?, EPS))
        };
        let norms = match norms {
            [query, key] if config.qk_norm => Some([norm(query)?, norm(key)?]),
            _ => None,
        };
        Ok(Self {
            query: linear(query)?,
            key: linear(key)?,
            value: linear(value)?,
            output: output.map(linear).transpose()?,
            norms,
        })
    }

    /// Query (if wanted), key and value, `[B, tokens, heads, head_dim]`.
    fn project(&self, x: &Tensor, heads: i64, want_query: bool) -> Result<[Option<Tensor>; 3]> {
        let split = |linear: &Linear| -> Result<Tensor> { Ok(linear.forward(x)?.f_unflatten(-1, [heads, -1])?) };
        let mut query = want_query.then(|| split(&self.query)).transpose()?;
        let (mut key, value) = (split(&self.key)?, split(&self.value)?);
        if let Some([query_norm, key_norm]) = &self.norms {
            query = query.map(|query| query_norm.forward(&query)).transpose()?;
            key = key_norm.forward(&key)?;
        }
        Ok([query, Some(key), Some(value)])
    }

    fn emit(&self, x: &Tensor) -> Result<Tensor> {
        // Dense tokens let libtorch add the bias inside the product.
        self.output.as_ref().map_or_else(|| Ok(x.shallow_clone()), |linear| linear.forward(&x.f_contiguous()?))
    }
}
