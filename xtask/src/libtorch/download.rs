//! Brings libtorch with pip, which knows the user's mirrors, proxies and certificates.

use super::cache::Cache;
use super::python::Python;
use super::wheel::{WHEELS, Wheel};
use super::{VERSION, layout};
use anyhow::{Result, bail, ensure};
use std::fs;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::{Command, Stdio};

/// The platform tags of the wheels: each has its own, and pip takes only those that it is told.
const PLATFORMS: [&str; 4] =
    ["manylinux_2_28_x86_64", "manylinux_2_25_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"];

/// The Pythons that the torch wheel exists for; they differ only in a part that is not unpacked.
const WHEEL_PYTHONS: std::ops::RangeInclusive<(u64, u64)> = (3, 10)..=(3, 14);
const WHEEL_PYTHON_OTHERWISE: (u64, u64) = (3, 12);

/// Downloads and unpacks libtorch into the entry `folder` of the cache.
pub fn into(folder: &Path, pythons: &[Python], cache: &Cache) -> Result<()> {
    let python = match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => python_with_pip(pythons),
        (system, processor) => Err(format!("there is no download for {system} on {processor}")),
    };
    let python = match python {
        Ok(python) => python,
        Err(reason) => bail!("no libtorch {VERSION} on this machine, and {reason}.\n{}", remedies(folder)),
    };
    eprintln!("downloading libtorch {VERSION} with the pip of {} (550 MB) …", python.program.display());
    cache.fill(folder, |partial| {
        let wheels = partial.join("wheels");
        fs::create_dir(&wheels)?;
        ensure!(
            download(python, &wheels)?,
            "pip could not bring libtorch {VERSION}; its own message is above.\n{}",
            remedies(folder)
        );
        eprintln!("unpacking …");
        for wheel in &WHEELS {
            wheel.unpack(&wheel.find(&wheels)?, partial)?;
        }
        fs::remove_dir_all(&wheels)?;
        layout::complete(partial)
    })
}

fn python_with_pip(pythons: &[Python]) -> Result<&Python, String> {
    pythons.iter().find(|python| python.has_pip).ok_or_else(|| {
        if pythons.is_empty() {
            "there is no Python (python3, or the one that PYTHON names) to download it with".into()
        } else {
            "the Python here has no pip to download it with (Debian, Ubuntu: apt install python3-pip)".into()
        }
    })
}

/// Whether pip ended well.
fn download(python: &Python, folder: &Path) -> Result<bool> {
    let version = if WHEEL_PYTHONS.contains(&python.version) { python.version } else { WHEEL_PYTHON_OTHERWISE };
    let mut pip = Command::new(&python.program);
    pip.args(["-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"])
        .args(["--implementation", "cp", "--python-version", &format!("{}.{}", version.0, version.1)])
        .args(PLATFORMS.iter().flat_map(|platform| ["--platform", platform]))
        .arg("--dest")
        .arg(folder)
        .args(WHEELS.iter().map(Wheel::requirement))
        // Standard output is for results; pip draws its bar where it writes, if that is a terminal.
        .stdout(Stdio::from(io::stderr()));
    if !io::stderr().is_terminal() {
        pip.args(["--progress-bar", "off"]);
    }
    Ok(pip.status()?.success())
}

fn remedies(folder: &Path) -> String {
    format!(
        "Do one of these, then run `cargo xtask setup` again:\n  \
         - make `python3 -m pip` work (pip 20.3 or newer), and reach a package index; PYTHON names another Python\n  \
         - install torch {VERSION} in the Python that python3 or PYTHON names\n  \
         - unpack a libtorch {VERSION}, and set LIBTORCH to its folder\n  \
         - copy {} from a machine that has it",
        folder.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_pip_says_what_to_install() {
        let problem = python_with_pip(&[]).err().unwrap();
        assert!(problem.contains("no Python"), "{problem}");
        assert!(remedies(Path::new("/cache/x")).contains("/cache/x"));
    }
}
