//! Prompts and the real images that belong to them.

use rand::{Rng, RngCore};
use tch::Tensor;

use crate::Result;
use crate::config::Data;
use crate::digits::{Caption, Glyphs, Split, Task, sample_images};

/// A set of prompts with real images for each.
pub trait Dataset: Send {
    /// All prompts; the index of a prompt is its id.
    fn prompts(&self) -> &[String];

    /// Draws a prompt's id.
    fn draw(&self, rng: &mut dyn RngCore) -> usize;

    /// A real image of a prompt, by its id: `[3, H, W]` in 0..1, on the CPU.
    ///
    /// # Errors
    /// An image that cannot be read; names it.
    fn real(&self, prompt: usize, rng: &mut dyn RngCore) -> Result<Tensor>;
}

/// Opens the data set of a configuration.
///
/// # Errors
/// Data that cannot be read, or weights that are all zero.
pub fn open(config: &Data) -> Result<Box<dyn Dataset>> {
    match config {
        Data::Digits { task_weights } => Ok(Box::new(DigitScenes::new(*task_weights)?)),
    }
}

/// The embedded digit scenes: every caption of the grammar, and a new scene for each draw.
struct DigitScenes {
    captions: Vec<Caption>,
    prompts: Vec<String>,
    /// Of each task: its share of the draws, the first caption's id and the number of captions.
    tasks: Vec<(f64, usize, usize)>,
    glyphs: &'static Glyphs,
}

impl DigitScenes {
    fn new(task_weights: [f64; 6]) -> Result<Self> {
        let mut captions = Vec::new();
        let mut tasks = Vec::new();
        for (task, weight) in Task::ALL.into_iter().zip(task_weights) {
            let of_task = Caption::all(task);
            tasks.push((weight, captions.len(), of_task.len()));
            captions.extend(of_task);
        }
        let prompts = captions.iter().map(ToString::to_string).collect();
        Ok(Self { captions, prompts, tasks, glyphs: Glyphs::embedded()? })
    }
}

impl Dataset for DigitScenes {
    fn prompts(&self) -> &[String] {
        &self.prompts
    }

    fn draw(&self, rng: &mut dyn RngCore) -> usize {
        let total: f64 = self.tasks.iter().map(|(weight, ..)| weight).sum();
        let mut rest = rng.random::<f64>() * total;
        let mut chosen = self.tasks[0];
        for &task in self.tasks.iter().filter(|(weight, ..)| *weight > 0.0) {
            chosen = task;
            rest -= task.0;
            if rest < 0.0 {
                break;
            }
        }
        chosen.1 + rng.random_range(0..chosen.2)
    }

    fn real(&self, prompt: usize, rng: &mut dyn RngCore) -> Result<Tensor> {
        Ok(sample_images(&[self.captions[prompt]], self.glyphs, Split::Train, rng)?.squeeze_dim(0))
    }
}
