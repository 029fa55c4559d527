//! One request to one endpoint, and what its failure means.

use std::fmt;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Response};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

/// Longest reply in bytes: room for thousands of scores, too little to fill the memory.
pub(crate) const MAX_REPLY: u64 = 1 << 20;

/// Characters of a reply that an error shows.
const EXCERPT: usize = 200;

/// Why a request has no good reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What happened.
    pub reason: String,
    /// Whether it may go away by itself.
    pub passing: bool,
    /// How long the endpoint asks to be left alone.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure that another try would meet again.
    pub fn lasting(reason: impl fmt::Display) -> Self {
        Self { reason: reason.to_string(), passing: false, retry_after: None }
    }

    /// A failure that may be gone at the next try.
    pub fn passing(reason: impl fmt::Display) -> Self {
        Self { reason: reason.to_string(), passing: true, retry_after: None }
    }
}

/// A token, kept out of every text.
pub(crate) struct Secret {
    token: String,
    header: HeaderValue,
}

impl Secret {
    /// `None` for a token that cannot stand in a header.
    pub fn new(token: &str) -> Option<Self> {
        let mut header: HeaderValue = format!("Bearer {token}").parse().ok()?;
        header.set_sensitive(true);
        (!token.is_empty()).then(|| Self { token: token.to_owned(), header })
    }
}

/// Sends requests.
pub(crate) struct Client {
    agent: Agent,
    headers: Vec<(HeaderName, HeaderValue)>,
    secret: Option<Secret>,
    timeout: Duration,
}

impl Client {
    pub fn new(
        headers: Vec<(HeaderName, HeaderValue)>,
        secret: Option<Secret>,
        timeout: Duration,
        connect_timeout: Duration,
    ) -> Self {
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            // A redirect would turn the request into another one, and carry the token elsewhere.
            .max_redirects(0)
            .max_redirects_will_error(false)
            // A scorer on this machine or in its network must not be looked for behind a proxy.
            .proxy(None)
            .timeout_connect(Some(connect_timeout.min(timeout)))
            // A server that was restarted has forgotten its connections.
            .max_idle_connections(0)
            .user_agent(concat!("advdmd/", env!("CARGO_PKG_VERSION")))
            .accept("application/json");
        Self { agent: config.build().new_agent(), headers, secret, timeout }
    }

    /// The longest that a request may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The reply to a GET.
    pub fn get(&self, url: &str, timeout: Duration) -> Result<Vec<u8>, Failure> {
        let request = self.agent.get(url).config().timeout_global(Some(timeout)).build();
        let request = self.headers().fold(request, |request, (name, value)| request.header(name, value));
        self.reply(request.call(), timeout)
    }

    /// The reply to a POST of JSON.
    pub fn post(&self, url: &str, json: &[u8]) -> Result<Vec<u8>, Failure> {
        let request = self.agent.post(url).config().timeout_global(Some(self.timeout)).build();
        let request = request.header(CONTENT_TYPE, "application/json");
        let request = self.headers().fold(request, |request, (name, value)| request.header(name, value));
        self.reply(request.send(json), self.timeout)
    }

    fn headers(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        let own = self.headers.iter().map(|(name, value)| (name, value));
        own.chain(self.secret.as_ref().map(|secret| (&AUTHORIZATION, &secret.header)))
    }

    fn reply(&self, response: Result<Response<Body>, ureq::Error>, timeout: Duration) -> Result<Vec<u8>, Failure> {
        let mut response = response.map_err(|error| transport(&error, timeout))?;
        let body = response.body_mut().with_config().limit(MAX_REPLY).read_to_vec();
        let status = response.status().as_u16();
        if status == 200 {
            return body.map_err(|error| transport(&error, timeout));
        }
        let headers = response.headers();
        let mut reason = format!("HTTP {status}");
        if let Some(text) = response.status().canonical_reason() {
            reason += &format!(" {text}");
        }
        if let (300..400, Some(location)) = (status, text(headers, &LOCATION)) {
            reason += &format!(" to {}; redirects are not followed, name that address", location.escape_debug());
        }
        reason += &self.excerpt(&body.unwrap_or_default());
        let passing = matches!(status, 408 | 429 | 500 | 502 | 503 | 504);
        let retry_after = text(headers, &RETRY_AFTER).and_then(|value| value.trim().parse().ok());
        Err(Failure { reason, passing, retry_after: retry_after.map(Duration::from_secs) })
    }

    /// The beginning of a reply, on one line, to stand at the end of a reason.
    pub fn excerpt(&self, body: &[u8]) -> String {
        let error = serde_json::from_slice(body).ok();
        let error = error.as_ref().and_then(|body: &serde_json::Value| body.get("error")?.as_str());
        let mut text = error.map_or_else(|| String::from_utf8_lossy(body), Into::into);
        if let Some(secret) = &self.secret {
            text = text.replace(&secret.token, "***").into();
        }
        let text = text.trim();
        if text.is_empty() {
            return String::new();
        }
        let start: String = text.chars().take(EXCERPT).collect();
        let start = start.escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'");
        let (lead, end) = if error.is_some() { ("", "") } else { ("the reply begins: ", "") };
        let end = if text.chars().nth(EXCERPT).is_some() { "..." } else { end };
        format!("; {lead}{start}{end}")
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// What a failure of the connection means.
fn transport(error: &ureq::Error, timeout: Duration) -> Failure {
    use ureq::Error;
    match error {
        Error::Timeout(ureq::Timeout::Connect) => Failure::passing("no connection in time (`connect_timeout`)"),
        Error::Timeout(_) => Failure::passing(format!("no reply within {:.1} s", timeout.as_secs_f64())),
        // rustls hands its refusals through as invalid data.
        Error::Io(io) if io.kind() == ErrorKind::InvalidData => Failure::lasting(io),
        Error::Io(io) if io.kind() == ErrorKind::UnexpectedEof => Failure::passing("the connection ended early"),
        Error::Io(io) => Failure::passing(io),
        Error::HostNotFound => Failure::passing("the host name is not known"),
        Error::ConnectionFailed => Failure::passing("no connection"),
        Error::BodyStalled => Failure::passing("the reply stalled"),
        Error::BodyExceedsLimit(limit) => Failure::lasting(format!("the reply is longer than {limit} bytes")),
        Error::Protocol(error) => Failure::lasting(format!("not a reply of HTTP: {error}")),
        error => Failure::lasting(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(token: Option<&str>) -> Client {
        let secret = token.map(|token| Secret::new(token).unwrap());
        Client::new(Vec::new(), secret, Duration::from_secs(1), Duration::from_secs(1))
    }

    #[test]
    fn excerpts_are_short_safe_and_without_the_token() {
        let client = client(Some("s3cret"));
        assert_eq!(client.excerpt(b""), "");
        assert_eq!(client.excerpt(b"<html>\n\x1b[31m s3cret"), "; the reply begins: <html>\\n\\u{1b}[31m ***");
        assert_eq!(client.excerpt(br#"{"error": "no \"model\" for s3cret"}"#), "; no \"model\" for ***");
        let long = client.excerpt("ü".repeat(500).as_bytes());
        assert!(long.ends_with("ü...") && long.chars().count() < 240, "{long}");
    }

    #[test]
    fn a_token_must_fit_a_header() {
        assert!(Secret::new("").is_none());
        assert!(Secret::new("a\nb").is_none());
    }
}
