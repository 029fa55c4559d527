//! The reward `remote`: its built library against the servers of `examples/reward-server`, as processes of their own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use advdmd_sdk::abi::Plugin;
use advdmd_sdk::{Device, Result, Reward, RewardBatch, RewardInit, TensorView};
use advdmd_tests::{Script, plugin};
use serde_json::{Value, json};

fn try_reward(keys: &Value) -> Result<Box<dyn Reward>> {
    let mut config = json!({ "type": "remote", "timeout": 20.0, "startup_timeout": 20.0, "backoff": 0.05 });
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    let library = Plugin::open(plugin("reward_remote")).unwrap();
    library.reward(&config, &RewardInit { device: Device::Cpu, seed: 0, backbone: None })
}

fn reward(keys: &Value) -> Box<dyn Reward> {
    try_reward(keys).unwrap()
}

/// `count` images `[3, 6, 5]`, each of other pixels: smooth ones, so that a PNG encoder filters their lines in all ways.
fn pixels(count: usize) -> Vec<f32> {
    let value = |(image, channel, y, x): (usize, usize, usize, usize)| {
        ((image * 31 + (channel + 1) * (7 * y + 3 * x) + channel * 50) % 256) as f32 / 255.0
    };
    let places = (0..count).flat_map(|image| (0..90).map(move |at| (image, at / 30, at / 5 % 6, at % 5)));
    places.map(value).collect()
}

fn score(reward: &mut dyn Reward, count: usize) -> Result<Vec<f32>> {
    let values = pixels(count);
    let prompts: Vec<String> = (0..count).map(|image| format!("scène {image} 🐈")).collect();
    reward.score(&RewardBatch {
        prompts: prompts.iter().map(String::as_str).collect(),
        images: Some(TensorView::from_f32(&values, &[count as i64, 3, 6, 5]).unwrap()),
        ..RewardBatch::default()
    })
}

/// What `fault_server.py` answers.
fn brightness(count: usize) -> Vec<f64> {
    let bytes: Vec<f64> = pixels(count).iter().map(|x| f64::from((x * 255.0).round_ties_even())).collect();
    bytes.chunks(90).map(|image| image.iter().sum::<f64>() / (255.0 * 90.0)).collect()
}

/// What `server.py` answers: Hasler and Süsstrunk (2003), equation 1.
fn colourfulness(count: usize) -> Vec<f64> {
    let bytes: Vec<f64> = pixels(count).iter().map(|x| f64::from((x * 255.0).round_ties_even())).collect();
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let of = |image: &[f64]| {
        let (red, rest) = image.split_at(30);
        let (green, blue) = rest.split_at(30);
        let rg: Vec<f64> = (0..30).map(|at| red[at] - green[at]).collect();
        let yb: Vec<f64> = (0..30).map(|at| 0.5 * (red[at] + green[at]) - blue[at]).collect();
        let variance = |values: &[f64]| mean(&values.iter().map(|v| v * v).collect::<Vec<_>>()) - mean(values).powi(2);
        (variance(&rg) + variance(&yb)).sqrt() + 0.3 * mean(&rg).hypot(mean(&yb))
    };
    bytes.chunks(90).map(of).collect()
}

