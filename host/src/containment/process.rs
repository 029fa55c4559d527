//! A reward in a process of its own, as the run sees it.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use advdmd_sdk::{DType, Device, Kind, Needs, Reward, RewardBatch, RewardInit, TensorView};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::memory::Shared;
use super::wire::{self, Batch, Make, Place, Reply, Request};
use crate::config::Component;
use crate::interrupt::{self, PATIENCE};
use crate::registry::{Lock, Provider, Registry};
use crate::{Error, Result};

/// Lines of what a process said that are quoted when it ends.
const LAST_WORDS: usize = 5;

/// The longest line of it that is kept in one piece.
const LONGEST_WORDS: u64 = 64 << 10;

/// How long a process that hung up may take to end, and its last words to arrive.
const FAREWELL: Duration = Duration::from_secs(1);

/// How a process is treated.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// The longest that a call may take.
    pub limit: Option<Duration>,
    /// How often the process may be started anew.
    pub restarts: u32,
    /// Whether a batch on which the process ended is tried once more in a new one.
    pub again: bool,
}

/// A reward in a process of its own.
pub struct Isolated {
    name: String,
    make: Request,
    settings: Settings,
    needs: Needs,
    memory: Shared,
    process: Option<Process>,
    restarts: u32,
    /// How the last process ended.
    last_end: String,
}

/// A running child, the leader of a process group of its own.
struct Process {
    child: Arc<Mutex<Child>>,
    requests: UnixStream,
    answers: BufReader<Ears>,
    said: Said,
    listener: Option<JoinHandle<()>>,
    finished: bool,
}

/// The last lines of a child's standard error that are not of the log.
type Said = Arc<Mutex<VecDeque<String>>>;

/// Why a call gave neither scores nor the plugin's own error: the process is gone, or has to be.
enum Lost {
    /// It ended, was killed for its slowness, or talks nonsense: says which.
    Process(String),
    /// The user asked the run to stop.
    Stopped,
}

impl Isolated {
    /// Starts a process and makes the reward there.
    ///
    /// # Errors
    /// What the plugin refuses; a reward that learns; a process that does not start or ends at once.
    pub fn start(
        name: &str,
        component: &Component,
        registry: &Registry,
        init: &RewardInit,
        settings: Settings,
    ) -> Result<Self> {
        let entry = registry.entry(Kind::Reward, &component.r#type)?;
        let plugin = match &entry.provider {
            Provider::Program => None,
            Provider::Plugin(file) => Some((file.path.clone(), file.sha256.clone())),
        };
        let make = Request::Make(Box::new(Make {
            plugin,
            locked: Lock::in_force().is_some(),
            component: component.clone(),
            init: RewardInit { device: Device::Cpu, ..init.clone() },
            threads: tch::get_num_threads(),
        }));
        let memory = Shared::new(&format!("reward {name}")).map_err(|error| cannot(name, &error))?;
        let needs = Needs::default();
        let mut this = Self {
            name: name.to_owned(),
            make,
            settings,
            needs,
            memory,
            process: None,
            restarts: settings.restarts,
            last_end: String::new(),
        };
        match this.launch() {
            Ok(Reply::Made { learns: true, .. }) => {
                let hint = "leave `isolation` out: a reward that learns needs gradients, which stay in one process";
                Err(Error::usage(
                    format!("reward `{name}` learns, and asks for `isolation = \"process\"`"),
                    hint.to_owned(),
                ))
            }
            Ok(Reply::Made { needs, .. }) => {
                this.needs = Needs { on_cpu: true, scores_on_device: false, differentiable: false, ..needs };
                Ok(this)
            }
            Ok(Reply::Failed(source)) => Err(Error::Component {
                kind: Kind::Reward,
                name: component.r#type.clone(),
                provider: entry.provider.to_string(),
                source,
            }),
            Ok(Reply::Scores(_)) => Err(cannot(name, &"it answers what was not asked")),
            Err(Lost::Process(reason)) => Err(cannot(name, &reason)),
            Err(Lost::Stopped) => Err(Error::Stopped),
        }
    }

    /// Starts a process and has it make the reward, which may take as long as it takes.
    fn launch(&mut self) -> Result<Reply, Lost> {
        let started = self.memory.handle().and_then(|memory| Process::start(&self.name, memory));
        let mut process = started.map_err(|error| Lost::Process(format!("it cannot be started: {error}")))?;
        let reply = process.ask(&self.make, None)?;
        // After any other answer it ends by itself.
        if matches!(reply, Reply::Made { .. }) {
            self.process = Some(process);
        }
        Ok(reply)
    }

    /// One try at a batch, in a new process where there is none.
    fn attempt(&mut self, batch: &RewardBatch<'_>) -> Result<advdmd_sdk::Result<Vec<f32>>, Lost> {
        if self.process.is_none() {
            if self.restarts == 0 {
                return Err(Lost::Process(format!(
                    "its process was started anew {} times before, as often as `restarts` allows; the last time, {}",
                    self.settings.restarts, self.last_end
                )));
            }
            self.restarts -= 1;
            tracing::warn!("reward `{}`: its process is started anew, {} more times at most", self.name, self.restarts);
            match self.launch()? {
                Reply::Made { .. } => {}
                Reply::Failed(error) => return Ok(Err(error)),
                Reply::Scores(_) => return Err(Lost::Process("it answers what was not asked".to_owned())),
            }
        }
        let batch = match self.lend(batch) {
            Ok(batch) => Request::Score(Box::new(batch)),
            Err(error) => return Ok(Err(error)),
        };
        let Some(process) = &mut self.process else { return Err(Lost::Process("its process is gone".to_owned())) };
        let reply = process.ask(&batch, self.settings.limit);
        if let Err(lost) = &reply {
            self.process = None;
            if let Lost::Process(reason) = lost {
                self.last_end.clone_from(reason);
            }
        }
        match reply? {
            Reply::Scores(bits) => Ok(Ok(bits.into_iter().map(f32::from_bits).collect())),
            Reply::Failed(error) => Ok(Err(error)),
            Reply::Made { .. } => Err(Lost::Process("it answers what was not asked".to_owned())),
        }
    }

    /// Copies the tensors of a batch to the shared memory.
    fn lend(&mut self, batch: &RewardBatch<'_>) -> advdmd_sdk::Result<Batch> {
        let views = [&batch.sigma, &batch.images, &batch.latents].into_iter().flatten().chain(&batch.features);
        let size = |view: &TensorView<'_>| view.shape().iter().product::<i64>() as usize * DType::F32.size();
        let fail = |error: io::Error| advdmd_sdk::Error::failed(format!("no shared memory for a batch: {error}"));
        self.memory.begin(views.map(size)).map_err(fail)?;
        let mut place = |view: &TensorView<'_>| {
            let tensor = view.torch()?.f_to_device(tch::Device::Cpu)?.f_to_kind(tch::Kind::Float)?.f_contiguous()?;
            let (offset, bytes) = self
                .memory
                .next(size(view))
                .ok_or_else(|| advdmd_sdk::Error::failed("a tensor grew while it was copied"))?;
            tensor.f_copy_data_u8(bytes, tensor.numel())?;
            Ok(Place { shape: tensor.size(), strides: tensor.stride(), offset })
        };
        let mut option = |view: &Option<TensorView<'_>>| view.as_ref().map(&mut place).transpose();
        Ok(Batch {
            prompts: batch.prompts.iter().map(|&prompt| prompt.to_owned()).collect(),
            sigma: option(&batch.sigma)?,
            images: option(&batch.images)?,
            latents: option(&batch.latents)?,
            features: batch.features.iter().map(place).collect::<advdmd_sdk::Result<_>>()?,
        })
    }
}

