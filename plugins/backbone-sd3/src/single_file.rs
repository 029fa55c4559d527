//! The transformer of an original single-file checkpoint, under diffusers' names.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use advdmd_nn::mmdit::{Mmdit, MmditConfig};
use advdmd_nn::{Stored, Weights};
use advdmd_sdk::{Error, Result};
use tch::{Device, Kind, Tensor};

use crate::original::{Origin, origin};

/// What whole checkpoints put before the transformer's names.
const PREFIX: &str = "model.diffusion_model.";

/// Width of one head where nothing in the file tells it: that of every released model.
const HEAD_DIM: i64 = 64;

/// Latent side that every released model was trained on last.
const SAMPLE_SIZE: i64 = 128;

/// Whether the file has the names of the original release.
pub fn is_original(file: &Stored) -> bool {
    file.shape(&format!("{}x_embedder.proj.weight", prefix(file))).is_some()
}

fn prefix(file: &Stored) -> &'static str {
    if file.names().any(|name| name.starts_with(PREFIX)) { PREFIX } else { "" }
}

/// The architecture, read off names and shapes. `beside`, the configuration of a pipeline of the same width, says what
/// they do not tell: the width of a head without qk-normalisation, and the side that the model was trained on.
///
/// # Errors
/// A tensor that every SD3 has is missing or has another rank; sizes that do not fit each other.
pub fn config_of(file: &Stored, beside: Option<&MmditConfig>) -> Result<MmditConfig> {
    let prefix = prefix(file);
    let shape = |name: &str, rank: usize| -> Result<&[i64]> {
        let name = format!("{prefix}{name}");
        match file.shape(&name) {
            Some(shape) if shape.len() == rank => Ok(shape),
            Some(shape) => Err(Error::shape(&name, format!("of {rank} dimensions"), shape)),
            None => Err(Error::invalid(format!("{}: no SD3 checkpoint: there is no {name}", file.source()))),
        }
    };
    let patches = shape("x_embedder.proj.weight", 4)?;
    let (dim, in_channels, patch_size) = (patches[0], patches[1], patches[2]);
    let positions = shape("pos_embed", 3)?[1];
    let pos_embed_max_size = (positions as f64).sqrt().round() as i64;
    let mut blocks = BTreeSet::new();
    let mut dual = BTreeSet::new();
    for name in file.names() {
        let Some(rest) = name.strip_prefix(prefix).and_then(|name| name.strip_prefix("joint_blocks.")) else {
            continue;
        };
        let Some((index, rest)) = rest.split_once('.') else { continue };
        let Ok(index) = index.parse::<usize>() else { continue };
        blocks.insert(index);
        if rest.starts_with("x_block.attn2.") {
            dual.insert(index);
        }
    }
    let query_norm = file.shape(&format!("{prefix}joint_blocks.0.x_block.attn.ln_q.weight"));
    let beside = beside.filter(|config| config.dim() == dim);
    let head_dim = query_norm.and_then(|shape| shape.first()).copied();
    let head_dim = head_dim.or(beside.map(|config| config.attention_head_dim)).unwrap_or(HEAD_DIM);
    if head_dim < 1 || dim % head_dim != 0 {
        return Err(Error::invalid(format!(
            "{}: a width of {dim} is no multiple of the head's width, taken to be {head_dim}; put the \
             config.json of diffusers into `transformer/` beside the file",
            file.source()
        )));
    }
    let config = MmditConfig {
        sample_size: beside.map_or(SAMPLE_SIZE, |config| config.sample_size),
        patch_size,
        in_channels,
        num_layers: blocks.len(),
        attention_head_dim: head_dim,
        num_attention_heads: dim / head_dim,
        joint_attention_dim: shape("context_embedder.weight", 2)?[1],
        caption_projection_dim: dim,
        pooled_projection_dim: shape("y_embedder.mlp.0.weight", 2)?[1],
        out_channels: Some(shape("final_layer.linear.weight", 2)?[0] / (patch_size * patch_size).max(1)),
        pos_embed_max_size,
        dual_attention_layers: dual.into_iter().collect(),
        qk_norm: query_norm.map(|_| "rms_norm".to_owned()),
    };
    config.check().map_err(|error| error.context(file.source()))?;
    Ok(config)
}

/// A tensor of the transformer and the rows of the file that it is.
struct Piece {
    name: String,
    rows: Range<i64>,
    tensor: String,
    swapped: bool,
}

/// Checks that the file holds exactly the transformer of `config`.
///
/// # Errors
/// As [`Weights::check`], in the file's own names.
pub fn check(file: &Stored, config: &MmditConfig) -> Result<()> {
    pieces(file, config).map(drop)
}

/// Reads the transformer, split and renamed, each tensor straight to `kind` and `device`.
///
/// # Errors
/// As [`check`], before anything is read.
pub fn read(file: &Stored, config: &MmditConfig, kind: Option<Kind>, device: Device) -> Result<Weights> {
    let tensors = pieces(file, config)?.into_iter().map(|Piece { name, rows, tensor, swapped }| {
        if !swapped {
            return Ok((name, file.read_rows(&tensor, rows, kind, device)?));
        }
        let middle = i64::midpoint(rows.start, rows.end);
        let halves = [middle..rows.end, rows.start..middle].map(|rows| file.read_rows(&tensor, rows, kind, device));
        let [first, second] = halves;
        Ok((name, Tensor::f_cat(&[first?, second?], 0)?))
    });
    tensors.collect()
}

fn pieces(file: &Stored, config: &MmditConfig) -> Result<Vec<Piece>> {
    let prefix = prefix(file);
    let mut pieces = Vec::new();
    let mut expected: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for (name, shape) in Mmdit::layout(config)? {
        let Origin { tensor, part, parts, swapped } =
            origin(config, &name).ok_or_else(|| Error::unsupported(format!("{name} in a single file")))?;
        let tensor = format!("{prefix}{tensor}");
        let first = part as i64 * shape[0];
        pieces.push(Piece { rows: first..first + shape[0], tensor: tensor.clone(), swapped, name });
        let mut whole = shape;
        whole[0] *= parts as i64;
        expected.insert(tensor, whole);
    }
    // Encoders and autoencoder, where the file holds them, and what trainers leave behind.
    let ignored = |name: &str| if prefix.is_empty() { is_other_part(name) } else { !name.starts_with(prefix) };
    let name_of = |name: &str| (!ignored(name)).then(|| name.to_owned());
    file.check_layout(&expected.into_iter().collect::<Vec<_>>(), name_of)?;
    Ok(pieces)
}

fn is_other_part(name: &str) -> bool {
    ["first_stage_model.", "text_encoders.", "cond_stage_model.", "conditioner.", "model_ema."]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}
