//! A model's view of its weights: by path, under a tuning.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::rc::Rc;

use advdmd_sdk::{Error, Result, Tuning};
use tch::{Kind, Tensor};

use crate::{Layout, Linear, Lora, RandomStream, Weights};

/// What a model is built from: a path inside base weights, and the [`Tuning`] that decides what each tensor becomes.
///
/// - `Frozen`: handles on the base's own storage, without gradients;
/// - `Lora`: the same, and beside each targeted linear layer a pair A (normal, standard deviation 1 / rank) and
///   B (zeros), so that the model starts as the base (PEFT's `init_lora_weights="gaussian"`, the initialisation of
///   Flow-GRPO's SD3 recipe);
/// - `Full`: a trainable copy of every tensor that is no buffer.
///
/// A clone or [`Params::pp`] is another view of the same collection, so [`Params::parameters`] of any of them lists all.
#[derive(Clone)]
pub struct Params<'a> {
    source: Source<'a>,
    path: String,
    trainable: Rc<RefCell<BTreeMap<String, Tensor>>>,
}

/// What diffusers puts before a module's path in the names of its `LoRA`.
pub(crate) const LORA_PREFIX: &str = "transformer.";

#[derive(Clone)]
enum Source<'a> {
    Base {
        weights: &'a Weights,
        tuning: &'a Tuning,
        targets: Vec<String>,
        seed: u64,
    },
    /// Notes the names and shapes that a model asks for and returns empty tensors.
    Record(Rc<RefCell<Layout>>),
}

impl<'a> Params<'a> {
    /// The root view of `weights`. `default_targets` are the layers to adapt where `LoRA` names none; `seed` draws the
    /// `LoRA`'s A matrices, each from its own name.
    ///
    /// # Errors
    /// A `LoRA` whose rank is below 1, whose alpha is not finite, or one of whose targets is no linear layer.
    pub fn new(weights: &'a Weights, tuning: &'a Tuning, default_targets: &[&str], seed: u64) -> Result<Self> {
        let mut adapted = Vec::new();
        if let Tuning::Lora { rank, alpha, targets } = tuning {
            if *rank < 1 {
                return Err(Error::config(format!("lora.rank: expected 1 or more, found {rank}")));
            }
            if !alpha.is_finite() {
                return Err(Error::config(format!("lora.alpha: expected a finite number, found {alpha}")));
            }
            let defaults = default_targets.iter().map(|&target| target.to_owned());
            adapted = if targets.is_empty() { defaults.collect() } else { targets.clone() };
            if adapted.is_empty() {
                return Err(Error::config("lora.targets: expected at least one layer, found none"));
            }
            for target in &adapted {
                let layers = weights.iter().filter(|(_, tensor)| tensor.dim() == 2);
                let mut layers = layers.filter_map(|(name, _)| name.strip_suffix(".weight"));
                if !layers.any(|module| is_suffix(module, target)) {
                    return Err(Error::config(format!(
                        "lora.targets: {target:?} is the end of no linear layer's path"
                    )));
                }
            }
        }
        let source = Source::Base { weights, tuning, targets: adapted, seed };
        Ok(Self { source, path: String::new(), trainable: Rc::default() })
    }

    /// The names and shapes that `build` asks for, in that order. The tensors it gets are empty.
    ///
    /// # Errors
    /// Those of `build`.
    pub fn record<T>(build: impl FnOnce(&Params<'_>) -> Result<T>) -> Result<Layout> {
        let layout = Rc::default();
        let source = Source::Record(Rc::clone(&layout));
        build(&Params { source, path: String::new(), trainable: Rc::default() })?;
        Ok(layout.take())
    }

    /// The view one step down: `p.pp("attn").get("to_q.weight", ..)` reads `attn.to_q.weight`.
    #[must_use]
    pub fn pp(&self, segment: impl Display) -> Self {
        Self { path: self.join(segment), ..self.clone() }
    }

    /// The tensor `name` of this path, trainable under `Full`.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn get(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let tensor = self.buffer(name, shape)?;
        if !matches!(self.source, Source::Base { tuning: Tuning::Full, .. }) {
            return Ok(tensor);
        }
        let mut trainable = self.trainable.borrow_mut();
        let entry = trainable.entry(self.join(name));
        let own = match entry {
            std::collections::btree_map::Entry::Occupied(own) => own.into_mut(),
            std::collections::btree_map::Entry::Vacant(place) => {
                let copy = tensor.f_to_device_(tensor.device(), tensor.f_kind()?, false, true)?;
                place.insert(copy.f_set_requires_grad(true)?)
            }
        };
        Ok(own.shallow_clone())
    }

