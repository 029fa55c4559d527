//! `advdmd plugin-host`: the process that one reward lives in.
//!
//! Standard input is the shared memory, standard output the socket to the run; what the plugin prints goes to standard error,
//! like the log.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use advdmd_sdk::{DType, Reward, RewardBatch, TensorView};
use rustix::process::{Signal, set_parent_process_death_signal};

use super::memory::Lent;
use super::wire::{self, Batch, Make, Place, Reply, Request};
use crate::registry::{Lock, Registry};
use crate::{Error, Result};

/// Serves one reward until the run hangs up. What a program that makes rewards with this library does where its first argument
/// is [`COMMAND`](super::COMMAND).
///
/// # Errors
/// A process that no run has started.
pub fn serve() -> Result<()> {
    let fail = |error: io::Error| {
        let hint = "`advdmd train` starts it for rewards with `isolation = \"process\"`".to_owned();
        Error::usage(format!("plugin-host is not for people ({error})"), hint)
    };
    // A run that is killed takes its rewards along.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from).map_err(fail)?;
    let memory = io::stdin().as_fd().try_clone_to_owned().map_err(fail)?;
    let socket = io::stdout().as_fd().try_clone_to_owned().map_err(fail)?;
    rustix::stdio::dup2_stdout(io::stderr()).map_err(io::Error::from).map_err(fail)?;
    // A plugin that reads its input finds nothing there, rather than a batch.
    File::open("/dev/null").and_then(|null| Ok(rustix::stdio::dup2_stdin(null)?)).map_err(fail)?;
    // Where memory runs out, the system ends this process rather than the run. It may always ask for that; where it cannot be
    // asked, nothing is lost.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let (socket, mut memory) = (stream(socket).map_err(fail)?, Lent::new(memory));
    let mut requests = BufReader::new(socket.try_clone().map_err(fail)?);
    let mut answers = socket;
    let Some(Request::Make(make)) = wire::read(&mut requests).map_err(fail)? else { return Ok(()) };
    let mut answer = |reply: &Reply| wire::line(reply).and_then(|line| answers.write_all(&line)).map_err(Error::failed);
    let mut reward = match made(&make) {
        Ok(reward) => reward,
        Err(error) => return answer(&Reply::Failed(error)),
    };
    answer(&Reply::Made { needs: reward.needs(), learns: reward.learner().is_some() })?;
    let _no_grad = tch::no_grad_guard();
    while let Some(request) = wire::read(&mut requests).map_err(Error::failed)? {
        let Request::Score(batch) = request else { return Err(Error::failed("made twice")) };
        memory.refresh().map_err(Error::failed)?;
        let scores = view(&batch, &memory).and_then(|batch| reward.score(&batch));
        answer(&match scores {
            Ok(scores) => Reply::Scores(scores.into_iter().map(f32::to_bits).collect()),
            Err(error) => Reply::Failed(error),
        })?;
    }
    Ok(())
}

/// A socket and nothing else, so that a terminal is refused.
fn stream(fd: OwnedFd) -> io::Result<UnixStream> {
    let stream = UnixStream::from(fd);
    stream.peer_addr()?;
    Ok(stream)
}

/// The reward, with the plugin's own error where it has one: it crosses to the run as it is.
fn made(make: &Make) -> advdmd_sdk::Result<Box<dyn Reward>> {
    tch::set_num_threads(make.threads);
    let registry = match &make.plugin {
        None => Registry::linked(),
        Some((path, sha256)) => {
            if make.locked {
                Lock::bind_to(sha256);
            }
            Registry::of_files(std::slice::from_ref(path)).and_then(|registry| {
                if registry.files().iter().any(|file| file.sha256 != *sha256) {
                    return Err(Error::failed(format!("{} has changed since the run loaded it", path.display())));
                }
                Ok(registry)
            })
        }
    };
    let made = registry.and_then(|registry| registry.reward(&make.component, &make.init));
    made.map_err(|error| match error {
        Error::Component { source, .. } => source,
        other => advdmd_sdk::Error::failed(other.in_one_line()),
    })
}

fn view<'a>(batch: &'a Batch, memory: &'a Lent) -> advdmd_sdk::Result<RewardBatch<'a>> {
    let tensor = |place: &'a Place| {
        let count = usize::try_from(place.shape.iter().product::<i64>()).unwrap_or(usize::MAX);
        let bytes = memory.bytes(place.offset, count.saturating_mul(DType::F32.size()));
        let bytes = bytes.ok_or_else(|| advdmd_sdk::Error::failed("a tensor lies outside the shared memory"))?;
        TensorView::from_bytes(DType::F32, &place.shape, &place.strides, bytes)
    };
    let option = |place: &'a Option<Place>| place.as_ref().map(tensor).transpose();
    Ok(RewardBatch {
        prompts: batch.prompts.iter().map(String::as_str).collect(),
        sigma: option(&batch.sigma)?,
        images: option(&batch.images)?,
        latents: option(&batch.latents)?,
        features: batch.features.iter().map(tensor).collect::<Result<_, _>>()?,
    })
}
