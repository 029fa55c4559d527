//! The configuration table of the reward.

use std::collections::BTreeMap;
use std::time::Duration;

use advdmd_sdk::{Error, Result, Reward, RewardConfig, RewardInit};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};
use ureq::http::{HeaderName, HeaderValue, Uri};

use crate::client::{Client, Secret};
use crate::health;
use crate::pool::Pool;
use crate::reward::RemoteReward;

/// Scores by servers of one's own: images and prompts go out as JSON over HTTP, scores come back.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Remote {
    /// Addresses that score, such as `http://127.0.0.1:8000/score`, `http` or `https`. Several share the work; all must
    /// serve the same scorer.
    #[schemars(extend("x-changes-no-result" = true))]
    pub endpoints: Vec<String>,
    /// Images in a request.
    #[schemars(extend("x-changes-no-result" = true))]
    pub batch_size: usize,
    /// Requests at once to each endpoint.
    #[schemars(extend("x-changes-no-result" = true))]
    pub concurrency: usize,
    /// Seconds that a request may take from the connection to the end of the reply.
    #[schemars(extend("x-changes-no-result" = true))]
    pub timeout: f64,
    /// Seconds that connecting may take.
    #[schemars(extend("x-changes-no-result" = true))]
    pub connect_timeout: f64,
    /// Seconds to wait for the endpoints to become healthy before the run begins.
    #[schemars(extend("x-changes-no-result" = true))]
    pub startup_timeout: f64,
    /// Further tries after a failure. A request is given up when it failed `1 + retries` times for each endpoint, or when
    /// each endpoint failed that often in a row: with the other defaults, a server may be away for two and a half minutes.
    #[schemars(extend("x-changes-no-result" = true))]
    pub retries: u32,
    /// Seconds that an endpoint rests after a failure, doubled after each further one in a row.
    #[schemars(extend("x-changes-no-result" = true))]
    pub backoff: f64,
    /// Longest rest in seconds.
    #[schemars(extend("x-changes-no-result" = true))]
    pub backoff_max: f64,
    /// Path that answers whether an endpoint is healthy; by default `health` beside the score path.
    #[schemars(extend("x-changes-no-result" = true))]
    pub health: Option<String>,
    /// Headers of each request. They are written to the run's folder: a secret belongs in `token_env`.
    #[schemars(extend("x-changes-no-result" = true))]
    pub headers: BTreeMap<String, String>,
    /// Environment variable with a token, sent as `Authorization: Bearer TOKEN` and never written anywhere.
    #[schemars(extend("x-changes-no-result" = true))]
    pub token_env: Option<String>,
    /// Sent with each request as it is, for the scorer to read.
    pub metadata: Map<String, Value>,
    /// Factor on each score.
    pub scale: f64,
    /// Scores below are raised to this, after `scale`.
    pub clamp_min: Option<f64>,
    /// Scores above are lowered to this, after `scale`.
    pub clamp_max: Option<f64>,
}

impl Default for Remote {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            batch_size: 16,
            concurrency: 2,
            timeout: 60.0,
            connect_timeout: 5.0,
            startup_timeout: 60.0,
            retries: 10,
            backoff: 0.5,
            backoff_max: 30.0,
            health: None,
            headers: BTreeMap::new(),
            token_env: None,
            metadata: Map::new(),
            scale: 1.0,
            clamp_min: None,
            clamp_max: None,
        }
    }
}

/// An address that scores, and where it says whether it is healthy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub score: String,
    pub health: String,
}

impl Remote {
    /// # Errors
    /// A value out of range; the message names the key.
    fn check(&self) -> Result<()> {
        for (key, value) in [("batch_size", self.batch_size), ("concurrency", self.concurrency)] {
            if !(1..=4096).contains(&value) {
                return Err(Error::config(format!("{key}: expected 1 to 4096, found {value}")));
            }
        }
        let seconds = [
            ("timeout", self.timeout),
            ("connect_timeout", self.connect_timeout),
            ("startup_timeout", self.startup_timeout),
            ("backoff", self.backoff),
            ("backoff_max", self.backoff_max),
        ];
        for (key, value) in seconds {
            if !(value > 0.0 && value <= 86400.0) {
                return Err(Error::config(format!("{key}: expected seconds above 0, at most a day, found {value}")));
            }
        }
        if self.retries > 1000 {
            return Err(Error::config(format!("retries: expected at most 1000, found {}", self.retries)));
        }
        if !self.scale.is_finite() {
            return Err(Error::config(format!("scale: expected a finite number, found {}", self.scale)));
        }
        for (key, bound) in [("clamp_min", self.clamp_min), ("clamp_max", self.clamp_max)] {
            if let Some(bound) = bound.filter(|bound| !bound.is_finite()) {
                return Err(Error::config(format!("{key}: expected a finite number, found {bound}")));
            }
        }
        match (self.clamp_min, self.clamp_max) {
            (Some(least), Some(most)) if least >= most => {
                Err(Error::config(format!("clamp_max: expected more than clamp_min = {least}, found {most}")))
            }
            _ => Ok(()),
        }
    }

