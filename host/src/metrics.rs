//! The numbers of a run over time: `RUN/metrics.jsonl`, one [`Record`] per student update.
//!
//! Names are paths, and the report finds its curves by them: `dmd/loss`, `gan/loss`, `grpo/loss`, each with
//! `/grad_norm` beside it; `grpo/ratio_mean|ratio_min|ratio_max`, `grpo/clip_fraction`, `grpo/gate/step0..`;
//! `advantage/std`, `advantage/dead_groups`; `reward/<name>/step0/mean|std`, `reward/<name>/dead_groups|advantage_share`,
//! `correlation/<name>/<name>`; `reward_backprop/loss`, `reward_backprop/<name>/mean`; `rollout/diversity`; `critic/denoise_loss`,
//! `critic/<name>/loss`, `critic/<name>/accuracy/step0..`; `student/grad_norm`, `student/lr`;
//! `time/rollout|critic|reward|student|optimizer|other` in seconds of the host (on CUDA, work that was only launched is waited for in
//! `other`); `memory/peak`, the most bytes of tensors on the device in the
//! update; `passes/<role>/<forward|backward>`, samples since the start.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::jsonl::{Dated, Log};

/// Standard deviation of the final latents over the samples of a prompt, mean over latents and prompts.
pub const DIVERSITY: &str = "rollout/diversity";

/// What was measured in one student update.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Student updates done, this one included.
    pub update: u64,
    /// Seconds since the run began, pauses between resumed parts left out.
    pub seconds: f64,
    /// Numbers by name. NaN and infinity are written as `null` and read back as NaN.
    #[serde(with = "nullable")]
    pub values: BTreeMap<String, f64>,
}

impl Dated for Record {
    fn update(&self) -> u64 {
        self.update
    }
}

/// Appends records to a metrics file and keeps count of the numbers that were not finite.
#[derive(Debug)]
pub struct Writer {
    log: Log,
    non_finite: BTreeMap<String, u64>,
}

impl Writer {
    /// Opens a metrics file at a checkpoint of `update` (0 for a new run): later records, which will be made again, are
    /// cut off. A missing file is started.
    ///
    /// # Errors
    /// The file cannot be read or written, or a line before the last is damaged.
    pub fn open(path: &Path, update: u64) -> Result<Self> {
        Ok(Self { log: Log::open::<Record>(path, update)?, non_finite: BTreeMap::new() })
    }

    /// Writes a record at once. A number that is not finite becomes `null`; the first of each name is logged as a
    /// warning, and all are counted in [`Writer::non_finite`].
    ///
    /// # Errors
    /// A record older than the last one, or the file cannot be written.
    pub fn append(&mut self, record: &Record) -> Result<()> {
        self.log.append(record)?;
        for (name, value) in record.values.iter().filter(|(_, value)| !value.is_finite()) {
            let count = self.non_finite.entry(name.clone()).or_default();
            *count += 1;
            if *count == 1 {
                tracing::warn!(
                    update = record.update,
                    "{name} is {value}; written as null, further ones are only counted"
                );
            }
        }
        Ok(())
    }

    /// The update of the last record.
    pub fn last(&self) -> u64 {
        self.log.last()
    }

    /// Brings what was written to the disk itself.
    ///
    /// # Errors
    /// Names the file.
    pub fn sync(&self) -> Result<()> {
        self.log.sync()
    }

    /// How many numbers of each name were not finite since this writer was opened; only names that had any.
    pub fn non_finite(&self) -> &BTreeMap<String, u64> {
        &self.non_finite
    }
}

/// Reads a metrics file; a last line that was cut off by a crash is left out.
///
/// # Errors
/// The file cannot be read, or another line is damaged; names it.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    crate::jsonl::read(path)
}

