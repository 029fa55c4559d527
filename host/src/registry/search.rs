//! Where plugins are looked for.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Environment variable with folders or files of plugins, separated by colons.
pub const PATH_VARIABLE: &str = "ADVDMD_PLUGIN_PATH";

/// A place to look in, and who named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// A folder of plugins or a plugin file.
    pub path: PathBuf,
    /// Who named it.
    pub named_by: NamedBy,
}

/// Who named a place to look for plugins in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamedBy {
    /// `[plugins] paths`.
    Config,
    /// `$ADVDMD_PLUGIN_PATH`.
    Environment,
    /// The user's data folder.
    User,
    /// The folder `plugins` beside the program.
    Program,
}

impl NamedBy {
    /// Whether the place need not exist.
    pub(super) fn is_optional(self) -> bool {
        matches!(self, Self::User | Self::Program)
    }
}

/// The user's folder of plugins: `advdmd/plugins` in `$XDG_DATA_HOME` or `~/.local/share`. A relative path is none, as
/// the XDG specification has it.
fn user_folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let folder = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data = folder("XDG_DATA_HOME").or_else(|| Some(folder("HOME")?.join(".local/share")));
    data.map(|data| data.join("advdmd/plugins"))
}

/// All places, in the order of search. The user's folder and those beside the program need not exist.
///
/// # Errors
/// A place of the configuration that does not exist.
pub fn places(config_paths: &[PathBuf]) -> Result<Vec<Place>> {
    let mut found: Vec<Place> = Vec::new();
    for path in config_paths {
        if !path.exists() {
            let hint = "it is relative to the configuration file; see `advdmd plugins list`".to_owned();
            return Err(Error::usage(format!("`plugins.paths`: {} does not exist", path.display()), hint));
        }
        found.push(Place { path: path.clone(), named_by: NamedBy::Config });
    }
    if let Some(paths) = env::var_os(PATH_VARIABLE) {
        let paths = env::split_paths(&paths).filter(|path| !path.as_os_str().is_empty());
        found.extend(paths.map(|path| Place { path, named_by: NamedBy::Environment }));
    }
    found.extend(user_folder(|name| env::var_os(name)).map(|path| Place { path, named_by: NamedBy::User }));
    if let Ok(program) = env::current_exe() {
        let folder = program.parent().unwrap_or(Path::new("."));
        // A test binary lies in `target/<profile>/deps`, the program one folder above.
        let above = folder.parent().filter(|_| folder.ends_with("deps"));
        let folders = [Some(folder), above].into_iter().flatten().map(|folder| folder.join("plugins"));
        found.extend(folders.map(|path| Place { path, named_by: NamedBy::Program }));
    }
    Ok(found)
}

/// The dynamic libraries at a place, by name. The file itself where the place is one.
///
/// # Errors
/// A folder that cannot be read.
pub fn libraries(place: &Path) -> std::io::Result<Vec<PathBuf>> {
    if !place.is_dir() {
        return Ok(vec![place.to_owned()]);
    }
    let is_library = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(env::consts::DLL_PREFIX) && name.ends_with(env::consts::DLL_SUFFIX)
    };
    let entries = std::fs::read_dir(place)?.collect::<Result<Vec<_>, _>>()?;
    let mut found: Vec<_> = entries.into_iter().map(|entry| entry.path()).filter(is_library).collect();
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_libraries_count_in_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["libb.so", "liba.so", "notes.txt", "other.so"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let names: Vec<_> =
            libraries(folder.path()).unwrap().iter().map(|p| p.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["liba.so", "libb.so"]);
    }

    #[test]
    fn the_users_folder_is_where_xdg_has_it() {
        let folder = |variables: &[(&str, &str)]| {
            user_folder(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into()))
        };
        let home = ("HOME", "/home/u");
        assert_eq!(folder(&[home]), Some("/home/u/.local/share/advdmd/plugins".into()));
        assert_eq!(folder(&[home, ("XDG_DATA_HOME", "/data")]), Some("/data/advdmd/plugins".into()));
        assert_eq!(folder(&[home, ("XDG_DATA_HOME", "data")]), folder(&[home]));
        assert_eq!(folder(&[home, ("XDG_DATA_HOME", "")]), folder(&[home]));
        assert_eq!(folder(&[]), None);
    }

    #[test]
    fn a_place_of_the_configuration_must_exist() {
        let error = places(&["/no/such/folder".into()]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("/no/such/folder"), "{error}");
    }
}
