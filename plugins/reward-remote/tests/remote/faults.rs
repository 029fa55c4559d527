//! What follows when servers fail: scores or an error that names the endpoint, never a made-up number.

use std::net::SocketAddr;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use advdmd_sdk::Error;
use serde_json::{Value, json};

use crate::server::{Call, Server, expected, nobody, ok, refused, reply, reward, score};

/// The error of a request for two scores that is answered so, without what stands in front of it, and how often it was
/// asked for.
fn error(answer: impl Fn(&Call) -> Vec<u8> + Send + Sync + 'static, keys: &Value) -> (String, usize) {
    let server = Server::start(answer);
    let mut all = json!({ "endpoints": [server.url()], "retries": 2 });
    all.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    let fault = score(&mut *reward(all).unwrap(), 2).unwrap_err();
    assert!(matches!(fault, Error::Failed(_)), "{fault:?}");
    let start = format!("samples 0 to 1: {}: ", server.url());
    let text = fault.to_string();
    let text = text.strip_prefix(&start).unwrap_or_else(|| panic!("{text} names no endpoint")).to_owned();
    (text, server.calls().len())
}

/// Without the seconds that it took.
fn timeless((text, calls): (String, usize)) -> (String, usize) {
    let (start, _) = text.rsplit_once(", after ").unwrap_or_else(|| panic!("{text} tells no time"));
    (start.to_owned(), calls)
}

