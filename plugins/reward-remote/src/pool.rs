//! Which endpoint takes a request, and when it is tried again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use advdmd_sdk::{Error, Result};

use crate::Remote;
use crate::client::Failure;
use crate::config::seconds;

/// The endpoints, shared by the threads that send.
#[derive(Debug)]
pub(crate) struct Pool {
    urls: Vec<String>,
    states: Mutex<Vec<State>>,
    /// A request ended, or all of them were given up.
    changed: Condvar,
    concurrency: usize,
    retries: u32,
    backoff: Duration,
    backoff_max: Duration,
}

/// What is known of an endpoint.
#[derive(Debug, Clone, Default)]
struct State {
    /// Requests under way.
    busy: usize,
    /// Requests that it was given so far.
    given: u64,
    /// Failures since its last success. One outage that ends several requests at once counts once.
    streak: u32,
    /// When it failed last, and when it may be asked again.
    rest: Option<(Instant, Instant)>,
}

impl State {
    /// Until when it is left alone.
    fn resting(&self, now: Instant) -> Option<Instant> {
        self.rest.map(|(_, until)| until).filter(|until| *until > now)
    }

    /// Whether it can take a request; one that failed proves itself with a single one.
    fn free(&self, concurrency: usize, now: Instant) -> bool {
        self.resting(now).is_none() && self.busy < if self.streak > 0 { 1 } else { concurrency }
    }
}

impl Pool {
    pub fn new(config: &Remote, urls: Vec<String>) -> Self {
        Self {
            states: Mutex::new(vec![State::default(); urls.len()]),
            urls,
            changed: Condvar::new(),
            concurrency: config.concurrency,
            retries: config.retries,
            backoff: seconds(config.backoff),
            backoff_max: seconds(config.backoff_max),
        }
    }

    /// Requests that can be under way at once.
    pub fn capacity(&self) -> usize {
        self.urls.len() * self.concurrency
    }

    /// Tries a request until it succeeds; `attempt` gets the address. `None` when `stop` was set meanwhile.
    ///
    /// # Errors
    /// A failure that lasts, or one try too many; it names the endpoint that failed last. `stop` is set then.
    pub fn send<T>(&self, stop: &AtomicBool, mut attempt: impl FnMut(&str) -> Result<T, Failure>) -> Result<Option<T>> {
        let (started, limit) = (Instant::now(), (1 + self.retries as usize) * self.urls.len());
        let mut tries = 0;
        while let Some(index) = self.acquire(stop) {
            let (url, begun) = (&self.urls[index], Instant::now());
            tries += 1;
            let failure = match attempt(url) {
                Ok(reply) => {
                    self.succeeded(index);
                    return Ok(Some(reply));
                }
                Err(failure) => failure,
            };
            let gone = self.failed(index, begun, &failure);
            if !failure.passing || tries >= limit || gone {
                self.give_up(stop);
                let time = started.elapsed().as_secs_f64();
                let effort = match tries {
                    _ if gone && self.urls.len() > 1 => format!(" (as the others before it, after {time:.1} s)"),
                    1 => String::new(),
                    tries => format!(" (try {tries}, after {time:.1} s)"),
                };
                return Err(Error::failed(format!("{url}: {}{effort}", failure.reason)));
            }
        }
        Ok(None)
    }

