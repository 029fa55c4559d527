//! Which captions: seeded draws by task for training, and a fixed list for evaluation.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::caption::{Caption, Request, Task};
use super::error::DigitsError;
use super::random::{below, shuffle, unit};
use super::vocabulary::{Colour, Count, Digit, Relation};

/// How often each task is drawn, in the order of [`Task::ALL`]; only the ratios count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TaskWeights([f64; 6]);

impl TaskWeights {
    /// # Errors
    /// A weight that is negative, infinite or NaN; all of them zero.
    pub fn new(weights: [f64; 6]) -> Result<Self, DigitsError> {
        let fits = weights.iter().all(|weight| weight.is_finite() && *weight >= 0.0);
        if fits && weights.iter().sum::<f64>() > 0.0 {
            return Ok(Self(weights));
        }
        Err(DigitsError::Value {
            name: "task weights",
            value: format!("{weights:?}"),
            expected: "six finite numbers from 0 up, at least one above 0".into(),
        })
    }

    /// The six weights, in the order of [`Task::ALL`].
    pub fn values(&self) -> [f64; 6] {
        self.0
    }

    /// Draws a task.
    pub fn sample<R: RngCore + ?Sized>(&self, rng: &mut R) -> Task {
        let mut left = f64::from(unit(rng)) * self.0.iter().sum::<f64>();
        let possible = || Task::ALL.into_iter().zip(self.0).filter(|(_, weight)| *weight > 0.0);
        for (task, weight) in possible() {
            if left < weight {
                return task;
            }
            left -= weight;
        }
        // Only rounding in the sum can lead here.
        possible().next_back().map_or(Task::Single, |(task, _)| task)
    }
}

impl Default for TaskWeights {
    /// All six alike.
    fn default() -> Self {
        Self([1.0; 6])
    }
}

impl Caption {
    /// Draws one caption of `task`, each with the same probability.
    pub fn sample<R: RngCore + ?Sized>(task: Task, rng: &mut R) -> Self {
        let (a, b) = two_of(&Digit::ALL, rng);
        let request = match task {
            Task::Single => Request::Single(a),
            Task::Two => Request::Two(a, b),
            Task::Counting => Request::Counting(Count::ALL[below(rng, Count::ALL.len())], a),
            Task::Colours => Request::Colours(Colour::ALL[below(rng, Colour::ALL.len())], a),
            Task::Position => Request::Position(a, Relation::ALL[below(rng, Relation::ALL.len())], b),
            Task::Attribute => {
                let (first, second) = two_of(&Colour::ALL, rng);
                Request::Attribute((first, a), (second, b))
            }
        };
        Self::of_distinct(request)
    }
}

/// Two different items, each ordered pair with the same probability.
fn two_of<T: Copy, R: RngCore + ?Sized>(items: &[T], rng: &mut R) -> (T, T) {
    let first = below(rng, items.len());
    let second = (first + 1 + below(rng, items.len() - 1)) % items.len();
    (items[first], items[second])
}

/// The fixed evaluation list: `per_task` captions of each task, in the order of [`Task::ALL`]. A task's captions are
/// all used once, in an order shuffled by `seed`, before one is used again; a longer list begins as a shorter one
/// does, task by task.
pub fn evaluation_prompts(per_task: usize, seed: u64) -> Vec<Caption> {
    let mut prompts = Vec::with_capacity(per_task * Task::ALL.len());
    for task in Task::ALL {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(task as u64);
        let mut deck = Caption::all(task);
        let mut left = per_task;
        while left > 0 {
            shuffle(&mut rng, &mut deck);
            prompts.extend(deck.iter().take(left));
            left = left.saturating_sub(deck.len());
        }
    }
    prompts
}
