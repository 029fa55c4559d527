//! The losses of rewards that learn, as the host takes them: checked, since what is wrong in them would reach every weight.

use advdmd_sdk::{DiscriminatorLoss, RewardBatch};
use tch::Tensor;

use super::rewards::ActiveReward;
use crate::containment::floating;
use crate::{Error, Result, interrupt};

impl ActiveReward {
    /// The discriminator's loss; `None` for a reward that does not learn.
    ///
    /// # Errors
    /// The learner's; a loss that is no scalar or has no gradient; scores of other than `[B]`, or of whole numbers.
    pub fn discriminator_loss(
        &mut self,
        real: &RewardBatch<'_>,
        fake: &RewardBatch<'_>,
    ) -> Result<Option<DiscriminatorLoss>> {
        let Some(learner) = self.learner() else { return Ok(None) };
        let made = learner.discriminator_loss(real, fake).and_then(|made| {
            loss("loss", &made.loss, &[])?;
            for (name, scores, batch) in [("real", &made.real, real), ("fake", &made.fake, fake)] {
                per_sample(name, scores, batch)?;
            }
            Ok(made)
        });
        made.map(Some).map_err(|source| self.learner_error(source))
    }

    /// The generator's loss `[B]`; `None` for a reward that does not learn.
    ///
    /// # Errors
    /// The learner's; a loss of other than `[B]`, of whole numbers, or without a gradient.
    pub fn generator_loss(&mut self, fake: &RewardBatch<'_>) -> Result<Option<Tensor>> {
        let Some(learner) = self.learner() else { return Ok(None) };
        let made = learner.generator_loss(fake).and_then(|made| {
            loss("generator_loss", &made, &[fake.len() as i64])?;
            Ok(made)
        });
        made.map(Some).map_err(|source| self.learner_error(source))
    }

    fn learner_error(&self, source: advdmd_sdk::Error) -> Error {
        if interrupt::is_raised() {
            return Error::Stopped;
        }
        source.context(format!("learner of reward `{}` ({})", self.name, self.provider)).into()
    }
}

fn loss(what: &str, tensor: &Tensor, shape: &[i64]) -> advdmd_sdk::Result<()> {
    if tensor.size() != shape {
        return Err(advdmd_sdk::Error::shape(what, format!("{shape:?}"), &tensor.size()));
    }
    floating(what, tensor)?;
    if tensor.requires_grad() {
        return Ok(());
    }
    Err(advdmd_sdk::Error::invalid(format!("{what} has no gradient: was it made within `no_grad`, or detached?")))
}

fn per_sample(what: &str, tensor: &Tensor, batch: &RewardBatch<'_>) -> advdmd_sdk::Result<()> {
    if tensor.size() != [batch.len() as i64] {
        return Err(advdmd_sdk::Error::shape(what, format!("[{}]", batch.len()), &tensor.size()));
    }
    floating(what, tensor)
}