#[test]
fn replies_that_are_no_scores_are_errors_at_once() {
    for (body, expected) in [
        (r#"{"scores": [1]}"#, r#"expected 2 scores, found 1; the reply begins: {"scores": [1]}"#),
        (r#"{"scores": [1, 2, 3]}"#, r#"expected 2 scores, found 3; the reply begins: {"scores": [1, 2, 3]}"#),
        (r#"{"scores": [1, null]}"#, "score 1 is null, expected a finite number; "),
        (r#"{"scores": [1, "NaN"]}"#, "score 1 is the text \"NaN\", expected a finite number; "),
        (r#"{"scores": [1, NaN]}"#, ": a score is NaN or infinite; "),
        (r#"{"scores": [1, -Infinity]}"#, ": a score is NaN or infinite; "),
        (r#"{"scores": [1, 1e400]}"#, "expected JSON, found something else (number out of range"),
        (r#"{"version": 3, "scores": [1, 2]}"#, "speaks version 3 of the protocol, expected 1; "),
        ("<html>oops\nmore", "; the reply begins: <html>oops\\nmore"),
        ("", "expected JSON, found something else (EOF while parsing"),
        ("{\"scores\": [1, 2", "expected JSON, found something else (EOF while parsing"),
    ] {
        let (text, calls) = error(move |_| reply("200 OK", "", body), &json!({}));
        assert!(text.starts_with("HTTP 200: ") && text.contains(expected), "{text:?} for {body}");
        assert_eq!(calls, 1, "the same would come again");
    }
}

#[test]
fn statuses_that_do_not_pass_are_errors_at_once() {
    for status in [
        "201 Created",
        "204 No Content",
        "400 Bad Request",
        "401 Unauthorized",
        "403 Forbidden",
        "404 Not Found",
        "413 Payload Too Large",
        "422 Unprocessable Entity",
        "501 Not Implemented",
        "505 HTTP Version Not Supported",
    ] {
        let body = if status.starts_with("204") { "" } else { r#"{"error": "because"}"# };
        let (text, calls) = error(move |_| reply(status, "", body), &json!({}));
        assert!(text.starts_with(&format!("HTTP {}", &status[..3])), "{text:?}");
        assert_eq!(text.ends_with("; because"), !body.is_empty(), "{text:?}");
        assert_eq!(calls, 1, "{status}");
    }
}

#[test]
fn redirects_are_not_followed() {
    let other = Server::start(Call::scores);
    let location = format!("Location: {}\r\n", other.url());
    for status in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let location = location.clone();
        let (text, calls) = error(move |_| reply(status, &location, ""), &json!({}));
        assert!(text.contains(&format!("to {}; redirects are not followed, name that address", other.url())), "{text}");
        assert_eq!(calls, 1);
    }
    assert!(other.calls().is_empty(), "neither images nor token went elsewhere");
}

#[test]
fn statuses_that_pass_are_tried_again_and_then_named() {
    for status in [
        "408 Request Timeout",
        "429 Too Many Requests",
        "500 Internal Server Error",
        "502 Bad Gateway",
        "503 Service Unavailable",
        "504 Gateway Timeout",
    ] {
        let failing = move |call: &Call| if call.number < 2 { reply(status, "", "no") } else { call.scores() };
        let server = Server::start(failing);
        let mut recovering = reward(json!({ "endpoints": [server.url()] })).unwrap();
        assert_eq!(score(&mut *recovering, 2).unwrap(), expected(2), "{status}");
        assert_eq!(server.calls().len(), 3);
        let found = timeless(error(move |_| reply(status, "", "no"), &json!({})));
        assert_eq!(found, (format!("HTTP {status}; the reply begins: no (try 3"), 3));
    }
}

#[test]
fn a_reply_that_is_cut_is_tried_again() {
    let cut = |call: &Call| {
        let whole = call.scores();
        match call.number {
            0 => Vec::new(),
            // In the head, and in the body.
            1 => whole[..20].to_vec(),
            2 => whole[..whole.len() - 3].to_vec(),
            _ => whole,
        }
    };
    let server = Server::start(cut);
    let mut reward = reward(json!({ "endpoints": [server.url()] })).unwrap();
    assert_eq!(score(&mut *reward, 2).unwrap(), expected(2));
    assert_eq!(server.calls().len(), 4);
    let always = |call: &Call| call.scores()[..30].to_vec();
    assert_eq!(timeless(error(always, &json!({}))), ("the connection ended early (try 3".to_owned(), 3));
}

#[test]
fn what_is_not_http_is_an_error() {
    for garbage in [&b"\x16\x03\x01\x02\x00garbage\r\n\r\n"[..], b"SSH-2.0-OpenSSH_9.6\r\n\r\n"] {
        let (text, calls) = error(move |_| garbage.to_vec(), &json!({}));
        assert!(text.starts_with("not a reply of HTTP: "), "{text}");
        assert_eq!(calls, 1);
    }
    // TLS where there is none.
    let plain = Server::start(Call::scores);
    let url = plain.url().replace("http:", "https:");
    let message = refused(json!({ "endpoints": [url], "startup_timeout": 20.0 }));
    assert!(message.starts_with(&format!("https://{}/health: ", plain.address())), "{message}");
    assert!(message.contains("corrupt message"), "{message}");
}

#[test]
fn a_huge_reply_is_not_read_to_its_end() {
    let (text, calls) = error(
        |_| {
            let mut body = br#"{"scores": [1, 2], "details": ""#.to_vec();
            body.resize(3 << 20, b'x');
            reply("200 OK", "", body)
        },
        &json!({}),
    );
    assert_eq!((text.as_str(), calls), ("the reply is longer than 1048576 bytes", 1));
    // An endless one, of no stated length.
    let (text, _) = error(
        |_| {
            let mut endless = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_vec();
            endless.resize(8 << 20, b' ');
            endless
        },
        &json!({}),
    );
    assert_eq!(text, "the reply is longer than 1048576 bytes");
}

#[test]
fn a_slow_reply_is_given_up_and_tried_again() {
    let slow_at_first = |call: &Call| {
        if call.number == 0 {
            sleep(Duration::from_secs(8));
        }
        call.scores()
    };
    let server = Server::start(slow_at_first);
    let mut hasty = reward(json!({ "endpoints": [server.url()], "timeout": 0.3 })).unwrap();
    let begun = Instant::now();
    assert_eq!(score(&mut *hasty, 2).unwrap(), expected(2));
    assert!(begun.elapsed() < Duration::from_secs(6));
    let slow = |call: &Call| {
        sleep(Duration::from_secs(1));
        call.scores()
    };
    let found = timeless(error(slow, &json!({ "timeout": 0.2, "retries": 1 })));
    assert_eq!(found, ("no reply within 0.2 s (try 2".to_owned(), 2));
}

#[test]
fn a_reply_that_trickles_is_given_up() {
    // The whole counts, not the pause between two bytes.
    let address = nobody();
    let listener = std::net::TcpListener::bind(address).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || {
                use std::io::{Read as _, Write as _};
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 4096]);
                let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n".iter().chain(std::iter::repeat(&b' '));
                for byte in head.take(1000) {
                    if stream.write_all(&[*byte]).is_err() {
                        return;
                    }
                    sleep(Duration::from_millis(10));
                }
            });
        }
    });
    let begun = Instant::now();
    let keys = json!({ "endpoints": [format!("http://{address}/score")], "timeout": 0.4, "startup_timeout": 1.0 });
    let message = refused(keys);
    assert!(message.contains("no reply within 0."), "{message}");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

#[test]
fn retry_after_is_waited_for_up_to_the_bound() {
    let busy = |seconds: &'static str| {
        move |call: &Call| match call.number {
            0 => reply("429 Too Many Requests", &format!("Retry-After: {seconds}\r\n"), ""),
            _ => call.scores(),
        }
    };
    for (seconds, least, most) in [("1", 1.0, 8.0), ("100000", 0.5, 8.0), ("-1", 0.02, 8.0), ("soon", 0.02, 8.0)] {
        let server = Server::start(busy(seconds));
        let bound = if seconds == "100000" { 0.5 } else { 30.0 };
        let mut reward = reward(json!({ "endpoints": [server.url()], "backoff_max": bound })).unwrap();
        let begun = Instant::now();
        assert_eq!(score(&mut *reward, 2).unwrap(), expected(2));
        let took = begun.elapsed().as_secs_f64();
        assert!((least..most).contains(&took), "{seconds}: {took}");
    }
}

#[test]
fn a_server_that_comes_back_loses_nothing() {
    let server = Server::start(Call::scores);
    let address = server.address();
    let mut reward =
        reward(json!({ "endpoints": [server.url()], "batch_size": 1, "backoff": 0.1, "retries": 4 })).unwrap();
    assert_eq!(score(&mut *reward, 8).unwrap(), expected(8));
    drop(server);
    let restarting = thread::spawn(move || {
        sleep(Duration::from_millis(500));
        Server::at(address, Call::scores)
    });
    assert_eq!(score(&mut *reward, 8).unwrap(), expected(8));
    let server = restarting.join().unwrap();
    assert_eq!(server.calls().len(), 8);
    drop(server);
    // And one that does not: it is given up after as many failures, however many requests wait for it.
    for _ in 0..2 {
        let begun = Instant::now();
        let message = score(&mut *reward, 8).unwrap_err().to_string();
        assert!(message.contains(&format!("http://{address}/score: ")), "{message}");
        assert!(message.contains("Connection refused") && message.contains(", after "), "{message}");
        let took = begun.elapsed().as_secs_f64();
        assert!((1.5..5.0).contains(&took), "0.1 + 0.2 + 0.4 + 0.8 s, not {took}");
    }
}

#[test]
fn one_endpoint_dies_and_comes_back() {
    let slow = |call: &Call| {
        sleep(Duration::from_millis(20));
        call.scores()
    };
    let (stays, dies) = (Server::start(slow), Server::start(slow));
    let address: SocketAddr = dies.address();
    let keys = json!({ "endpoints": [stays.url(), dies.url()], "batch_size": 1, "backoff": 0.1, "backoff_max": 0.2 });
    let mut reward = reward(keys).unwrap();
    assert_eq!(score(&mut *reward, 8).unwrap(), expected(8));
    assert!(!dies.calls().is_empty());
    drop(dies);
    let before = stays.calls().len();
    assert_eq!(score(&mut *reward, 16).unwrap(), expected(16));
    assert_eq!(stays.calls().len(), before + 16, "the other one took all");
    let back = Server::at(address, slow);
    sleep(Duration::from_millis(250));
    assert_eq!(score(&mut *reward, 16).unwrap(), expected(16));
    assert!(back.calls().len() >= 4, "it takes part again: {}", back.calls().len());
}

#[test]
fn when_all_are_gone_the_last_is_named() {
    let address = [nobody(), nobody()];
    let servers = address.map(|address| Server::at(address, Call::scores));
    let urls: Vec<_> = servers.iter().map(Server::url).collect();
    let keys = json!({ "endpoints": urls, "batch_size": 1, "retries": 2, "concurrency": 3 });
    let mut reward = reward(keys).unwrap();
    drop(servers);
    let message = score(&mut *reward, 20).unwrap_err().to_string();
    assert!(urls.iter().any(|url| message.contains(url.as_str())), "{message}");
    assert!(
        message.contains("Connection refused") && message.contains("(as the others before it, after "),
        "{message}"
    );
}

#[test]
fn one_endpoint_that_only_fails_does_not_stop_the_other() {
    let good = Server::start(Call::scores);
    let bad = Server::start(|_| reply("500 Internal Server Error", "", ""));
    let keys = json!({ "endpoints": [bad.url(), good.url()], "batch_size": 1, "retries": 0, "backoff": 0.01 });
    let mut reward = reward(keys).unwrap();
    assert_eq!(score(&mut *reward, 30).unwrap(), expected(30));
    assert_eq!(good.calls().len(), 30);
    assert!(!bad.calls().is_empty());
}

#[test]
fn the_first_error_ends_the_whole_batch() {
    let server =
        Server::start(
            |call| {
                if call.number == 3 { reply("400 Bad Request", "", "") } else { ok(&json!({ "scores": [1] })) }
            },
        );
    let mut reward = reward(json!({ "endpoints": [server.url()], "batch_size": 1, "concurrency": 1 })).unwrap();
    let message = score(&mut *reward, 200).unwrap_err().to_string();
    assert_eq!(message, format!("sample 3: {}: HTTP 400 Bad Request", server.url()));
    assert_eq!(server.calls().len(), 4);
    // The next batch is not told of it.
    assert_eq!(score(&mut *reward, 2).unwrap(), [1.0; 2]);
}

#[test]
fn the_token_is_in_no_error() {
    // The server sends back what it was sent.
    let server = Server::start(|call| reply("403 Forbidden", "", call.header("authorization").unwrap()));
    let mut reward = reward(json!({ "endpoints": [server.url()], "token_env": "PATH" })).unwrap();
    let message = score(&mut *reward, 1).unwrap_err().to_string();
    assert!(message.ends_with("HTTP 403 Forbidden; the reply begins: Bearer ***"), "{message}");
}
