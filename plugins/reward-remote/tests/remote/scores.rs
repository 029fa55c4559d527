//! What goes out, and what comes back when all is well.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use advdmd_sdk::{Needs, RewardBatch, Scope, TensorView};
use serde_json::json;

use crate::server::{Call, Server, expected, nobody, ok, refused, reply, reward, score};

#[test]
fn scores_keep_their_order_over_batches_and_endpoints() {
    // Early requests are the slow ones, so that replies come in another order.
    let slow = |call: &Call| {
        sleep(Duration::from_millis(40_u64.saturating_sub(10 * call.number as u64)));
        call.scores()
    };
    let servers = [Server::start(slow), Server::start(Call::scores), Server::start(slow)];
    let urls: Vec<_> = servers.iter().map(Server::url).collect();
    let mut reward = reward(json!({ "endpoints": urls, "batch_size": 3 })).unwrap();
    for count in [1, 3, 40, 200] {
        assert_eq!(score(&mut *reward, count).unwrap(), expected(count));
    }
    let counts: Vec<_> = servers.iter().map(|server| server.calls().len()).collect();
    assert_eq!(counts.iter().sum::<usize>(), 1 + 1 + 14 + 67);
    assert!(counts.iter().all(|count| *count > 5), "all take part: {counts:?}");
    let calls: Vec<Call> = servers.iter().flat_map(Server::calls).collect();
    assert!(calls.iter().all(|call| call.samples().len() <= 3 && call.json()["version"] == 1));
}

#[test]
fn an_endpoint_gets_no_more_requests_at_once_than_allowed() {
    let slow = |call: &Call| {
        sleep(Duration::from_millis(30));
        call.scores()
    };
    for concurrency in [1, 3] {
        let servers = [Server::start(slow), Server::start(slow)];
        let urls: Vec<_> = servers.iter().map(Server::url).collect();
        let keys = json!({ "endpoints": urls, "batch_size": 1, "concurrency": concurrency });
        let mut reward = reward(keys).unwrap();
        assert_eq!(score(&mut *reward, 12).unwrap(), expected(12));
        assert_eq!(servers.each_ref().map(Server::most_at_once), [concurrency; 2]);
    }
}

#[test]
fn the_host_may_go_on_meanwhile() {
    let server = Server::start(Call::scores);
    let reward = reward(json!({ "endpoints": [server.url()] })).unwrap();
    let expected = Needs { scope: Scope::Final, images: true, on_cpu: true, background: true, ..Needs::default() };
    assert_eq!(reward.needs(), expected);
}

#[test]
fn pictures_arrive_to_the_bit() {
    let server = Server::start(Call::scores);
    let mut reward = reward(json!({ "endpoints": [server.url()] })).unwrap();
    // Every byte, every half between two bytes, and what lies outside; red, green and blue of their own.
    let ramp: Vec<f32> = (0..511).map(|half| half as f32 / 510.0).chain([-1.0, -0.0, 1.001, 7.0, f32::MIN]).collect();
    let area = ramp.len();
    let values: Vec<f32> = ramp.iter().copied().chain(ramp.iter().map(|x| 1.0 - x)).chain(vec![0.25; area]).collect();
    let batch = RewardBatch {
        prompts: vec!["a ramp"],
        images: Some(TensorView::from_f32(&values, &[1, 3, 4, area as i64 / 4]).unwrap()),
        ..RewardBatch::default()
    };
    reward.score(&batch).unwrap();
    let (width, height, pixels) = server.calls()[0].images().remove(0);
    assert_eq!((width as usize, height as usize), (area / 4, 4));
    // libtorch: x.clamp(0, 1).mul(255).round(), where round takes halves to the even neighbour.
    let byte = |x: f32| {
        let scaled = x.clamp(0.0, 1.0) * 255.0;
        let (low, rest) = (scaled.floor() as u8, scaled - scaled.floor());
        low + u8::from(rest > 0.5 || (rest == 0.5 && low % 2 == 1))
    };
    for (at, pixel) in pixels.chunks(3).enumerate() {
        let sent = [values[at], values[area + at], values[2 * area + at]];
        assert_eq!(pixel, sent.map(byte), "{sent:?}");
    }
}

