//! Samplers whose numbers are wrong.

use advdmd_sdk::{Error, LogProb, Result, Sampler, SamplerConfig, Transition};
use schemars::JsonSchema;
use serde::Deserialize;

/// Euler's method, but for one break of the contract of samplers.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FaultySampler {
    /// The way to break it.
    how: How,
}

#[derive(Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum How {
    /// None.
    Healthy,
    /// Sigmas that end above 0.
    EndsAboveZero,
    /// A coefficient that is not a number, at the second step.
    NanCoefficient,
    /// Noise at a step that claims to have no probability.
    NoiseWithoutProbability,
    /// Noise in the step to sigma 0.
    NoisyLastStep,
    /// A panic where a step is asked for that there is not.
    PanicsBeyondTheEnd,
    /// More of x0 than its sigma says.
    GainsX0,
    /// Noise on top of all that was there, and the claim that the level stays.
    OverNoised,
    /// First order, declared as second.
    WrongOrder,
    /// A coefficient that is not a number, in schedules of many steps.
    NanInManySteps,
    /// Keeps memory in each call.
    Leaks,
}

impl SamplerConfig for FaultySampler {
    fn build(self) -> Result<Box<dyn Sampler>> {
        Ok(Box::new(self))
    }
}

impl Sampler for FaultySampler {
    fn sigmas(&self, steps: usize) -> Result<Vec<f64>> {
        if steps == 0 {
            return Err(Error::invalid("steps: expected 1 or more, found 0"));
        }
        if self.how == How::Leaks {
            std::mem::forget(std::hint::black_box(vec![1_u8; 1 << 15]));
        }
        let last = if self.how == How::EndsAboveZero { 0.1 } else { 0.0 };
        Ok((0..=steps).map(|step| 1.0 - (1.0 - last) * step as f64 / steps as f64).collect())
    }

    fn transition(&self, sigmas: &[f64], step: usize) -> Result<Transition> {
        let falling = sigmas.windows(2).all(|pair| pair[0] > pair[1]);
        if self.how != How::PanicsBeyondTheEnd && !(falling && step + 1 < sigmas.len()) {
            return Err(Error::invalid(format!(
                "expected falling sigmas and a step of them, found {step} of {sigmas:?}"
            )));
        }
        let (s, next) = (sigmas[step], sigmas[step + 1]);
        let last = step + 2 == sigmas.len();
        let euler = Transition { a: 1.0, b: vec![next - s], c: 0.0, log_prob: LogProb::None };
        Ok(match self.how {
            How::NanCoefficient if step == 1 => Transition { b: vec![f64::NAN], ..euler },
            How::NanInManySteps if sigmas.len() > 60 => Transition { b: vec![f64::NAN], ..euler },
            How::NoiseWithoutProbability => Transition { c: 0.1, ..euler },
            // Of a data point with exact velocities the noise level stays what it is: all of it is fresh.
            How::NoisyLastStep if last => Transition { c: 1e-10, log_prob: LogProb::Gaussian, ..euler },
            How::OverNoised if !last => Transition { c: 0.3 * next, log_prob: LogProb::Gaussian, ..euler },
            // a s + b stays s', a (1 - s) - b does not stay 1 - s'.
            How::GainsX0 => Transition { a: 1.1, b: vec![next - 1.1 * s], ..euler },
            _ => euler,
        })
    }

    fn order(&self) -> u32 {
        if self.how == How::WrongOrder { 2 } else { 1 }
    }
}
