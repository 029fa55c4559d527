//! Counter-based randomness: every number is a function of (seed, stream, counters), never of what was drawn before.
//!
//! So a resumed run, another micro-batch or another order of work gives the same samples, and noise can be shared
//! by repeating its key.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use tch::{Device, Kind, Tensor};

use crate::Result;
use crate::device::upload;

/// What the numbers are for. The discriminants are part of a run's identity: append, never reorder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Stream {
    /// Choice of prompts.
    Prompts = 1,
    /// Initial noise of a trajectory.
    Initial = 2,
    /// Noise of a stochastic sampler step.
    Step = 3,
    /// Real images.
    Real = 4,
    /// Step, sigma and noise of a critic sample.
    Critic = 5,
    /// Noise of a critic sample.
    CriticNoise = 6,
    /// Steps that a student update trains on.
    Student = 7,
    /// Noise of a student sample.
    StudentNoise = 8,
    /// Noise on final states that a reward reads.
    Reward = 9,
    /// Initialisation of networks.
    Init = 10,
    /// Evaluation.
    Eval = 11,
    /// Pretraining batches.
    Pretrain = 12,
    /// Noise of pretraining batches.
    PretrainNoise = 13,
    /// Sigma of a student sample.
    StudentSigma = 14,
}

/// The run's source of randomness.
#[derive(Debug, Clone, Copy)]
pub struct Random {
    seed: u64,
}

impl Random {
    /// All streams of one seed.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// A seed for a component that draws its own numbers.
    pub fn seed(self, stream: Stream, key: u64) -> u64 {
        use rand::RngCore;
        self.rng(stream, [key, 0, 0]).next_u64()
    }

    /// The generator of one key, at its start.
    pub fn rng(self, stream: Stream, key: [u64; 3]) -> ChaCha8Rng {
        let mut bytes = [0; 32];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip([self.seed, stream as u64, key[0], key[1]]) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        let mut rng = ChaCha8Rng::from_seed(bytes);
        rng.set_stream(key[2]);
        rng
    }

    /// Standard normal noise `[keys, shape..]`, float32, one key per row.
    ///
    /// # Errors
    /// libtorch's, for lack of memory.
    pub fn normal(
        self,
        stream: Stream,
        keys: impl IntoIterator<Item = [u64; 3]>,
        shape: &[i64],
        device: Device,
    ) -> Result<Tensor> {
        let row = shape.iter().product::<i64>() as usize;
        let mut values: Vec<f32> = Vec::new();
        let mut rows = 0;
        for key in keys {
            let mut rng = self.rng(stream, key);
            values.extend((0..row).map(|_| -> f32 { StandardNormal.sample(&mut rng) }));
            rows += 1;
        }
        let shape: Vec<i64> = std::iter::once(rows).chain(shape.iter().copied()).collect();
        upload(&Tensor::f_from_slice(&values)?.f_view(shape.as_slice())?, device)
    }
}

/// A column of per-sample numbers `[N]`, float32, on `device`.
///
/// # Errors
/// libtorch's, for lack of memory.
pub fn column(values: &[f64], device: Device) -> Result<Tensor> {
    upload(&Tensor::f_from_slice(values)?.f_to_kind(Kind::Float)?, device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_depend_on_their_key_alone() {
        let random = Random::new(7);
        let both = random.normal(Stream::Step, [[1, 2, 3], [4, 5, 6]], &[3, 2], Device::Cpu).unwrap();
        let one = random.normal(Stream::Step, [[4, 5, 6]], &[3, 2], Device::Cpu).unwrap();
        assert_eq!(both.size(), [2, 3, 2]);
        assert!(both.get(1).equal(&one.get(0)));
        assert!(!both.get(0).equal(&one.get(0)));
        let other = random.normal(Stream::Initial, [[4, 5, 6]], &[3, 2], Device::Cpu).unwrap();
        assert!(!other.equal(&one));
    }

    #[test]
    fn noise_is_standard_normal() {
        let noise = Random::new(0).normal(Stream::Step, (0..64).map(|i| [i, 0, 0]), &[1000], Device::Cpu).unwrap();
        assert!(noise.mean(Kind::Float).double_value(&[]).abs() < 0.02);
        assert!((noise.std(true).double_value(&[]) - 1.0).abs() < 0.02);
    }
}
