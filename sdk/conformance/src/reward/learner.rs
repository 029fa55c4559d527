//! A reward that learns: on data that a straight line tells apart.

use advdmd_sdk::{DiscriminatorLoss, Needs, Result, Reward, RewardBatch, TensorView};
use tch::{Kind, Tensor};

use crate::report::{Examiner, Verdict, fail, ok, skip};
use crate::samples::{Array, Content, Samples};
use crate::subject::{SEED, Subject};

/// Steps of the optimiser.
const STEPS: usize = 40;
/// Its learning rate.
const RATE: f64 = 5e-3;
/// Samples of each side.
const BATCH: usize = 12;

pub(super) fn examine(subject: &Subject<'_>, needs: &Needs, examiner: &mut Examiner) {
    let mut learns = false;
    let samples = |shift: f32, seed| Samples::new(needs, &subject.spec, BATCH, Content::Random(shift), seed);
    let (real, fake) = (samples(0.7, 21), samples(-0.7, 22));
    examiner.check("learner_loss", || {
        let mut reward = subject.reward(SEED)?;
        learns = reward.learner().is_some();
        if !learns {
            return skip("it does not learn");
        }
        if needs.background {
            return fail("a reward that learns to score where it is", "`background`", "leave `background` out");
        }
        falls(&mut *reward, &real, &fake)
    });
    if !learns {
        examiner.skip(&["learner_gradients", "generator_loss"], "it does not learn");
        return;
    }
    examiner.check("learner_gradients", || gradients(&mut *subject.reward(SEED)?, &real, &fake));
    examiner.check("generator_loss", || generator(&mut *subject.reward(SEED)?, &fake));
}

/// The same samples as tensors, so that gradients can be asked for.
struct Leaves {
    tensors: Vec<Tensor>,
    images: Option<usize>,
    latents: Option<usize>,
    features: usize,
}

impl Leaves {
    fn of(samples: &Samples) -> Self {
        let mut tensors = Vec::new();
        let leaf = |array: &Array| array.tensor().set_requires_grad(true);
        let mut add = |array: &Array| {
            tensors.push(leaf(array));
            tensors.len() - 1
        };
        let images = samples.images.as_ref().map(&mut add);
        let latents = samples.latents.as_ref().map(&mut add);
        let features = tensors.len();
        tensors.extend(samples.features.iter().map(leaf));
        Self { tensors, images, latents, features }
    }

    fn batch<'a>(&self, samples: &'a Samples) -> Result<RewardBatch<'a>> {
        let view = |at: usize| TensorView::from_torch(&self.tensors[at]);
        Ok(RewardBatch {
            prompts: samples.prompts.iter().map(String::as_str).collect(),
            sigma: Some(TensorView::from_torch(&Tensor::from_slice(&samples.sigma.values))?),
            images: self.images.map(view).transpose()?,
            latents: self.latents.map(view).transpose()?,
            features: self.tensors.iter().skip(self.features).map(TensorView::from_torch).collect::<Result<_>>()?,
        })
    }

    /// Whether a gradient other than 0 has reached any of them, NaN among others.
    fn reached(&self) -> bool {
        self.tensors.iter().any(|leaf| largest(&leaf.grad()) != 0.0)
    }

    /// Whether what has reached them is finite.
    fn finite(&self) -> bool {
        self.tensors.iter().all(|leaf| largest(&leaf.grad()).is_finite())
    }
}

/// Largest absolute value; 0 of a tensor that is not there.
fn largest(gradient: &Tensor) -> f64 {
    if gradient.defined() && gradient.numel() > 0 { gradient.abs().max().double_value(&[]) } else { 0.0 }
}

fn loss(reward: &mut dyn Reward, real: &Samples, fake: &Samples) -> Result<DiscriminatorLoss> {
    let learner = reward.learner().ok_or_else(|| advdmd_sdk::Error::invalid("its learner is gone"))?;
    real.lend(|real| fake.lend(|fake| learner.discriminator_loss(real, fake)))
}

fn parameters(reward: &mut dyn Reward) -> Vec<(String, Tensor)> {
    reward.learner().map_or_else(Vec::new, |learner| learner.parameters())
}

/// Adam (Kingma and Ba 2015, arXiv:1412.6980, algorithm 1) with betas 0.5 and 0.99.
struct Adam {
    moments: Vec<(Tensor, Tensor)>,
    step: i32,
}

impl Adam {
    fn step(&mut self, parameters: &[(String, Tensor)]) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        self.step += 1;
        for ((_, parameter), (first, second)) in parameters.iter().zip(&mut self.moments) {
            let gradient = parameter.grad();
            if !gradient.defined() {
                continue;
            }
            *first = &*first * 0.5 + &gradient * 0.5;
            *second = &*second * 0.99 + gradient.square() * 0.01;
            let (one, two) = (1.0 - 0.5_f64.powi(self.step), 1.0 - 0.99_f64.powi(self.step));
            let update = (&*first / one) / ((&*second / two).sqrt() + 1e-8) * RATE;
            let mut handle = parameter.shallow_clone();
            let _ = handle.f_sub_(&update)?;
            handle.zero_grad();
        }
        Ok(())
    }
}

