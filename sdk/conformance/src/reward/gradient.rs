//! The differentiable score against the plain one, and its gradient against finite differences.

use advdmd_sdk::{Needs, Result, Reward, RewardBatch, TensorView};
use tch::{Kind, Tensor};

use super::{apart, ordinary, scores};
use crate::report::{Examiner, Verdict, fail, ok, skip};
use crate::samples::{Random, Samples};
use crate::subject::Subject;

/// Where the reward computes in float64: the step of a difference, and the error of the gradient that passes.
const DOUBLE: (f64, f64) = (1e-4, 1e-3);
/// In float32, where rounding hides smaller steps.
const SINGLE: (f64, f64) = (1e-2, 0.05);
/// Random directions that are tried beside the gradient's own.
const DIRECTIONS: usize = 3;

pub(super) fn examine(subject: &Subject<'_>, reward: &mut dyn Reward, needs: &Needs, examiner: &mut Examiner) {
    let samples = ordinary(subject, needs, 2);
    examiner.check("same_scores", || same_scores(reward, needs, &samples));
    examiner.check("gradient", || gradient(reward, needs, &samples));
}

fn same_scores(reward: &mut dyn Reward, needs: &Needs, samples: &Samples) -> Verdict {
    let plain = scores(reward, samples)?;
    let Some(scored) = samples.lend(|batch| reward.score_differentiable(batch))? else {
        if needs.differentiable || needs.scores_on_device {
            let advice =
                "implement `score_differentiable`, or leave `differentiable` and `scores_on_device` out of `needs`";
            return fail("a tensor of scores from `score_differentiable`", "none", advice);
        }
        return skip("it has no differentiable score");
    };
    if scored.size() != [samples.len() as i64] {
        let advice = "give one score a sample, without a dimension more";
        return fail(format!("scores of shape [{}]", samples.len()), format!("{:?}", scored.size()), advice);
    }
    let found: Vec<f32> = Vec::try_from(scored.detach())?;
    // A picture of 8 bits, as the reference of a score may take it, is what a differentiable score has to do without.
    let tolerance = if needs.scores_on_device { 1e-4 } else { 0.1 };
    if apart(&found, &plain) > tolerance {
        return fail(
            format!("about the scores of `score`, {plain:?}, from `score_differentiable` (within {tolerance})"),
            format!("{found:?}"),
            "compute both from one function; with `scores_on_device` they are the same numbers",
        );
    }
    ok(format!("within {:.0e} of `score`", apart(&found, &plain)))
}

/// The tensors that a gradient may reach.
#[derive(Clone, Copy, PartialEq)]
enum Input {
    Images,
    Latents,
}

fn gradient(reward: &mut dyn Reward, needs: &Needs, samples: &Samples) -> Verdict {
    if !needs.differentiable {
        return skip("it does not say `differentiable`");
    }
    let input = if needs.images { Input::Images } else { Input::Latents };
    let (name, array) = match input {
        Input::Images => ("images", samples.images.as_ref()),
        Input::Latents => ("latents", samples.latents.as_ref()),
    };
    let Some(array) = array else {
        return fail(
            "a differentiable reward to read images or latents",
            "neither",
            "ask for them in `needs`, or leave `differentiable` out",
        );
    };
    let score = |reward: &mut dyn Reward, x: &Tensor| -> Result<Tensor> {
        let scored = samples.lend(|batch| {
            let prompts = batch.prompts.clone();
            let view = |tensor: &Tensor| TensorView::from_torch(tensor).map(Some);
            let other = |array: &Option<crate::samples::Array>| {
                array.as_ref().map(|array| TensorView::from_torch(&array.tensor())).transpose()
            };
            let (images, latents) = match input {
                Input::Images => (view(x)?, other(&samples.latents)?),
                Input::Latents => (other(&samples.images)?, view(x)?),
            };
            let sigma = Some(TensorView::from_torch(&Tensor::from_slice(&samples.sigma.values))?);
            reward.score_differentiable(&RewardBatch { prompts, sigma, images, latents, features: Vec::new() })
        })?;
        scored.ok_or_else(|| advdmd_sdk::Error::invalid("`score_differentiable` gave no tensor"))
    };
    // Samples of different weight: scores that are differences to a mean have a sum of 0.
    let weights = Tensor::f_arange_start(1, samples.len() as i64 + 1, (Kind::Double, tch::Device::Cpu))?;
    let weighted = |scores: &Tensor| scores.f_to_kind(Kind::Double)?.f_dot(&weights);
    let total = |reward: &mut dyn Reward, x: &Tensor| -> Result<f64> {
        Ok(weighted(&tch::no_grad(|| score(reward, x))?)?.double_value(&[]))
    };

    let single = array.tensor();
    let double = single.to_kind(Kind::Double);
    let in_double = matches!(tch::no_grad(|| score(reward, &double)), Ok(found) if found.kind() == Kind::Double);
    let (x, (step, tolerance), epsilon) =
        if in_double { (double, DOUBLE, f64::EPSILON) } else { (single, SINGLE, f64::from(f32::EPSILON)) };
    let leaf = x.copy().set_requires_grad(true);
    let scored = score(reward, &leaf)?;
    let advice = "keep the graph from the batch's tensor (`view.torch()?`) to the score: no `detach`, `no_grad`, `to_f32` or \
                  `Vec` between";
    if !scored.requires_grad() {
        return fail(format!("scores with gradients to the {name}"), "scores without", advice);
    }
    let value = weighted(&scored)?;
    value.f_backward()?;
    let gradient = leaf.grad();
    if !gradient.defined() || gradient.f_abs()?.f_max()?.double_value(&[]) == 0.0 {
        return fail(format!("a gradient to the {name} that is not 0"), "none", advice);
    }
    if !bool::try_from(gradient.f_isfinite()?.f_all()?)? {
        return fail("a finite gradient", "NaN or infinity", "guard roots, norms and divisions at 0");
    }

    let mut random = Random::new(5);
    let own = gradient.to_kind(Kind::Double);
    // A step of about `step` for each number.
    let own = &own * ((own.numel() as f64).sqrt() / own.norm().double_value(&[]));
    let mut directions = vec![own];
    directions.extend((0..DIRECTIONS).map(|_| random.normals(&x.size()).to_kind(Kind::Double)));
    let noise = 64.0 * epsilon * value.double_value(&[]).abs() / step;
    let mut furthest: f64 = 0.0;
    for direction in directions {
        let moved = (&direction * step).to_kind(x.kind());
        let difference = (total(reward, &(&x + &moved))? - total(reward, &(&x - &moved))?) / (2.0 * step);
        let claimed = (gradient.to_kind(Kind::Double) * &direction).sum(Kind::Double).double_value(&[]);
        let (error, size) = ((difference - claimed).abs(), difference.abs().max(claimed.abs()));
        // Not so of NaN.
        let close = error <= tolerance * size + noise;
        if !close {
            return fail(
                format!("the derivative that finite differences give, {difference:.6} (within {tolerance} of it)"),
                format!("{claimed:.6} by `backward`"),
                advice,
            );
        }
        furthest = furthest.max(error / size.max(noise).max(f64::MIN_POSITIVE));
    }
    let kind = if in_double { "f64" } else { "f32" };
    ok(format!("to the {name}, in {kind}, {} directions within {furthest:.0e}", DIRECTIONS + 1))
}