    /// Waits for an endpoint that is free, and takes the least busy one.
    fn acquire(&self, stop: &AtomicBool) -> Option<usize> {
        let mut states = self.lock();
        loop {
            if stop.load(Ordering::Relaxed) {
                return None;
            }
            let now = Instant::now();
            let free = states.iter().enumerate().filter(|(_, state)| state.free(self.concurrency, now));
            if let Some((index, _)) = free.min_by_key(|(_, state)| (state.busy, state.given)) {
                states[index].busy += 1;
                states[index].given += 1;
                return Some(index);
            }
            states = match states.iter().filter_map(|state| state.resting(now)).min() {
                Some(until) => {
                    let wait = self.changed.wait_timeout(states, until - now);
                    wait.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(states).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn succeeded(&self, index: usize) {
        let mut states = self.lock();
        let state = &mut states[index];
        state.busy -= 1;
        if state.streak > 0 {
            tracing::info!("{} answers again", self.urls[index]);
        }
        (state.streak, state.rest) = (0, None);
        drop(states);
        self.changed.notify_all();
    }

    /// Lets the endpoint rest; whether by now all of them failed too often in a row.
    fn failed(&self, index: usize, begun: Instant, failure: &Failure) -> bool {
        let now = Instant::now();
        let mut states = self.lock();
        let state = &mut states[index];
        state.busy -= 1;
        // Requests that were under way when it failed before tell nothing new.
        if failure.passing && state.rest.is_none_or(|(failed, _)| begun > failed) {
            state.streak += 1;
            let asked = failure.retry_after.unwrap_or_default();
            let rest = rest(self.backoff, self.backoff_max, state.streak).max(asked.min(self.backoff_max));
            state.rest = Some((now, now + rest));
            let first = state.streak == 1;
            let awake = states.iter().filter(|state| state.resting(now).is_none()).count();
            let (url, reason, rest) = (&self.urls[index], &failure.reason, rest.as_secs_f64());
            match awake {
                0 => tracing::warn!("{url}: {reason}; no other endpoint is left, trying again in {rest:.1} s"),
                _ if first => tracing::warn!("{url}: {reason}; going on without it, trying again in {rest:.1} s"),
                _ => tracing::debug!("{url}: {reason}; trying again in {rest:.1} s"),
            }
        }
        let gone = states.iter().all(|state| state.streak > self.retries);
        drop(states);
        self.changed.notify_all();
        gone
    }

    /// Ends all requests of the batch; the next one finds the endpoints as if nothing was known of them.
    fn give_up(&self, stop: &AtomicBool) {
        let mut states = self.lock();
        // Under the lock, so that no thread goes to sleep between its look at the flag and this.
        stop.store(true, Ordering::Relaxed);
        for state in &mut *states {
            (state.streak, state.rest) = (0, None);
        }
        drop(states);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Seconds of rest after failure number `streak` (from 1) in a row: doubling, bounded.
fn rest(backoff: Duration, backoff_max: Duration, streak: u32) -> Duration {
    backoff.saturating_mul(1_u32.checked_shl(streak - 1).unwrap_or(u32::MAX)).min(backoff_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(urls: &[&str], config: &Remote) -> Pool {
        Pool::new(config, urls.iter().map(|&url| url.to_owned()).collect())
    }

    #[test]
    fn rests_double_up_to_their_bound() {
        let rests = (1..=8).map(|streak| rest(Duration::from_secs(1), Duration::from_secs(30), streak).as_secs());
        assert_eq!(rests.collect::<Vec<_>>(), [1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(rest(Duration::from_secs(1), Duration::from_secs(30), u32::MAX).as_secs(), 30);
    }

    #[test]
    fn the_least_busy_endpoint_comes_first_and_none_gets_too_much() {
        let pool = pool(&["a", "b", "c"], &Remote { concurrency: 2, ..Remote::default() });
        let stop = AtomicBool::new(false);
        let order: Vec<_> = (0..6).filter_map(|_| pool.acquire(&stop)).collect();
        assert_eq!(order, [0, 1, 2, 0, 1, 2]);
        assert!(pool.lock().iter().all(|state| !state.free(2, Instant::now())), "all are full");
        pool.succeeded(1);
        assert_eq!(pool.acquire(&stop), Some(1));
    }

    #[test]
    fn an_outage_that_ends_several_requests_counts_once() {
        let pool = pool(&["a"], &Remote { concurrency: 4, ..Remote::default() });
        let begun = Instant::now();
        for _ in 0..4 {
            pool.acquire(&AtomicBool::new(false));
        }
        for _ in 0..4 {
            pool.failed(0, begun, &Failure::passing("gone"));
        }
        assert_eq!(pool.lock()[0].streak, 1);
    }

    #[test]
    fn one_that_failed_gets_a_single_request_after_its_rest() {
        let config = Remote { concurrency: 4, backoff: 0.5, ..Remote::default() };
        let pool = pool(&["a"], &config);
        let stop = AtomicBool::new(false);
        pool.acquire(&stop);
        pool.failed(0, Instant::now(), &Failure::passing("gone"));
        assert!(pool.lock()[0].resting(Instant::now()).is_some());
        let begun = Instant::now();
        assert_eq!(pool.acquire(&stop), Some(0));
        assert!(begun.elapsed() > Duration::from_millis(100), "it waited for the rest to end");
        assert!(!pool.lock()[0].free(4, Instant::now()));
        pool.succeeded(0);
        assert!(pool.lock()[0].free(4, Instant::now()));
    }
}
