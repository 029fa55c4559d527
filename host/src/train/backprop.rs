//! Rewards as losses: the gradient of their scores to the student's final latents.

use advdmd_sdk::BackboneSpec;
use tch::{Kind, Tensor};

use super::metrics::Meter;
use super::rewards::{Features, Rewards, Scored};
use super::rollout::Chunk;
use super::student::StudentContext;
use crate::Result;
use crate::sampling::sigma_column;

/// Pixels that go through the decoder and the rewards at once.
const PIXELS: i64 = 1 << 20;

/// The loss of the final latents `x0` `[b, C, h, w]` of a chunk, a scalar with gradients to `x0`; `None` where it is off:
///
/// ```text
/// mean max(ceiling - sum_r w_r score_r, 0)
/// ```
///
/// RTDMD's `bp_mixin.py`; `ReFL` (arXiv:2304.05977) with a ceiling. Scores are per sample, so a few samples at a time are
/// decoded, scored and differentiated down to their latents: the memory does not grow with the batch. `share` is the
/// chunk's share of the samples.
///
/// # Errors
/// A reward that fails; the backbone's.
pub fn loss(
    context: &StudentContext<'_>,
    rewards: &mut Rewards,
    chunk: &Chunk,
    x0: &Tensor,
    share: f64,
    meter: &mut Meter,
) -> Result<Option<Tensor>> {
    let settings = &context.config.objective.reward_backprop;
    if settings.weight == 0.0 {
        return Ok(None);
    }
    let last = context.trajectory.steps() - 1;
    let (mut losses, mut gradients) = (Vec::new(), Vec::new());
    for (first, part) in parts(&x0.f_detach()?, &context.networks.spec)? {
        let latents = part.f_set_requires_grad(true)?;
        let samples = latents.size()[0];
        let wants_images = rewards.backprop.iter().any(|&index| rewards.all[index].needs.images);
        let images = wants_images.then(|| context.networks.backbone.decode_latents(&latents)).transpose()?;
        let ids = &chunk.prompts[first..first + samples as usize];
        let scored = Scored {
            prompts: ids.iter().map(|&id| context.prompts[id].as_str()).collect(),
            sigma: &sigma_column(0.0, &latents),
            latents: &latents,
            images: images.as_ref(),
            features: &Features::default(),
        };
        let mut sum = Tensor::f_zeros([samples], (Kind::Float, latents.device()))?;
        for index in rewards.backprop.clone() {
            let batch = rewards.batch(&rewards.all[index], &scored)?;
            let reward = &mut rewards.all[index];
            let scores = reward.differentiable_scores(&batch).map_err(|source| reward.error(last, source))?;
            let scores = scores.f_to_device(latents.device())?.f_to_kind(Kind::Float)?;
            let part = share * samples as f64 / chunk.len() as f64;
            meter.add(&format!("reward_backprop/{}/mean", reward.name), &scores.mean(Kind::Float), part);
            sum += scores * rewards.shares[index].weight;
        }
        let at_ceiling = sum.f_ge(settings.ceiling)?.f_to_kind(Kind::Float)?.f_mean(Kind::Float)?;
        meter.add("reward_backprop/at_ceiling", &at_ceiling, share * samples as f64 / chunk.len() as f64);
        let loss = (settings.ceiling - sum).f_relu()?;
        gradients.push(Tensor::f_run_backward(&[loss.f_sum(Kind::Float)?], &[&latents], false, false)?.remove(0));
        losses.push(loss.f_detach()?);
    }
    let gradient = Tensor::f_cat(&gradients, 0)? / chunk.len() as f64;
    let value = Tensor::f_cat(&losses, 0)?.f_mean(Kind::Float)?;
    // The value of the loss, and its derivative.
    Ok(Some(value + ((x0 - x0.f_detach()?) * gradient).f_sum(Kind::Float)?))
}

/// Rows of `latents` with the number of the first, as many at a time as [`PIXELS`] allows.
fn parts(latents: &Tensor, spec: &BackboneSpec) -> Result<Vec<(usize, Tensor)>> {
    let rows = (PIXELS / (spec.image_shape[1] * spec.image_shape[2])).max(1);
    let parts = latents.f_split(rows, 0)?.into_iter().enumerate();
    Ok(parts.map(|(index, part)| (index * rows as usize, part.detach())).collect())
}
