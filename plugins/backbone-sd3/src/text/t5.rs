//! The T5 encoder.

use std::path::Path;

use advdmd_nn::{Layout, Linear, Params, PromptTokenizer, RmsNorm, Stored};
use advdmd_sdk::{Error, Result, Tuning};
use tch::{Device, Kind, Tensor};

use super::T5Config;

/// transformers' `T5EncoderModel` (T5 v1.1: Raffel et al., arXiv:1910.10683, with gated feed-forward layers, Shazeer,
/// arXiv:2002.05202), without a mask: padding is attended to, as SD3 was trained.
#[derive(Debug)]
pub struct T5Model {
    tokens: Tensor,
    distances: Tensor,
    buckets: i64,
    max_distance: i64,
    layers: Vec<Layer>,
    norm: RmsNorm,
}

#[derive(Debug)]
struct Layer {
    attention_norm: RmsNorm,
    heads: i64,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    feed_norm: RmsNorm,
    gate: Linear,
    project_in: Linear,
    project_out: Linear,
}

impl T5Model {
    /// The encoder over the weights of `p`: `shared.weight` and `encoder.*`.
    ///
    /// # Errors
    /// A missing or misshapen weight.
    pub fn new(config: &T5Config, p: &Params<'_>) -> Result<Self> {
        let encoder = p.pp("encoder");
        let buckets = config.relative_attention_num_buckets;
        let first = encoder.pp("block.0.layer.0.SelfAttention.relative_attention_bias");
        Ok(Self {
            tokens: p.get("shared.weight", &[config.vocab_size, config.d_model])?,
            distances: first.get("weight", &[buckets, config.num_heads])?,
            buckets,
            max_distance: config.relative_attention_max_distance,
            layers: (0..config.num_layers)
                .map(|index| Layer::new(config, &encoder.pp("block").pp(index).pp("layer")))
                .collect::<Result<_>>()?,
            norm: norm(config, &encoder.pp("final_layer_norm"))?,
        })
    }

    /// Names and shapes of the weights.
    ///
    /// # Errors
    /// A configuration whose sizes do not fit.
    pub fn layout(config: &T5Config) -> Result<Layout> {
        config.check()?;
        Params::record(|p| Self::new(config, p))
    }

    /// Token ids `[B, L]` (int64, on the weights' device) to embeddings `[B, L, D]`, in the weights' type.
    ///
    /// # Errors
    /// libtorch's, e.g. for an id outside the vocabulary.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let mut x = Tensor::f_embedding(&self.tokens, ids, -1, false, false)?;
        let bias = self.bias(ids.size().last().copied().unwrap_or_default())?;
        for layer in &self.layers {
            x = layer.forward(&x, &bias)?;
        }
        self.norm.forward(&x)
    }

    /// What each head adds to its scores for the distance between two tokens, `[1, heads, L, L]`.
    fn bias(&self, length: i64) -> Result<Tensor> {
        let classes = distance_classes(length, self.buckets, self.max_distance)?.f_to(self.distances.device())?;
        let bias = Tensor::f_embedding(&self.distances, &classes, -1, false, false)?; // [L, L, heads]
        Ok(bias.f_permute([2, 0, 1])?.f_unsqueeze(0)?.f_contiguous()?)
    }
}

/// Classes of the distances from each of `length` tokens to each other, `[L, L]`, int64: half of the `buckets` for
/// either direction, of those half for each distance of its own and the rest logarithmically up to `max_distance`
/// (transformers' `T5Attention._relative_position_bucket`).
fn distance_classes(length: i64, buckets: i64, max_distance: i64) -> Result<Tensor> {
    let (side, exact) = (buckets / 2, buckets / 4);
    let positions = Tensor::f_arange(length, (Kind::Int64, Device::Cpu))?;
    let ahead = positions.f_unsqueeze(0)?.f_sub(&positions.f_unsqueeze(1)?)?;
    let distance = ahead.f_abs()?;
    // In float32 and in this order, so that distances on the border of two classes fall as transformers' do.
    let far = distance.f_to_kind(Kind::Float)?.f_div_scalar(exact as f64)?.f_log()?;
    let far = far.f_div_scalar((max_distance as f64 / exact as f64).ln())?.f_mul_scalar((side - exact) as f64)?;
    // The logarithm of 0 is minus infinity, which no integer is; it is not used.
    let far = far.f_clamp(0.0, side as f64)?.f_to_kind(Kind::Int64)?.f_add_scalar(exact)?.f_clamp_max(side - 1)?;
    let class = distance.f_where_self(&distance.f_lt(exact)?, &far)?;
    Ok(class.f_add(&ahead.f_gt(0)?.f_to_kind(Kind::Int64)?.f_mul_scalar(side)?)?)
}

