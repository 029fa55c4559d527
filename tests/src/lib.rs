//! Where the built program and plugins lie, and a small run, for tests of the whole system.

mod runs;
mod script;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use advdmd::config::{Resolved, RunConfig, load_run};
pub use runs::{Runs, assert_same_numbers, contents, numbers, text};
pub use script::{Script, repository};

/// The shipped plugins, by the stem of their library.
pub const PLUGINS: [&str; 6] =
    ["sampler_flow", "reward_adversarial", "reward_clip", "reward_remote", "backbone_digits", "backbone_sd3"];

/// A run of a few seconds on the digit scenes.
pub const CONFIG: &str = include_str!("../digits.toml");

/// Changes to [`CONFIG`] that make the network as small as it gets: what is saved and resumed matters, not what it learns.
pub const TINY: [&str; 2] = [
    "backbone.init=\"random\"",
    "backbone.architecture={ num_layers = 2, num_attention_heads = 2, attention_head_dim = 16, patch_size = 8 }",
];

/// Whether a number of an update says how long or how much it took, not what was computed: no two runs agree in those.
pub fn is_effort(name: &str) -> bool {
    name.starts_with("time/") || name.starts_with("memory/")
}

/// [`CONFIG`] with changes, written to `folder`.
///
/// # Panics
/// Changes that do not fit.
pub fn resolved(folder: &Path, sets: &[&str]) -> Resolved<RunConfig> {
    let path = folder.join("run.toml");
    std::fs::write(&path, CONFIG).expect("the folder can be written");
    let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
    load_run(&path, &sets).unwrap_or_else(|error| panic!("{error}"))
}

/// The folder of the profile that this test was built with, `target/<profile>`.
///
/// # Panics
/// Outside a cargo target folder.
pub fn profile_dir() -> PathBuf {
    let test = std::env::current_exe().expect("the test has a path");
    let deps = test.parent().expect("the test lies in a folder");
    deps.parent().expect("`deps` lies in the profile's folder").to_owned()
}

/// The program `advdmd`.
pub fn program() -> PathBuf {
    existing(profile_dir().join("advdmd"))
}

/// A shipped plugin's library.
pub fn plugin(stem: &str) -> PathBuf {
    existing(profile_dir().join("plugins").join(format!("lib{stem}.so")))
}

/// The library of `tests/faulty`, whose components fail on purpose. Cargo builds it with the tests.
pub fn faulty() -> PathBuf {
    existing(profile_dir().join("deps/libadvdmd_faulty.so"))
}

fn existing(path: PathBuf) -> PathBuf {
    assert!(path.exists(), "{} is missing: `cargo xtask build` makes it", path.display());
    path
}

/// A copy of the program in a folder of its own, with plugins beside it, as a user has it.
pub struct Installation {
    folder: tempfile::TempDir,
}

impl Installation {
    /// With these libraries in its folder of plugins.
    ///
    /// # Panics
    /// Where files cannot be written.
    pub fn new(libraries: &[PathBuf]) -> Self {
        let installation = Self { folder: tempfile::tempdir().expect("a folder is made") };
        let program = installation.program();
        let linked = std::fs::hard_link(self::program(), &program);
        linked.or_else(|_| std::fs::copy(self::program(), &program).map(drop)).expect("the program is copied");
        std::fs::create_dir(installation.folder().join("plugins")).expect("the folder is made");
        for library in libraries {
            let name = library.file_name().expect("a library has a name");
            let bytes = std::fs::read(library).expect("the library is read");
            installation.write(Path::new("plugins").join(name), bytes);
        }
        installation
    }

    /// With these of the shipped plugins, by the stems of their libraries.
    pub fn with(stems: &[&str]) -> Self {
        Self::new(&stems.iter().map(|stem| plugin(stem)).collect::<Vec<_>>())
    }

    /// The folder, which is also the program's working directory.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The program.
    pub fn program(&self) -> PathBuf {
        self.folder().join("advdmd")
    }

    /// Writes a file of the folder.
    ///
    /// # Panics
    /// Where it cannot be written.
    pub fn write(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        std::fs::write(self.folder().join(name), content).expect("the file is written");
    }

    /// The program with these arguments, in an environment that says nothing to it but where its caches and the
    /// user's data are: in the folder.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.program());
        command.args(args).current_dir(self.folder()).env("OMP_NUM_THREADS", "1");
        for name in [
            "ADVDMD_PLUGIN_PATH",
            "ADVDMD_TORCH_LIB",
            "HF_HUB_OFFLINE",
            "LD_LIBRARY_PATH",
            "LD_PRELOAD",
            "RUST_BACKTRACE",
            "RUST_LOG",
        ] {
            command.env_remove(name);
        }
        command.env("ADVDMD_CACHE", self.folder().join("cache")).env("HF_HUB_CACHE", self.folder().join("hub"));
        command.env("XDG_DATA_HOME", self.folder().join("data"));
        command
    }

    /// Runs the program to its end.
    ///
    /// # Panics
    /// Where it does not start.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the program starts")
    }
}
