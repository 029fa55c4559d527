//! Small runs of the real program, and whether two of them are the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use advdmd::metrics;
use advdmd::train::checkpoint::{self, Checkpoint};

use crate::{CONFIG, Installation, PLUGINS, TINY, is_effort};

/// An installation with the configuration of a very small run.
pub struct Runs(pub Installation);

impl Default for Runs {
    fn default() -> Self {
        Self::new()
    }
}

impl Runs {
    /// With all plugins and the configuration of the tests.
    pub fn new() -> Self {
        let installed = Installation::with(&PLUGINS);
        installed.write("run.toml", CONFIG);
        Self(installed)
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.folder().join(name)
    }

    /// The program that trains in `out`, with more options.
    pub fn command(&self, out: &str, more: &[&str]) -> Command {
        let mut command = self.0.command(&["train", "run.toml", "--out", out]);
        for set in TINY {
            command.args(["--set", set]);
        }
        command.args(more).stderr(Stdio::piped());
        command
    }

    /// Trains to the end.
    ///
    /// # Panics
    /// The program does not start.
    pub fn train(&self, out: &str, more: &[&str]) -> Output {
        self.command(out, more).output().unwrap()
    }

    /// Trains and gives the newest checkpoint.
    ///
    /// # Panics
    /// The run failed.
    pub fn done(&self, out: &str, more: &[&str]) -> Checkpoint {
        let output = self.train(out, more);
        assert!(output.status.success(), "{}", text(&output));
        self.newest(out)
    }

    /// The newest checkpoint, verified.
    ///
    /// # Panics
    /// There is none, or it is damaged.
    pub fn newest(&self, out: &str) -> Checkpoint {
        let newest = Checkpoint::open(&checkpoint::latest(&self.path(out)).unwrap().unwrap()).unwrap();
        newest.verify().unwrap();
        newest
    }
}

/// What a program said on stderr.
pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The files of a checkpoint with their hashes, and its counters but for the time.
///
/// # Panics
/// Counters that are no JSON.
pub fn contents(checkpoint: &Checkpoint) -> (BTreeMap<String, String>, String) {
    let mut state = checkpoint.index.state.clone();
    state.seconds = 0.0;
    let files = checkpoint.index.files.iter().map(|(name, digest)| (name.clone(), digest.sha256.clone())).collect();
    (files, serde_json::to_string(&state).unwrap())
}

/// The metrics of a run, but for its effort.
///
/// # Panics
/// They cannot be read.
pub fn numbers(run: &Path) -> Vec<(u64, BTreeMap<String, f64>)> {
    let records = metrics::read(&run.join("metrics.jsonl")).unwrap();
    let results = |values: BTreeMap<String, f64>| values.into_iter().filter(|(name, _)| !is_effort(name));
    records.into_iter().map(|record| (record.update, results(record.values).collect())).collect()
}

/// Asserts that two runs measured the same; names the first number that differs.
///
/// # Panics
/// They did not.
pub fn assert_same_numbers(a: &Path, b: &Path) {
    let (a, b) = (numbers(a), numbers(b));
    assert_eq!(a.len(), b.len(), "updates");
    for ((update, a), (other, b)) in a.iter().zip(&b) {
        assert_eq!((update, a.len()), (other, b.len()));
        for (name, value) in a {
            assert_eq!(Some(value), b.get(name), "{name} of update {update}");
        }
    }
}