impl Reward for Isolated {
    fn needs(&self) -> Needs {
        self.needs.clone()
    }

    fn score(&mut self, batch: &RewardBatch<'_>) -> advdmd_sdk::Result<Vec<f32>> {
        let fail = |lost| match lost {
            Lost::Process(reason) => advdmd_sdk::Error::failed(reason),
            Lost::Stopped => advdmd_sdk::Error::failed("stopped"),
        };
        match self.attempt(batch) {
            Err(Lost::Process(reason)) if self.settings.again && self.restarts > 0 => {
                tracing::warn!("reward `{}`: {reason}", self.name);
                self.attempt(batch).map_err(fail)?
            }
            answer => answer.map_err(fail)?,
        }
    }
}

impl Process {
    fn start(name: &str, memory: OwnedFd) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(PATIENCE))?;
        ours.set_write_timeout(Some(PATIENCE))?;
        // The program as it was when it started, whatever lies at its path by now.
        let mut child = Command::new("/proc/self/exe")
            .arg(super::COMMAND)
            .stdin(Stdio::from(memory))
            .stdout(Stdio::from(OwnedFd::from(theirs)))
            .stderr(Stdio::piped())
            // Ctrl-C in the terminal is for the run, which ends its processes itself.
            .process_group(0)
            .spawn()?;
        let said = Said::default();
        let errors = child.stderr.take();
        let (heard, name) = (Arc::clone(&said), name.to_owned());
        let listener = errors.map(|errors| thread::spawn(move || listen(&name, errors, &heard)));
        let child = Arc::new(Mutex::new(child));
        let answers = BufReader::new(Ears { socket: ours.try_clone()?, child: Arc::clone(&child), deadline: None });
        Ok(Self { child, requests: ours, answers, said, listener, finished: false })
    }

    /// Sends a request and waits for its answer.
    fn ask(&mut self, request: &Request, limit: Option<Duration>) -> Result<Reply, Lost> {
        let line = wire::line(request).map_err(|error| Lost::Process(error.to_string()))?;
        self.answers.get_mut().deadline = limit.map(|limit| Instant::now() + limit);
        let patience = limit.map_or(PATIENCE, |limit| limit.clamp(Duration::from_millis(1), PATIENCE));
        // Fails for a length of 0 alone.
        let _ = self.requests.set_read_timeout(Some(patience));
        // A request that cannot be sent is as good as an answer that never comes: the process has ended.
        let sent = self.send(&line);
        let answer = sent.and_then(|()| wire::read(&mut self.answers));
        match answer {
            Ok(Some(reply)) => Ok(reply),
            Ok(None) => Err(Lost::Process(self.end())),
            Err(error) => Err(match error.kind() {
                ErrorKind::ConnectionAborted => Lost::Stopped,
                ErrorKind::TimedOut => {
                    let seconds = limit.unwrap_or_default().as_secs_f64();
                    Lost::Process(format!("took longer than its `time_limit` of {seconds} s, and was ended"))
                }
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Lost::Process(self.end()),
                _ => Lost::Process(format!("its process gave no answer that can be read: {error}")),
            }),
        }
    }

    /// Writes a request, which a process that does not read may leave no room for.
    fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.requests.write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    self.answers.get_ref().look()?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// How the process ended, with what it said last.
    fn end(&mut self) -> String {
        // It hung up, so that it is about to end if it has not.
        let begun = Instant::now();
        while !has_ended(&self.child()) && begun.elapsed() < FAREWELL {
            thread::sleep(Duration::from_millis(5));
        }
        let status = self.finish();
        // A process that it left behind and that is not of its group may hold the other end open.
        if let Some(listener) = self.listener.take() {
            while !listener.is_finished() && begun.elapsed() < FAREWELL * 2 {
                thread::sleep(Duration::from_millis(5));
            }
        }
        let how = status.map_or_else(|error| error.to_string(), describe);
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let words: Vec<String> = said.iter().map(|line| format!("\n  it said: {line}")).collect();
        format!("its process {how}{}", words.concat())
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it and the processes of its group, and waits for it. Until then its number is nobody else's.
    fn finish(&mut self) -> io::Result<ExitStatus> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.finished {
            // Both fail where it has ended and left nobody behind.
            let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
            let _ = child.kill();
            self.finished = true;
        }
        child.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.finish();
    }
}

