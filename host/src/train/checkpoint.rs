//! What a run needs to go on: every trainable tensor, its optimiser's moments, the averages and the counters.
//!
//! A checkpoint is a folder `checkpoints/update-NNNNNN`, filled beside its place and renamed when it is whole; the frozen
//! base is never in it. `index.json` holds the counters, what the run was made with, and size and SHA-256 of every
//! tensor file, `index.sha256` its own, so that damage is found before anything is loaded. Random numbers are functions of the counters, so
//! there is no generator to save.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use advdmd_nn::Weights;
use advdmd_nn::optim::Ema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::{Device, Tensor};

use super::schedule::Gate;
use crate::files::{self, FileDigest};
use crate::passes::PassCounts;
use crate::registry::RunManifest;
use crate::{Error, Result};

/// Layout of a checkpoint; another number cannot be read.
const FORMAT: u32 = 1;

/// Counters of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Student updates done.
    pub update: u64,
    /// Critic updates done, those of the warm-up included.
    pub critic_updates: u64,
    /// Critic updates of the warm-up done.
    pub warmed_up: u64,
    /// Seconds of training, over all resumed parts.
    pub seconds: f64,
    /// Network passes so far.
    pub passes: PassCounts,
    /// The policy gradient's gate.
    pub gate: Gate,
    /// What the critic measured in its part of the next update, where a plugin broke that update off afterwards: that part is
    /// done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfinished: Option<BTreeMap<String, f64>>,
}

/// What a run is, apart from where it stands: a resumed part must share it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Program, plugins and model files.
    pub made_with: RunManifest,
    /// The resolved configuration.
    pub config: serde_json::Value,
    /// Keys of plugins that may change in the middle of a run, by their own schemas.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub free: Vec<String>,
}

/// The index of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    /// Layout of the folder.
    pub format: u32,
    /// Where the run stands.
    pub state: State,
    /// What it was made with.
    pub identity: Identity,
    /// The other files of the folder.
    pub files: BTreeMap<String, FileDigest>,
}

impl Index {
    /// The index in these bytes.
    ///
    /// # Errors
    /// What is wrong with them, and where.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let Format { format } = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if format != FORMAT {
            return Err(format!("expected format {FORMAT}, found {format}: written by another version of advdmd"));
        }
        let index: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        match index.files.keys().find(|name| Path::new(name).file_name() != Some(name.as_ref())) {
            Some(name) => Err(format!("{name:?} is no file name")),
            None => Ok(index),
        }
    }
}

/// The tensors of a checkpoint, by file.
pub type Parts = BTreeMap<String, Weights>;

const INDEX: &str = "index.json";
/// SHA-256 of the index, in hexadecimal.
const SEAL: &str = "index.sha256";

/// Detached handles on parameters, as one part.
pub fn part(parameters: &[(String, Tensor)]) -> Weights {
    parameters.iter().map(|(name, tensor)| (name.clone(), tensor.detach())).collect()
}

fn folder(run: &Path) -> PathBuf {
    run.join("checkpoints")
}

fn path_of(run: &Path, update: u64) -> PathBuf {
    folder(run).join(format!("update-{update:06}"))
}

fn file_of(part: &str) -> String {
    format!("{part}.safetensors")
}

/// Writes the checkpoint of `state.update` and removes all but the newest `keep_last`.
///
/// # Errors
/// The disk's; older checkpoints are then untouched.
pub fn save(run: &Path, state: &State, identity: &Identity, parts: &Parts, keep_last: usize) -> Result<PathBuf> {
    let path = path_of(run, state.update);
    files::create_dir(&folder(run))?;
    files::replace_dir(&path, |folder| fill(folder, state, identity, parts))?;
    let all = list(run)?;
    for (_, old) in &all[..all.len().saturating_sub(keep_last.max(1))] {
        files::remove_dir(old)?;
    }
    Ok(path)
}

/// Writes parts and index into an empty folder.
///
/// # Errors
/// The disk's.
pub fn fill(folder: &Path, state: &State, identity: &Identity, parts: &Parts) -> Result<()> {
    let mut digests = BTreeMap::new();
    for (name, weights) in parts {
        let file = folder.join(file_of(name));
        weights.save(&file, &BTreeMap::new())?;
        digests.insert(file_of(name), FileDigest::of(&file)?);
    }
    let index = Index { format: FORMAT, state: state.clone(), identity: identity.clone(), files: digests };
    files::write_json(&folder.join(INDEX), &index)?;
    let seal = FileDigest::of(&folder.join(INDEX))?.sha256;
    files::write(&folder.join(SEAL), format!("{seal}\n").as_bytes())
}