fn assert_near(found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((f64::from(*found) - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{found} is not {expected}");
    }
}

fn message(result: Result<impl Sized>) -> String {
    result.err().expect("an error").to_string()
}

#[test]
fn the_example_server_scores() {
    let server = Script::start("examples/reward-server/server.py", &["--port", "0"]);
    let mut reward = reward(&json!({ "endpoints": [server.url], "batch_size": 3 }));
    assert!(reward.needs().background);
    assert_near(&score(&mut *reward, 10).unwrap(), &colourfulness(10));
}

#[test]
fn the_example_server_asks_for_its_token() {
    let path = "examples/reward-server/server.py";
    let server = Script::start(path, &["--port", "0", "--token-env", "HOME"]);
    let keys = json!({ "endpoints": [server.url], "token_env": "HOME" });
    assert_near(&score(&mut *reward(&keys), 1).unwrap(), &colourfulness(1));
    let health = server.url.replace("/score", "/health");
    let found = message(try_reward(&json!({ "endpoints": [server.url] })));
    assert_eq!(found, format!("{health}: HTTP 401 Unauthorized; another token is expected"));
    let found = message(try_reward(&json!({ "endpoints": [server.url.replace("/score", "/scores/x")] })));
    assert!(found.contains("HTTP 404 Not Found; POST /score and GET /health are all there is"), "{found}");
}

#[test]
fn a_server_that_is_told_to_fail() {
    let server = Script::faulty(&[]);
    let mut reward = reward(&json!({ "endpoints": [server.url], "batch_size": 4, "retries": 1, "timeout": 2.0 }));
    for (fault, expected) in [
        ("garbage", "HTTP 200: expected JSON, found something else"),
        ("length", "HTTP 200: expected 4 scores, found 3"),
        ("nan", "a score is NaN or infinite"),
        ("null", "HTTP 200: score 0 is null, expected a finite number"),
        ("status 418", "HTTP 418 I'm a teapot; as told"),
        ("status 503", "HTTP 503 Service Unavailable; as told (try 2"),
        ("cut", "the connection ended early (try 2"),
        ("slow 3000", "no reply within 2.0 s (try 2"),
    ] {
        server.fault(fault);
        let found = message(score(&mut *reward, 4));
        assert!(found.starts_with(&format!("samples 0 to 3: {}: ", server.url)), "{found}");
        assert!(found.contains(expected), "{fault}: {found}");
        server.fault("ok");
        assert_near(&score(&mut *reward, 9).unwrap(), &brightness(9));
    }
}

#[test]
fn a_server_that_is_killed_and_started_again_loses_nothing() {
    let server = Script::faulty(&["--fault", "slow 30"]);
    let (url, port) = (server.url.clone(), server.port());
    let mut reward = reward(&json!({ "endpoints": [url], "batch_size": 1, "retries": 8 }));
    let (started, done) = mpsc::channel();
    let scoring = thread::spawn(move || {
        started.send(()).unwrap();
        score(&mut *reward, 40)
    });
    done.recv().unwrap();
    while server.count() < 5 {
        sleep(Duration::from_millis(10));
    }
    drop(server);
    sleep(Duration::from_millis(300));
    let server = Script::faulty(&["--port", &port]);
    assert_near(&scoring.join().unwrap().unwrap(), &brightness(40));
    assert!(server.count() > 10);
}

#[test]
fn of_two_servers_one_dies_between_two_requests() {
    let stays = Script::faulty(&[]);
    let mut dies = Script::faulty(&["--fault", "die 3"]);
    let mut reward = reward(&json!({ "endpoints": [stays.url, dies.url], "batch_size": 1 }));
    assert_near(&score(&mut *reward, 24).unwrap(), &brightness(24));
    assert_eq!(dies.ended(), Some(1), "it did die");
    // One that was under way may have died with it.
    let count = stays.count();
    assert!((21..=22).contains(&count), "{count}");
}

#[test]
fn several_slow_servers_work_at_once() {
    let servers = [(); 3].map(|()| Script::faulty(&["--fault", "slow 200"]));
    let urls: Vec<_> = servers.iter().map(|server| &server.url).collect();
    let mut reward = reward(&json!({ "endpoints": urls, "batch_size": 2, "concurrency": 2 }));
    let begun = Instant::now();
    assert_near(&score(&mut *reward, 24).unwrap(), &brightness(24));
    // 12 requests of 0.2 s, six at a time; one after the other they take 2.4 s.
    let took = begun.elapsed().as_secs_f64();
    assert!((0.4..2.2).contains(&took), "{took}");
}

/// A certificate for 127.0.0.1 that nobody vouches for, with its key.
fn certificate() -> String {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    made.cert.pem() + &made.signing_key.serialize_pem()
}

#[test]
fn https_trusts_what_the_machine_trusts() {
    let folder = tempfile::tempdir().unwrap();
    let (path, name) = file(folder.path(), "certificate.pem");
    std::fs::write(path, certificate()).unwrap();
    let server = Script::faulty(&["--tls", &name]);
    let found = message(try_reward(&json!({ "endpoints": [server.url] })));
    assert!(found.starts_with(&server.url.replace("/score", "/health: ")), "{found}");
    assert!(found.contains("invalid peer certificate: "), "{found}");
    // What is trusted is read from the environment of the process.
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", "--ignored", "https_scores"])
        .env("SSL_CERT_FILE", &name)
        .env("ADVDMD_TEST_URL", &server.url);
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "run by `https_trusts_what_the_machine_trusts`, in its environment"]
fn https_scores() {
    let url = std::env::var("ADVDMD_TEST_URL").unwrap();
    assert_near(&score(&mut *reward(&json!({ "endpoints": [url] })), 3).unwrap(), &brightness(3));
}

/// The bridge to an old server, and the old server.
fn bridge(reply: &str, old: &[&str], args: &[&str]) -> (Script, Script) {
    let old = Script::start("tests/fixtures/old_server.py", &[&["--reply", reply], old].concat());
    let own = ["--to", &old.url, "--port", "0", "--images", "png"];
    let bridge = Script::start("examples/reward-server/pickle_bridge.py", &[&own, args].concat());
    (bridge, old)
}

fn file(folder: &Path, name: &str) -> (PathBuf, String) {
    let path = folder.join(name);
    let text = path.to_str().unwrap().to_owned();
    (path, text)
}

#[test]
fn old_servers_score_through_the_bridge() {
    let folder = tempfile::tempdir().unwrap();
    let (dump, name) = file(folder.path(), "image.png");
    for reply in ["plain", "outputs", "numpy", "numpy5", "scalars"] {
        let (bridge, _old) = bridge(reply, &["--dump", &name], &[]);
        let mut reward = reward(&json!({ "endpoints": [bridge.url], "batch_size": 1 }));
        let scores = score(&mut *reward, 2).unwrap();
        let length = std::fs::metadata(&dump).unwrap().len();
        assert!(scores.contains(&(length as f32)), "{reply}: {scores:?}, the last image had {length} bytes");
    }
}

#[test]
fn the_bridge_adds_what_belongs_to_a_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let (path, name) = file(folder.path(), "metadata.jsonl");
    let lines = (0..3).map(|image| json!({ "prompt": format!("scène {image} 🐈"), "tag": 10 + image }).to_string());
    std::fs::write(path, lines.collect::<Vec<_>>().join("\n")).unwrap();
    let (bridge, _old) = bridge("plain", &[], &["--metadata", &name]);
    let mut reward = reward(&json!({ "endpoints": [bridge.url] }));
    assert_eq!(score(&mut *reward, 3).unwrap(), [10.0, 11.0, 12.0]);
    let found = message(score(&mut *reward, 4));
    assert!(found.contains("metadata.jsonl has no entry for the prompt 'scène 3 🐈'"), "{found}");
}