    fn endpoints(&self) -> Result<Vec<Endpoint>> {
        if self.endpoints.is_empty() {
            return Err(Error::config("endpoints: name at least one, such as \"http://127.0.0.1:8000/score\""));
        }
        let endpoints = self.endpoints.iter().map(|url| endpoint(url, self.health.as_deref()));
        let endpoints = endpoints.collect::<Result<Vec<_>>>()?;
        match endpoints.iter().enumerate().find(|(index, one)| endpoints[..*index].contains(one)) {
            Some((_, twice)) => Err(Error::config(format!("endpoints: {} stands there twice", twice.score))),
            None => Ok(endpoints),
        }
    }

    fn headers(&self) -> Result<Vec<(HeaderName, HeaderValue)>> {
        let parse = |(name, value): (&String, &String)| {
            let fail = |what: &str| Error::config(format!("headers.{}: {what}", name.escape_debug()));
            let parsed: HeaderName = name.parse().map_err(|_| fail("not the name of a header"))?;
            match parsed.as_str() {
                "authorization" => {
                    return Err(fail(
                        "a secret would be written to the run's folder; put it into an environment \
                                     variable and name that in `token_env`",
                    ));
                }
                "host" | "content-length" | "content-type" | "transfer-encoding" | "connection" => {
                    return Err(fail("is set by the protocol"));
                }
                _ => {}
            }
            Ok((parsed, value.parse().map_err(|_| fail("not the value of a header"))?))
        };
        self.headers.iter().map(parse).collect()
    }

    fn secret(&self, endpoints: &[Endpoint]) -> Result<Option<Secret>> {
        let Some(name) = &self.token_env else { return Ok(None) };
        let fail = |what: &str| Error::config(format!("token_env: environment variable {name:?} {what}"));
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(Error::config(format!("token_env: {name:?} is not the name of an environment variable")));
        }
        let token = std::env::var(name).map_err(|error| match error {
            std::env::VarError::NotPresent => fail("is not set"),
            std::env::VarError::NotUnicode(_) => fail("is not text"),
        })?;
        let secret = Secret::new(token.trim()).ok_or_else(|| fail("is empty or holds what no header may"))?;
        for open in endpoints.iter().filter(|endpoint| is_open(&endpoint.score)) {
            tracing::warn!("the token of {name} is sent unencrypted to {}; use https", open.score);
        }
        Ok(Some(secret))
    }
}

/// Whether what is sent there can be read on the way.
fn is_open(url: &str) -> bool {
    let uri: Option<Uri> = url.parse().ok();
    let host = uri.as_ref().and_then(Uri::host).unwrap_or_default();
    url.starts_with("http:") && !(host == "localhost" || host == "[::1]" || host.starts_with("127."))
}

fn endpoint(url: &str, health: Option<&str>) -> Result<Endpoint> {
    let fail = |what: &str| Error::config(format!("endpoints: {}: {what}", url.escape_debug()));
    let uri: Uri = url.parse().map_err(|error| fail(&format!("not an address: {error}")))?;
    let (Some(scheme @ ("http" | "https")), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(fail("expected http://HOST:PORT/PATH or https://HOST/PATH"));
    };
    if authority.as_str().contains('@') {
        // The address is shown in errors and written to the run's folder.
        return Err(Error::config(
            "endpoints: an address holds a user name or password; name an environment variable \
                                  in `token_env` instead",
        ));
    }
    let health = match health {
        Some(path) if path.starts_with('/') => path.to_owned(),
        Some(path) => {
            return Err(Error::config(format!("health: expected a path such as \"/health\", found {path:?}")));
        }
        None => {
            let path = uri.path();
            format!("{}/health", path.rsplit_once('/').map_or("", |(folder, _)| folder))
        }
    };
    let health = format!("{scheme}://{authority}{health}");
    health.parse::<Uri>().map_err(|error| Error::config(format!("health: {error}")))?;
    Ok(Endpoint { score: uri.to_string(), health })
}

