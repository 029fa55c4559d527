//! The reward and its learner.

use advdmd_sdk::{
    DiscriminatorLoss, Error, FeatureNeeds, Learner, Needs, Result, Reward, RewardBatch, RewardInit, Scope,
};
use tch::{Kind, Tensor};

use crate::heads::WAVES;
use crate::{Adversarial, Geometry, Heads, Loss};

/// A discriminator on features of the diffusion model (AdvDMD, section 3.2).
#[derive(Debug)]
pub struct AdversarialReward {
    heads: Heads,
    features: FeatureNeeds,
    /// `[C, h, w]` of a feature map.
    map: [i64; 3],
    loss: Loss,
    r1_weight: f64,
}

impl AdversarialReward {
    /// Heads for the backbone of `init`, drawn from its seed.
    ///
    /// # Errors
    /// Taps that the backbone does not have, a width below 1, a negative weight.
    pub fn new(config: &Adversarial, init: &RewardInit) -> Result<Self> {
        let Some(backbone) = &init.backbone else {
            return Err(Error::unsupported(
                "reads features of the backbone that is trained: it scores nothing but a run",
            ));
        };
        let taps = config.taps(backbone.depth)?;
        let (channels, [h, w]) = (backbone.feature_channels, backbone.feature_grid);
        let width = config.width.unwrap_or((channels / 2).max(1));
        if !(1..=1 << 16).contains(&width) {
            return Err(Error::config(format!("width: expected 1 to {}, found {width}", 1 << 16)));
        }
        if !(config.r1_weight.is_finite() && config.r1_weight >= 0.0) {
            let found = config.r1_weight;
            return Err(Error::config(format!("r1_weight: expected a finite number of at least 0, found {found}")));
        }
        let geometry = Geometry::new(channels, width, [h, w], if config.sigma_conditioning { WAVES } else { 0 });
        Ok(Self {
            heads: Heads::new(taps.len(), geometry, init.seed, init.device.into())?,
            features: FeatureNeeds { source: config.feature_source, taps },
            map: [channels, h, w],
            loss: config.loss,
            r1_weight: config.r1_weight,
        })
    }

    /// Noise levels `[B]` and one feature map for each tap, checked.
    fn read(&self, batch: &RewardBatch<'_>) -> Result<(Tensor, Vec<Tensor>)> {
        let (size, taps) = (batch.len() as i64, self.features.taps.len());
        let sigma = batch.sigma.as_ref().ok_or_else(|| Error::invalid("the batch holds no sigma"))?;
        sigma.expect_shape("sigma", &[Some(size)])?;
        if batch.features.len() != taps {
            let found = batch.features.len();
            return Err(Error::invalid(format!("features: expected one map for each of {taps} taps, found {found}")));
        }
        let [channels, h, w] = self.map.map(Some);
        let mut features = Vec::with_capacity(taps);
        for (view, tap) in batch.features.iter().zip(&self.features.taps) {
            view.expect_shape(&format!("features of block {tap}"), &[Some(size), channels, h, w])?;
            features.push(view.torch()?);
        }
        Ok((sigma.torch()?, features))
    }

    /// Logits `[B, N]` with gradients to the features alone.
    fn judge(&self, batch: &RewardBatch<'_>) -> Result<Tensor> {
        let (sigma, features) = self.read(batch)?;
        // A student that is judged must not teach the judge.
        self.heads.detach().logits(&Heads::normalize(&features)?, &sigma)
    }

    /// `w/2 mean_B |grad of a sample's mean logit|^2` at real samples (R1: Mescheder et al. 2018, arXiv:1801.04406), with
    /// respect to the normalised features.
    ///
    /// `FastGen` and APT approximate it by a finite difference along noise, to spare a large network the second derivative.
    /// The heads are small and end at the features, so it is exact here, and needs no random numbers.
    fn r1(&self, normalized: &[Tensor], sigma: &Tensor) -> Result<Tensor> {
        let inputs: Vec<_> =
            normalized.iter().map(|map| map.f_detach()?.f_set_requires_grad(true)).collect::<Result<_, _>>()?;
        // Without a graph, libtorch's backward pass through C ends the process.
        let logits = tch::with_grad(|| self.heads.logits(&inputs, sigma))?;
        let mean = tch::with_grad(|| logits.f_mean_dim(1, false, Kind::Float)?.f_sum(Kind::Float))?;
        let gradients = Tensor::f_run_backward(&[mean], &inputs, true, true)?;
        let batch = logits.size()[0].max(1) as f64;
        let mut sum = Tensor::f_zeros([], (Kind::Float, logits.device()))?;
        for gradient in gradients {
            sum = sum.f_add(&gradient.f_square()?.f_sum(Kind::Float)?)?;
        }
        Ok(sum.f_mul_scalar(0.5 * self.r1_weight / batch)?)
    }
}