/// `null` for NaN and infinity, said outright rather than left to the JSON library.
mod nullable {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(values: &BTreeMap<String, f64>, out: S) -> Result<S::Ok, S::Error> {
        out.collect_map(values.iter().map(|(name, value)| (name, value.is_finite().then_some(*value))))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<BTreeMap<String, f64>, D::Error> {
        let values = BTreeMap::<String, Option<f64>>::deserialize(input)?;
        Ok(values.into_iter().map(|(name, value)| (name, value.unwrap_or(f64::NAN))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(update: u64, value: f64) -> Record {
        Record { update, seconds: update as f64 / 2.0, values: [("dmd/loss".to_owned(), value)].into() }
    }

    fn file(name: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        (folder, path)
    }

    #[test]
    fn what_is_written_is_read() {
        let (_folder, path) = file("metrics.jsonl");
        let mut writer = Writer::open(&path, 0).unwrap();
        let records = [record(1, 0.1 + 0.2), record(2, -1e-300)];
        for record in &records {
            writer.append(record).unwrap();
        }
        assert_eq!(read(&path).unwrap(), records);
        drop(Writer::open(&path, 0).unwrap());
        assert_eq!(read(&path).unwrap(), [], "a run that starts anew redoes all");
    }

    #[test]
    fn a_torn_last_line_is_left_out_and_cut_off_on_resume() {
        let (_folder, path) = file("metrics.jsonl");
        let mut writer = Writer::open(&path, 0).unwrap();
        for update in 1..=3 {
            writer.append(&record(update, 1.0)).unwrap();
        }
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 5]).unwrap();
        assert_eq!(read(&path).unwrap().len(), 2);
        let mut writer = Writer::open(&path, 2).unwrap();
        writer.append(&record(3, 1.0)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }

    #[test]
    fn a_last_line_that_lacks_only_its_line_feed_counts() {
        let (_folder, path) = file("metrics.jsonl");
        std::fs::write(&path, br#"{"update":1,"seconds":0.5,"values":{}}"#).unwrap();
        assert_eq!(read(&path).unwrap().len(), 1);
        let mut writer = Writer::open(&path, 1).unwrap();
        writer.append(&record(2, 1.0)).unwrap();
        assert_eq!(read(&path).unwrap().len(), 2);
    }

    #[test]
    fn a_damaged_line_in_the_middle_is_an_error_that_names_it() {
        let (_folder, path) = file("metrics.jsonl");
        std::fs::write(&path, "{\"update\":1,\"seconds\":0,\"values\":{}}\n{\"upd\n{\"update\":3}\n").unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(message.contains("metrics.jsonl: line 2"), "{message}");
    }

    #[test]
    fn resume_redoes_later_records() {
        let (_folder, path) = file("metrics.jsonl");
        let mut writer = Writer::open(&path, 0).unwrap();
        for update in 1..=5 {
            writer.append(&record(update, 1.0)).unwrap();
        }
        let mut writer = Writer::open(&path, 3).unwrap();
        let message = writer.append(&record(2, 1.0)).unwrap_err().to_string();
        assert!(message.contains("update 2 cannot follow one of update 3"), "{message}");
        writer.append(&record(4, 9.0)).unwrap();
        let updates: Vec<u64> = read(&path).unwrap().iter().map(|record| record.update).collect();
        assert_eq!(updates, [1, 2, 3, 4]);
    }

    #[test]
    fn what_is_not_finite_is_null_and_counted() {
        let (_folder, path) = file("metrics.jsonl");
        let mut writer = Writer::open(&path, 0).unwrap();
        for (update, value) in [(1, f64::NAN), (2, f64::INFINITY), (3, 1.0)] {
            writer.append(&record(update, value)).unwrap();
        }
        assert_eq!(writer.non_finite()["dmd/loss"], 2);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.matches("null").count(), 2, "{text}");
        let values: Vec<f64> = read(&path).unwrap().iter().map(|record| record.values["dmd/loss"]).collect();
        assert!(values[0].is_nan() && values[1].is_nan() && values[2] == 1.0);
    }
}