/// Whether a child has ended, without taking note of it.
fn has_ended(child: &Child) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    // An error would be that there is no such child.
    !matches!(waitid(WaitId::Pid(Pid::from_child(child)), options), Ok(None))
}

/// The socket, read until a deadline, until the child ends, or until the user asks the run to stop.
struct Ears {
    socket: UnixStream,
    child: Arc<Mutex<Child>>,
    deadline: Option<Instant>,
}

impl Ears {
    /// Whether it is worth waiting on.
    fn look(&self) -> io::Result<()> {
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(ErrorKind::TimedOut.into());
        }
        if interrupt::is_raised() {
            // `BufRead` would try an `Interrupted` again.
            return Err(ErrorKind::ConnectionAborted.into());
        }
        // A process that it has forked may hold its end of the socket open.
        if has_ended(&self.child.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Err(ErrorKind::BrokenPipe.into());
        }
        Ok(())
    }
}

impl Read for Ears {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.socket.read(buffer) {
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => self.look()?,
                Ok(read) if self.deadline.is_none_or(|deadline| Instant::now() < deadline) => return Ok(read),
                Ok(_) => return Err(ErrorKind::TimedOut.into()),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Passes a process's log on, and keeps what else it says.
fn listen(name: &str, errors: impl Read, said: &Said) {
    let mut errors = BufReader::new(errors);
    let mut line = Vec::new();
    while errors.by_ref().take(LONGEST_WORDS).read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        line.clear();
        if pass_on(&text).is_none() && !text.is_empty() {
            tracing::info!("reward `{name}` says: {text}");
            let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
            if said.len() == LAST_WORDS {
                said.pop_front();
            }
            said.push_back(text);
        }
    }
}

/// Logs a line of JSON as the child's logger writes it; `None` for anything else.
fn pass_on(line: &str) -> Option<()> {
    let record: serde_json::Value = serde_json::from_str(line).ok()?;
    let message = record.get("fields")?.get("message")?.as_str()?;
    match record.get("level")?.as_str()? {
        "ERROR" => tracing::error!("{message}"),
        "WARN" => tracing::warn!("{message}"),
        "INFO" => tracing::info!("{message}"),
        "DEBUG" => tracing::debug!("{message}"),
        "TRACE" => tracing::trace!("{message}"),
        _ => return None,
    }
    Some(())
}

/// How a process ended, in words.
pub fn describe(status: ExitStatus) -> String {
    let Some(signal) = status.signal() else {
        return status.code().map_or_else(|| "ended".to_owned(), |code| format!("ended with exit code {code}"));
    };
    let name = match signal {
        4 => "SIGILL: an instruction that this processor lacks",
        6 => "SIGABRT: it gave up by itself",
        7 => "SIGBUS: memory that is not there",
        8 => "SIGFPE: a division by zero",
        9 => "SIGKILL: ended from outside, as the system does when memory runs out",
        11 => "SIGSEGV: it touched memory that is not its own",
        15 => "SIGTERM: ended from outside",
        other => return format!("was ended by signal {other}"),
    };
    format!("was ended by signal {signal} ({name})")
}

fn cannot(name: &str, reason: &dyn std::fmt::Display) -> Error {
    Error::failed(format!("reward `{name}` cannot be made in a process of its own: {reason}"))
}
