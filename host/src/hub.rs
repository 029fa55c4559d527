//! Models by name: a folder or file of this machine, or a repository of the Hugging Face hub that its cache holds.
//!
//! The cache is read and never written, and nothing is fetched: whatever `HF_HUB_OFFLINE` says, what is missing is an
//! error that tells how to get it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The hub's cache on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hub {
    cache: PathBuf,
    home: Option<PathBuf>,
    offline: bool,
}

/// A model that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// What was looked for, and where.
    pub message: String,
    /// How to get it; `None` for a name that can only be a path.
    pub hint: Option<String>,
}

/// `org/name`, or `org/name@revision`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Repository<'a> {
    /// `org/name`.
    id: &'a str,
    /// A branch, a tag or a commit.
    revision: Option<&'a str>,
}

impl Hub {
    /// The cache that the environment names: `HF_HUB_CACHE`, else `HF_HOME/hub`, else `huggingface/hub` in
    /// `XDG_CACHE_HOME` or `~/.cache`, as the hub's own client finds it.
    #[must_use]
    pub fn from_env() -> Self {
        Self::from(|name| std::env::var_os(name))
    }

    fn from(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let home = variable("HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = |name: &str| {
            let value = variable(name).filter(|value| !value.is_empty())?;
            Some(expand(Path::new(&value), home.as_deref()))
        };
        let caches = || folder("XDG_CACHE_HOME").or_else(|| Some(home.as_ref()?.join(".cache"))).unwrap_or_default();
        let hub = || folder("HF_HOME").unwrap_or_else(|| caches().join("huggingface")).join("hub");
        let off = ["", "0", "false", "no", "off"];
        let offline = variable("HF_HUB_OFFLINE")
            .is_some_and(|value| !off.contains(&value.to_string_lossy().to_lowercase().as_str()));
        Self { cache: folder("HF_HUB_CACHE").unwrap_or_else(hub), home, offline }
    }

    /// The absolute path of the model `name`: a folder or file, relative to `base` unless it is absolute or begins
    /// with `~`; or else the snapshot of a repository `org/name` or `org/name@revision` in the cache, whose last part is the
    /// commit.
    ///
    /// # Errors
    /// What is neither, or a snapshot of which files are missing: says where was looked, and how to get it.
    pub fn find(&self, name: &str, base: &Path) -> Result<PathBuf, Missing> {
        let path = base.join(expand(Path::new(name), self.home.as_deref()));
        let path = std::path::absolute(&path).unwrap_or(path);
        if path.exists() {
            return Ok(path);
        }
        let Some(repository) = Repository::parse(name) else {
            return Err(Missing { message: format!("{} does not exist", path.display()), hint: None });
        };
        repository.snapshot(&self.cache).map_err(|reason| Missing {
            message: format!("no model {name:?}: {} does not exist, and {reason}", path.display()),
            hint: Some(self.advice(repository)),
        })
    }

    fn advice(&self, Repository { id, revision }: Repository<'_>) -> String {
        let revision = revision.map_or_else(String::new, |revision| format!(" --revision {revision}"));
        let offline = if self.offline { " with HF_HUB_OFFLINE unset" } else { "" };
        format!(
            "mend the path if a folder is meant; a model of the hub is got by `hf download {id}{revision}`{offline} (nothing \
             is fetched unasked), for a gated one such as Stable Diffusion 3 after you accepted its licence on its page \
             and logged in with `hf auth login` or HF_TOKEN"
        )
    }
}

