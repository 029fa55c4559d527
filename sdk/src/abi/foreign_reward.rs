//! A plugin's reward as the host's own.

use super::RewardObject;
use super::sink::call;
use super::tensor::with_batch;
use crate::{Needs, Result, Reward, RewardBatch};

/// A plugin's reward, and its own learner.
pub(super) struct ForeignReward {
    object: RewardObject,
    needs: Needs,
    #[cfg(feature = "torch")]
    learns: bool,
}

// SAFETY: the object holds a `Reward`, which is `Send`; the protocol asks the same of other languages.
unsafe impl Send for ForeignReward {}

impl ForeignReward {
    /// Takes over an object and asks for its needs and its learner's parameters, so that a failure there is an error: the
    /// traits leave no way to fail later but a panic.
    ///
    /// # Safety
    /// The object is valid and nobody else's.
    pub(super) unsafe fn new(object: RewardObject) -> Result<Self> {
        let mut this = Self {
            object,
            needs: Needs::default(),
            #[cfg(feature = "torch")]
            learns: false,
        };
        let RewardObject { data, vtable } = object;
        // SAFETY: the object is valid.
        this.needs = call(|out| unsafe { vtable.needs()(data, out) })?.json("needs")?;
        #[cfg(feature = "torch")]
        {
            // SAFETY: as above.
            this.learns = call(|out| unsafe { vtable.has_learner()(data, out) })?.number("has_learner")? != 0.0;
            if this.learns {
                this.learner_parameters()?;
            }
        }
        Ok(this)
    }

    #[cfg(feature = "torch")]
    fn learner_parameters(&self) -> Result<Vec<(String, tch::Tensor)>> {
        let RewardObject { data, vtable } = self.object;
        // SAFETY: the object is valid until it is dropped, and the host calls from one thread at a time.
        Ok(call(|out| unsafe { vtable.learner_parameters()(data, out) })?.into_tensors())
    }
}

impl Drop for ForeignReward {
    fn drop(&mut self) {
        // SAFETY: the object is valid and not used again.
        unsafe { self.object.vtable.release()(self.object.data) }
    }
}

impl Reward for ForeignReward {
    fn needs(&self) -> Needs {
        self.needs.clone()
    }

    fn score(&mut self, batch: &RewardBatch<'_>) -> Result<Vec<f32>> {
        let RewardObject { data, vtable } = self.object;
        // SAFETY: the object is valid until it is dropped, and `&mut self` keeps other calls out.
        let answer = with_batch(batch, |batch| call(|out| unsafe { vtable.score()(data, batch, out) }))?;
        Ok(answer.numbers.into_iter().map(|score| score as f32).collect())
    }

    #[cfg(feature = "torch")]
    fn score_differentiable(&mut self, batch: &RewardBatch<'_>) -> Result<Option<tch::Tensor>> {
        let RewardObject { data, vtable } = self.object;
        // SAFETY: as in `score`.
        let answer = with_batch(batch, |batch| call(|out| unsafe { vtable.score_differentiable()(data, batch, out) }));
        Ok(answer?.take("score"))
    }

    #[cfg(feature = "torch")]
    fn learner(&mut self) -> Option<&mut dyn crate::Learner> {
        if self.learns { Some(self) } else { None }
    }
}

#[cfg(feature = "torch")]
impl crate::Learner for ForeignReward {
    fn parameters(&self) -> Vec<(String, tch::Tensor)> {
        // They were given once before; a plugin that now fails gets the panic that its own code would have raised here.
        self.learner_parameters().unwrap_or_else(|error| panic!("{error}"))
    }

    fn discriminator_loss(
        &mut self,
        real: &RewardBatch<'_>,
        fake: &RewardBatch<'_>,
    ) -> Result<crate::DiscriminatorLoss> {
        let RewardObject { data, vtable } = self.object;
        let mut answer = with_batch(real, |real| {
            with_batch(fake, |fake| {
                // SAFETY: as in `score`.
                call(|out| unsafe { vtable.learner_discriminator_loss()(data, real, fake, out) })
            })
        })?;
        Ok(crate::DiscriminatorLoss {
            loss: answer.tensor("loss")?,
            real: answer.tensor("real")?,
            fake: answer.tensor("fake")?,
        })
    }

    fn generator_loss(&mut self, fake: &RewardBatch<'_>) -> Result<tch::Tensor> {
        let RewardObject { data, vtable } = self.object;
        // SAFETY: as in `score`.
        let answer = with_batch(fake, |fake| call(|out| unsafe { vtable.learner_generator_loss()(data, fake, out) }));
        answer?.tensor("loss")
    }
}
