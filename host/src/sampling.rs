//! From noise to an image: a sampler's transitions applied to a denoiser's velocities.

use advdmd_sdk::{Conditioning, Denoiser, LogProb, Request, Sampler, Transition};
use tch::{Kind, Tensor};

use crate::passes::{PassCounter, Role};
use crate::{Error, Result};

/// Sigmas and transitions of a trajectory of K steps, computed once.
#[derive(Debug, Clone)]
pub struct Trajectory {
    /// K + 1 noise levels, the last one 0.
    pub sigmas: Vec<f64>,
    /// K transitions.
    pub transitions: Vec<Transition>,
}

impl Trajectory {
    /// The trajectory of `sampler` over `sigmas`, or over its own schedule of `steps`.
    ///
    /// # Errors
    /// Given sigmas that do not fall to 0; a sampler's sigmas or coefficients that break its contract.
    pub fn new(sampler: &dyn Sampler, steps: usize, sigmas: Option<&[f64]>) -> Result<Self> {
        let fall = |sigmas: &[f64]| {
            let falling = sigmas.windows(2).all(|pair| pair[0] > pair[1]);
            steps >= 1 && sigmas.len() == steps + 1 && falling && sigmas[0] <= 1.0 && sigmas[steps] == 0.0
        };
        let expected =
            format!("for {steps} steps: expected {} numbers that fall strictly from at most 1 to 0", steps + 1);
        let sigmas = match sigmas {
            Some(given) if fall(given) => given.to_vec(),
            Some(given) => return Err(Error::usage(format!("sigmas {given:?} {expected}"), None)),
            None => sampler.sigmas(steps)?,
        };
        if !fall(&sigmas) {
            return Err(Error::contract(format!("the sampler gave sigmas {sigmas:?} {expected}")));
        }
        let transitions = (0..steps)
            .map(|step| {
                let transition = sampler.transition(&sigmas, step)?;
                check(&transition, step, step + 1 == steps)?;
                Ok(transition)
            })
            .collect::<Result<_>>()?;
        Ok(Self { sigmas, transitions })
    }

    /// Number of steps K.
    pub fn steps(&self) -> usize {
        self.transitions.len()
    }

    /// Steps whose transition draws noise: the actions of the policy.
    pub fn stochastic(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.steps()).filter(|&step| self.transitions[step].log_prob != LogProb::None)
    }
}

fn check(transition: &Transition, step: usize, last: bool) -> Result<()> {
    let Transition { a, b, c, log_prob } = transition;
    let finite = [a, c].into_iter().chain(b).all(|x| x.is_finite());
    let history = (1..=step + 1).contains(&b.len());
    let deterministic = *c == 0.0;
    if !finite || !history || *c < 0.0 || deterministic != (*log_prob == LogProb::None) || (last && !deterministic) {
        return Err(Error::contract(format!(
            "the sampler gave {transition:?} at step {step}: expected finite numbers, 1 to {} velocities, noise of at least \
             0 with a log-probability exactly when it is above 0, and none in the last step",
            step + 1
        )));
    }
    Ok(())
}

/// Classifier-free guidance: `uncond + scale (cond - uncond)`.
#[derive(Debug)]
pub struct Guidance<'a> {
    /// 1 is the conditional prediction alone.
    pub scale: f64,
    /// The null prompt's embedding, one row per sample.
    pub null: &'a Conditioning,
}

/// The velocity at one noise level for the whole batch; guided in one pass over `[cond, uncond]`.
///
/// `x` `[B, C, h, w]`, `sigma` `[B]` -> `[B, C, h, w]`.
///
/// # Errors
/// The backbone's.
pub fn velocity(
    denoiser: &dyn Denoiser,
    role: Role,
    x: &Tensor,
    sigma: &Tensor,
    conditioning: &Conditioning,
    guidance: Option<&Guidance<'_>>,
    passes: &PassCounter,
) -> Result<Tensor> {
    let predict = |x: &Tensor, sigma: &Tensor, conditioning: &Conditioning| {
        passes.forward(role, x.size()[0]);
        denoiser
            .predict(x, sigma, conditioning, Request::VELOCITY)?
            .velocity
            .ok_or_else(|| Error::contract("no velocity"))
    };
    match guidance {
        Some(guidance) if guidance.scale != 1.0 => {
            let twice = |t: &Tensor| Tensor::cat(&[t, t], 0);
            let both = predict(&twice(x), &twice(sigma), &conditioning.concat(guidance.null))?;
            let halves = both.chunk(2, 0);
            Ok(halves[1].lerp(&halves[0], guidance.scale))
        }
        _ => predict(x, sigma, conditioning),
    }
}

/// One noise level for each of `batch` samples, `[B]`.
pub fn sigma_column(sigma: f64, x: &Tensor) -> Tensor {
    Tensor::full([x.size()[0]], sigma, (Kind::Float, x.device()))
}

/// `a x + sum_i b_i v_i`: the deterministic part of a transition. `velocities` are oldest first.
pub fn transition_mean(transition: &Transition, x: &Tensor, velocities: &[Tensor]) -> Tensor {
    transition.b.iter().zip(velocities.iter().rev()).fold(x * transition.a, |sum, (&b, velocity)| sum + velocity * b)
}

/// Runs a trajectory without gradients and returns the final latents.
///
/// `noise` `[B, C, h, w]` is the initial state; `step_noise(k)` gives the noise of a stochastic step.
///
/// # Errors
/// The backbone's.
pub fn generate(
    denoiser: &dyn Denoiser,
    trajectory: &Trajectory,
    noise: Tensor,
    conditioning: &Conditioning,
    guidance: Option<&Guidance<'_>>,
    mut step_noise: impl FnMut(usize) -> Result<Tensor>,
) -> Result<Tensor> {
    let passes = PassCounter::default();
    let _no_grad = tch::no_grad_guard();
    let mut x = noise;
    let mut velocities = Vec::new();
    for (step, transition) in trajectory.transitions.iter().enumerate() {
        let sigma = sigma_column(trajectory.sigmas[step], &x);
        velocities.push(velocity(denoiser, Role::Student, &x, &sigma, conditioning, guidance, &passes)?);
        x = transition_mean(transition, &x, &velocities);
        if transition.c > 0.0 {
            x += step_noise(step)? * transition.c;
        }
    }
    Ok(x)
}