#[test]
fn prompts_of_every_script_arrive() {
    let server = Server::start(Call::scores);
    let mut reward = reward(json!({ "endpoints": [server.url()] })).unwrap();
    let prompts = ["", "кот\n\"в\" шляпе", "一只猫\u{0}", "👩‍🚀 \\ \u{7f}\u{2028}", &"long ".repeat(20_000)];
    let values = [0.0; 15];
    let batch = RewardBatch {
        prompts: prompts.to_vec(),
        images: Some(TensorView::from_f32(&values, &[5, 3, 1, 1]).unwrap()),
        ..RewardBatch::default()
    };
    assert_eq!(reward.score(&batch).unwrap(), [0.0; 5]);
    let samples = server.calls()[0].samples();
    let arrived: Vec<_> = samples.iter().map(|sample| sample["prompt"].as_str().unwrap()).collect();
    assert_eq!(arrived, prompts);
}

#[test]
fn headers_token_and_metadata_go_along() {
    let server = Server::start(Call::scores);
    let metadata = json!({ "only_strict": true, "weights": [1, 0.5], "nested": { "a": null } });
    let keys = json!({
        "endpoints": [server.url()],
        "headers": { "X-Team": "vision" },
        // A variable that every process has.
        "token_env": "PATH",
        "metadata": metadata,
    });
    score(&mut *reward(keys).unwrap(), 1).unwrap();
    let call = server.calls().remove(0);
    assert_eq!(call.header("x-team"), Some("vision"));
    assert_eq!(call.header("authorization"), Some(format!("Bearer {}", std::env::var("PATH").unwrap()).as_str()));
    assert_eq!(call.header("content-type"), Some("application/json"));
    assert_eq!(call.json()["metadata"], metadata);
    score(&mut *reward(json!({ "endpoints": [server.url()] })).unwrap(), 1).unwrap();
    let call = server.calls().remove(1);
    assert_eq!((call.header("authorization"), call.json().get("metadata")), (None, None));
}

#[test]
fn a_name_with_several_addresses_is_tried_at_all_of_them() {
    // Often ::1 comes first, where nobody listens.
    let server = Server::start(Call::scores);
    let url = format!("http://localhost:{}/score", server.address().port());
    assert_eq!(score(&mut *reward(json!({ "endpoints": [url] })).unwrap(), 2).unwrap(), expected(2));
    let message = refused(json!({ "endpoints": ["http://no-such-host.invalid/score"], "startup_timeout": 0.3 }));
    assert!(message.contains("http://no-such-host.invalid/health: not healthy within 0 s"), "{message}");
}

#[test]
fn scores_are_scaled_then_clamped() {
    let server = Server::start(Call::scores);
    let mut clamped =
        reward(json!({ "endpoints": [server.url()], "scale": 0.5, "clamp_min": 0.5, "clamp_max": 1.5 })).unwrap();
    assert_eq!(score(&mut *clamped, 5).unwrap(), [0.5, 0.5, 1.0, 1.5, 1.5]);
    let large = Server::start(|_| ok(&json!({ "scores": [1e300] })));
    let mut reward = reward(json!({ "endpoints": [large.url()] })).unwrap();
    let message = score(&mut *reward, 1).unwrap_err().to_string();
    assert!(message.contains("score 0 is 1") && message.contains("too large"), "{message}");
}

#[test]
fn no_sample_asks_nobody() {
    let server = Server::start(Call::scores);
    let mut reward = reward(json!({ "endpoints": [server.url()] })).unwrap();
    assert_eq!(reward.score(&RewardBatch::default()).unwrap(), [0.0; 0]);
    assert!(server.calls().is_empty());
}