fn norm(config: &T5Config, p: &Params<'_>) -> Result<RmsNorm> {
    Ok(RmsNorm::new(p.get("weight", &[config.d_model])?, config.layer_norm_epsilon))
}

impl Layer {
    fn new(config: &T5Config, p: &Params<'_>) -> Result<Self> {
        let (dim, inner) = (config.d_model, config.num_heads * config.d_kv);
        let (attention, feed) = (p.pp("0"), p.pp("1"));
        let project = |name: &str| attention.pp("SelfAttention").pp(name).linear_without_bias(dim, inner);
        let dense =
            |name: &str, inputs, outputs| feed.pp("DenseReluDense").pp(name).linear_without_bias(inputs, outputs);
        Ok(Self {
            attention_norm: norm(config, &attention.pp("layer_norm"))?,
            heads: config.num_heads,
            query: project("q")?,
            key: project("k")?,
            value: project("v")?,
            output: attention.pp("SelfAttention.o").linear_without_bias(inner, dim)?,
            feed_norm: norm(config, &feed.pp("layer_norm"))?,
            gate: dense("wi_0", dim, config.d_ff)?,
            project_in: dense("wi_1", dim, config.d_ff)?,
            project_out: dense("wo", config.d_ff, dim)?,
        })
    }

    fn forward(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let x = x.f_add(&self.attend(&self.attention_norm.forward(x)?, bias)?)?;
        let normed = self.feed_norm.forward(&x)?;
        let gate = self.gate.forward(&normed)?.f_gelu("tanh")?;
        Ok(x.f_add(&self.project_out.forward(&gate.f_mul(&self.project_in.forward(&normed)?)?)?)?)
    }

    fn attend(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let heads = |linear: &Linear| -> Result<Tensor> {
            Ok(linear.forward(x)?.f_unflatten(-1, [self.heads, -1])?.f_transpose(1, 2)?)
        };
        let (query, key, value) = (heads(&self.query)?, heads(&self.key)?, heads(&self.value)?);
        // T5 does not divide the scores by the root of the head's width.
        let attended =
            Tensor::f_scaled_dot_product_attention(&query, &key, &value, Some(bias), 0.0, false, Some(1.0), false)?;
        self.output.forward(&attended.f_transpose(1, 2)?.f_flatten(2, 3)?)
    }
}

/// T5 with its tokenizer.
#[derive(Debug)]
pub struct T5Encoder {
    tokenizer: PromptTokenizer,
    model: T5Model,
    config: T5Config,
}

impl T5Encoder {
    /// From a pipeline's `text_encoder_3` and `tokenizer_3`, giving `length` tokens a prompt.
    ///
    /// # Errors
    /// A missing or malformed file, weights that are not exactly the configuration's, or float16, in which T5 overflows.
    pub fn load(folder: &Path, length: usize, variant: Option<&str>, kind: Kind, device: Device) -> Result<Self> {
        let encoder = folder.join("text_encoder_3");
        Self::check_kind(folder, kind)?;
        // The small files first, so that what is wrong with them is said before gigabytes are read.
        let tokenizer = PromptTokenizer::t5(&folder.join("tokenizer_3"))?.with_length(length)?;
        let config = T5Config::read(&encoder.join("config.json"))?;
        let stored = Stored::open_part(&encoder, "model", variant)?;
        // The table is stored under the name of the whole model, of its encoder, or both.
        let twice = stored.shape("shared.weight").is_some();
        let name_of = |name: &str| match name {
            "encoder.embed_tokens.weight" => (!twice).then(|| "shared.weight".to_owned()),
            _ => Some(name.to_owned()),
        };
        let weights = stored.read_layout(&T5Model::layout(&config)?, name_of, Some(kind), device)?;
        let model = T5Model::new(&config, &Params::new(&weights, &Tuning::Frozen, &[], 0)?)?;
        Ok(Self { tokenizer, model, config })
    }

    /// # Errors
    /// Float16, in which T5 overflows.
    pub(super) fn check_kind(folder: &Path, kind: Kind) -> Result<()> {
        if kind != Kind::Half {
            return Ok(());
        }
        Err(Error::config(format!(
            "{}: T5 overflows in float16; compute in bf16 or f32, or without T5 (`t5 = false`)",
            folder.join("text_encoder_3").display()
        )))
    }

    /// Width D of the embeddings.
    pub fn width(&self) -> i64 {
        self.config.d_model
    }

    /// Prompts to embeddings `[B, length, D]`, in the weights' type.
    ///
    /// # Errors
    /// A prompt that the tokenizer refuses, or that has tokens outside the model's vocabulary; libtorch's.
    pub fn encode(&self, prompts: &[&str]) -> Result<Tensor> {
        let ids = self.tokenizer.encode(prompts, self.config.vocab_size, self.model.tokens.device())?;
        self.model.forward(&ids)
    }
}
