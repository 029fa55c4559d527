//! Trained parameters put into the weights that they were trained on.

use std::collections::BTreeMap;

use advdmd_sdk::{DType, Error, Result, SaveOptions, Tuning};
use tch::{Device, Kind, Tensor};

use crate::Weights;
use crate::params::LORA_PREFIX;

/// Share of what was learned that rounding may take.
const MAY_BE_LOST: f64 = 0.5;

impl Weights {
    /// These weights with `parameters` of `options.tuning` in the place of those of the same name (full) or merged into
    /// them (`LoRA`: `W + alpha / rank B A`, added in float32), each as `options.dtype`. What stays unchanged in its type
    /// shares its storage; the rest is on the CPU, one tensor at a time, so that a device holds no second model.
    ///
    /// # Errors
    /// A type that is not a floating one; a `LoRA` of which one half, or the layer that it belongs to, is missing; names it. Rounding to the type that takes
    /// more than half of what was learned, unless `options.lossy`.
    pub fn merged(&self, parameters: &[(String, Tensor)], options: &SaveOptions) -> Result<Self> {
        let _no_grad = tch::no_grad_guard();
        let dtype = options.dtype;
        if !matches!(dtype, DType::F16 | DType::Bf16 | DType::F32 | DType::F64) {
            return Err(Error::invalid(format!("dtype of a saved model: expected a floating type, found {dtype:?}")));
        }
        let kind = dtype.into();
        let mut kept = Kept::default();
        let mut merged = Self::new();
        match &options.tuning {
            Tuning::Lora { rank, alpha, .. } => {
                for (weight, [a, b]) in self.adapted(parameters)? {
                    let Some(base) = self.get(&weight) else { continue };
                    let [a, b] = [a.f_to_kind(Kind::Float)?, b.f_to_kind(Kind::Float)?];
                    let update = b.f_matmul(&a)?.f_mul_scalar(alpha / *rank as f64)?;
                    let stored = base.f_to_kind(Kind::Float)?.f_add(&update)?.f_to_kind(kind)?;
                    kept.add(base, &update, &stored)?;
                    merged.insert(weight, stored.f_to(Device::Cpu)?);
                }
            }
            Tuning::Full | Tuning::Frozen => {
                for (name, parameter) in parameters {
                    let stored = converted(parameter, kind)?;
                    if let Some(base) = self.get(name).filter(|base| base.size() == parameter.size()) {
                        let update = parameter.f_to_kind(Kind::Float)?.f_sub(&base.f_to_kind(Kind::Float)?)?;
                        kept.add(base, &update, &stored)?;
                    }
                    merged.insert(name.clone(), stored);
                }
            }
        }
        kept.judge(options)?;
        for (name, tensor) in self.iter() {
            if merged.get(name).is_none() {
                merged.insert(name, converted(tensor, kind)?);
            }
        }
        Ok(merged)
    }

    /// A and B of each adapted layer, by the name of its weight.
    fn adapted<'a>(&self, parameters: &'a [(String, Tensor)]) -> Result<BTreeMap<String, [&'a Tensor; 2]>> {
        let find = |name: &str| parameters.iter().find(|(known, _)| known == name).map(|(_, tensor)| tensor);
        let mut pairs = BTreeMap::new();
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
            if self.get(&weight).is_none() {
                return Err(Error::invalid(format!("{name}: the base has no layer {weight}")));
            }
            pairs.insert(weight, [a, b]);
        }
        Ok(pairs)
    }
}

/// A tensor of another type on the CPU, or a handle on this one where it has that type.
fn converted(tensor: &Tensor, kind: Kind) -> Result<Tensor> {
    let tensor = tensor.f_detach()?;
    if tensor.f_kind()? == kind {
        return Ok(tensor);
    }
    // Rounded where it lies: less goes over the bus.
    Ok(tensor.f_to_kind(kind)?.f_to(Device::Cpu)?)
}

/// How much of what was learned the stored numbers hold: the projection of their change on the update.
#[derive(Default)]
struct Kept {
    projected: f64,
    update: f64,
}

impl Kept {
    /// A tensor whose `base` became `stored` by `update`.
    fn add(&mut self, base: &Tensor, update: &Tensor, stored: &Tensor) -> Result<()> {
        // The base's own rounding to the type is no loss of what was learned.
        let before = base.f_to_kind(stored.f_kind()?)?.f_to_device_(update.device(), Kind::Float, false, false)?;
        let change = stored.f_to_device_(update.device(), Kind::Float, false, false)?.f_sub(&before)?;
        let dot = |a: &Tensor| a.f_mul(update)?.f_sum(Kind::Double)?.f_double_value(&[]);
        self.projected += dot(&change)?;
        self.update += dot(update)?;
        Ok(())
    }

    /// Refuses, or with `lossy` warns of, a loss of more than half.
    fn judge(&self, options: &SaveOptions) -> Result<()> {
        let lost = if self.update > 0.0 { 1.0 - self.projected / self.update } else { 0.0 };
        // Numbers that are not finite are for others to find.
        if lost.is_nan() || lost <= MAY_BE_LOST {
            return Ok(());
        }
        let message = format!(
            "stored as {:?}, the merged weights lose {:.0} % of what was learned: the updates are smaller than the weights' \
             last digits",
            options.dtype,
            100.0 * lost.min(1.0)
        );
        if options.lossy {
            tracing::warn!("{message}");
            return Ok(());
        }
        Err(Error::failed(format!(
            "{message}. `--dtype f32` keeps it, and so does the LoRA on its own; `--force` writes it all the same"
        )))
    }
}
