//! What the run and a reward's process say to each other: a line of JSON each, tensors by their place in shared memory.

use std::io::{self, BufRead, Read as _};
use std::path::PathBuf;

use advdmd_sdk::{Error, Needs, RewardInit};
use serde::{Deserialize, Serialize};

use crate::config::Component;

/// The longest line that is read; an answer of a million scores has a tenth of it.
const LONGEST_LINE: u64 = 256 << 20;

/// From the run. The first is always [`Request::Make`].
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Makes the reward.
    Make(Box<Make>),
    /// Scores the batch in shared memory.
    Score(Box<Batch>),
}

/// A reward to be made.
#[derive(Debug, Serialize, Deserialize)]
pub struct Make {
    /// The plugin's file and its SHA-256; `None` for a component of the program.
    pub plugin: Option<(PathBuf, String)>,
    /// Whether the run may load no other content than that.
    pub locked: bool,
    /// `type` and the plugin's keys.
    pub component: Component,
    /// What the plugin is told.
    pub init: RewardInit,
    /// Threads of libtorch.
    pub threads: i32,
}

/// A [`RewardBatch`](advdmd_sdk::RewardBatch) in shared memory.
#[derive(Debug, Serialize, Deserialize)]
pub struct Batch {
    /// Prompt of each sample.
    pub prompts: Vec<String>,
    /// Noise levels.
    pub sigma: Option<Place>,
    /// Images.
    pub images: Option<Place>,
    /// Latents.
    pub latents: Option<Place>,
    /// Tapped features.
    pub features: Vec<Place>,
}

/// A contiguous float32 tensor in shared memory.
#[derive(Debug, Serialize, Deserialize)]
pub struct Place {
    /// Size of each dimension.
    pub shape: Vec<i64>,
    /// Elements to step over for the next index of each dimension.
    pub strides: Vec<i64>,
    /// Where its bytes begin.
    pub offset: usize,
}

/// From the reward's process.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// The reward is made.
    Made {
        /// What it needs.
        needs: Needs,
        /// Whether it learns.
        learns: bool,
    },
    /// The bits of each score, since JSON has no NaN.
    Scores(Vec<u32>),
    /// What the reward says instead.
    Failed(Error),
}

/// A message as a line.
///
/// # Errors
/// None in practice: the types have texts as keys.
pub fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// The next message; `None` at the end.
///
/// # Errors
/// A line that is too long or no message; the system's.
pub fn read<T: for<'de> Deserialize<'de>>(from: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    from.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)?;
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(serde_json::from_slice(&line)?)),
        Some(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "a message without an end")),
    }
}
