//! A `LoRA` for ComfyUI: one file, `diffusion_model.<layer>.lora_A.weight`, `lora_B.weight` and `alpha`, the layers under
//! the names of the original release, which ComfyUI's own models have.
//!
//! Where the original fuses n layers, so does the file: with A of all adapted ones stacked and B block-diagonal, the rows of
//! B A are the updates of each, `rank` is n times theirs, and so is alpha, because ComfyUI divides by the rank that it
//! finds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use advdmd_nn::Weights;
use advdmd_sdk::OriginalModule;
use tch::{Kind, Tensor};

use super::lora::{Factors, Lora, tensors};
use crate::{Error, Result};

pub const FILE: &str = "comfyui_lora.safetensors";
const PREFIX: &str = "diffusion_model.";

pub fn path(folder: &Path) -> PathBuf {
    folder.join(FILE)
}

/// An original layer, and the adapted layers that it holds.
struct Fused<'a> {
    original: &'a str,
    /// Number of blocks of output rows.
    parts: usize,
    /// Block and layer, rising.
    members: Vec<(usize, &'a str)>,
}

/// The original layers of `adapted`.
///
/// # Errors
/// An adapted layer that the original release has no name for.
fn fused<'a>(modules: &'a [OriginalModule], adapted: impl Iterator<Item = &'a String>) -> Result<Vec<Fused<'a>>> {
    let mut found: BTreeMap<&str, Fused<'a>> = BTreeMap::new();
    for layer in adapted {
        let Some(OriginalModule { original, part, parts, .. }) = modules.iter().find(|known| known.module == *layer)
        else {
            let hint = "`--format diffusers`, `peft` and `merged` work".to_owned();
            return Err(Error::usage(format!("layer {layer} has no counterpart in the original release"), hint));
        };
        let fused = found.entry(original).or_insert(Fused { original, parts: *parts, members: Vec::new() });
        fused.members.push((*part, layer));
        fused.members.sort_unstable();
    }
    Ok(found.into_values().collect())
}

/// Writes the file.
///
/// # Errors
/// A layer without a counterpart in `modules`, or the disk's.
pub fn write(folder: &Path, lora: &Lora, modules: &[OriginalModule], kind: Kind) -> Result<()> {
    let mut weights = Weights::new();
    for Fused { original, parts, members } in fused(modules, lora.layers.keys())? {
        let factors: Vec<(usize, &Factors)> =
            members.iter().filter_map(|(part, layer)| Some((*part, lora.layers.get(*layer)?))).collect();
        let count = factors.len() as i64;
        let inputs: Vec<&Tensor> = factors.iter().map(|(_, factors)| &factors.a).collect();
        let rows = factors.first().map_or(0, |(_, factors)| factors.b.size()[0]);
        let b = Tensor::f_zeros([rows * parts as i64, lora.rank * count], (Kind::Float, tch::Device::Cpu))?;
        for (column, (part, factors)) in factors.iter().enumerate() {
            let (rank, column) = (lora.rank, column as i64);
            let mut block = b.f_narrow(0, *part as i64 * rows, rows)?.f_narrow(1, column * rank, rank)?;
            block.f_copy_(&factors.b)?;
        }
        let name = |suffix: &str| format!("{PREFIX}{original}.{suffix}");
        weights.insert(name("lora_A.weight"), Tensor::f_cat(&inputs, 0)?.f_to_kind(kind)?);
        weights.insert(name("lora_B.weight"), b.f_to_kind(kind)?);
        // Small, and in float32, whatever the type of the factors: it scales them all.
        weights.insert(name("alpha"), Tensor::from((lora.alpha * count as f64) as f32));
    }
    Ok(weights.save(&path(folder), &BTreeMap::new())?)
}

/// Reads the file back into the layers that it was made of. `adapted` are their names, without which a block of zeros could
/// not be told from a layer that has no update.
///
/// # Errors
/// Tensors that are missing, of another shape or alpha than the rest, or not block-diagonal; names the file and the layer.
pub fn read(folder: &Path, modules: &[OriginalModule], adapted: &[String]) -> Result<Lora> {
    let path = path(folder);
    let weights = tensors(&path)?;
    let mut layers = Weights::new();
    let mut scales = Vec::new();
    let fused = fused(modules, adapted.iter())?;
    if weights.len() != 3 * fused.len() {
        let expected = format!("expected 3 tensors for each of {} layers, found {}", fused.len(), weights.len());
        return Err(Error::content(&path, expected));
    }
    for Fused { original, parts, members } in fused {
        let refuse = |what: String| Error::content(&path, format!("{PREFIX}{original}: {what}"));
        let get = |suffix: &str| {
            let name = format!("{PREFIX}{original}.{suffix}");
            weights.get(&name).ok_or_else(|| refuse(format!("no tensor {suffix}")))
        };
        let (a, b, alpha) = (get("lora_A.weight")?, get("lora_B.weight")?, get("alpha")?);
        let (count, parts) = (members.len() as i64, parts as i64);
        let (rank, rows) = (a.size()[0], b.size()[0]);
        if rank % count != 0 || rows % parts != 0 || b.size() != [rows, rank] {
            return Err(refuse(format!(
                "expected {count} of {parts} parts, found A {:?} and B {:?}",
                a.size(),
                b.size()
            )));
        }
        let (own_rank, own_rows) = (rank / count, rows / parts);
        let nonzero = |tensor: &Tensor| tensor.f_count_nonzero(None)?.f_int64_value(&[]);
        let mut inside = 0;
        for (column, (part, layer)) in members.iter().enumerate() {
            let column = column as i64 * own_rank;
            let block = b.f_narrow(0, *part as i64 * own_rows, own_rows)?.f_narrow(1, column, own_rank)?;
            inside += nonzero(&block)?;
            layers.insert(format!("{layer}.lora_A.weight"), a.f_narrow(0, column, own_rank)?);
            layers.insert(format!("{layer}.lora_B.weight"), block);
        }
        if inside != nonzero(b)? {
            return Err(refuse("lora_B is not block-diagonal".to_owned()));
        }
        scales.push(alpha.f_double_value(&[])? / count as f64);
    }
    let alpha = scales.first().copied().unwrap_or_default();
    // Three times an alpha is not three times its rounding.
    if scales.iter().any(|scale| (scale - alpha).abs() > 1e-6 * alpha.abs()) {
        return Err(Error::content(&path, format!("expected one alpha for all layers, found {scales:?}")));
    }
    Lora::of_pairs(&layers, "", alpha).map_err(|error| Error::content(&path, error.in_one_line()))
}

