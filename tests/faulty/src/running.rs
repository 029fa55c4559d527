//! A reward that works, until it is given a certain prompt in the middle of a run.

use std::path::PathBuf;
use std::time::Duration;

use advdmd_sdk::{Error, Needs, Result, Reward, RewardBatch, RewardConfig, RewardInit};
use schemars::JsonSchema;
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::ffi;

/// Scores how red an image is; fails at a prompt.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FaultyRun {
    /// The way to fail.
    how: How,
    /// Fails for batches with a prompt that contains this; by default for all.
    #[serde(default)]
    at: String,
    /// Fails only until this file is there: mended, without a change of the configuration.
    #[serde(default)]
    until: Option<PathBuf>,
    /// Makes that file when it fails: the fault happens once.
    #[serde(default)]
    once: bool,
    /// Batches that go well first.
    #[serde(default)]
    after: usize,
    /// Scores as a tensor.
    #[serde(default)]
    on_device: bool,
    #[serde(skip)]
    calls: usize,
}

#[derive(Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum How {
    /// Does not.
    Well,
    /// Panics.
    Panic,
    /// Says that it failed.
    Failed,
    /// One score for all samples.
    Short,
    /// NaN for the last sample; with `on_device` as well.
    Nan,
    /// An infinity for the first sample.
    Infinite,
    /// Whole numbers; only with `on_device`.
    WholeNumbers,
    /// Leaves gradients switched off.
    NoGrad,
    /// Does not return.
    Blocks,
    /// Reads memory that is not its own.
    Segfault,
    /// Ends the process in disorder.
    Abort,
    /// Starts another process, which outlives this one and holds its output open, and aborts.
    Orphan,
    /// Ends the process in order.
    Exit,
    /// Is killed, as the system does with processes when memory runs out.
    Killed,
    /// Prints where nothing should be printed.
    Prints,
}

impl RewardConfig for FaultyRun {
    fn build(self, _init: &RewardInit) -> Result<Box<dyn Reward>> {
        Ok(Box::new(self))
    }
}

impl FaultyRun {
    fn is_due(&mut self, batch: &RewardBatch<'_>) -> Result<bool> {
        self.calls += 1;
        let mended = self.until.as_ref().is_some_and(|path| path.exists());
        let due = !mended && self.calls > self.after && batch.prompts.iter().any(|prompt| prompt.contains(&self.at));
        if let Some(path) = self.until.as_ref().filter(|_| due && self.once) {
            std::fs::write(path, "").map_err(Error::failed)?;
        }
        Ok(due)
    }
}

fn redness(batch: &RewardBatch<'_>) -> Result<Vec<f32>> {
    let images = batch.images()?;
    let pixels = images.to_f32()?;
    let size = pixels.len() / batch.len();
    let red = |image: &[f32]| image[..size / 3].iter().sum::<f32>() / (size / 3) as f32;
    Ok(pixels.chunks(size).map(red).collect())
}

impl Reward for FaultyRun {
    fn needs(&self) -> Needs {
        Needs { images: true, scores_on_device: self.on_device, ..Needs::default() }
    }

    fn score(&mut self, batch: &RewardBatch<'_>) -> Result<Vec<f32>> {
        let mut scores = redness(batch)?;
        if !self.is_due(batch)? {
            return Ok(scores);
        }
        let last = scores.len() - 1;
        match self.how {
            How::Well | How::WholeNumbers => {}
            How::Panic => panic!("attempt to divide by zero"),
            How::Failed => return Err(Error::failed("the model says no")),
            How::Short => scores.truncate(1),
            How::Nan => scores[last] = f32::NAN,
            How::Infinite => scores[0] = f32::INFINITY,
            How::NoGrad => ffi::switch_gradients_off(),
            How::Blocks => loop {
                std::thread::sleep(Duration::from_secs(1));
            },
            How::Segfault => ffi::read_nothing(),
            How::Abort => std::process::abort(),
            How::Orphan => {
                // Nobody waits for it: that is the fault.
                let _ = std::process::Command::new("sleep").arg("986").spawn().map_err(Error::failed)?;
                std::process::abort();
            }
            How::Exit => std::process::exit(3),
            How::Killed => {
                // Nothing comes after it.
                let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            }
            How::Prints => {
                println!("{{\"Scores\":[1]}}");
                eprintln!("a warning of some library");
            }
        }
        Ok(scores)
    }

    fn score_differentiable(&mut self, batch: &RewardBatch<'_>) -> Result<Option<Tensor>> {
        let due = self.is_due(batch)?;
        let mut scores = redness(batch)?;
        if due && self.how == How::Nan {
            scores[batch.len() - 1] = f32::NAN;
        }
        let kind = if due && self.how == How::WholeNumbers { Kind::Int64 } else { Kind::Float };
        Ok(Some(Tensor::from_slice(&scores).to_device(Device::Cpu).to_kind(kind)))
    }
}