/// The first tensor of the networks, of their averages or of the learners that is not finite: its part and name. Waits
/// for the device.
pub fn first_not_finite(parts: &Parts) -> Option<(String, String)> {
    let weights = parts.iter().filter(|(part, _)| !part.ends_with(".optimizer"));
    let mut all = weights.flat_map(|(part, weights)| weights.iter().map(move |tensor| (part, tensor)));
    let bad = all.find(|(_, (_, tensor))| tensor.isfinite().all().int64_value(&[]) == 0);
    bad.map(|(part, (name, _))| (part.clone(), name.to_owned()))
}

/// The checkpoints of a run, oldest first, by their update.
///
/// # Errors
/// A folder that cannot be read.
pub fn list(run: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let folder = folder(run);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::file("read", &folder)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::file("read", &folder))?.path();
        // A folder that is still being filled, or was set aside, has an ending and does not parse.
        if let Some(update) = number(&path) {
            found.push((update, path));
        }
    }
    found.sort();
    Ok(found)
}

/// The update that a checkpoint's folder is called after.
fn number(checkpoint: &Path) -> Option<u64> {
    checkpoint.file_name()?.to_str()?.strip_prefix("update-")?.parse().ok()
}

/// The newest checkpoint of a run.
///
/// # Errors
/// A folder that cannot be read.
pub fn latest(run: &Path) -> Result<Option<PathBuf>> {
    Ok(list(run)?.pop().map(|(_, path)| path))
}

/// Removes what a save that was killed left half done.
///
/// # Errors
/// The disk's.
pub fn clean(run: &Path) -> Result<()> {
    let folder = folder(run);
    let Ok(entries) = fs::read_dir(&folder) else { return Ok(()) };
    for entry in entries {
        let path = entry.map_err(Error::file("read", &folder))?.path();
        if path.extension().is_some_and(|end| end == "part") {
            files::remove_dir(&path)?;
        }
    }
    Ok(())
}

/// Takes a checkpoint out of [`list`] without destroying it.
///
/// # Errors
/// The disk's.
pub fn set_aside(checkpoint: &Path) -> Result<PathBuf> {
    let aside = files::sibling(checkpoint, "damaged");
    files::remove_dir(&aside)?;
    fs::rename(checkpoint, &aside).map_err(Error::file("rename", checkpoint))?;
    Ok(aside)
}

/// A checkpoint on disk.
#[derive(Debug)]
pub struct Checkpoint {
    /// Its folder.
    pub path: PathBuf,
    /// Its index.
    pub index: Index,
}

impl Checkpoint {
    /// Reads the index.
    ///
    /// # Errors
    /// A missing or damaged index: names it.
    pub fn open(path: &Path) -> Result<Self> {
        let file = path.join(INDEX);
        let bytes = fs::read(&file).map_err(Error::file("read", &file))?;
        let index = Index::parse(&bytes).map_err(|message| Error::content(&file, message))?;
        let seal = path.join(SEAL);
        let expected = fs::read_to_string(&seal).map_err(Error::file("read", &seal))?;
        let found = format!("{:x}", Sha256::digest(&bytes));
        if found != expected.trim() {
            let message = format!("damaged: SHA-256 {found}, expected {} by {SEAL}", expected.trim());
            return Err(Error::content(&file, message));
        }
        let named = number(path);
        if named.is_some_and(|named| named != index.state.update) {
            let message = format!("is of update {}, which is not what its folder is called", index.state.update);
            return Err(Error::content(&file, message));
        }
        Ok(Self { path: path.to_owned(), index })
    }

    /// Compares every file with its size and SHA-256 in the index.
    ///
    /// # Errors
    /// The first file that is missing or differs: names it, and what was expected.
    pub fn verify(&self) -> Result<()> {
        self.index.files.iter().try_for_each(|(name, digest)| digest.verify(&self.path.join(name)))
    }

    /// One part.
    ///
    /// # Errors
    /// A missing or damaged file.
    pub fn read(&self, part: &str, device: Device) -> Result<Weights> {
        let path = self.path.join(file_of(part));
        let Some(digest) = self.index.files.get(&file_of(part)) else {
            let message = format!("{} has no {}", self.path.display(), file_of(part));
            return Err(Error::usage(message, "the run had no reward or network of that name".to_owned()));
        };
        // The file will be mapped into memory, where a lost end would be a crash instead of an error.
        digest.verify_size(&path)?;
        Ok(Weights::load(&path, None, device)?)
    }

