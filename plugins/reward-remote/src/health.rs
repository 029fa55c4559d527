//! Whether the endpoints can score, asked before the run begins.

use std::thread;
use std::time::{Duration, Instant};

use advdmd_sdk::{Error, Result};

use crate::client::{Client, Failure};
use crate::config::Endpoint;
use crate::protocol::{self, Scorer};

/// Between two looks at an endpoint that is not there yet.
const PAUSE: Duration = Duration::from_millis(250);

/// Waits until each endpoint says that it is healthy, all within `limit`.
///
/// # Errors
/// Names the endpoint that is not, or two that serve different scorers.
pub(crate) fn wait(client: &Client, endpoints: &[Endpoint], limit: Duration) -> Result<()> {
    let started = Instant::now();
    let mut first: Option<(&Endpoint, Scorer)> = None;
    for endpoint in endpoints {
        let scorer = wait_for(client, endpoint, started, limit)?;
        tracing::info!("{}: {scorer} is healthy", endpoint.score);
        match &first {
            None => first = Some((endpoint, scorer)),
            Some((other, expected)) if *expected != scorer => {
                let (here, there) = (&endpoint.score, &other.score);
                return Err(Error::config(format!(
                    "endpoints: {there} serves {expected} and {here} serves {scorer}; their scores cannot be compared"
                )));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn wait_for(client: &Client, endpoint: &Endpoint, started: Instant, limit: Duration) -> Result<Scorer> {
    let mut told = false;
    loop {
        let left = limit.saturating_sub(started.elapsed()).max(PAUSE);
        let failure = match ask(client, &endpoint.health, client.timeout().min(left)) {
            Ok(scorer) => return Ok(scorer),
            Err(failure) => failure,
        };
        let url = &endpoint.health;
        if !failure.passing {
            return Err(Error::failed(format!("{url}: {}", failure.reason)));
        }
        if started.elapsed() + PAUSE >= limit {
            let limit = limit.as_secs_f64();
            return Err(Error::failed(format!(
                "{url}: not healthy within {limit:.0} s (`startup_timeout`): {}",
                failure.reason
            )));
        }
        if !told {
            tracing::info!("{url}: {}; waiting for it up to {:.0} s", failure.reason, limit.as_secs_f64());
            told = true;
        }
        thread::sleep(PAUSE);
    }
}

fn ask(client: &Client, url: &str, timeout: Duration) -> Result<Scorer, Failure> {
    let reply = client.get(url, timeout)?;
    protocol::scorer(&reply).map_err(|fault| Failure::lasting(format!("{fault}{}", client.excerpt(&reply))))
}
