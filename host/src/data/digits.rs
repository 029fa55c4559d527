//! The embedded digit scenes as a data set.

use std::path::Path;

use rand::{Rng, RngCore};

use super::{Dataset, Real};
use crate::digits::{Caption, Glyphs, Split, Task, sample_images};
use crate::{Error, Result, prompt_file};

/// The embedded digit scenes: every caption of the grammar or those of a file, and a new scene for each draw.
pub(super) struct DigitScenes {
    captions: Vec<Caption>,
    prompts: Vec<String>,
    /// Of each task that has captions: its share of the draws, the first caption's id and the number of captions.
    tasks: Vec<(f64, usize, usize)>,
    glyphs: &'static Glyphs,
}

impl DigitScenes {
    /// Every caption of the grammar, or those of `file`.
    ///
    /// # Errors
    /// A file that cannot be read or holds another sentence, or captions that no weight lets be drawn: names the file and
    /// the line.
    pub fn new(task_weights: [f64; 6], file: Option<&Path>) -> Result<Self> {
        let chosen = match file {
            Some(file) => captions_of(file)?,
            None => Task::ALL.into_iter().flat_map(Caption::all).collect(),
        };
        let mut captions: Vec<Caption> = Vec::new();
        let mut tasks = Vec::new();
        for (task, weight) in Task::ALL.into_iter().zip(task_weights) {
            let of_task = chosen.iter().filter(|caption| caption.task() == task);
            let first = captions.len();
            captions.extend(of_task);
            if captions.len() > first {
                tasks.push((weight, first, captions.len() - first));
            }
        }
        if let Some(file) = file {
            warn_of_undrawn(file, &tasks, captions.len())?;
        }
        let prompts = captions.iter().map(ToString::to_string).collect();
        Ok(Self { captions, prompts, tasks, glyphs: Glyphs::embedded()? })
    }
}

fn captions_of(file: &Path) -> Result<Vec<Caption>> {
    let caption = |row: prompt_file::Row| {
        row.prompt.parse().map_err(|error| Error::content(file, format!("{}: {error}", row.place)))
    };
    prompt_file::read(file)?.into_iter().map(caption).collect()
}

/// Says which captions of a file no draw can reach; an error where that is all of them.
fn warn_of_undrawn(file: &Path, tasks: &[(f64, usize, usize)], captions: usize) -> Result<()> {
    let undrawn: usize = tasks.iter().filter(|(weight, ..)| *weight == 0.0).map(|(.., count)| count).sum();
    if undrawn == captions {
        return Err(Error::content(file, "no caption can be drawn: `data.task_weights` gives 0 to the tasks of all"));
    }
    if undrawn > 0 {
        let file = file.display();
        tracing::warn!(
            "{file}: {undrawn} of {captions} captions are never drawn: `data.task_weights` gives 0 to their tasks"
        );
    }
    Ok(())
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

    fn real(&self, prompt: usize, rng: &mut dyn RngCore) -> Result<Real> {
        let images = sample_images(&[self.captions[prompt]], self.glyphs, Split::Train, rng)?;
        Ok(Real::Image(images.squeeze_dim(0)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng;

    use super::*;

    /// The prompts that a thousand draws reach.
    fn drawn(task_weights: [f64; 6], file: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("captions.txt");
        std::fs::write(&path, file).unwrap();
        let data = DigitScenes::new(task_weights, Some(&path)).unwrap();
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let ids: BTreeSet<usize> = (0..1000).map(|_| data.draw(&mut rng)).collect();
        ids.into_iter().map(|id| data.prompts()[id].clone()).collect()
    }

    #[test]
    fn only_the_captions_of_the_file_are_drawn() {
        let file = "three 7s\na red 7\na 4\na blue 3\n";
        assert_eq!(drawn([1.0; 6], file), ["a 4", "three 7s", "a red 7", "a blue 3"]);
        assert_eq!(drawn([1.0, 1.0, 0.0, 1.0, 1.0, 1.0], file), ["a 4", "a red 7", "a blue 3"]);
    }
}
