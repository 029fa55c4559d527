//! The reward: a batch cut into requests, and the scores put together again.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, ScopedJoinHandle};

use advdmd_sdk::{Error, Needs, Result, Reward, RewardBatch, Scope};

use crate::Remote;
use crate::client::{Client, Failure};
use crate::picture::Pictures;
use crate::pool::Pool;
use crate::protocol::{self, Request, Sample, VERSION};

pub(crate) struct RemoteReward {
    config: Remote,
    client: Client,
    pool: Pool,
}

impl RemoteReward {
    pub fn new(config: Remote, client: Client, pool: Pool) -> Self {
        Self { config, client, pool }
    }

    /// The samples from `start` on that go into one request.
    fn score_from(
        &self,
        start: usize,
        prompts: &[&str],
        pictures: &Pictures<'_>,
        stop: &AtomicBool,
    ) -> Result<Option<Vec<f32>>> {
        let end = prompts.len().min(start + self.config.batch_size);
        let sample = |index| Ok(Sample { prompt: prompts[index], image: pictures.base64(index)? });
        let samples = (start..end).map(sample).collect::<Result<Vec<_>>>()?;
        let request = Request { version: VERSION, samples, metadata: &self.config.metadata };
        let json = serde_json::to_vec(&request)?;
        let scores = self.pool.send(stop, |url| {
            let reply = self.client.post(url, &json)?;
            let scores = protocol::scores(&reply, end - start).and_then(|scores| self.finish(&scores));
            scores.map_err(|fault| Failure::lasting(format!("HTTP 200: {fault}{}", self.client.excerpt(&reply))))
        });
        scores.map_err(|error| match end - start {
            1 => error.context(format!("sample {start}")),
            _ => error.context(format!("samples {start} to {}", end - 1)),
        })
    }

    /// Scaled, clamped, and as float32.
    fn finish(&self, scores: &[f64]) -> Result<Vec<f32>, String> {
        let finish = |(index, &score): (usize, &f64)| {
            let scaled = self.config.scale * score;
            let raised = self.config.clamp_min.map_or(scaled, |least| scaled.max(least));
            let finished = self.config.clamp_max.map_or(raised, |most| raised.min(most)) as f32;
            finished.is_finite().then_some(finished).ok_or_else(|| format!("score {index} is {score}, too large"))
        };
        scores.iter().enumerate().map(finish).collect()
    }
}

impl Reward for RemoteReward {
    fn needs(&self) -> Needs {
        Needs { scope: Scope::Final, images: true, on_cpu: true, background: true, ..Needs::default() }
    }

    fn score(&mut self, batch: &RewardBatch<'_>) -> Result<Vec<f32>> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let pictures = Pictures::of(batch)?;
        let size = self.config.batch_size;
        let requests = batch.len().div_ceil(size);
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let (this, pictures, prompts) = (&*self, &pictures, batch.prompts.as_slice());
        // A sender takes the next request until there is none; images are encoded as they are sent.
        let sender = || -> Result<Vec<(usize, Vec<f32>)>> {
            let mut done = Vec::new();
            loop {
                let start = next.fetch_add(1, Ordering::Relaxed) * size;
                if start >= prompts.len() || stop.load(Ordering::Relaxed) {
                    return Ok(done);
                }
                match this.score_from(start, prompts, pictures, &stop) {
                    Ok(Some(scores)) => done.push((start, scores)),
                    Ok(None) => return Ok(done),
                    Err(error) => {
                        stop.store(true, Ordering::Relaxed);
                        return Err(error);
                    }
                }
            }
        };
        let outcomes: Vec<_> = thread::scope(|scope| {
            let senders: Vec<_> = (0..requests.min(self.pool.capacity())).map(|_| scope.spawn(sender)).collect();
            senders.into_iter().map(ScopedJoinHandle::join).collect()
        });
        let mut parts = Vec::with_capacity(requests);
        for outcome in outcomes {
            parts.extend(outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        parts.sort_unstable_by_key(|(start, _)| *start);
        let scores: Vec<f32> = parts.into_iter().flat_map(|(_, scores)| scores).collect();
        if scores.len() != batch.len() {
            return Err(Error::failed(format!("{} of {} scores came back", scores.len(), batch.len())));
        }
        Ok(scores)
    }
}