    /// The tensor `name` of this path, which no tuning trains; shares the base's storage.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn buffer(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let name = self.join(name);
        match &self.source {
            Source::Record(layout) => {
                layout.borrow_mut().push((name, shape.to_vec()));
                Ok(Tensor::new())
            }
            Source::Base { weights, .. } => {
                let tensor = weights
                    .get(&name)
                    .ok_or_else(|| Error::invalid(format!("weight {name}: expected shape {shape:?}, found none")))?;
                let found = tensor.size();
                if found != shape {
                    return Err(Error::shape(format!("weight {name}"), format!("{shape:?}"), &found));
                }
                Ok(tensor.f_detach()?)
            }
        }
    }

    /// The linear layer at this path: `weight` `[outputs, inputs]` and `bias` `[outputs]`, with its `LoRA` if targeted.
    ///
    /// # Errors
    /// As [`Params::get`].
    pub fn linear(&self, inputs: i64, outputs: i64) -> Result<Linear> {
        let (weight, bias) = (self.get("weight", &[outputs, inputs])?, self.get("bias", &[outputs])?);
        Ok(Linear::new(weight, Some(bias), self.lora(inputs, outputs)?))
    }

    /// As [`Params::linear`], of a layer that has no bias.
    ///
    /// # Errors
    /// As [`Params::get`].
    pub fn linear_without_bias(&self, inputs: i64, outputs: i64) -> Result<Linear> {
        Ok(Linear::new(self.get("weight", &[outputs, inputs])?, None, self.lora(inputs, outputs)?))
    }

    /// The `LoRA` of the linear layer at this path, if it is targeted: A `[rank, inputs]`, B `[outputs, rank]`, float32.
    fn lora(&self, inputs: i64, outputs: i64) -> Result<Option<Lora>> {
        let Source::Base { weights, tuning: Tuning::Lora { rank, alpha, .. }, targets, seed } = &self.source else {
            return Ok(None);
        };
        if !targets.iter().any(|target| is_suffix(&self.path, target)) {
            return Ok(None);
        }
        let device = weights.get(&self.join("weight")).map_or(tch::Device::Cpu, Tensor::device);
        let [a_name, b_name] = ["A", "B"].map(|factor| format!("{LORA_PREFIX}{}.lora_{factor}.weight", self.path));
        let std = 1.0 / *rank as f32;
        let a = RandomStream::new(*seed, &a_name).normal(&[*rank, inputs], std)?.f_to(device)?;
        let b = Tensor::f_zeros([outputs, *rank], (Kind::Float, device))?;
        let [a, b] = [a.f_set_requires_grad(true)?, b.f_set_requires_grad(true)?];
        let mut trainable = self.trainable.borrow_mut();
        trainable.insert(a_name, a.shallow_clone());
        trainable.insert(b_name, b.shallow_clone());
        Ok(Some(Lora::new(a, b, alpha / *rank as f64)))
    }

    /// Checks that the weights are exactly those of `layout`; does nothing while recording.
    ///
    /// # Errors
    /// As [`Weights::check`].
    pub fn check(&self, layout: &Layout, source: &str) -> Result<()> {
        match &self.source {
            Source::Base { weights, .. } => weights.check(layout, source),
            Source::Record(_) => Ok(()),
        }
    }

    /// Handles on the trainable tensors asked for so far, by published name: diffusers' own under `Full`,
    /// `transformer.<module>.lora_A.weight` and `lora_B.weight` under `Lora`, none when frozen.
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        let trainable = self.trainable.borrow();
        trainable.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
    }

    fn join(&self, segment: impl Display) -> String {
        if self.path.is_empty() { segment.to_string() } else { format!("{}.{segment}", self.path) }
    }
}

/// Copies saved values into trainable tensors, in place.
///
/// # Errors
/// As [`Weights::check`], when names or shapes are not exactly those of `parameters`.
pub fn load_parameters(parameters: &[(String, Tensor)], saved: &Weights) -> Result<()> {
    let layout: Layout = parameters.iter().map(|(name, tensor)| (name.clone(), tensor.size())).collect();
    saved.check(&layout, "saved parameters")?;
    let _no_grad = tch::no_grad_guard();
    for (name, parameter) in parameters {
        if let Some(value) = saved.get(name) {
            parameter.shallow_clone().f_copy_(value)?;
        }
    }
    Ok(())
}

/// Whether `target` is `module` or its end after a dot, as PEFT matches `target_modules`.
fn is_suffix(module: &str, target: &str) -> bool {
    module.strip_suffix(target).is_some_and(|head| head.is_empty() || head.ends_with('.'))
}
