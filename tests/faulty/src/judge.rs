//! Rewards that learn, and break one promise of those each.

use advdmd_sdk::{
    DiscriminatorLoss, Error, Learner, Needs, Result, Reward, RewardBatch, RewardConfig, RewardInit, Scope, TensorView,
};
use schemars::JsonSchema;
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

/// Tells real latents from fake ones by a plane, and breaks the promise that `how` names.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FaultyJudge {
    /// The promise that is broken.
    how: How,
}

#[derive(Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum How {
    /// None.
    Healthy,
    /// Learns to score fake samples above real ones.
    LearnsTheWrongWay,
    /// Names a tensor that its loss does not read.
    IdleParameter,
    /// Its loss trains the network that made the latents.
    ReachesTheInput,
    /// The generator's loss has no gradient.
    NoGeneratorGradient,
}

struct Judge {
    how: How,
    weight: Tensor,
    bias: Tensor,
    idle: Tensor,
}

impl RewardConfig for FaultyJudge {
    fn build(self, init: &RewardInit) -> Result<Box<dyn Reward>> {
        let spec = init.backbone.as_ref().ok_or_else(|| Error::unsupported("it scores nothing but a run"))?;
        let zeros = |size: i64| -> Result<Tensor> {
            Ok(Tensor::f_zeros([size], (Kind::Float, Device::Cpu))?.f_set_requires_grad(true)?)
        };
        let weight = spec.latent_shape.iter().product();
        Ok(Box::new(Judge { how: self.how, weight: zeros(weight)?, bias: zeros(1)?, idle: zeros(1)? }))
    }
}

impl Judge {
    /// `[B]`: above 0 for real. The plane is given, so that a generator's loss need not train it.
    fn logits(latents: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let count = latents.size()[0];
        Ok(latents.f_to_kind(Kind::Float)?.f_reshape([count, -1])?.f_mv(weight)?.f_add(bias)?)
    }

    fn fixed(&self, batch: &RewardBatch<'_>) -> Result<Tensor> {
        // Not 0, so that the gradient to the latents is not.
        let weight = self.weight.f_detach()?.f_add_scalar(1e-3)?;
        Self::logits(&latents(batch.latents()?)?, &weight, &self.bias.f_detach()?)
    }
}

fn latents(view: &TensorView<'_>) -> Result<Tensor> {
    view.expect_shape("latents", &[None; 4])?;
    view.torch()
}

impl Reward for Judge {
    fn needs(&self) -> Needs {
        Needs { scope: Scope::EveryStep, latents: true, ..Needs::default() }
    }

    fn score(&mut self, batch: &RewardBatch<'_>) -> Result<Vec<f32>> {
        Ok(Vec::try_from(tch::no_grad(|| self.fixed(batch))?.f_sigmoid()?)?)
    }

    fn learner(&mut self) -> Option<&mut dyn Learner> {
        Some(self)
    }
}

impl Learner for Judge {
    fn parameters(&self) -> Vec<(String, Tensor)> {
        let mut all = vec![("weight", &self.weight), ("bias", &self.bias)];
        if self.how == How::IdleParameter {
            all.push(("idle", &self.idle));
        }
        all.into_iter().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())).collect()
    }

    fn discriminator_loss(&mut self, real: &RewardBatch<'_>, fake: &RewardBatch<'_>) -> Result<DiscriminatorLoss> {
        let logits = |batch: &RewardBatch<'_>| {
            let latents = latents(batch.latents()?)?;
            let latents = if self.how == How::ReachesTheInput { latents } else { latents.f_detach()? };
            Self::logits(&latents, &self.weight, &self.bias)
        };
        let (real, fake) = (logits(real)?, logits(fake)?);
        let sign = if self.how == How::LearnsTheWrongWay { -1.0 } else { 1.0 };
        let side = |logits: &Tensor, sign: f64| -> Result<Tensor> {
            Ok(logits.f_mul_scalar(sign)?.f_softplus()?.f_mean(Kind::Float)?)
        };
        Ok(DiscriminatorLoss {
            loss: side(&real, -sign)?.f_add(&side(&fake, sign)?)?,
            real: real.f_detach()?.f_sigmoid()?,
            fake: fake.f_detach()?.f_sigmoid()?,
        })
    }

    fn generator_loss(&mut self, fake: &RewardBatch<'_>) -> Result<Tensor> {
        let logits = self.fixed(fake)?;
        let logits = if self.how == How::NoGeneratorGradient { logits.f_detach()? } else { logits };
        Ok(logits.f_neg()?.f_softplus()?)
    }
}
