//! Python servers that rewards speak to.

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

/// The folder of the whole project.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or_else(|| Path::new("."))
}

/// A Python script that serves until it is dropped.
pub struct Script {
    child: Child,
    /// What it printed first: the address, after other words.
    pub url: String,
}

impl Script {
    /// Starts a script of the repository, and waits for its first line.
    ///
    /// # Panics
    /// There is no `python3`: these tests need it, as the set-up does.
    pub fn start(path: &str, args: &[&str]) -> Self {
        let mut command = Command::new("python3");
        command.arg(repository().join(path)).args(args).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.env("PYTHONDONTWRITEBYTECODE", "1").spawn().expect("python3 is in PATH");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.split_whitespace().last().unwrap_or_else(|| panic!("{path} {args:?} did not start")).to_owned();
        Self { child, url }
    }

    /// A server that scores brightness and fails as it is told.
    pub fn faulty(args: &[&str]) -> Self {
        Self::start("tests/fixtures/fault_server.py", args)
    }

    /// The port in its address.
    ///
    /// # Panics
    /// An address without one.
    pub fn port(&self) -> String {
        self.url.rsplit(':').next().unwrap().split('/').next().unwrap().to_owned()
    }

    /// Sets another fault.
    ///
    /// # Panics
    /// A server that does not answer.
    pub fn fault(&self, fault: &str) {
        self.http(&format!("POST /fault HTTP/1.1\r\nContent-Length: {}\r\n\r\n{fault}", fault.len()));
    }

    /// Requests for scores that came.
    ///
    /// # Panics
    /// A server that does not answer.
    pub fn count(&self) -> u64 {
        let reply = self.http("GET /count HTTP/1.1\r\n\r\n");
        let body = reply.rsplit_once("\r\n\r\n").unwrap().1;
        serde_json::from_str::<Value>(body).unwrap()["count"].as_u64().unwrap()
    }

    /// Whether its process runs.
    ///
    /// # Panics
    /// The system does not say.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end: the exit code.
    ///
    /// # Panics
    /// The system does not say.
    pub fn ended(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    fn http(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(format!("127.0.0.1:{}", self.port())).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
        reply
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
