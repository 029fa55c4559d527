//! The number types that tensors may have in a run of mixed precision.

use advdmd_sdk::{Error, Needs, Reward, RewardBatch, TensorView};
use tch::{Kind, Tensor};

use super::{apart, ordinary};
use crate::report::{Verdict, described, fail, ok, skip};
use crate::samples::{Array, Samples};
use crate::subject::Subject;

/// How far scores of the same numbers in another type may be, as a share of the largest: room for a reward that computes in
/// that type.
const TYPES: [(Kind, &str, f64); 3] =
    [(Kind::Double, "f64", 1e-3), (Kind::BFloat16, "bf16", 0.05), (Kind::Half, "f16", 0.01)];

pub(super) fn check(subject: &Subject<'_>, reward: &mut dyn Reward, needs: &Needs) -> Verdict {
    if needs.on_cpu {
        return skip("it asks for float32 on the CPU");
    }
    let samples = ordinary(subject, needs, 3);
    if !samples.has_tensors() {
        return skip("it reads no tensors");
    }
    let mut said = Vec::new();
    for (kind, name, tolerance) in TYPES {
        // Both types hold these numbers.
        let through = if kind == Kind::Double { Kind::Float } else { kind };
        let expected = scores_of(reward, &samples, through, Kind::Float)?;
        match scores_of(reward, &samples, through, kind) {
            Ok(found) if apart(&found, &expected) <= tolerance => {
                said.push(format!("{name} within {:.0e}", apart(&found, &expected)));
            }
            Ok(found) => {
                return fail(
                    format!("scores of {name} inputs within {tolerance} of those of float32, {expected:?}"),
                    format!("{found:?}"),
                    "convert inputs to the type that you compute in (`to_f32()`, `f_to_kind`), or refuse theirs with an `Err`",
                );
            }
            Err(error @ Error::Panic(_)) => {
                let advice = "check the input's type, and return an `Err` for one that is not taken";
                return fail(format!("scores or an error for {name} inputs"), described(&error), advice);
            }
            Err(error) => said.push(format!("{name} refused: {error}")),
        }
    }
    ok(said.join(", "))
}

fn scores_of(reward: &mut dyn Reward, samples: &Samples, through: Kind, kind: Kind) -> advdmd_sdk::Result<Vec<f32>> {
    let tensor = |array: &Array| array.tensor().to_kind(through).to_kind(kind);
    let view = |array: &Array| -> advdmd_sdk::Result<TensorView<'static>> { TensorView::from_torch(&tensor(array)) };
    reward.score(&RewardBatch {
        prompts: samples.prompts.iter().map(String::as_str).collect(),
        sigma: Some(TensorView::from_torch(&Tensor::from_slice(&samples.sigma.values))?),
        images: samples.images.as_ref().map(view).transpose()?,
        latents: samples.latents.as_ref().map(view).transpose()?,
        features: samples.features.iter().map(view).collect::<Result<_, _>>()?,
    })
}