impl<'a> Repository<'a> {
    /// `None` for what cannot be the name of a repository.
    fn parse(name: &'a str) -> Option<Self> {
        let (id, revision) = match name.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (name, None),
        };
        let (organisation, repository) = id.split_once('/')?;
        let names = [organisation, repository].into_iter().all(is_name);
        // A branch may have slashes, such as `refs/pr/1`.
        let revisions = revision.is_none_or(|revision| revision.split('/').all(is_name));
        (names && revisions).then_some(Self { id, revision })
    }

    /// The folder `snapshots/<commit>` of the revision, every file of it there.
    ///
    /// # Errors
    /// What is not in the cache, as the end of a sentence.
    fn snapshot(self, cache: &Path) -> Result<PathBuf, String> {
        let folder = cache.join(format!("models--{}", self.id.replace('/', "--")));
        let folder = std::path::absolute(&folder).unwrap_or(folder);
        if !folder.is_dir() {
            return Err(format!("the cache has no {}", folder.display()));
        }
        let snapshots = folder.join("snapshots");
        let revision = self.revision.unwrap_or("main");
        let commit = if is_name(revision) && snapshots.join(revision).is_dir() {
            revision.to_owned()
        } else {
            commit_of(&folder.join("refs").join(revision), &snapshots)?
        };
        let snapshot = snapshots.join(&commit);
        let reason = match first_dangling(&snapshot) {
            Ok(None) => return Ok(snapshot),
            Ok(Some(file)) => format!("the link {} leads to no file", file.display()),
            Err(error) => format!("{} cannot be read ({error})", snapshot.display()),
        };
        Err(format!("its copy in the cache is incomplete: {reason}"))
    }
}

/// The commit that the file `reference` holds.
///
/// # Errors
/// As [`Repository::snapshot`].
fn commit_of(reference: &Path, snapshots: &Path) -> Result<String, String> {
    let commit = match fs::read_to_string(reference) {
        Ok(commit) => commit.trim().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let known = names_in(snapshots).join(", ");
            let known = if known.is_empty() { "no commit".to_owned() } else { format!("commit {known}") };
            return Err(format!(
                "its copy in the cache has no {} (it has {known}, which `org/name@COMMIT` names)",
                reference.display()
            ));
        }
        Err(error) => return Err(format!("{} cannot be read ({error})", reference.display())),
    };
    // What a downloaded file says must not lead out of the cache.
    if is_name(&commit) { Ok(commit) } else { Err(format!("{} holds no commit", reference.display())) }
}

