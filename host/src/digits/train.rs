//! Trains the checker. Every draw (weights, batches, degradations) comes from the seed; libtorch's own generator is
//! neither used nor changed.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::nn::{self, OptimizerConfig};
use tch::{Device, Kind as Dtype, Tensor};

use super::augment::{CELL_VALUES, Example, Kind};
use super::checker::{Checker, ink};
use super::error::DigitsError;
use super::glyphs::{GLYPH_SIDE, Glyph, Glyphs, Split};
use super::network::Network;
use super::random::normal;

/// How to train; the default made the shipped weights.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainOptions {
    /// All randomness comes from it.
    pub seed: u64,
    /// Updates.
    pub steps: usize,
    /// Cells for each update.
    pub batch: usize,
    /// The peak of the one-cycle learning rate.
    pub learning_rate: f64,
    /// Decoupled weight decay (`AdamW`).
    pub weight_decay: f64,
    /// How much probability is spread over the other classes.
    pub label_smoothing: f64,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self { seed: 0, steps: 4000, batch: 128, learning_rate: 2e-3, weight_decay: 0.02, label_smoothing: 0.02 }
    }
}

impl TrainOptions {
    fn check(&self) -> Result<(), DigitsError> {
        let range = |name, value: f64, fits: bool, expected: &str| {
            if fits {
                return Ok(());
            }
            Err(DigitsError::Value { name, value: value.to_string(), expected: expected.into() })
        };
        range("steps", self.steps as f64, self.steps > 0, "1 or more")?;
        range("batch", self.batch as f64, self.batch > 0, "1 or more")?;
        let rate = self.learning_rate;
        range("learning_rate", rate, rate.is_finite() && rate > 0.0, "a number above 0")?;
        let decay = self.weight_decay;
        range("weight_decay", decay, decay.is_finite() && decay >= 0.0, "a number from 0 up")?;
        let smoothing = self.label_smoothing;
        range("label_smoothing", smoothing, (0.0..1.0).contains(&smoothing), "a number from 0 up, below 1")
    }

    /// Up linearly over the first tenth of the steps, then down to zero along half a cosine.
    fn rate(&self, step: usize) -> f64 {
        let (step, steps) = ((step + 1) as f64, self.steps as f64);
        let warm_up = (steps / 10.0).max(1.0);
        if step <= warm_up {
            return self.learning_rate * step / warm_up;
        }
        let done = (step - warm_up) / (steps - warm_up).max(1.0);
        self.learning_rate * (1.0 + (std::f64::consts::PI * done).cos()) / 2.0
    }
}

/// Where the training stands.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Updates done.
    pub step: usize,
    /// Updates in all.
    pub steps: usize,
    /// The mean cross-entropy (nats) of the last hundred updates.
    pub loss: f64,
}

/// Trains a checker on the training split's glyphs, on one CPU thread: so small a network gains nothing from more, and
/// the sums, hence the weights, then do not depend on how many there are. `progress` is called every hundred updates
/// and at the end.
///
/// # Errors
/// An option outside its range; a loss that is not finite; libtorch.
pub fn train_checker(options: &TrainOptions, progress: impl FnMut(Progress)) -> Result<Checker, DigitsError> {
    options.check()?;
    let threads = tch::get_num_threads();
    tch::set_num_threads(1);
    let trained = train(options, progress);
    tch::set_num_threads(threads);
    trained
}

fn train(options: &TrainOptions, mut progress: impl FnMut(Progress)) -> Result<Checker, DigitsError> {
    let glyphs: Vec<&Glyph> = Glyphs::embedded()?.iter(Split::Train).map(|(_, glyph)| glyph).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let store = nn::VarStore::new(Device::Cpu);
    let network = initialise(&store, &mut rng)?;
    let mut optimiser =
        nn::AdamW { wd: options.weight_decay, ..nn::AdamW::default() }.build(&store, options.learning_rate)?;
    let (mut sum, mut counted) = (0.0, 0);
    for step in 0..options.steps {
        let (cells, labels) = batch(options.batch, &glyphs, &mut rng)?;
        let output = network.forward(&ink(&cells)?)?;
        let loss = output.logits.f_cross_entropy_loss(
            &labels,
            None::<&Tensor>,
            tch::Reduction::Mean,
            -100,
            options.label_smoothing,
        )?;
        let value = loss.f_double_value(&[])?;
        if !value.is_finite() {
            return Err(DigitsError::Training(format!("loss is {value} at step {step}")));
        }
        optimiser.set_lr(options.rate(step));
        optimiser.backward_step(&loss);
        (sum, counted) = (sum + value, counted + 1);
        let done = step + 1;
        if done % 100 == 0 || done == options.steps {
            progress(Progress { step: done, steps: options.steps, loss: sum / f64::from(counted) });
            (sum, counted) = (0.0, 0);
        }
    }
    Ok(Checker::from_network(network.copy()?))
}

/// Weights normal with variance 2 / fan-in (He et al., arXiv:1502.01852), biases zero.
fn initialise<R: RngCore>(store: &nn::VarStore, rng: &mut R) -> Result<Network, DigitsError> {
    Network::build(|name, shape| {
        let fan_in: i64 = shape.iter().skip(1).product();
        let deviation = if shape.len() > 1 { (2.0 / fan_in as f32).sqrt() } else { 0.0 };
        let count: i64 = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| deviation * normal(rng)).collect();
        let start = Tensor::f_from_slice(&values)?.f_view(shape)?;
        // A point separates paths in a store.
        Ok(store.root().f_var_copy(&name.replace('.', "_"), &start)?)
    })
}

/// Cells `[count, 3, 8, 8]` and labels `[count]`.
fn batch<R: RngCore>(count: usize, glyphs: &[&Glyph], rng: &mut R) -> Result<(Tensor, Tensor), DigitsError> {
    let mut pixels = Vec::with_capacity(count * CELL_VALUES);
    let mut labels = Vec::with_capacity(count);
    for _ in 0..count {
        let kind = Kind::sample(rng);
        let example =
            Example::sample(kind, glyphs, rng).ok_or_else(|| DigitsError::Training("no glyphs to train on".into()))?;
        pixels.extend(example.pixels);
        labels.push(example.label);
    }
    let side = GLYPH_SIDE as i64;
    let cells = Tensor::f_from_slice(&pixels)?.f_view([count as i64, 3, side, side])?;
    Ok((cells, Tensor::f_from_slice(&labels)?.f_to_kind(Dtype::Int64)?))
}
