//! Rewards that wait for something elsewhere: each scores on a thread of its own while the run goes on.

use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use advdmd_sdk::{Reward, RewardBatch, TensorView};
use tch::{Device, Kind, Tensor};

use crate::interrupt::{self, Waited};
use crate::{Error, Result};

/// What to score, on the CPU: final states alone.
#[derive(Debug)]
pub struct Job {
    /// Prompt of each sample.
    pub prompts: Vec<String>,
    /// Images `[b, 3, H, W]`, if the reward reads them.
    pub images: Option<Tensor>,
    /// Latents `[b, C, h, w]`, if the reward reads them.
    pub latents: Option<Tensor>,
}

/// Scores to come.
pub type Awaited = Receiver<advdmd_sdk::Result<Vec<f32>>>;

/// A reward on its thread, which ends when this is dropped and the last score is made.
#[derive(Debug)]
pub struct Background {
    jobs: Sender<(Job, Sender<advdmd_sdk::Result<Vec<f32>>>)>,
}

impl Background {
    /// Moves a reward to a thread of its own.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn new(name: &str, mut reward: Box<dyn Reward>) -> Result<Self> {
        let (jobs, received) = channel::<(Job, Sender<advdmd_sdk::Result<Vec<f32>>>)>();
        let work = move || {
            let _no_grad = tch::no_grad_guard();
            for (job, reply) in received {
                let scores = job.batch().and_then(|batch| reward.score(&batch));
                // Nobody waits for it any more where the update has failed.
                let _ = reply.send(scores);
            }
        };
        let thread = thread::Builder::new().name(format!("reward {name}")).spawn(work);
        thread.map_err(|error| Error::failed(format!("reward `{name}`: no thread can be started: {error}")))?;
        Ok(Self { jobs })
    }

    /// Puts a batch at the end of the queue.
    pub fn score(&self, job: Job) -> Awaited {
        let (reply, awaited) = channel();
        // Fails where the reward has panicked: the reply is dropped, and whoever awaits it finds out.
        let _ = self.jobs.send((job, reply));
        awaited
    }
}

impl Job {
    /// The same tensors.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        let tensor = |tensor: &Option<Tensor>| tensor.as_ref().map(Tensor::shallow_clone);
        Self { prompts: self.prompts.clone(), images: tensor(&self.images), latents: tensor(&self.latents) }
    }

    /// The samples in `range`.
    ///
    /// # Errors
    /// libtorch's, where they are not all there.
    pub fn part(&self, range: &Range<usize>) -> Result<Self> {
        let part = |tensor: &Option<Tensor>| -> Result<_> {
            let rows = |tensor: &Tensor| tensor.f_narrow(0, range.start as i64, range.len() as i64);
            Ok(tensor.as_ref().map(rows).transpose()?)
        };
        let prompts = self.prompts[range.clone()].to_vec();
        Ok(Self { prompts, images: part(&self.images)?, latents: part(&self.latents)? })
    }

    fn batch(&self) -> advdmd_sdk::Result<RewardBatch<'_>> {
        let sigma = Tensor::f_zeros([self.prompts.len() as i64], (Kind::Float, Device::Cpu))?;
        let view = |tensor: &Option<Tensor>| tensor.as_ref().map(TensorView::from_torch).transpose();
        Ok(RewardBatch {
            prompts: self.prompts.iter().map(String::as_str).collect(),
            sigma: Some(TensorView::from_torch(&sigma)?),
            images: view(&self.images)?,
            latents: view(&self.latents)?,
            features: Vec::new(),
        })
    }
}

/// Waits for scores: the reward's, or its error.
///
/// # Errors
/// [`Error::Stopped`] when the user asks the run to stop meanwhile: whatever is awaited may take minutes.
pub fn wait(awaited: &Awaited) -> Result<advdmd_sdk::Result<Vec<f32>>> {
    match interrupt::receive(awaited, None) {
        Ok(scores) => Ok(scores),
        Err(Waited::Stopped) => Err(Error::Stopped),
        Err(_) => Ok(Err(advdmd_sdk::Error::failed("ended in the middle of a batch"))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use advdmd_sdk::Needs;

    use super::*;

    struct Slow;

    impl Reward for Slow {
        fn needs(&self) -> Needs {
            Needs { background: true, ..Needs::default() }
        }

        fn score(&mut self, batch: &RewardBatch<'_>) -> advdmd_sdk::Result<Vec<f32>> {
            assert!(!batch.prompts.contains(&"panic"), "as asked");
            thread::sleep(Duration::from_millis(100));
            Ok(batch.prompts.iter().map(|prompt| prompt.len() as f32).collect())
        }
    }

    fn job(prompts: &[&str]) -> Job {
        let prompts: Vec<String> = prompts.iter().map(|&prompt| prompt.to_owned()).collect();
        Job { prompts, images: None, latents: None }
    }

    #[test]
    fn scores_come_in_order_while_others_work() {
        let reward = Background::new("slow", Box::new(Slow)).unwrap();
        let begun = Instant::now();
        let awaited = [reward.score(job(&["a", "bb"])), reward.score(job(&["ccc"]))];
        assert!(begun.elapsed() < Duration::from_millis(100), "nobody waits yet");
        assert_eq!(awaited.map(|scores| wait(&scores).unwrap().unwrap()), [vec![1.0, 2.0], vec![3.0]]);
        assert!(begun.elapsed() >= Duration::from_millis(200));
    }

    #[test]
    fn a_reward_that_is_gone_is_an_error() {
        let reward = Background::new("slow", Box::new(Slow)).unwrap();
        let awaited = [reward.score(job(&["panic"])), reward.score(job(&["a"]))];
        for scores in awaited {
            assert_eq!(wait(&scores).unwrap().unwrap_err().to_string(), "ended in the middle of a batch");
        }
    }
}