pub(crate) fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

impl RewardConfig for Remote {
    fn build(self, _init: &RewardInit) -> Result<Box<dyn Reward>> {
        self.check()?;
        let endpoints = self.endpoints()?;
        let secret = self.secret(&endpoints)?;
        let client = Client::new(self.headers()?, secret, seconds(self.timeout), seconds(self.connect_timeout));
        health::wait(&client, &endpoints, seconds(self.startup_timeout))?;
        let pool = Pool::new(&self, endpoints.into_iter().map(|endpoint| endpoint.score).collect());
        Ok(Box::new(RemoteReward::new(self, client, pool)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_is_beside_the_score_path() {
        let of = |url: &str, health| endpoint(url, health).unwrap().health;
        assert_eq!(of("http://a:1/score", None), "http://a:1/health");
        assert_eq!(of("http://a:1", None), "http://a:1/health");
        assert_eq!(of("https://a/v1/hps/score?x=1", None), "https://a/v1/hps/health");
        assert_eq!(of("http://[::1]:8/v1/score", Some("/ready")), "http://[::1]:8/ready");
    }

    #[test]
    fn bad_values_are_named() {
        let message = |change: fn(&mut Remote)| {
            let mut remote = Remote { endpoints: vec!["http://127.0.0.1:1/score".into()], ..Remote::default() };
            change(&mut remote);
            let faults =
                [remote.check().err(), remote.endpoints().err(), remote.headers().err(), remote.secret(&[]).err()];
            faults.into_iter().flatten().next().expect("a fault").to_string()
        };
        for (change, expected) in [
            ((|r| r.endpoints.clear()) as fn(&mut Remote), "endpoints: name at least one"),
            (|r| r.endpoints[0] = "127.0.0.1:1/score".into(), "endpoints: 127.0.0.1:1/score: "),
            (|r| r.endpoints[0] = "ftp://a/score".into(), "expected http://HOST:PORT/PATH"),
            (|r| r.endpoints[0] = "/score".into(), "expected http://HOST:PORT/PATH"),
            (|r| r.endpoints[0] = "http://me:hunter2@a/score".into(), "`token_env` instead"),
            (|r| r.endpoints.push(r.endpoints[0].clone()), "stands there twice"),
            (|r| r.health = Some("health".into()), "health: expected a path"),
            (|r| r.batch_size = 0, "batch_size: expected 1 to 4096, found 0"),
            (|r| r.concurrency = 5000, "concurrency: "),
            (|r| r.timeout = 0.0, "timeout: expected seconds above 0, at most a day, found 0"),
            (|r| r.backoff = f64::NAN, "backoff: "),
            (|r| r.retries = 1001, "retries: "),
            (|r| r.scale = f64::INFINITY, "scale: expected a finite number, found inf"),
            (
                |r| (r.clamp_min, r.clamp_max) = (Some(1.0), Some(1.0)),
                "clamp_max: expected more than clamp_min = 1, found 1",
            ),
            (|r| drop(r.headers.insert("a b".into(), "c".into())), "headers.a b: not the name"),
            (|r| drop(r.headers.insert("a".into(), "b\nc: d".into())), "headers.a: not the value"),
            (|r| drop(r.headers.insert("Authorization".into(), "x".into())), "`token_env`"),
            (|r| drop(r.headers.insert("Host".into(), "x".into())), "set by the protocol"),
            (|r| r.token_env = Some("ADVDMD_NO_SUCH_VARIABLE".into()), "is not set"),
            (|r| r.token_env = Some(String::new()), "not the name of an environment variable"),
        ] {
            let found = message(change);
            assert!(found.contains(expected), "{found:?} for {expected:?}");
            assert!(!found.contains("hunter2"), "a password is shown: {found}");
        }
    }

    #[test]
    fn a_token_may_only_go_unencrypted_to_this_machine_without_a_word() {
        assert!(is_open("http://gpu-7:8000/score"));
        for quiet in
            ["http://127.0.0.1:8000/score", "http://localhost/score", "http://[::1]:8/score", "https://a/score"]
        {
            assert!(!is_open(quiet), "{quiet}");
        }
    }
}
