//! Exponentially averaged weights.

use advdmd_sdk::{Error, Result};
use tch::{Kind, Tensor};

use crate::optim::flag;
use crate::{Weights, ffi, load_parameters};

/// The exponential moving average of a list of parameters, with warm-up: the n-th update uses
/// `min(decay, (1 + n) / (10 + n))` (n from 0; Flow-GRPO `ema.py`).
///
/// Averages are float32 whatever the parameters' type: a decay near 1 is lost to rounding in 16 bits.
#[derive(Debug)]
pub struct Ema {
    decay: f64,
    updates: i64,
    names: Vec<String>,
    parameters: Vec<Tensor>,
    averages: Vec<Tensor>,
}

impl Ema {
    /// Name of the count of updates in a saved state, beside the averages.
    pub const COUNTER: &str = "updates";

    /// Starts at the parameters' present values.
    ///
    /// # Errors
    /// A decay outside 0..=1; libtorch's.
    pub fn new(parameters: &[(String, Tensor)], decay: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&decay) {
            return Err(Error::config(format!("ema.decay: expected 0 to 1, found {decay}")));
        }
        let copy = |(_, parameter): &(String, Tensor)| -> Result<Tensor> {
            let device = parameter.device();
            Ok(parameter.f_detach()?.f_to_device_(device, Kind::Float, false, true)?)
        };
        Ok(Self {
            decay,
            updates: 0,
            names: parameters.iter().map(|(name, _)| name.clone()).collect(),
            parameters: parameters.iter().map(|(_, parameter)| parameter.shallow_clone()).collect(),
            averages: parameters.iter().map(copy).collect::<Result<_>>()?,
        })
    }

    /// Moves the averages towards the parameters' present values.
    ///
    /// # Errors
    /// libtorch's.
    pub fn update(&mut self) -> Result<()> {
        self.advance(None)
    }

    /// The same, but not where `skip` (0-dim float32 on their device) is 1: see [`AdamW::step_unless`].
    ///
    /// [`AdamW::step_unless`]: crate::optim::AdamW::step_unless
    ///
    /// # Errors
    /// libtorch's.
    pub fn update_unless(&mut self, skip: &Tensor) -> Result<()> {
        self.advance(Some(skip))
    }

    /// Takes back the count of the last update, of which the host has learned that it was skipped.
    pub fn uncount(&mut self) {
        self.updates -= 1;
    }

    fn advance(&mut self, skip: Option<&Tensor>) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let Some(first) = self.averages.first() else { return Ok(()) };
        let skip = skip.map(|skip| flag(skip, first.device())).transpose()?;
        let n = self.updates as f64;
        let decay = self.decay.min((1.0 + n) / (10.0 + n));
        let sources = self.parameters.iter().map(|parameter| parameter.f_to_kind(Kind::Float));
        ffi::fused_lerp_(&self.averages, &sources.collect::<Result<Vec<_>, _>>()?, 1.0 - decay, skip.as_ref())?;
        self.updates += 1;
        Ok(())
    }

    /// Exchanges averages and parameters, in place: once to evaluate with the averages, once more to train on.
    ///
    /// # Errors
    /// libtorch's.
    pub fn swap(&mut self) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let kept = self.averages.iter().map(|average| average.f_mul_scalar(1.0)).collect::<Result<Vec<_>, _>>()?;
        ffi::foreach_copy_(&self.averages, &self.parameters)?;
        ffi::foreach_copy_(&self.parameters, &kept)
    }

    /// The averages by name, handles on those in use.
    pub fn averages(&self) -> Vec<(String, Tensor)> {
        self.names.iter().cloned().zip(self.averages.iter().map(Tensor::shallow_clone)).collect()
    }

    /// The averages under their parameters' names and the count of updates as `updates` (0-dim int64).
    pub fn state(&self) -> Weights {
        let mut state: Weights = self.averages().into_iter().collect();
        state.insert(Self::COUNTER, Tensor::from(self.updates));
        state
    }

    /// Takes over a saved state, by copy.
    ///
    /// # Errors
    /// Names or shapes that are not exactly these, in one error that lists them all.
    pub fn load_state(&mut self, state: &Weights) -> Result<()> {
        let updates = state
            .get(Self::COUNTER)
            .ok_or_else(|| Error::invalid(format!("averaged weights: {:?} is missing", Self::COUNTER)))?;
        let averages = state.iter().filter(|(name, _)| *name != Self::COUNTER);
        let averages: Weights = averages.map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())).collect();
        load_parameters(&self.averages(), &averages).map_err(|error| error.context("averaged weights"))?;
        self.updates = updates.f_int64_value(&[])?;
        Ok(())
    }
}
