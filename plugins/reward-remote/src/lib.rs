//! Scores by a server of the user's own, over HTTP: reward type `remote`.
//!
//! A batch of images is cut into requests of JSON with PNG images in base64 (`protocol`, `picture`), which go to the
//! endpoints at once, the least busy one first (`pool`, `client`). Before step 0 each endpoint must say that it is healthy
//! (`health`). The protocol is written down in `examples/reward-server/openapi.yaml`, beside a server to start from.
//!
//! | what happens | what follows |
//! | --- | --- |
//! | connection refused, reset or cut, host name not found, timeout | tried again |
//! | HTTP 408, 429, 500, 502, 503, 504 | tried again, after `Retry-After` if the reply has it (seconds, at most `backoff_max`) |
//! | any other status, redirects among them | error |
//! | not HTTP; not JSON; no `scores`; another number of scores; a score that is no finite number; another protocol version; over 1 MiB | error |
//! | a certificate that is not trusted | error |
//!
//! An endpoint that fails rests: `backoff` seconds, twice as long after each further failure in a row, at most
//! `backoff_max`. Meanwhile the others take its requests; when all rest, a request waits for the first to wake. A request is
//! given up when it failed `1 + retries` times for each endpoint, or when each endpoint failed that often in a row, no matter
//! whose requests. No fault ever becomes a score.
//!
//! Proxies of the environment are not used, and connections are not kept between requests.

mod client;
mod config;
mod health;
mod picture;
mod pool;
mod protocol;
mod reward;

pub use config::Remote;

advdmd_sdk::register_reward!("remote", Remote);
advdmd_sdk::export_plugin!();
