//! Initial weights for training from scratch.

use advdmd_sdk::Result;
use tch::{Kind, Tensor};

use super::MmditConfig;
use crate::embed::sincos_positions;
use crate::{Layout, RandomStream, Weights};

/// How linear layers start. Gains of normalisations are 1 and positions are sines in either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Init {
    /// As [`Init::Uniform`], but the modulations and the output are zero, so that every block starts as the identity
    /// and the first velocity is 0 (adaLN-Zero: Peebles and Xie, arXiv:2212.09748). Trains better.
    #[default]
    AdaLnZero,
    /// torch's default for linear layers, weights and biases uniform within `1 / sqrt(inputs)`: what diffusers' classes
    /// start with.
    Uniform,
}

impl Init {
    pub(super) fn weights(self, config: &MmditConfig, layout: &Layout, seed: u64) -> Result<Weights> {
        let make =
            |(name, shape): &(String, Vec<i64>)| Ok((name.clone(), self.tensor(config, layout, name, shape, seed)?));
        layout.iter().map(make).collect()
    }

    fn tensor(self, config: &MmditConfig, layout: &Layout, name: &str, shape: &[i64], seed: u64) -> Result<Tensor> {
        let options = (Kind::Float, tch::Device::Cpu);
        if name == "pos_embed.pos_embed" {
            let base = config.sample_size / config.patch_size;
            return sincos_positions(config.dim(), config.pos_embed_max_size, base);
        }
        let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
        let last = module.rsplit('.').next().unwrap_or(module);
        if last.starts_with("norm_") && shape.len() == 1 && name.ends_with(".weight") {
            return Ok(Tensor::f_ones(shape, options)?);
        }
        let modulation = ["norm1.linear", "norm1_context.linear", "norm_out.linear"];
        if self == Self::AdaLnZero && (module == "proj_out" || modulation.iter().any(|end| module.ends_with(end))) {
            return Ok(Tensor::f_zeros(shape, options)?);
        }
        // A bias is drawn within the bound of its weight, whose inputs are all dimensions but the first.
        let weight = format!("{module}.weight");
        let weight = layout.iter().find(|(candidate, _)| *candidate == weight).map_or(shape, |(_, shape)| shape);
        let inputs: i64 = weight.iter().skip(1).product();
        RandomStream::new(seed, name).uniform(shape, 1.0 / (inputs as f32).sqrt())
    }
}
