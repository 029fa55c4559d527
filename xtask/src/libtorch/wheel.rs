//! Takes what is needed out of Python wheels, which are zip files.

use super::VERSION;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use zip::ZipArchive;

/// A wheel and what is taken from it.
pub struct Wheel {
    /// The file name begins with it, as wheels spell it.
    pub name: &'static str,
    /// What pip is asked for.
    requirement: &'static str,
    version: &'static str,
    /// Files that go to `lib/`.
    libraries: &'static [&'static str],
    /// Files below it go to `include/`.
    headers: Option<&'static str>,
}

/// The three wheels of a CPU program. `libtorch_cpu.so` names the two small CUDA libraries, so a program does not start
/// without them; they do nothing on a machine without a GPU.
pub const WHEELS: [Wheel; 3] = [
    Wheel {
        name: "torch",
        requirement: "torch",
        version: VERSION,
        libraries: &["torch/lib/libtorch_cpu.so", "torch/lib/libc10.so", "torch/lib/libgomp.so.1"],
        headers: Some("torch/include/"),
    },
    Wheel {
        name: "nvidia_cuda_runtime",
        requirement: "nvidia-cuda-runtime",
        version: "13.0.*",
        libraries: &["nvidia/cu13/lib/libcudart.so.13"],
        headers: None,
    },
    Wheel {
        name: "nvidia_cuda_cupti",
        requirement: "nvidia-cuda-cupti",
        version: "13.0.*",
        libraries: &["nvidia/cu13/lib/libcupti.so.13"],
        headers: None,
    },
];

impl Wheel {
    /// As pip reads it: `torch==2.11.0`.
    pub fn requirement(&self) -> String {
        format!("{}=={}", self.requirement, self.version)
    }

    /// The wheel's file among those in `folder`.
    pub fn find(&self, folder: &Path) -> Result<PathBuf> {
        let start = format!("{}-", self.name);
        let files = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        files
            .filter_map(|file| Some(file.ok()?.path()))
            .find(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with(&start) && name.ends_with(".whl")
            })
            .with_context(|| format!("pip ended well but brought no {} wheel", self.name))
    }

    /// Unpacks the needed files of `wheel` into `include/` and `lib/` of `folder`.
    pub fn unpack(&self, wheel: &Path, folder: &Path) -> Result<()> {
        self.unpack_files(wheel, folder).with_context(|| format!("cannot unpack {}", wheel.display()))
    }

    fn unpack_files(&self, wheel: &Path, folder: &Path) -> Result<()> {
        let mut archive = ZipArchive::new(File::open(wheel)?)?;
        let mut missing: BTreeSet<&str> = self.libraries.iter().copied().collect();
        for index in 0..archive.len() {
            let mut entry = archive.by_index(index)?;
            let name = entry.name()?.into_owned();
            let Some(place) = self.place(&name).filter(|_| entry.is_file()) else { continue };
            missing.remove(name.as_str());
            let target = folder.join(place);
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent)?;
            }
            io::copy(&mut entry, &mut File::create(&target)?).with_context(|| target.display().to_string())?;
        }
        ensure!(missing.is_empty(), "it has no {}", Vec::from_iter(missing).join(", "));
        Ok(())
    }

    /// Where an entry of the archive belongs, if it is needed.
    fn place(&self, entry: &str) -> Option<PathBuf> {
        if self.libraries.contains(&entry) {
            return Some(Path::new("lib").join(Path::new(entry).file_name()?));
        }
        let header = Path::new(entry.strip_prefix(self.headers?)?);
        // A path that would leave the folder is no header.
        let inside = header.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        inside.then(|| Path::new("include").join(header))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libtorch::layout;
    use std::io::Write;
    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    const VERSION_MACROS: &str =
        "#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 11\n#define TORCH_VERSION_PATCH 0\n";

    /// A wheel of the given files, each but the version header with its own name as its contents.
    fn write_wheel(path: &Path, entries: &[&str]) {
        let mut archive = ZipWriter::new(File::create(path).unwrap());
        for entry in entries {
            archive.start_file(*entry, SimpleFileOptions::default()).unwrap();
            let text = if *entry == VERSION_HEADER { VERSION_MACROS } else { entry };
            archive.write_all(text.as_bytes()).unwrap();
        }
        archive.finish().unwrap();
    }

    const VERSION_HEADER: &str = "torch/include/torch/headeronly/version.h";

    const TORCH: [&str; 8] = [
        "torch/__init__.py",
        "torch/lib/libtorch_cpu.so",
        "torch/lib/libtorch_cuda.so",
        "torch/lib/libc10.so",
        "torch/lib/libgomp.so.1",
        "torch/include/torch/csrc/api/include/torch/torch.h",
        "torch/include/ATen/ATen.h",
        VERSION_HEADER,
    ];

    #[test]
    fn three_wheels_make_one_folder() {
        let base = tempfile::tempdir().unwrap();
        let folder = base.path().join("libtorch");
        let named = |name: &str| base.path().join(name);
        write_wheel(&named("torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl"), &TORCH);
        let runtime = ["nvidia/cu13/lib/libcudart.so.13", "nvidia/cu13/lib/libcudart_static.a"];
        write_wheel(&named("nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.whl"), &runtime);
        write_wheel(&named("nvidia_cuda_cupti-13.0.85-py3-none-any.whl"), &["nvidia/cu13/lib/libcupti.so.13"]);
        for wheel in &WHEELS {
            wheel.unpack(&wheel.find(base.path()).unwrap(), &folder).unwrap();
        }
        layout::complete(&folder).unwrap();
        let mut libraries: Vec<_> =
            fs::read_dir(folder.join("lib")).unwrap().map(|file| file.unwrap().file_name()).collect();
        libraries.sort();
        assert_eq!(
            libraries,
            ["libc10.so", "libcudart.so.13", "libcupti.so.13", "libgomp.so.1", "libtorch.so", "libtorch_cpu.so"]
        );
        let header = fs::read_to_string(folder.join("include/ATen/ATen.h")).unwrap();
        assert_eq!(header, "torch/include/ATen/ATen.h");
        assert!(!folder.join("include/__init__.py").exists());
    }

    #[test]
    fn a_wheel_that_lacks_a_library_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("torch-2.11.0.whl");
        write_wheel(&path, &TORCH[2..]);
        let problem = format!("{:#}", WHEELS[0].unpack(&path, base.path()).unwrap_err());
        assert!(problem.ends_with("it has no torch/lib/libtorch_cpu.so"), "{problem}");
        assert!(WHEELS[1].find(base.path()).is_err());
    }

    #[test]
    fn an_entry_cannot_leave_the_folder() {
        assert_eq!(WHEELS[0].place("torch/include/../../x.h"), None);
        assert_eq!(WHEELS[0].place("torch/include//x.h"), None);
        assert_eq!(WHEELS[0].place("torch/include/a/x.h"), Some("include/a/x.h".into()));
    }

    #[test]
    fn pip_is_asked_for_exact_versions() {
        let asked: Vec<_> = WHEELS.iter().map(Wheel::requirement).collect();
        assert_eq!(asked, ["torch==2.11.0", "nvidia-cuda-runtime==13.0.*", "nvidia-cuda-cupti==13.0.*"]);
    }
}
