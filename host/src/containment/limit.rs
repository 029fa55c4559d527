//! A reward of this process whose calls may take only so long.
//!
//! Code that does not return cannot be stopped, only left behind: each call runs on a thread of the reward's own, and one
//! that takes too long is given up, its thread with it. The run then ends, or goes on without the reward's groups.

use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use advdmd_sdk::{
    DiscriminatorLoss, Error as SdkError, Learner, Needs, Result as SdkResult, Reward, RewardBatch, TensorView,
};
use tch::Tensor;

use crate::interrupt::{self, Waited};
use crate::{Error, Result};

/// What the reward's thread is to do with it.
type Call = Box<dyn FnOnce(&mut dyn Reward) + Send>;

/// A reward with a limit of time.
pub struct TimeLimited {
    /// None once the reward was given up.
    calls: Option<Sender<Call>>,
    limit: Duration,
    needs: Needs,
    /// Handles to what the learner trains; none where it does not learn.
    parameters: Option<Vec<(String, Tensor)>>,
}

impl TimeLimited {
    /// Moves a reward to a thread of its own.
    ///
    /// # Errors
    /// No thread can be started; a reward that takes too long to say what it trains.
    pub fn new(name: &str, mut reward: Box<dyn Reward>, limit: Duration) -> Result<Self> {
        let needs = reward.needs();
        let (calls, received) = channel::<Call>();
        let work = move || received.into_iter().for_each(|call| call(reward.as_mut()));
        let thread = thread::Builder::new().name(format!("reward {name}")).spawn(work);
        thread.map_err(|error| Error::failed(format!("reward `{name}`: no thread can be started: {error}")))?;
        let mut this = Self { calls: Some(calls), limit, needs, parameters: None };
        let parameters = this.call(true, |reward| Ok(reward.learner().map(|learner| learner.parameters())));
        this.parameters = parameters.map_err(|source| source.context(format!("reward `{name}`")))?;
        Ok(this)
    }

    /// Has the reward's thread do something, with or without gradients, and waits for it.
    fn call<T: Send + 'static>(
        &mut self,
        gradients: bool,
        work: impl FnOnce(&mut dyn Reward) -> SdkResult<T> + Send + 'static,
    ) -> SdkResult<T> {
        let (reply, answer) = channel();
        let call = move |reward: &mut dyn Reward| {
            let _mode = (!gradients).then(tch::no_grad_guard);
            // Nobody waits for it any more where it took too long.
            let _ = reply.send(work(reward));
        };
        let seconds = self.limit.as_secs_f64();
        let Some(calls) = &self.calls else {
            let message =
                format!("was given up after it took longer than its `time_limit` of {seconds} s; start the run again");
            return Err(SdkError::failed(message));
        };
        let gone = || SdkError::failed("ended in the middle of a batch");
        calls.send(Box::new(call)).map_err(|_| gone())?;
        match interrupt::receive(&answer, Some(self.limit)) {
            Ok(answer) => answer,
            Err(Waited::Gone) => Err(gone()),
            Err(Waited::Stopped) => Err(SdkError::failed("stopped")),
            Err(Waited::TooLong) => {
                // Whatever were queued behind it would wait in vain, and be worked through for nobody if it ever came back.
                self.calls = None;
                Err(SdkError::failed(format!("took longer than its `time_limit` of {seconds} s")))
            }
        }
    }
}

impl Reward for TimeLimited {
    fn needs(&self) -> Needs {
        self.needs.clone()
    }

    fn score(&mut self, batch: &RewardBatch<'_>) -> SdkResult<Vec<f32>> {
        let batch = Owned::of(batch)?;
        self.call(false, move |reward| reward.score(&batch.lend()?))
    }

    fn score_differentiable(&mut self, batch: &RewardBatch<'_>) -> SdkResult<Option<Tensor>> {
        let batch = Owned::of(batch)?;
        // The mode of gradients belongs to a thread; here it follows from whether there is something to differentiate.
        self.call(batch.requires_grad(), move |reward| reward.score_differentiable(&batch.lend()?))
    }