fn falls(reward: &mut dyn Reward, real: &Samples, fake: &Samples) -> Verdict {
    let parameters = parameters(reward);
    if parameters.is_empty() {
        return fail("trainable parameters", "none", "name the learner's tensors in `Learner::parameters`");
    }
    let moments = parameters.iter().map(|(_, parameter)| (parameter.zeros_like(), parameter.zeros_like())).collect();
    let mut adam = Adam { moments, step: 0 };
    let mut losses = Vec::with_capacity(STEPS);
    for _ in 0..STEPS {
        let DiscriminatorLoss { loss, real, fake } = loss(reward, real, fake)?;
        let sizes = [loss.size(), real.size(), fake.size()];
        if sizes != [vec![], vec![BATCH as i64], vec![BATCH as i64]] {
            let advice = "reduce the loss to a scalar, and give one score for each real and each fake sample";
            return fail(format!("a loss [] and scores [{BATCH}], [{BATCH}]"), format!("{sizes:?}"), advice);
        }
        losses.push(loss.double_value(&[]));
        if !loss.requires_grad() {
            let advice = "compute the loss with the very tensors of `parameters`, without `no_grad`";
            return fail("a loss with gradients to the parameters", "one without", advice);
        }
        loss.f_backward()?;
        adam.step(&parameters)?;
    }
    let (first, last) = (losses[0], losses[STEPS - 1]);
    let DiscriminatorLoss { real, fake, .. } = loss(reward, real, fake)?;
    let [real, fake] = [real, fake].map(|scores| scores.mean(Kind::Double).double_value(&[]));
    let advice = "let `parameters` give the tensors that the loss is computed with (not copies), and the loss fall as real \
                  samples score above fake ones";
    if !(last.is_finite() && last < 0.9 * first) {
        let expected = format!("a loss that falls by a tenth in {STEPS} steps of Adam on separable samples");
        return fail(expected, format!("{first:.4} at first, {last:.4} at last"), advice);
    }
    let above = real > fake;
    if !above {
        let expected = "real samples to score above fake ones after training";
        return fail(expected, format!("{real:.3} for real, {fake:.3} for fake ones"), advice);
    }
    ok(format!("from {first:.3} to {last:.3} in {STEPS} steps; real {real:.2}, fake {fake:.2}"))
}

fn gradients(reward: &mut dyn Reward, real: &Samples, fake: &Samples) -> Verdict {
    let parameters = parameters(reward);
    let leaves = (Leaves::of(real), Leaves::of(fake));
    let mut without: Vec<&str> = parameters.iter().map(|(name, _)| name.as_str()).collect();
    // What is 0 at first may hide others: a few steps, none of them large.
    for _ in 0..3 {
        let learner = reward.learner().ok_or_else(|| advdmd_sdk::Error::invalid("its learner is gone"))?;
        let loss = learner.discriminator_loss(&leaves.0.batch(real)?, &leaves.1.batch(fake)?)?.loss;
        loss.f_backward()?;
        without.retain(|name| {
            !parameters.iter().any(|(known, parameter)| known == name && largest(&parameter.grad()) > 0.0)
        });
        let _no_grad = tch::no_grad_guard();
        for (_, parameter) in &parameters {
            let gradient = parameter.grad();
            if gradient.defined() {
                let mut handle = parameter.shallow_clone();
                let _ = handle.f_sub_(&(gradient * 1e-2))?;
                handle.zero_grad();
            }
        }
    }
    if !without.is_empty() {
        return fail(
            "the discriminator's loss to reach every parameter",
            format!("no gradient for {}", without.join(", ")),
            "leave tensors that nothing trains out of `parameters`, or connect them to the loss",
        );
    }
    if leaves.0.reached() || leaves.1.reached() {
        return fail(
            "the discriminator's loss to reach no input",
            "gradients to the batch's tensors",
            "detach inputs in `discriminator_loss`: it must not train the network that made them",
        );
    }
    ok(format!("to all of {} parameters, to no input", parameters.len()))
}

fn generator(reward: &mut dyn Reward, fake: &Samples) -> Verdict {
    let leaves = Leaves::of(fake);
    let learner = reward.learner().ok_or_else(|| advdmd_sdk::Error::invalid("its learner is gone"))?;
    let loss = learner.generator_loss(&leaves.batch(fake)?)?;
    if loss.size() != [BATCH as i64] {
        let advice = "give one loss a sample; the host takes the mean";
        return fail(format!("a loss of shape [{BATCH}]"), format!("{:?}", loss.size()), advice);
    }
    if !bool::try_from(loss.isfinite().all())? {
        return fail("a finite loss", format!("{:?}", Vec::<f32>::try_from(loss)?), "guard logarithms and divisions");
    }
    let advice = "keep the graph from the batch's tensors to the loss: no `detach`, no `no_grad`";
    if !loss.requires_grad() {
        return fail("gradients to the batch's tensors", "a loss without gradients", advice);
    }
    loss.mean(Kind::Float).f_backward()?;
    if !leaves.reached() {
        return fail("a gradient to the batch's tensors that is not 0", "none", advice);
    }
    if !leaves.finite() {
        return fail("a finite gradient", "NaN or infinity", "guard roots, norms and divisions at 0");
    }
    ok(format!("[{BATCH}], with gradients to the batch"))
}