#[cfg(test)]
mod tests {
    use super::super::lora::tests::{assert_same, random};
    use super::*;

    /// A block of two streams as the SD3 family has it: fused in the original, apart in diffusers.
    fn modules() -> Vec<OriginalModule> {
        let module = |module: &str, original: &str, part, parts| OriginalModule {
            module: format!("blocks.0.{module}"),
            original: format!("joint_blocks.0.{original}"),
            part,
            parts,
        };
        let qkv = ["attn.to_q", "attn.to_k", "attn.to_v"].into_iter().enumerate();
        let mut modules: Vec<_> = qkv.map(|(part, name)| module(name, "x_block.attn.qkv", part, 3)).collect();
        modules.push(module("attn.to_out.0", "x_block.attn.proj", 0, 1));
        modules
    }

    fn names(of: &[&str]) -> Vec<String> {
        of.iter().map(|name| format!("blocks.0.attn.{name}")).collect()
    }

    /// The update that ComfyUI adds to an original layer: `alpha / rank B A` of the file's own tensors.
    fn delta(folder: &Path, original: &str) -> Tensor {
        let weights = tensors(&path(folder)).unwrap();
        let get = |suffix: &str| weights.get(&format!("{PREFIX}joint_blocks.0.{original}.{suffix}")).unwrap();
        let (a, b) = (get("lora_A.weight"), get("lora_B.weight"));
        b.matmul(a) * (get("alpha").double_value(&[]) / a.size()[0] as f64)
    }

    #[test]
    fn the_rows_of_a_fused_layer_are_the_updates_of_its_parts() {
        for adapted in [&["to_q", "to_k", "to_v", "to_out.0"][..], &["to_v", "to_q"]] {
            let folder = tempfile::tempdir().unwrap();
            let names = names(adapted);
            let lora = random(&names, 0.3);
            write(folder.path(), &lora, &modules(), Kind::Float).unwrap();
            assert_same(&read(folder.path(), &modules(), &names).unwrap(), &lora);
            let fused = delta(folder.path(), "x_block.attn.qkv").chunk(3, 0);
            for (part, found) in ["to_q", "to_k", "to_v"].iter().zip(fused) {
                let expected = match lora.layers.get(&format!("blocks.0.attn.{part}")) {
                    Some(Factors { a, b }) => b.matmul(a) * (lora.alpha / lora.rank as f64),
                    None => found.zeros_like(),
                };
                let difference = (found - expected).abs().max().double_value(&[]);
                assert!(difference < 1e-6, "{part}: {difference}");
            }
        }
    }

    #[test]
    fn what_the_file_lacks_or_has_too_much_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let names = names(&["to_q", "to_k", "to_v"]);
        let file = path(folder.path());
        let damaged = |change: &dyn Fn(&mut Weights)| {
            write(folder.path(), &random(&names, 4.0), &modules(), Kind::Float).unwrap();
            let mut weights = tensors(&file).unwrap();
            change(&mut weights);
            weights.save(&file, &BTreeMap::new()).unwrap();
            read(folder.path(), &modules(), &names).unwrap_err().to_string()
        };
        let b = "diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_B.weight";
        let full = damaged(&|weights| {
            let ones = weights.get(b).unwrap().ones_like();
            weights.insert(b, ones);
        });
        assert!(full.ends_with("x_block.attn.qkv: lora_B is not block-diagonal"), "{full}");
        let cut = damaged(&|weights| {
            let cut = weights.get(b).unwrap().narrow(0, 0, 4);
            weights.insert(b, cut);
        });
        assert!(cut.contains("expected 3 of 3 parts, found A [6, 5] and B [4, 6]"), "{cut}");
        let more = damaged(&|weights| weights.insert("diffusion_model.other.alpha", Tensor::from(1.0)));
        assert!(more.contains("expected 3 tensors for each of 1 layers, found 4"), "{more}");
    }

    #[test]
    fn a_layer_without_an_original_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = write(folder.path(), &random(&names(&["norm"]), 1.0), &modules(), Kind::Float).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().starts_with("layer blocks.0.attn.norm has no counterpart"), "{error}");
    }
}
