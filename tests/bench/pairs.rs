//! Two processes that take turns.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow};
use serde::Deserialize;

/// Updates of each side before those that count: the first ones allocate.
const WARM_UP: usize = 2;

/// Why a side gives no numbers.
#[derive(Debug)]
pub enum Failure {
    /// It needs what this machine does not have.
    Absent(String),
    Other(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// One update of one side.
#[derive(Debug, Deserialize)]
pub struct Sample {
    pub seconds: f64,
    /// Samples through each network: `<role>/<forward|backward>`.
    pub passes: BTreeMap<String, f64>,
    /// Losses, and on our side all other numbers of the update.
    pub values: BTreeMap<String, f64>,
}

/// A process that runs an update for each line that it reads.
pub struct Side {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Side {
    /// This program as a worker: of whole updates, of one pass of a transformer, or of scores.
    pub fn ours(folder: &Path, pass: Option<&str>) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--worker").arg(folder);
        if let Some(pass) = pass {
            command.arg("--pass").arg(pass);
        }
        let mut side = Self::start(&mut command)?;
        side.line()?.context("the worker ended before it was ready")?;
        Ok(side)
    }

    /// The reference in Python, a script beside this file: by `$PYTHON`, else `python3`.
    pub fn python(script: &str, folder: &Path, mode: &str) -> Result<Self, Failure> {
        let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench").join(script);
        let mut command = Command::new(&python);
        command.arg("-B").arg(script).arg(folder).arg(mode);
        let absent = |why: &str| {
            Failure::Absent(format!(
                "{} {why}; `pip install torch==2.11.0 diffusers transformers safetensors peft open_clip_torch torchvision`, or set PYTHON to one that has them",
                python.display()
            ))
        };
        let mut side = Self::start(&mut command).map_err(|error| absent(&format!("does not start ({error})")))?;
        if side.line()?.is_some() {
            return Ok(side);
        }
        // Its own message is on stderr.
        Err(absent("has not what the reference needs"))
    }

    fn start(command: &mut Command) -> anyhow::Result<Self> {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = process.stdin.take().context("no pipe")?;
        let output = BufReader::new(process.stdout.take().context("no pipe")?);
        Ok(Self { process, input, output })
    }

    fn line(&mut self) -> std::io::Result<Option<String>> {
        let mut line = String::new();
        Ok((self.output.read_line(&mut line)? > 0).then_some(line))
    }

    /// Runs one update.
    pub fn update(&mut self) -> anyhow::Result<Sample> {
        writeln!(self.input, "update")?;
        self.input.flush()?;
        let line = self.line()?.ok_or_else(|| anyhow!("a side ended in the middle of the benchmark"))?;
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // It may be in the middle of something; nothing of it is kept.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `pairs` updates of each, neighbours in time. Which side goes first alternates.
pub fn interleave(ours: &mut Side, theirs: &mut Side, pairs: usize) -> anyhow::Result<Vec<(Sample, Sample)>> {
    let mut samples = Vec::with_capacity(pairs);
    for number in 0..WARM_UP + pairs {
        // Worker threads of libgomp spin for a moment after their last work.
        std::thread::sleep(Duration::from_millis(20));
        let pair = if number % 2 == 0 {
            let first = ours.update()?;
            (first, theirs.update()?)
        } else {
            let first = theirs.update()?;
            (ours.update()?, first)
        };
        if number >= WARM_UP {
            samples.push(pair);
        }
    }
    Ok(samples)
}
