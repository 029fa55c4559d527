//! A small HTTP server whose faults a test chooses, and batches to send to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use advdmd_sdk::{Device, Result, Reward, RewardBatch, RewardInit, TensorView, plugin};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use reward_remote as _;

/// A request as it came in.
#[derive(Debug, Clone)]
pub struct Call {
    /// Requests for scores before this one.
    pub number: usize,
    pub path: String,
    /// Lines of the head, names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Call {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub fn samples(&self) -> Vec<Value> {
        self.json()["samples"].as_array().unwrap().clone()
    }

    /// The images, decoded: width, height and RGB.
    pub fn images(&self) -> Vec<(u32, u32, Vec<u8>)> {
        let decode = |sample: &Value| {
            let file = STANDARD.decode(sample["image"].as_str().unwrap()).unwrap();
            let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
            let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
            let info = reader.next_frame(&mut pixels).unwrap();
            assert_eq!((info.color_type, info.bit_depth), (png::ColorType::Rgb, png::BitDepth::Eight));
            (info.width, info.height, pixels)
        };
        self.samples().iter().map(decode).collect()
    }

    /// The right answer: the first byte of each image.
    pub fn scores(&self) -> Vec<u8> {
        let scores: Vec<_> = self.images().iter().map(|(_, _, pixels)| pixels[0]).collect();
        ok(&json!({ "version": 1, "scores": scores }))
    }
}

/// A reply of HTTP.
pub fn reply(status: &str, headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}Connection: close\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

pub fn ok(body: &Value) -> Vec<u8> {
    reply("200 OK", "Content-Type: application/json\r\n", body.to_string())
}

type Handler = dyn Fn(&Call) -> Vec<u8> + Send + Sync;

/// A running server; it stops when dropped.
pub struct Server {
    address: SocketAddr,
    calls: Arc<Mutex<Vec<Call>>>,
    most_at_once: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// A server that is healthy and answers requests for scores with `handler`; an empty answer ends the connection.
    pub fn start(handler: impl Fn(&Call) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::at(SocketAddr::from(([127, 0, 0, 1], 0)), handler)
    }

    pub fn at(address: SocketAddr, handler: impl Fn(&Call) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let healthy = ok(&json!({ "version": 1, "name": "first byte" }));
        Self::with_health(address, move |call| if call.path == "/health" { healthy.clone() } else { handler(call) })
    }

    /// A server that answers everything with `handler`.
    pub fn with_health(address: SocketAddr, handler: impl Fn(&Call) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let (calls, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (now, most_at_once) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let handler: Arc<Handler> = Arc::new(handler);
        let (log, stopped, most) = (Arc::clone(&calls), Arc::clone(&stop), Arc::clone(&most_at_once));
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (log, handler) = (Arc::clone(&log), Arc::clone(&handler));
                let (now, most) = (Arc::clone(&now), Arc::clone(&most));
                thread::spawn(move || {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    serve(&stream.unwrap(), &log, &*handler, &now);
                });
            }
        });
        Self { address, calls, most_at_once, stop, thread: Some(thread) }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}/score", self.address)
    }

    /// The requests for scores that came in.
    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// Most requests that were there at the same time.
    pub fn most_at_once(&self) -> usize {
        self.most_at_once.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
        self.thread.take().unwrap().join().unwrap();
    }
}

fn serve(stream: &TcpStream, calls: &Mutex<Vec<Call>>, handler: &Handler, now: &AtomicUsize) {
    let mut reader = BufReader::new(stream);
    let call = read(&mut reader, calls);
    let answer = call.as_ref().map_or_else(|| reply("400 Bad Request", "", ""), handler);
    now.fetch_sub(1, Ordering::SeqCst);
    // The client may have gone.
    let mut stream = stream;
    drop(stream.write_all(&answer));
}

fn read(reader: &mut impl BufRead, calls: &Mutex<Vec<Call>>) -> Option<Call> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = Vec::new();
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.push((name.to_lowercase(), value.to_owned()));
    }
    let mut call = Call { number: 0, path, headers, body: Vec::new() };
    let length = call.header("content-length").map_or(0, |length| length.parse().unwrap());
    reader.take(length).read_to_end(&mut call.body).ok()?;
    if call.path != "/health" {
        let mut calls = calls.lock().unwrap();
        call.number = calls.len();
        calls.push(call.clone());
    }
    Some(call)
}

/// An address where nobody listens.
pub fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// The reward with these keys beside `type`, and short waits unless they say otherwise.
pub fn reward(keys: Value) -> Result<Box<dyn Reward>> {
    let mut config = json!({ "type": "remote", "timeout": 5.0, "startup_timeout": 1.0, "backoff": 0.02 });
    let Value::Object(keys) = keys else { panic!("keys are a table") };
    config.as_object_mut().unwrap().extend(keys);
    plugin::build_reward(&config, &RewardInit { device: Device::Cpu, seed: 0, backbone: None })
}

pub fn refused(keys: Value) -> String {
    reward(keys).err().expect("it is refused").to_string()
}

/// Images of 2x1 pixels; image i is of value `i / 255`, so that [`Call::scores`] answers i.
pub fn score(reward: &mut dyn Reward, count: usize) -> Result<Vec<f32>> {
    let values: Vec<f32> = (0..count).flat_map(|index| [index as f32 / 255.0; 6]).collect();
    let prompts: Vec<String> = (0..count).map(|index| format!("prompt {index}")).collect();
    reward.score(&RewardBatch {
        prompts: prompts.iter().map(String::as_str).collect(),
        images: Some(TensorView::from_f32(&values, &[count as i64, 3, 1, 2]).unwrap()),
        ..RewardBatch::default()
    })
}

pub fn expected(count: usize) -> Vec<f32> {
    (0..count).map(|index| index as f32).collect()
}
