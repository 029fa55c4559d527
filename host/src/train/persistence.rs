//! A trainer's state as checkpoints hold it.

use advdmd_nn::{Weights, load_parameters};

use super::checkpoint::{self, Checkpoint, Parts};
use super::trainer::Trainer;
use crate::Result;

impl Trainer {
    /// The trained tensors alone, by part.
    pub fn parameters(&mut self) -> Parts {
        let mut parts: Parts = [
            ("student".to_owned(), checkpoint::part(&self.networks.student.parameters())),
            ("fake".to_owned(), checkpoint::part(&self.networks.fake.parameters())),
        ]
        .into();
        for reward in &mut self.rewards.all {
            if reward.learns {
                parts.insert(format!("reward.{}", reward.name), checkpoint::part(&reward.parameters()));
            }
        }
        parts
    }

    /// Everything that a checkpoint holds, by part.
    pub fn parts(&mut self) -> Parts {
        let mut parts = self.parameters();
        parts.insert("student.optimizer".to_owned(), self.optimizer.state());
        parts.insert("student.ema".to_owned(), self.ema.state());
        parts.insert("fake.optimizer".to_owned(), self.critic.fake.state());
        for (reward, optimizer) in self.rewards.all.iter().zip(&self.critic.learners) {
            if let Some(optimizer) = optimizer {
                parts.insert(format!("reward.{}.optimizer", reward.name), optimizer.state());
            }
        }
        self.state.passes = self.networks.passes.counts();
        parts
    }

    /// Takes over the trained tensors of [`Trainer::parameters`], by copy.
    ///
    /// # Errors
    /// A missing part, or tensors of other names or shapes: lists them.
    pub fn load_parameters(&mut self, read: impl Fn(&str) -> Result<Weights>) -> Result<()> {
        load_parameters(&self.networks.student.parameters(), &read("student")?)?;
        load_parameters(&self.networks.fake.parameters(), &read("fake")?)?;
        for reward in &mut self.rewards.all {
            if reward.learns {
                load_parameters(&reward.parameters(), &read(&format!("reward.{}", reward.name))?)?;
            }
        }
        Ok(())
    }

    /// Continues from a checkpoint.
    ///
    /// # Errors
    /// As [`Trainer::load_parameters`].
    pub fn load(&mut self, from: &Checkpoint) -> Result<()> {
        let device = self.networks.device;
        let read = |part: &str| from.read(part, device);
        self.load_parameters(read)?;
        self.optimizer.load_state(&read("student.optimizer")?)?;
        self.ema.load_state(&read("student.ema")?)?;
        self.critic.fake.load_state(&read("fake.optimizer")?)?;
        for (reward, optimizer) in self.rewards.all.iter().zip(&mut self.critic.learners) {
            if let Some(optimizer) = optimizer {
                optimizer.load_state(&read(&format!("reward.{}.optimizer", reward.name))?)?;
            }
        }
        self.state = from.index.state.clone();
        self.networks.passes.restore(self.state.passes);
        Ok(())
    }
}