/// Mean over heads and places: `[B, N]` to `[B]`.
fn per_sample(values: &Tensor) -> Result<Tensor> {
    Ok(values.f_mean_dim(1, false, Kind::Float)?)
}

/// Score `[B]` in (0, 1): the mean of the sigmoids over heads and places (AdvDMD, equation 3.6).
fn score(logits: &Tensor) -> Result<Tensor> {
    per_sample(&logits.f_sigmoid()?)
}

impl Reward for AdversarialReward {
    fn needs(&self) -> Needs {
        let features = Some(self.features.clone());
        Needs { scope: Scope::EveryStep, features, scores_on_device: true, ..Needs::default() }
    }

    fn score(&mut self, batch: &RewardBatch<'_>) -> Result<Vec<f32>> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let scores = tch::no_grad(|| score(&self.judge(batch)?))?;
        Ok(Vec::try_from(scores)?)
    }

    fn score_differentiable(&mut self, batch: &RewardBatch<'_>) -> Result<Option<Tensor>> {
        score(&self.judge(batch)?).map(Some)
    }

    fn learner(&mut self) -> Option<&mut dyn Learner> {
        Some(self)
    }
}

impl Learner for AdversarialReward {
    fn parameters(&self) -> Vec<(String, Tensor)> {
        self.heads.parameters()
    }

    /// `mean_fake softplus(l) + mean_real softplus(-l)` over samples, heads and places (AdvDMD, equation 3.7), and R1.
    fn discriminator_loss(&mut self, real: &RewardBatch<'_>, fake: &RewardBatch<'_>) -> Result<DiscriminatorLoss> {
        let sizes = [real.len() as i64, fake.len() as i64];
        if sizes.contains(&0) {
            return Err(Error::invalid("the discriminator needs at least one real and one fake sample"));
        }
        let (real_sigma, real_features) = self.read(real)?;
        let (fake_sigma, fake_features) = self.read(fake)?;
        // One pass over both: half the kernels to launch, and no batch statistics that could mix them.
        let pairs = real_features.iter().zip(&fake_features);
        let both: Vec<_> = pairs
            .map(|(real, fake)| Tensor::f_cat(&[real.f_detach()?, fake.f_detach()?], 0))
            .collect::<Result<_, _>>()?;
        let both = Heads::normalize(&both)?;
        let logits = self.heads.logits(&both, &Tensor::f_cat(&[&real_sigma, &fake_sigma], 0)?)?;
        let [real_logits, fake_logits] = [logits.f_narrow(0, 0, sizes[0])?, logits.f_narrow(0, sizes[0], sizes[1])?];

        let real_loss = self.loss.real(&real_logits)?.f_mean(Kind::Float)?;
        let mut loss = self.loss.fake(&fake_logits)?.f_mean(Kind::Float)?.f_add(&real_loss)?;
        if self.r1_weight > 0.0 {
            let real: Vec<_> = both.iter().map(|map| map.f_narrow(0, 0, sizes[0])).collect::<Result<_, _>>()?;
            loss = loss.f_add(&self.r1(&real, &real_sigma)?)?;
        }
        Ok(DiscriminatorLoss { loss, real: score(&real_logits.f_detach()?)?, fake: score(&fake_logits.f_detach()?)? })
    }

    /// `mean softplus(-l)` over heads and places, per sample (AdvDMD, equation 3.8).
    fn generator_loss(&mut self, fake: &RewardBatch<'_>) -> Result<Tensor> {
        per_sample(&self.loss.generator(&self.judge(fake)?)?)
    }
}
