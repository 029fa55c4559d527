//! `AdamW` with all parameters in one fused call.

use advdmd_sdk::{Error, Result};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::ffi::{self, AdamWLists};
use crate::optim::{Gradients, flag};
use crate::{Layout, Weights};

/// Hyper-parameters, with PyTorch's defaults but for the learning rate, which has none.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamWConfig {
    /// Learning rate.
    pub lr: f64,
    /// Decays of the first and second moments.
    #[serde(default = "default_betas")]
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    #[serde(default = "default_eps")]
    pub eps: f64,
    /// Decoupled weight decay, times the learning rate.
    #[serde(default = "default_weight_decay")]
    pub weight_decay: f64,
}

fn default_betas() -> (f64, f64) {
    (0.9, 0.999)
}

fn default_eps() -> f64 {
    1e-8
}

fn default_weight_decay() -> f64 {
    0.01
}

impl AdamWConfig {
    /// PyTorch's defaults with this learning rate.
    pub fn with_lr(lr: f64) -> Self {
        Self { lr, betas: default_betas(), eps: default_eps(), weight_decay: default_weight_decay() }
    }

    fn check(&self) -> Result<()> {
        let (beta1, beta2) = self.betas;
        let at_least_zero = [("lr", self.lr), ("eps", self.eps), ("weight_decay", self.weight_decay)];
        if let Some((key, value)) = at_least_zero.iter().find(|(_, value)| !(value.is_finite() && *value >= 0.0)) {
            return Err(Error::config(format!("{key}: expected a finite number of 0 or more, found {value}")));
        }
        match [beta1, beta2].into_iter().find(|beta| !(0.0..1.0).contains(beta)) {
            Some(beta) => Err(Error::config(format!("betas: expected 0 or more and below 1, found {beta}"))),
            None => Ok(()),
        }
    }
}

/// `AdamW` (Loshchilov and Hutter, arXiv:1711.05101) with the numbers of `torch.optim.AdamW(fused=True)`.
///
/// The moments have their parameter's type and device, and leave and return exactly through [`AdamW::state`] and
/// [`AdamW::load_state`].
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    slots: Vec<Slot>,
    gradients: Gradients,
}

#[derive(Debug)]
struct Slot {
    name: String,
    parameter: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: i64,
    /// Whether the last step counted here.
    counted: bool,
}

impl AdamW {
    /// Over the named parameters, with zero moments.
    ///
    /// # Errors
    /// A hyper-parameter out of range, a name given twice, a tensor that takes no gradient.
    pub fn new(parameters: &[(String, Tensor)], config: AdamWConfig) -> Result<Self> {
        config.check()?;
        let mut names: Vec<_> = parameters.iter().map(|(name, _)| name).collect();
        names.sort();
        if let Some((name, _)) = names.iter().zip(&names[1.min(names.len())..]).find(|(one, other)| one == other) {
            return Err(Error::invalid(format!("parameter {name}: given twice")));
        }
        let slot = |(name, parameter): &(String, Tensor)| {
            if !parameter.requires_grad() {
                return Err(Error::invalid(format!("parameter {name}: takes no gradient")));
            }
            let zeros = || parameter.f_detach()?.f_zeros_like();
            Ok(Slot {
                name: name.clone(),
                parameter: parameter.shallow_clone(),
                exp_avg: zeros()?,
                exp_avg_sq: zeros()?,
                step: 0,
                counted: false,
            })
        };
        let slots = parameters.iter().map(slot).collect::<Result<_>>()?;
        Ok(Self { config, slots, gradients: Gradients::new(parameters)? })
    }

    /// The hyper-parameters in use.
    pub fn config(&self) -> &AdamWConfig {
        &self.config
    }

    /// Sets the learning rate of the following steps.
    pub fn set_lr(&mut self, lr: f64) {
        self.config.lr = lr;
    }

    /// The gradients of the parameters, to drop or to zero.
    pub fn gradients(&self) -> &Gradients {
        &self.gradients
    }