    /// The averaged student, without the averages' counter; its file is verified first.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    pub fn averages(&self, device: Device) -> Result<Weights> {
        let name = file_of("student.ema");
        if let Some(digest) = self.index.files.get(&name) {
            digest.verify(&self.path.join(&name))?;
        }
        let saved = self.read("student.ema", device)?;
        Ok(saved.into_iter().filter(|(name, _)| name != Ema::COUNTER).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        let made_with = serde_json::json!({
            "advdmd": "0", "protocol": "1.0", "rustc": "", "target": "", "libtorch": "", "components": [], "files": []
        });
        Identity {
            made_with: serde_json::from_value(made_with).unwrap(),
            config: serde_json::json!({}),
            free: Vec::new(),
        }
    }

    fn saved(run: &Path, update: u64, keep_last: usize) -> PathBuf {
        let weights: Weights = [("w".to_owned(), Tensor::from_slice(&[update as f32; 64]))].into_iter().collect();
        let parts = [("student".to_owned(), weights)].into();
        save(run, &State { update, ..State::default() }, &identity(), &parts, keep_last).unwrap()
    }

    #[test]
    fn what_is_saved_is_read_and_only_the_newest_are_kept() {
        let run = tempfile::tempdir().unwrap();
        for update in 1..=5 {
            saved(run.path(), update, 2);
        }
        assert_eq!(list(run.path()).unwrap().iter().map(|(update, _)| *update).collect::<Vec<_>>(), [4, 5]);
        let newest = Checkpoint::open(&latest(run.path()).unwrap().unwrap()).unwrap();
        newest.verify().unwrap();
        assert_eq!(newest.index.state.update, 5);
        let weights = newest.read("student", Device::Cpu).unwrap();
        assert!(weights.get("w").unwrap().equal(&Tensor::from_slice(&[5f32; 64])));
    }

    #[test]
    fn every_kind_of_damage_is_found_and_named() {
        let run = tempfile::tempdir().unwrap();
        let path = saved(run.path(), 3, 2);
        let file = path.join("student.safetensors");
        let whole = fs::read(&file).unwrap();
        let damage = |bytes: &[u8]| {
            fs::write(&file, bytes).unwrap();
            Checkpoint::open(&path).unwrap().verify().unwrap_err().to_string()
        };
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        assert!(damage(&flipped).contains("student.safetensors: damaged: SHA-256"), "a flipped bit");
        let cut = damage(&whole[..whole.len() - 1]);
        assert!(cut.contains(&format!("expected {} bytes, found {}", whole.len(), whole.len() - 1)), "{cut}");
        fs::remove_file(&file).unwrap();
        let missing = Checkpoint::open(&path).unwrap().verify().unwrap_err().to_string();
        assert!(missing.contains("student.safetensors"), "{missing}");
        let index = fs::read_to_string(path.join(INDEX)).unwrap();
        fs::write(path.join(INDEX), index.replace("\"critic_updates\": 0", "\"critic_updates\": 7")).unwrap();
        let edited = Checkpoint::open(&path).unwrap_err().to_string();
        assert!(edited.contains("index.json: damaged: SHA-256"), "{edited}");
        fs::write(path.join(INDEX), index).unwrap();
        let renamed = path.with_file_name("update-000009");
        fs::rename(&path, &renamed).unwrap();
        let misnamed = Checkpoint::open(&renamed).unwrap_err().to_string();
        assert!(misnamed.contains("is of update 3"), "{misnamed}");
        fs::rename(&renamed, &path).unwrap();
        fs::write(path.join(INDEX), b"{\"format\": 9}").unwrap();
        let format = Checkpoint::open(&path).unwrap_err().to_string();
        assert!(format.contains("expected format 1, found 9"), "{format}");
        set_aside(&path).unwrap();
        assert_eq!(list(run.path()).unwrap(), []);
    }

    #[test]
    fn an_index_cannot_point_out_of_its_folder() {
        let mut index = serde_json::json!({
            "format": 1, "state": State::default(), "identity": identity(),
            "files": {"../../x": {"bytes": 1, "sha256": ""}}
        });
        let parse = |index: &serde_json::Value| Index::parse(index.to_string().as_bytes());
        assert!(parse(&index).unwrap_err().contains("no file name"));
        index["files"] = serde_json::json!({});
        assert!(parse(&index).is_ok());
    }
}