/// The first link below `folder` whose target is not there.
fn first_dangling(folder: &Path) -> io::Result<Option<PathBuf>> {
    let mut entries = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    entries.sort();
    for path in entries {
        if path.is_symlink() && !path.exists() {
            return Ok(Some(path));
        }
        if path.is_dir()
            && let Some(found) = first_dangling(&path)?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// One part of a repository's or a revision's name: never `.` or `..`, and no separator.
fn is_name(part: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    part.chars().all(allowed) && part.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// `path` with `~` in front put to the home folder.
fn expand(path: &Path, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    /// A home whose cache holds `org/model` at branch `main` with one file in `vae`.
    fn home() -> (tempfile::TempDir, Hub) {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join(".cache/huggingface/hub/models--org--model");
        let vae = folder.join("snapshots").join(COMMIT).join("vae");
        for folder in [&vae, &folder.join("blobs"), &folder.join("refs/refs/pr")] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(folder.join("refs/main"), format!("{COMMIT}\n")).unwrap();
        fs::write(folder.join("refs/refs/pr/1"), COMMIT).unwrap();
        fs::write(folder.join("blobs/ab"), "weights").unwrap();
        symlink("../../../blobs/ab", vae.join("w.safetensors")).unwrap();
        let hub = Hub::from(|name| (name == "HOME").then(|| home.path().as_os_str().to_owned()));
        (home, hub)
    }

    fn find(hub: &Hub, name: &str) -> Result<PathBuf, Missing> {
        hub.find(name, Path::new("/nowhere"))
    }

    #[test]
    fn the_environment_names_the_cache() {
        let cache = |variables: &[(&str, &str)]| {
            let get = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
            Hub::from(get).cache
        };
        let all = [("HF_HUB_CACHE", "~/c"), ("HF_HOME", "/hf"), ("XDG_CACHE_HOME", "/xdg"), ("HOME", "/home/u")];
        assert_eq!(cache(&all), Path::new("/home/u/c"));
        assert_eq!(cache(&all[1..]), Path::new("/hf/hub"));
        assert_eq!(cache(&all[2..]), Path::new("/xdg/huggingface/hub"));
        assert_eq!(cache(&all[3..]), Path::new("/home/u/.cache/huggingface/hub"));
        assert_eq!(cache(&[("HF_HUB_CACHE", ""), all[3]]), Path::new("/home/u/.cache/huggingface/hub"));
    }

    #[test]
    fn a_repository_is_found_by_branch_and_by_commit() {
        let (home, hub) = home();
        let snapshot = home.path().join(".cache/huggingface/hub/models--org--model/snapshots").join(COMMIT);
        for name in ["org/model", "org/model@main", "org/model@refs/pr/1", &format!("org/model@{COMMIT}")] {
            assert_eq!(find(&hub, name).unwrap(), snapshot, "{name}");
        }
    }

    #[test]
    fn a_folder_wins_over_a_repository() {
        let (home, hub) = home();
        let folder = home.path().join("org/model");
        fs::create_dir_all(&folder).unwrap();
        assert_eq!(hub.find("org/model", home.path()).unwrap(), folder);
        assert_eq!(find(&hub, "~/org/model").unwrap(), folder);
        assert_eq!(find(&hub, folder.to_str().unwrap()).unwrap(), folder);
        fs::write(home.path().join("one.safetensors"), "").unwrap();
        assert!(hub.find("one.safetensors", home.path()).is_ok());
    }

    #[test]
    fn what_is_not_there_is_told_with_both_places() {
        let (_home, hub) = home();
        let Missing { message, hint } = find(&hub, "org/other@v1").unwrap_err();
        let place = hub.cache.join("models--org--other");
        let expected = format!(
            "no model \"org/other@v1\": /nowhere/org/other@v1 does not exist, and the cache has no {}",
            place.display()
        );
        assert_eq!(message, expected);
        let hint = hint.unwrap();
        assert!(hint.contains("by `hf download org/other --revision v1` ("), "{hint}");
        let offline = Hub { offline: true, ..hub.clone() };
        let hint = find(&offline, "org/other").unwrap_err().hint.unwrap();
        assert!(hint.contains("by `hf download org/other` with HF_HUB_OFFLINE unset ("), "{hint}");
    }

    #[test]
    fn names_of_paths_are_not_looked_for_in_the_cache() {
        let (_home, hub) = home();
        for name in ["model", "./org/model", "a/b/c", "org/..", "../model", "org/model@", "org/model@../x", "/org/x"] {
            let missing = find(&hub, name).unwrap_err();
            assert_eq!(missing.hint, None, "{name}");
            assert!(missing.message.ends_with(" does not exist"), "{missing:?}");
        }
    }

    #[test]
    fn an_incomplete_copy_is_told() {
        let (_home, hub) = home();
        let folder = hub.cache.join("models--org--model");
        let reason = |name: &str| find(&hub, name).unwrap_err().message;
        assert!(
            reason("org/model@v2").contains(&format!("refs/v2 (it has commit {COMMIT}")),
            "{}",
            reason("org/model@v2")
        );
        fs::remove_file(folder.join("blobs/ab")).unwrap();
        assert!(reason("org/model").ends_with("vae/w.safetensors leads to no file"), "{}", reason("org/model"));
        fs::write(folder.join("refs/main"), "../../../etc").unwrap();
        assert!(reason("org/model").ends_with("refs/main holds no commit"));
        fs::write(folder.join("refs/main"), "ffff").unwrap();
        assert!(reason("org/model").contains("snapshots/ffff cannot be read"), "{}", reason("org/model"));
        fs::remove_file(folder.join("refs/main")).unwrap();
        assert!(reason("org/model").contains("has no "), "{}", reason("org/model"));
    }
}
