//! Pythons on this machine: an installed torch holds a libtorch, and pip can bring one.

use super::cache::Cache;
use super::{VERSION, layout};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// A Python that runs.
pub struct Python {
    pub program: PathBuf,
    pub version: (u64, u64),
    pub has_pip: bool,
    torch: Option<Torch>,
}

/// A torch that is installed in a Python.
struct Torch {
    version: String,
    /// The package's folder, with `include/` and `lib/`.
    folder: PathBuf,
}

/// Asks without importing torch, which takes seconds.
const PROBE: &str = r#"
import json, sys
found = {"version": sys.version_info[:2]}
try:
    from importlib import metadata, util
    found["pip"] = util.find_spec("pip") is not None
    found["torch"] = metadata.version("torch")
    found["folder"] = list(util.find_spec("torch").submodule_search_locations)[0]
except Exception:
    pass
print(json.dumps(found))
"#;

/// The libraries that a CPU program loads, by the beginning of their names.
const TORCH_LIBRARIES: [&str; 3] = ["libtorch_cpu.so", "libc10.so", "libgomp"];
const CUDA_LIBRARIES: [&str; 2] = ["libcudart.so.", "libcupti.so."];

/// $PYTHON, the active virtual environment, `python3` and `python`, where they run.
pub fn installed() -> Vec<Python> {
    let chosen = env::var_os("PYTHON").filter(|name| !name.is_empty()).map(PathBuf::from);
    let environment = env::var_os("VIRTUAL_ENV").map(|folder| Path::new(&folder).join("bin/python"));
    let programs = chosen.into_iter().chain(environment).chain(["python3".into(), "python".into()]);
    programs.filter_map(probe).collect()
}

fn probe(program: PathBuf) -> Option<Python> {
    let output = Command::new(&program).args(["-c", PROBE]).output().ok()?;
    let found: Value = serde_json::from_slice(&output.stdout).ok()?;
    let text = |key: &str| Some(found[key].as_str()?.to_owned());
    let torch = text("torch").zip(text("folder"));
    Some(Python {
        program,
        version: (found["version"][0].as_u64()?, found["version"][1].as_u64()?),
        has_pip: found["pip"].as_bool().unwrap_or(false),
        torch: torch.map(|(version, folder)| Torch { version, folder: folder.into() }),
    })
}

/// A folder of links to the first installed torch that fits. One that does not is named, as its owner may expect its use.
pub fn link_torch<'a>(pythons: &'a [Python], cache: &Cache) -> Option<(&'a Python, PathBuf)> {
    for python in pythons {
        let Some(torch) = &python.torch else { continue };
        if advdmd_build::libtorch::without_build_tag(&torch.version) != VERSION {
            eprintln!("{} has torch {}; not used, {VERSION} is needed", python.program.display(), torch.version);
            continue;
        }
        let entry = cache.folder.join(entry_name(&torch.folder));
        let links_work = layout::check(&entry).is_ok() && load(python, &entry).is_ok();
        let made = if links_work {
            Ok(())
        } else {
            cache.fill(&entry, |folder| make_links(&torch.folder, folder)).and_then(|()| load(python, &entry))
        };
        match made {
            Ok(()) => return Some((python, entry)),
            Err(problem) => eprintln!("the torch of {} cannot be used: {problem:#}", python.program.display()),
        }
    }
    None
}

/// One entry for each place that a torch is installed in.
fn entry_name(torch: &Path) -> String {
    let mut hasher = DefaultHasher::new();
    torch.hash(&mut hasher);
    format!("libtorch-{VERSION}-python-{:08x}", hasher.finish() >> 32)
}

/// Links the headers and the CPU libraries of the package `torch` into `folder`.
///
/// The libraries look for each other in the folder that they were found in, which is that of the links; so the CUDA
/// libraries that they name are linked beside them.
fn make_links(torch: &Path, folder: &Path) -> Result<()> {
    fs::create_dir(folder.join("lib"))?;
    symlink(torch.join("include"), folder.join("include"))?;
    link_libraries(&torch.join("lib"), &TORCH_LIBRARIES, folder)?;
    let packages = torch.parent().context("torch lies in no folder")?;
    if let Ok(toolkit_parts) = fs::read_dir(packages.join("nvidia")) {
        for part in toolkit_parts {
            let libraries = part?.path().join("lib");
            if libraries.is_dir() {
                link_libraries(&libraries, &CUDA_LIBRARIES, folder)?;
            }
        }
    }
    layout::complete(folder)
}

fn link_libraries(from: &Path, beginnings: &[&str], folder: &Path) -> Result<()> {
    for file in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let file = file?;
        let name = file.file_name();
        if beginnings.iter().any(|beginning| name.to_string_lossy().starts_with(beginning)) {
            symlink(file.path(), folder.join("lib").join(name))?;
        }
    }
    Ok(())
}

/// Loads the library as a program will, and so finds a library that is missing beside it.
fn load(python: &Python, folder: &Path) -> Result<()> {
    let library = folder.join("lib/libtorch_cpu.so");
    let output = Command::new(&python.program)
        .args(["-c", "import ctypes, sys; ctypes.CDLL(sys.argv[1])"])
        .arg(library)
        .output()?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{}", errors.lines().next_back().unwrap_or("it does not load"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_hold_the_cpu_libraries_only() {
        let base = tempfile::tempdir().unwrap();
        let packages = base.path().join("site-packages");
        let [torch, nvidia] = ["torch", "nvidia/cu13"].map(|name| packages.join(name));
        fs::create_dir_all(torch.join("include/torch/headeronly")).unwrap();
        let macros = "#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 11\n#define TORCH_VERSION_PATCH 0\n";
        fs::write(torch.join("include/torch/headeronly/version.h"), macros).unwrap();
        for folder in [&torch, &nvidia] {
            fs::create_dir_all(folder.join("lib")).unwrap();
        }
        for name in
            ["libtorch_cpu.so", "libtorch_cuda.so", "libc10.so", "libc10_cuda.so", "libtorch.so", "libgomp.so.1"]
        {
            fs::write(torch.join("lib").join(name), name).unwrap();
        }
        for name in ["libcudart.so.13", "libcupti.so.13", "libcublas.so.13"] {
            fs::write(nvidia.join("lib").join(name), name).unwrap();
        }
        let folder = base.path().join("libtorch");
        fs::create_dir(&folder).unwrap();
        make_links(&torch, &folder).unwrap();
        let mut linked: Vec<_> =
            fs::read_dir(folder.join("lib")).unwrap().map(|file| file.unwrap().file_name()).collect();
        linked.sort();
        assert_eq!(
            linked,
            ["libc10.so", "libcudart.so.13", "libcupti.so.13", "libgomp.so.1", "libtorch.so", "libtorch_cpu.so"]
        );
        assert!(!folder.join("lib/libtorch.so").is_symlink(), "the linker script is ours");
    }

    #[test]
    fn each_place_has_its_own_entry() {
        let name = entry_name(Path::new("/a/torch"));
        assert!(name.starts_with("libtorch-2.11.0-python-"));
        assert_ne!(name, entry_name(Path::new("/b/torch")));
    }

    #[test]
    fn what_is_no_python_is_passed_over() {
        assert!(probe("/no/such/python".into()).is_none());
        assert!(probe("true".into()).is_none());
    }
}