    fn learner(&mut self) -> Option<&mut dyn Learner> {
        if self.parameters.is_some() { Some(self) } else { None }
    }
}

impl Learner for TimeLimited {
    fn parameters(&self) -> Vec<(String, Tensor)> {
        let parameters = self.parameters.iter().flatten();
        parameters.map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
    }

    fn discriminator_loss(&mut self, real: &RewardBatch<'_>, fake: &RewardBatch<'_>) -> SdkResult<DiscriminatorLoss> {
        let (real, fake) = (Owned::of(real)?, Owned::of(fake)?);
        self.call(true, move |reward| learner(reward)?.discriminator_loss(&real.lend()?, &fake.lend()?))
    }

    fn generator_loss(&mut self, fake: &RewardBatch<'_>) -> SdkResult<Tensor> {
        let fake = Owned::of(fake)?;
        self.call(true, move |reward| learner(reward)?.generator_loss(&fake.lend()?))
    }
}

fn learner(reward: &mut dyn Reward) -> SdkResult<&mut dyn Learner> {
    reward.learner().ok_or_else(|| SdkError::invalid("has no learner any more"))
}

/// A [`RewardBatch`] that outlives whoever waits for it: handles to the same tensors.
struct Owned {
    prompts: Vec<String>,
    sigma: Option<Tensor>,
    images: Option<Tensor>,
    latents: Option<Tensor>,
    features: Vec<Tensor>,
}

impl Owned {
    fn of(batch: &RewardBatch<'_>) -> SdkResult<Self> {
        let option = |view: &Option<TensorView<'_>>| view.as_ref().map(TensorView::torch).transpose();
        Ok(Self {
            prompts: batch.prompts.iter().map(|&prompt| prompt.to_owned()).collect(),
            sigma: option(&batch.sigma)?,
            images: option(&batch.images)?,
            latents: option(&batch.latents)?,
            features: batch.features.iter().map(TensorView::torch).collect::<SdkResult<_>>()?,
        })
    }

    fn requires_grad(&self) -> bool {
        [&self.images, &self.latents].into_iter().flatten().chain(&self.features).any(Tensor::requires_grad)
    }

    fn lend(&self) -> SdkResult<RewardBatch<'_>> {
        let option = |tensor: &Option<Tensor>| tensor.as_ref().map(TensorView::from_torch).transpose();
        Ok(RewardBatch {
            prompts: self.prompts.iter().map(String::as_str).collect(),
            sigma: option(&self.sigma)?,
            images: option(&self.images)?,
            latents: option(&self.latents)?,
            features: self.features.iter().map(TensorView::from_torch).collect::<SdkResult<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    struct Sleeper;

    impl Reward for Sleeper {
        fn needs(&self) -> Needs {
            Needs::default()
        }

        fn score(&mut self, batch: &RewardBatch<'_>) -> SdkResult<Vec<f32>> {
            for prompt in &batch.prompts {
                thread::sleep(Duration::from_millis(prompt.len() as u64 * 100));
            }
            Ok(vec![1.0; batch.len()])
        }
    }

    fn batch<'a>(prompts: &[&'a str]) -> RewardBatch<'a> {
        RewardBatch { prompts: prompts.to_vec(), ..RewardBatch::default() }
    }

    #[test]
    fn a_call_that_takes_too_long_is_given_up() {
        let mut reward = TimeLimited::new("sleeper", Box::new(Sleeper), Duration::from_millis(500)).unwrap();
        assert_eq!(reward.score(&batch(&["", "a"])).unwrap(), [1.0, 1.0]);
        let begun = Instant::now();
        let error = reward.score(&batch(&["0123456789012345678901234567890"])).unwrap_err();
        assert_eq!(error.to_string(), "took longer than its `time_limit` of 0.5 s");
        assert!(begun.elapsed() < Duration::from_secs(2));
        // Its thread is still busy: nothing waits behind it.
        let begun = Instant::now();
        let error = reward.score(&batch(&[""])).unwrap_err();
        assert!(error.to_string().starts_with("was given up after"), "{error}");
        assert!(begun.elapsed() < Duration::from_millis(400));
    }
}