#[test]
fn images_that_are_none_are_refused_before_anything_is_sent() {
    let server = Server::start(Call::scores);
    let mut reward = reward(json!({ "endpoints": [server.url()] })).unwrap();
    let mut message = |values: &[f32], shape: &[i64]| {
        let images = Some(TensorView::from_f32(values, shape).unwrap());
        reward
            .score(&RewardBatch { prompts: vec!["a", "b"], images, ..RewardBatch::default() })
            .unwrap_err()
            .to_string()
    };
    assert!(message(&[0.0; 6], &[1, 3, 1, 2]).contains("expected shape [2, 3, *, *], found [1, 3, 1, 2]"));
    assert!(message(&[0.0; 4], &[2, 1, 1, 2]).contains("found [2, 1, 1, 2]"));
    assert!(message(&[], &[2, 3, 0, 2]).contains("found [2, 3, 0, 2]"));
    assert_eq!(message(&[0.0, 0.0, 0.0, 0.0, f32::NAN, 0.0], &[2, 3, 1, 1]), "image 1 holds NaN or infinity");
    assert!(server.calls().is_empty());
}

#[test]
fn every_endpoint_must_be_healthy_and_serve_the_same() {
    let health =
        |body: &'static str, status: &'static str| Server::with_health(nobody(), move |_| reply(status, "", body));
    let good = Server::start(Call::scores);
    let check = |other: &Server| refused(json!({ "endpoints": [good.url(), other.url()], "startup_timeout": 20.0 }));
    for (body, status, fault) in [
        (r#"{"version": 2, "name": "first byte"}"#, "200 OK", "speaks version 2 of the protocol, expected 1"),
        (r#"{"name": "first byte"}"#, "200 OK", "expected a number `version` of the protocol, found null"),
        (
            "healthy",
            "200 OK",
            "expected JSON, found something else (expected value at line 1 column 1); the reply begins: healthy",
        ),
        ("", "401 Unauthorized", "HTTP 401 Unauthorized"),
        ("no such path", "404 Not Found", "HTTP 404 Not Found; the reply begins: no such path"),
    ] {
        let bad = health(body, status);
        let begun = Instant::now();
        let message = check(&bad);
        assert!(message.starts_with(&format!("http://{}/health: {fault}", bad.address())), "{message}");
        assert!(begun.elapsed() < Duration::from_secs(10), "there is nothing to wait for");
    }
    let loading = health(r#"{"error": "loading the model"}"#, "503 Service Unavailable");
    let expected = "not healthy within 0 s (`startup_timeout`): HTTP 503 Service Unavailable; loading the model";
    let keys = json!({ "endpoints": [good.url(), loading.url()], "startup_timeout": 0.3 });
    assert_eq!(refused(keys), format!("http://{}/health: {expected}", loading.address()));
    let other = health(r#"{"version": 1, "name": "last byte", "release": "7"}"#, "200 OK");
    let message = check(&other);
    assert!(message.ends_with("serves `last byte` 7; their scores cannot be compared"), "{message}");
}

#[test]
fn a_server_that_is_still_starting_is_waited_for() {
    let asked = Arc::new(AtomicUsize::new(0));
    let server = Server::with_health(nobody(), move |call| match call.path.as_str() {
        "/up/ready" if asked.fetch_add(1, Ordering::SeqCst) < 2 => reply("503 Service Unavailable", "", "loading"),
        "/up/ready" => ok(&json!({ "version": 1, "name": "x" })),
        _ => call.scores(),
    });
    let mut late =
        reward(json!({ "endpoints": [server.url()], "health": "/up/ready", "startup_timeout": 20.0 })).unwrap();
    assert_eq!(score(&mut *late, 2).unwrap(), expected(2));
    // Nobody there at all, at first.
    let address = nobody();
    let starting = std::thread::spawn(move || {
        sleep(Duration::from_millis(300));
        Server::at(address, Call::scores)
    });
    let keys = json!({ "endpoints": [format!("http://{address}/score")], "startup_timeout": 20.0 });
    let mut late = reward(keys).unwrap();
    let _server = starting.join().unwrap();
    assert_eq!(score(&mut *late, 2).unwrap(), expected(2));
}

#[test]
fn keys_are_checked() {
    for (keys, expected) in [
        (json!({}), "endpoints: name at least one"),
        (json!({ "endpoints": ["http://a"], "retrys": 3 }), "unknown field `retrys`"),
        (json!({ "endpoints": "http://a" }), "invalid type"),
        (json!({ "endpoints": ["http://a"], "batch_size": 0 }), "batch_size: expected 1 to 4096"),
    ] {
        let message = refused(keys);
        assert!(message.contains(expected), "{message}");
    }
}
