//! Names of the original release (`sd3_medium.safetensors`, `sd3.5_medium.safetensors`, …) and what differs there.
//!
//! After diffusers' `scripts/convert_sd3_to_diffusers.py`: query, key and value are one layer `qkv`, and the two
//! modulations that diffusers computes with `AdaLayerNormContinuous` have shift before scale.

use advdmd_nn::mmdit::MmditConfig;
use advdmd_sdk::{OriginalModule, Result};

/// Where a tensor of diffusers' transformer is in the original release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Name of the original tensor, without the prefix that some files have.
    pub tensor: String,
    /// Which of `parts` blocks of its rows it is.
    pub part: usize,
    /// Number of blocks of rows.
    pub parts: usize,
    /// Whether the two halves of the rows are exchanged.
    pub swapped: bool,
}

/// Where the tensor `name` of diffusers' transformer is in the original release; `None` for a name that is not the
/// transformer's.
pub fn origin(config: &MmditConfig, name: &str) -> Option<Origin> {
    let (module, leaf) = name.rsplit_once('.')?;
    let whole = |original: &str| Some(Origin { tensor: original.to_owned(), part: 0, parts: 1, swapped: false });
    if name == "pos_embed.pos_embed" {
        return whole("pos_embed");
    }
    if let Some(rest) = module.strip_prefix("transformer_blocks.") {
        let (index, module) = rest.split_once('.')?;
        let last = index.parse() == Ok(config.num_layers - 1);
        let (original, part, parts) = block_module(module)?;
        let tensor = format!("joint_blocks.{index}.{original}.{leaf}");
        return Some(Origin { tensor, part, parts, swapped: last && module == "norm1_context.linear" });
    }
    let original = match module {
        "pos_embed.proj" => "x_embedder.proj",
        "time_text_embed.timestep_embedder.linear_1" => "t_embedder.mlp.0",
        "time_text_embed.timestep_embedder.linear_2" => "t_embedder.mlp.2",
        "time_text_embed.text_embedder.linear_1" => "y_embedder.mlp.0",
        "time_text_embed.text_embedder.linear_2" => "y_embedder.mlp.2",
        "context_embedder" => "context_embedder",
        "norm_out.linear" => "final_layer.adaLN_modulation.1",
        "proj_out" => "final_layer.linear",
        _ => return None,
    };
    let origin = whole(&format!("{original}.{leaf}"))?;
    Some(Origin { swapped: module == "norm_out.linear", ..origin })
}

/// A module of a block: its original path inside the block, and which part of it it is.
fn block_module(module: &str) -> Option<(&'static str, usize, usize)> {
    Some(match module {
        "attn.to_q" => ("x_block.attn.qkv", 0, 3),
        "attn.to_k" => ("x_block.attn.qkv", 1, 3),
        "attn.to_v" => ("x_block.attn.qkv", 2, 3),
        "attn.to_out.0" => ("x_block.attn.proj", 0, 1),
        "attn.norm_q" => ("x_block.attn.ln_q", 0, 1),
        "attn.norm_k" => ("x_block.attn.ln_k", 0, 1),
        "attn.add_q_proj" => ("context_block.attn.qkv", 0, 3),
        "attn.add_k_proj" => ("context_block.attn.qkv", 1, 3),
        "attn.add_v_proj" => ("context_block.attn.qkv", 2, 3),
        "attn.to_add_out" => ("context_block.attn.proj", 0, 1),
        "attn.norm_added_q" => ("context_block.attn.ln_q", 0, 1),
        "attn.norm_added_k" => ("context_block.attn.ln_k", 0, 1),
        "attn2.to_q" => ("x_block.attn2.qkv", 0, 3),
        "attn2.to_k" => ("x_block.attn2.qkv", 1, 3),
        "attn2.to_v" => ("x_block.attn2.qkv", 2, 3),
        "attn2.to_out.0" => ("x_block.attn2.proj", 0, 1),
        "attn2.norm_q" => ("x_block.attn2.ln_q", 0, 1),
        "attn2.norm_k" => ("x_block.attn2.ln_k", 0, 1),
        "norm1.linear" => ("x_block.adaLN_modulation.1", 0, 1),
        "norm1_context.linear" => ("context_block.adaLN_modulation.1", 0, 1),
        "ff.net.0.proj" => ("x_block.mlp.fc1", 0, 1),
        "ff.net.2" => ("x_block.mlp.fc2", 0, 1),
        "ff_context.net.0.proj" => ("context_block.mlp.fc1", 0, 1),
        "ff_context.net.2" => ("context_block.mlp.fc2", 0, 1),
        _ => return None,
    })
}

/// The linear layers of the transformer under their original names. Those whose halves are exchanged are left out: an
/// update of their rows has no name of its own there.
///
/// # Errors
/// A configuration whose sizes do not fit.
pub fn linear_modules(config: &MmditConfig) -> Result<Vec<OriginalModule>> {
    let layout = advdmd_nn::mmdit::Mmdit::layout(config)?;
    let modules = layout.iter().filter(|(_, shape)| shape.len() == 2).filter_map(|(name, _)| {
        let Origin { tensor, part, parts, swapped } = origin(config, name)?;
        let original = tensor.strip_suffix(".weight")?.to_owned();
        let module = name.strip_suffix(".weight")?.to_owned();
        (!swapped).then_some(OriginalModule { module, original, part, parts })
    });
    Ok(modules.collect())
}
