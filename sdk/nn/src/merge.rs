//! Trained parameters put into the weights that they were trained on.

use advdmd_sdk::{Error, Result, Tuning};
use tch::{Kind, Tensor};

use crate::Weights;
use crate::params::LORA_PREFIX;

impl Weights {
    /// These weights with `parameters` of `tuning` in the place of those of the same name (full) or merged into them
    /// (`LoRA`: `W + alpha / rank B A`, added in float32), each as `kind`. What stays unchanged in its type shares
    /// these weights' storage.
    ///
    /// # Errors
    /// A `LoRA` of which one half, or the layer that it belongs to, is missing; names it.
    pub fn merged(&self, parameters: &[(String, Tensor)], tuning: &Tuning, kind: Kind) -> Result<Self> {
        let _no_grad = tch::no_grad_guard();
        let mut merged: Self = self.iter().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())).collect();
        match tuning {
            Tuning::Lora { rank, alpha, .. } => {
                let find = |name: &str| parameters.iter().find(|(known, _)| known == name).map(|(_, tensor)| tensor);
                for (name, a) in parameters {
                    let Some(module) = name.strip_suffix(".lora_A.weight") else {
                        let pair = name.replace(".lora_B.", ".lora_A.");
                        if pair == *name || find(&pair).is_none() {
                            return Err(Error::invalid(format!("{name}: expected a LoRA's A and B, found it alone")));
                        }
                        continue;
                    };
                    let b = find(&format!("{module}.lora_B.weight"))
                        .ok_or_else(|| Error::invalid(format!("{name}: there is no lora_B beside it")))?;
                    let weight = format!("{}.weight", module.strip_prefix(LORA_PREFIX).unwrap_or(module));
                    let base = self
                        .get(&weight)
                        .ok_or_else(|| Error::invalid(format!("{name}: the base has no layer {weight}")))?;
                    let [a, b] = [a.f_to_kind(Kind::Float)?, b.f_to_kind(Kind::Float)?];
                    let update = b.f_matmul(&a)?.f_mul_scalar(alpha / *rank as f64)?;
                    merged.insert(weight, base.f_to_kind(Kind::Float)?.f_add(&update)?);
                }
            }
            Tuning::Full | Tuning::Frozen => {
                for (name, parameter) in parameters {
                    merged.insert(name.clone(), parameter.shallow_clone());
                }
            }
        }
        merged.into_iter().map(|(name, tensor)| Ok((name, tensor.f_detach()?.f_to_kind(kind)?))).collect()
    }
}