#[test]
fn a_pickle_that_would_run_code_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (mark, name) = file(folder.path(), "mark");
    let (bridge, _old) = bridge("evil", &["--mark", &name], &[]);
    let mut reward = reward(&json!({ "endpoints": [bridge.url] }));
    let found = message(score(&mut *reward, 2));
    assert!(found.contains("HTTP 422") && found.contains("it holds builtins.exec, which is not read"), "{found}");
    assert!(!mark.exists(), "its code was run");
}

#[test]
fn faults_of_an_old_server_are_told_through_the_bridge() {
    for (reply, expected) in [
        ("length", "the old server gave 1 scores for 2 images"),
        ("error", "HTTP 502 Bad Gateway; the old server answered HTTP 500: RuntimeError: CUDA out of memory (try 2"),
    ] {
        let (bridge, _old) = bridge(reply, &[], &[]);
        let mut reward = reward(&json!({ "endpoints": [bridge.url], "retries": 1 }));
        let found = message(score(&mut *reward, 2));
        assert!(found.contains(expected), "{found}");
    }
    let (bridge, old) = bridge("plain", &[], &[]);
    drop(old);
    let found = message(try_reward(&json!({ "endpoints": [bridge.url], "startup_timeout": 0.5 })));
    assert!(found.contains("HTTP 503 Service Unavailable; the old server is not there"), "{found}");
}
