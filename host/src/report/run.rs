//! A run's folder in memory: whatever of it is there.

use std::path::{Path, PathBuf};

use super::samples::{self, Sheet};
use crate::data::Summary;
use crate::eval::Entry;
use crate::hacking::{FILE as WATCH, Look};
use crate::metrics::Record;
use crate::train::run::SUMMARY;
use crate::{Error, Result, files, jsonl, metrics};

/// What a run left behind. A missing or damaged part is empty and named in [`Run::gaps`].
#[derive(Debug, Default)]
pub(super) struct Run {
    /// The folder's name.
    pub name: String,
    pub records: Vec<Record>,
    pub entries: Vec<Entry>,
    /// By update, rising.
    pub sheets: Vec<Sheet>,
    /// What the watch for reward hacking saw.
    pub looks: Vec<Look>,
    /// The data set, where it is made of files.
    pub data: Option<Summary>,
    /// The resolved configuration as TOML.
    pub config: Option<String>,
    settings: toml::Table,
    manifest: serde_json::Value,
    /// What the report lacks, and why.
    pub gaps: Vec<String>,
}

impl Run {
    /// Reads what is there.
    ///
    /// # Errors
    /// Only if the folder itself cannot be read.
    pub fn read(folder: &Path) -> Result<Self> {
        std::fs::read_dir(folder).map_err(Error::file("read", folder))?;
        let name = std::path::absolute(folder).ok().and_then(|path| path.file_name().map(ToOwned::to_owned));
        let mut run = Self { name: name.unwrap_or_default().to_string_lossy().into_owned(), ..Self::default() };
        run.records = run.part(folder, "metrics.jsonl", "no curves", metrics::read);
        run.config = run.part(folder, "config.toml", "no configuration", |path| {
            std::fs::read_to_string(path).map(Some).map_err(Error::file("read", path))
        });
        run.manifest = run.part(folder, "run.json", "no environment", files::read_json);
        run.sheets = run.part(folder, "samples", "no images", samples::read_all);
        if let Some(text) = &run.config {
            match text.parse() {
                Ok(settings) => run.settings = settings,
                Err(error) => run.gaps.push(format!("config.toml: {error}")),
            }
        }
        if run.is_judged() || folder.join("eval.jsonl").exists() {
            run.entries = run.part(folder, "eval.jsonl", "no table of scores, no verdict", jsonl::read);
        }
        if folder.join(WATCH).exists() {
            run.looks = run.part(folder, WATCH, "no watch for reward hacking", jsonl::read);
        }
        if folder.join(SUMMARY).exists() {
            run.data = run.part(folder, SUMMARY, "no numbers of the data", |path| files::read_json(path).map(Some));
        }
        Ok(run)
    }

    /// Whether something judges the images of this run: on digit scenes, not on data of the user's own.
    pub fn is_judged(&self) -> bool {
        self.text(&["data", "type"]).is_none_or(|kind| kind == "digits")
    }

    /// Reads one part; what cannot be read is noted and left empty.
    fn part<T: Default>(
        &mut self,
        folder: &Path,
        name: &str,
        without: &str,
        read: impl FnOnce(&Path) -> Result<T>,
    ) -> T {
        let path: PathBuf = folder.join(name);
        if !path.exists() {
            self.gaps.push(format!("{name} is not there: {without}."));
            return T::default();
        }
        read(&path).unwrap_or_else(|error| {
            let cause = std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
            self.gaps.push(format!("{name} cannot be used: {without}. {error}{cause}"));
            T::default()
        })
    }

    /// A number of the configuration, by path.
    pub fn number(&self, path: &[&str]) -> Option<f64> {
        number(self.setting(path)?)
    }

    /// Two numbers of the configuration.
    pub fn pair(&self, path: &[&str]) -> Option<[f64; 2]> {
        match self.setting(path)?.as_array()?.as_slice() {
            [low, high] => Some([number(low)?, number(high)?]),
            _ => None,
        }
    }

    /// A text of the configuration.
    pub fn text(&self, path: &[&str]) -> Option<&str> {
        self.setting(path)?.as_str()
    }

    fn setting(&self, path: &[&str]) -> Option<&toml::Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.settings.get(*first)?, |value, key| value.get(key))
    }

    /// Student updates done.
    pub fn updates(&self) -> u64 {
        let evaluated = self.entries.last().map_or(0, |entry| entry.update);
        self.records.last().map_or(evaluated, |record| record.update)
    }

    /// The manifest as (name, text) pairs.
    pub fn environment(&self) -> Vec<(String, String)> {
        let mut rows = Vec::new();
        flatten("", &self.manifest, &mut rows);
        rows
    }
}

fn number(value: &toml::Value) -> Option<f64> {
    value.as_float().or_else(|| value.as_integer().map(|integer| integer as f64))
}

/// Objects become "outer inner" names; the members of a list of objects one row each.
fn flatten(name: &str, value: &serde_json::Value, rows: &mut Vec<(String, String)>) {
    use serde_json::Value;
    match value {
        Value::Null => {}
        Value::Object(fields) => {
            for (key, value) in fields {
                let key = key.replace('_', " ");
                flatten(&if name.is_empty() { key } else { format!("{name} {key}") }, value, rows);
            }
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            for item in items {
                let fields = item.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
                let text: Vec<String> = fields.map(|(key, value)| format!("{key} {}", plain(value))).collect();
                rows.push((name.to_owned(), text.join(" · ")));
            }
        }
        Value::Array(items) => rows.push((name.to_owned(), items.iter().map(plain).collect::<Vec<_>>().join(", "))),
        _ => rows.push((name.to_owned(), plain(value))),
    }
}

fn plain(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned)
}
