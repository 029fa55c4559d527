//! The network of the faulty backbone.

use std::sync::atomic::{AtomicU16, Ordering};

use advdmd_sdk::{Conditioning, Denoiser, Error, Prediction, Request, Result};
use tch::{Device, Kind, Tensor};

use crate::backbone::{How, WIDTH, expect, latent_shape};

/// The weights of a base, or a copy of them.
pub struct Weights {
    /// `[WIDTH, 4]`, a layer of `[WIDTH, WIDTH]` for each block, `[4, WIDTH]`.
    named: Vec<(&'static str, Tensor)>,
}

const NAMES: [&str; 4] = ["in.weight", "blocks.0.linear.weight", "blocks.1.linear.weight", "out.weight"];

impl Weights {
    /// The same numbers each time, but for `offset`.
    pub fn new(offset: u16) -> Result<Self> {
        let sizes = [[WIDTH, 4], [WIDTH, WIDTH], [WIDTH, WIDTH], [4, WIDTH]];
        let make = |(at, (name, size)): (usize, (&'static str, [i64; 2]))| {
            let phase = at as f64 + f64::from(offset);
            let numbers = Tensor::f_arange(size[0] * size[1], (Kind::Float, Device::Cpu))?;
            let weight = numbers.f_mul_scalar(1.7)?.f_add_scalar(phase)?.f_sin()?.f_view(size)?;
            Ok((name, weight.f_div_scalar((size[1] as f64).sqrt())?))
        };
        Ok(Self { named: NAMES.into_iter().zip(sizes).enumerate().map(make).collect::<Result<_>>()? })
    }

    /// How often this was asked before.
    pub fn made_before() -> u16 {
        static MADE: AtomicU16 = AtomicU16::new(0);
        MADE.fetch_add(1, Ordering::Relaxed)
    }

    /// Other handles on the same tensors.
    pub fn shared(&self) -> Self {
        Self { named: self.named.iter().map(|(name, weight)| (*name, weight.shallow_clone())).collect() }
    }

    pub fn copy(&self, trainable: bool) -> Result<Self> {
        let copy = |(name, weight): &(&'static str, Tensor)| {
            Ok((*name, weight.f_detach()?.copy().f_set_requires_grad(trainable)?))
        };
        Ok(Self { named: self.named.iter().map(copy).collect::<Result<_>>()? })
    }

    /// The same tensors, as leaves of their own that share the storage.
    pub fn trainable(&self) -> Result<Self> {
        let same = |(name, weight): &(&'static str, Tensor)| Ok((*name, weight.f_detach()?.f_set_requires_grad(true)?));
        Ok(Self { named: self.named.iter().map(same).collect::<Result<_>>()? })
    }
}

/// A low-rank update of one block: `B A scale`.
struct Update {
    a: Tensor,
    b: Tensor,
    scale: f64,
}

/// A network: a base, and what is trained of it.
pub struct Network {
    how: How,
    weights: Weights,
    updates: Vec<Update>,
    /// Whether the weights themselves are trained.
    full: bool,
    /// Trained, and not named.
    hidden: Option<Tensor>,
}

impl Network {
    pub fn frozen(how: How, weights: Weights) -> Self {
        Self { how, weights, updates: Vec::new(), full: how == How::Frozen, hidden: None }
    }

    pub fn full(how: How, weights: Weights) -> Self {
        Self { how, weights, updates: Vec::new(), full: true, hidden: None }
    }

    pub fn lora(how: How, weights: Weights, rank: i64, alpha: f64) -> Result<Self> {
        let options = (Kind::Float, Device::Cpu);
        let update = |_| {
            let a = Tensor::f_arange(rank * WIDTH, options)?.f_sin()?.f_view([rank, WIDTH])?.f_mul_scalar(0.1)?;
            let b = match how {
                How::LoraInit => Tensor::f_ones([WIDTH, rank], options)?,
                _ => Tensor::f_zeros([WIDTH, rank], options)?,
            };
            let [a, b] = [a, b].map(|factor| factor.set_requires_grad(true));
            Ok(Update { a, b, scale: alpha / rank as f64 })
        };
        let updates = (0..2).map(update).collect::<Result<_>>()?;
        let hidden = Tensor::f_ones([1], options)?.set_requires_grad(true);
        let hidden = (how == How::LoraGradients).then_some(hidden);
        Ok(Self { how, weights, updates, full: false, hidden })
    }

    fn weight(&self, at: usize) -> &Tensor {
        &self.weights.named[at].1
    }

    /// Tokens `[B, N, WIDTH]` after one more block.
    fn block(&self, at: usize, tokens: &Tensor) -> Result<Tensor> {
        let mut out = tokens.f_linear(self.weight(at + 1), None::<&Tensor>)?;
        if let Some(Update { a, b, scale }) = self.updates.get(at) {
            let update = tokens.f_linear(a, None::<&Tensor>)?.f_linear(b, None::<&Tensor>)?;
            out = out.f_add(&update.f_mul_scalar(*scale)?)?;
        }
        if let Some(hidden) = &self.hidden {
            out = out.f_mul(hidden)?;
        }
        Ok(tokens.f_add(&out.f_tanh()?)?)
    }
}

impl Denoiser for Network {
    fn predict(
        &self,
        x: &Tensor,
        sigma: &Tensor,
        conditioning: &Conditioning,
        request: Request<'_>,
    ) -> Result<Prediction> {
        expect("x", x, latent_shape())?;
        if self.how == How::Memory {
            // And copies of both: more than what a process may still hold of memory that it freed before.
            let copies: Vec<Tensor> = (0..8).flat_map(|_| [x.copy(), conditioning.context.copy()]).collect();
            std::mem::forget((x.shallow_clone(), conditioning.context.shallow_clone(), copies));
        }
        let depth = 2;
        if self.how != How::Refuses && request.taps.iter().any(|&tap| tap >= depth) {
            return Err(Error::invalid(format!("taps: expected indices below {depth}, found {:?}", request.taps)));
        }
        let (batch, channels, h, w) = x.size4()?;
        let tokens = x.f_view([batch, channels, h * w])?.f_transpose(1, 2)?;
        let text = conditioning.context.f_mean_dim(1, true, Kind::Float)?;
        let mut tokens =
            tokens.f_linear(self.weight(0), None::<&Tensor>)?.f_add(&text)?.f_add(&sigma.f_view([batch, 1, 1])?)?;
        let early = !request.velocity && self.how == How::Taps;
        let deepest = request.taps.iter().max().map_or(0, |&tap| tap + 1);
        let blocks = if request.velocity { depth } else { deepest.min(depth) };
        let mut states = Vec::with_capacity(depth);
        for at in 0..blocks {
            // The fault: the last block of an early exit is left out.
            if !(early && at + 1 == blocks) {
                tokens = self.block(at, &tokens)?;
            }
            states.push(tokens.shallow_clone());
        }
        let feature = |&tap: &usize| Ok(states[tap].f_transpose(1, 2)?.f_reshape([batch, WIDTH, h, w])?);
        let features = request.taps.iter().map(feature).collect::<Result<_>>()?;
        if !request.velocity {
            return Ok(Prediction { velocity: None, features });
        }
        let out = tokens.f_linear(self.weight(3), None::<&Tensor>)?.f_transpose(1, 2)?;
        let velocity = out.f_reshape([batch, channels, h, w])?;
        let kind = if self.how == How::Velocity { Kind::Double } else { Kind::Float };
        Ok(Prediction { velocity: Some(velocity.f_to_kind(kind)?), features })
    }

    fn parameters(&self) -> Vec<(String, Tensor)> {
        let weights = self.weights.named.iter().filter(|_| self.full);
        let weights = weights.map(|(name, weight)| ((*name).to_owned(), weight.shallow_clone()));
        let factors = self.updates.iter().enumerate().flat_map(|(at, update)| {
            let name = |factor: &str| format!("blocks.{at}.linear.lora_{factor}.weight");
            [(name("A"), update.a.shallow_clone()), (name("B"), update.b.shallow_clone())]
        });
        weights.chain(factors).collect()
    }
}
