//! What components are given.

use advdmd_sdk::{BackboneSpec, Needs, RewardBatch, TensorView};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

/// Row-major numbers, the first dimension the sample.
#[derive(Debug, Clone)]
pub(crate) struct Array {
    pub shape: Vec<i64>,
    pub values: Vec<f32>,
}

/// Samples for a reward: what its needs ask for.
#[derive(Debug, Clone)]
pub(crate) struct Samples {
    pub prompts: Vec<String>,
    pub sigma: Array,
    pub images: Option<Array>,
    pub latents: Option<Array>,
    pub features: Vec<Array>,
}

/// Samples of a prompt, for a reward that compares them.
const GROUP: usize = 4;

/// Prompts as users write them.
const PROMPTS: [&str; 5] = [
    "a red 7 and a blue 3",
    "a photo of a cat on a brick wall",
    "two cups of coffee",
    "a lighthouse at night, oil on canvas",
    "a bicycle",
];

impl Array {
    fn new(shape: Vec<i64>, mut value: impl FnMut() -> f32) -> Self {
        let count = shape.iter().product::<i64>() as usize;
        Self { shape, values: (0..count).map(|_| value()).collect() }
    }

    /// Numbers of each sample.
    fn row(&self) -> usize {
        self.shape[1..].iter().product::<i64>() as usize
    }

    pub fn rows(&self, index: &[usize]) -> Self {
        let row = self.row();
        let mut shape = self.shape.clone();
        shape[0] = index.len() as i64;
        let values = index.iter().flat_map(|&at| self.values[at * row..(at + 1) * row].iter().copied()).collect();
        Self { shape, values }
    }

    #[cfg(feature = "torch")]
    pub fn tensor(&self) -> tch::Tensor {
        tch::Tensor::from_slice(&self.values).reshape(&self.shape)
    }
}

/// Random numbers of a seed.
#[derive(Debug)]
pub(crate) struct Random(ChaCha8Rng);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    pub fn uniform(&mut self) -> f32 {
        self.0.random::<f32>()
    }

    pub fn normal(&mut self) -> f32 {
        self.0.sample(StandardNormal)
    }

    #[cfg(feature = "torch")]
    pub fn normals(&mut self, shape: &[i64]) -> tch::Tensor {
        Array::new(shape.to_vec(), || self.normal()).tensor()
    }
}

/// Numbers of a sort: pixels lie in 0..1, the others about 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Content {
    /// Drawn at random, pixels in 0.2..0.8, the others standard normal, shifted by this.
    Random(f32),
    /// All the same.
    Constant(f32),
}

impl Samples {
    /// `count` samples of `content` for `needs`, on shapes of `spec`. A groupwise reward gets as many or more, in whole groups
    /// of a prompt each.
    pub fn new(needs: &Needs, spec: &BackboneSpec, count: usize, content: Content, seed: u64) -> Self {
        let group = if needs.groupwise { GROUP } else { 1 };
        let count = count.next_multiple_of(group);
        let mut random = Random::new(seed);
        let shape = |of: [i64; 3]| [[count as i64].as_slice(), &of].concat();
        let mut array = |of: [i64; 3], pixels: bool| {
            Array::new(shape(of), || match content {
                Content::Constant(value) => value,
                Content::Random(shift) if pixels => (0.2 + 0.6 * random.uniform() + 0.2 * shift).clamp(0.0, 1.0),
                Content::Random(shift) => random.normal() + shift,
            })
        };
        let [h, w] = spec.feature_grid;
        let images = needs.images.then(|| array(spec.image_shape, true));
        let latents = needs.latents.then(|| array(spec.latent_shape, false));
        let taps = needs.features.as_ref().map_or(0, |features| features.taps.len());
        let mut features: Vec<_> = (0..taps).map(|_| array([spec.feature_channels, h, w], false)).collect();
        if let Content::Random(shift) = content {
            // A shift of all channels alike is what a normalisation takes out.
            for map in &mut features {
                alternate(map, shift);
            }
        }
        let sigma = (0..count).map(|at| match needs.scope {
            advdmd_sdk::Scope::Final => 0.0,
            advdmd_sdk::Scope::EveryStep => 0.9 - 0.8 * at as f32 / count as f32,
        });
        Self {
            prompts: (0..count).map(|at| PROMPTS[at / group % PROMPTS.len()].to_owned()).collect(),
            sigma: Array { shape: vec![count as i64], values: sigma.collect() },
            images,
            latents,
            features,
        }
    }

    pub fn len(&self) -> usize {
        self.prompts.len()
    }

    /// The samples at `index`, in that order.
    pub fn select(&self, index: &[usize]) -> Self {
        Self {
            prompts: index.iter().map(|&at| self.prompts[at].clone()).collect(),
            sigma: self.sigma.rows(index),
            images: self.images.as_ref().map(|array| array.rows(index)),
            latents: self.latents.as_ref().map(|array| array.rows(index)),
            features: self.features.iter().map(|array| array.rows(index)).collect(),
        }
    }

    /// Bytes of all numbers but the noise levels.
    pub fn bytes(&self) -> usize {
        self.images.iter().chain(&self.latents).chain(&self.features).map(|array| 4 * array.values.len()).sum()
    }

    /// Whether the reward reads more than prompts and noise levels.
    #[cfg(feature = "torch")]
    pub fn has_tensors(&self) -> bool {
        self.bytes() > 0
    }

    /// Lends the samples as the host does: libtorch's tensors where there is libtorch, new ones for each call.
    pub fn lend<T>(&self, body: impl FnOnce(&RewardBatch<'_>) -> advdmd_sdk::Result<T>) -> advdmd_sdk::Result<T> {
        body(&RewardBatch {
            prompts: self.prompts.iter().map(String::as_str).collect(),
            sigma: Some(view(&self.sigma)?),
            images: self.images.as_ref().map(view).transpose()?,
            latents: self.latents.as_ref().map(view).transpose()?,
            features: self.features.iter().map(view).collect::<Result<_, _>>()?,
        })
    }
}

fn alternate(map: &mut Array, shift: f32) {
    let plane = map.shape[2..].iter().product::<i64>() as usize;
    let channels = map.shape[1] as usize;
    for (at, value) in map.values.iter_mut().enumerate() {
        if (at / plane) % channels % 2 == 1 {
            *value -= 2.0 * shift;
        }
    }
}

#[cfg(feature = "torch")]
fn view(array: &Array) -> advdmd_sdk::Result<TensorView<'_>> {
    TensorView::from_torch(&array.tensor())
}

#[cfg(not(feature = "torch"))]
fn view(array: &Array) -> advdmd_sdk::Result<TensorView<'_>> {
    TensorView::from_f32(&array.values, &array.shape)
}
