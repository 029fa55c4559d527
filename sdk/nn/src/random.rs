//! Seeded initial values, independent of libtorch's global generator and of the order of the calls.

use advdmd_sdk::Result;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use tch::{Device, Kind, Tensor};

/// The random numbers that belong to one (seed, name): a `ChaCha8` stream whose number is the name's hash.
///
/// Two tensors of different names never share numbers, and adding a layer leaves the others' values as they were.
#[derive(Debug, Clone)]
pub struct RandomStream(ChaCha8Rng);

impl RandomStream {
    /// The stream of `name` under `seed`, at its start.
    pub fn new(seed: u64, name: &str) -> Self {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        generator.set_stream(fnv1a(name));
        Self(generator)
    }

    /// Normal numbers of mean 0 and the given standard deviation: float32, `shape`, on the CPU.
    ///
    /// # Errors
    /// libtorch's, such as a shape too large.
    pub fn normal(&mut self, shape: &[i64], std: f32) -> Result<Tensor> {
        self.fill(shape, |generator| std * generator.sample::<f32, _>(StandardNormal))
    }

    /// Uniform numbers in `-bound..bound`: float32, `shape`, on the CPU.
    ///
    /// # Errors
    /// libtorch's, such as a shape too large.
    pub fn uniform(&mut self, shape: &[i64], bound: f32) -> Result<Tensor> {
        self.fill(shape, |generator| bound * (2.0 * generator.random::<f32>() - 1.0))
    }

    fn fill(&mut self, shape: &[i64], mut next: impl FnMut(&mut ChaCha8Rng) -> f32) -> Result<Tensor> {
        let count = shape.iter().product::<i64>().max(0) as usize;
        let values: Vec<f32> = (0..count).map(|_| next(&mut self.0)).collect();
        Ok(Tensor::f_from_slice(&values)?.f_view(shape)?.f_to_device_(Device::Cpu, Kind::Float, false, false)?)
    }
}

/// The 64-bit FNV-1a hash (Fowler, Noll, Vo), fixed for ever, unlike the standard library's hasher.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_depends_on_seed_and_name_alone() {
        let draw = |seed, name| RandomStream::new(seed, name).normal(&[4], 1.0).unwrap();
        assert_eq!(draw(1, "a"), draw(1, "a"));
        assert_ne!(draw(1, "a"), draw(1, "b"));
        assert_ne!(draw(1, "a"), draw(2, "a"));
    }

    #[test]
    fn moments_and_bounds_are_right() {
        let normal = RandomStream::new(3, "n").normal(&[20_000], 0.5).unwrap();
        assert!((normal.std(true).double_value(&[]) - 0.5).abs() < 0.01);
        let uniform = RandomStream::new(3, "u").uniform(&[20_000], 0.25).unwrap();
        assert!(uniform.abs().max().double_value(&[]) <= 0.25);
        assert!(uniform.mean(None).double_value(&[]).abs() < 0.005);
    }
}