    /// Takes one step along the gradients. A parameter without one is left alone, and so are its moments.
    ///
    /// # Errors
    /// libtorch's.
    pub fn step(&mut self) -> Result<()> {
        self.advance(None)
    }

    /// The same, but parameters and moments stay as they are where `skip` (0-dim float32 on their device) is 1. That
    /// is decided on the device: the host need not wait to learn whether a gradient was finite. The host's count of steps goes
    /// on either way: [`AdamW::uncount`] takes it back.
    ///
    /// # Errors
    /// libtorch's.
    pub fn step_unless(&mut self, skip: &Tensor) -> Result<()> {
        self.advance(Some(skip))
    }

    /// Takes back the count of the last step, of which the host has learned that it was skipped.
    pub fn uncount(&mut self) {
        for slot in self.slots.iter_mut().filter(|slot| slot.counted) {
            slot.step -= 1;
            slot.counted = false;
        }
    }

    fn advance(&mut self, skip: Option<&Tensor>) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let mut lists: [Vec<Tensor>; 5] = Default::default();
        // Parameters that began together share one step tensor: a fill per distinct count instead of one per parameter.
        let mut steps: Vec<(i64, Tensor)> = Vec::new();
        for slot in &mut self.slots {
            let gradient = slot.parameter.f_grad()?;
            slot.counted = gradient.defined();
            if !slot.counted {
                continue;
            }
            slot.step += 1;
            let device = slot.parameter.device();
            let known = steps.iter().position(|(count, step)| *count == slot.step && step.device() == device);
            let index = known.unwrap_or(steps.len());
            if known.is_none() {
                steps.push((slot.step, Tensor::f_full([0; 0], slot.step as f64, (Kind::Float, device))?));
            }
            let entry = [&slot.parameter, &gradient, &slot.exp_avg, &slot.exp_avg_sq, &steps[index].1];
            for (list, tensor) in lists.iter_mut().zip(entry) {
                list.push(tensor.shallow_clone());
            }
        }
        let [parameters, gradients, exp_avgs, exp_avg_sqs, steps] = &lists;
        if parameters.is_empty() {
            return Ok(());
        }
        let skip = skip.map(|skip| flag(skip, parameters[0].device())).transpose()?;
        let lists = AdamWLists { parameters, gradients, exp_avgs, exp_avg_sqs, steps };
        let AdamWConfig { lr, betas, eps, weight_decay } = self.config;
        ffi::fused_adamw_(&lists, lr, betas, weight_decay, eps, skip.as_ref())
    }

    /// The moments and step counts: `<parameter>.exp_avg`, `.exp_avg_sq` and `.step` (0-dim int64). Handles on the
    /// moments in use, so save before the next step.
    pub fn state(&self) -> Weights {
        let entries = self.slots.iter().flat_map(|slot| {
            let Slot { name, exp_avg, exp_avg_sq, step, .. } = slot;
            [
                (format!("{name}.exp_avg"), exp_avg.shallow_clone()),
                (format!("{name}.exp_avg_sq"), exp_avg_sq.shallow_clone()),
                (format!("{name}.step"), Tensor::from(*step)),
            ]
        });
        entries.collect()
    }

    /// Takes over a saved state, by copy.
    ///
    /// # Errors
    /// Names or shapes that are not exactly this optimiser's, in one error that lists them all.
    pub fn load_state(&mut self, state: &Weights) -> Result<()> {
        let layout: Layout = self.state().iter().map(|(name, tensor)| (name.to_owned(), tensor.size())).collect();
        state.check(&layout, "optimiser state")?;
        let _no_grad = tch::no_grad_guard();
        let entry = |name: &str, part: &str| {
            let name = format!("{name}.{part}");
            state.get(&name).ok_or_else(|| Error::invalid(format!("optimiser state: {name} is missing")))
        };
        for slot in &mut self.slots {
            slot.exp_avg.f_copy_(entry(&slot.name, "exp_avg")?)?;
            slot.exp_avg_sq.f_copy_(entry(&slot.name, "exp_avg_sq")?)?;
            slot.step = entry(&slot.name, "step")?.f_int64_value(&[])?;
        }
        Ok(())
    }
}
