//! Why a plugin does not load: one readable line each, beginning with the path.

use std::io;
use std::path::PathBuf;

use super::Mismatch;
use crate::Error;

/// Why a plugin does not load.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// There is no such file.
    #[error("{}: no such file", path.display())]
    NotFound {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is something else: a text, a library for another machine, a truncated or an ordinary library.
    #[error("{}: {reason}", path.display())]
    NotAPlugin {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        reason: String,
    },
    /// The plugin is built for another host. One line per field.
    #[error("{}", lines(path, mismatches))]
    Incompatible {
        /// The file.
        path: PathBuf,
        /// What does not fit; never empty.
        mismatches: Vec<Mismatch>,
    },
    /// The plugin needs a library that the system does not find.
    #[error("{}: needs {library}, which is not found: {}", path.display(), advice(library))]
    MissingLibrary {
        /// The file.
        path: PathBuf,
        /// The library it needs.
        library: String,
    },
    /// The dynamic linker refuses the file for another reason.
    #[error("{}: cannot be loaded: {message}", path.display())]
    Link {
        /// The file.
        path: PathBuf,
        /// What the dynamic linker says.
        message: String,
    },
    /// The header names an entry symbol that the library does not export.
    #[error("{}: has no symbol `{symbol}`, which its header names as entry (was it stripped or renamed?)", path.display())]
    NoEntry {
        /// The file.
        path: PathBuf,
        /// The symbol.
        symbol: String,
    },
    /// The functions have other types than the host's, under the same version of the protocol.
    #[error(
        "{}: its functions are laid out differently (at `{place}`; `RUST_LOG=advdmd_sdk=debug` tells how): \
         rebuild it with an unmodified advdmd-sdk {host}, it was built with {plugin}",
        path.display()
    )]
    Layout {
        /// The file.
        path: PathBuf,
        /// The deepest field or function that differs.
        place: String,
        /// The plugin's version of the SDK.
        plugin: String,
        /// The host's version of the SDK.
        host: String,
    },
    /// The entry does not describe the functions, which only a plugin in C may leave out.
    #[error(
        "{}: its entry does not describe its functions, as those of every plugin that is built with advdmd-sdk ({sdk}) do: \
         the file is damaged or was changed; rebuild it",
        path.display()
    )]
    NoLayout {
        /// The file.
        path: PathBuf,
        /// The plugin's version of the SDK.
        sdk: String,
    },
    /// A function of the plugin's table is null, which only C can write.
    #[error("{}: has no function `{function}`: every function of a table must be there", path.display())]
    NoFunction {
        /// The file.
        path: PathBuf,
        /// Table and function, or the table that is missing altogether.
        function: String,
    },
    /// The plugin loads, but its first functions fail.
    #[error("{}: {source}", path.display())]
    Start {
        /// The file.
        path: PathBuf,
        /// What the plugin says.
        source: Error,
    },
}

fn lines(path: &std::path::Path, mismatches: &[Mismatch]) -> String {
    let lines: Vec<_> = mismatches.iter().map(|mismatch| format!("{}: {mismatch}", path.display())).collect();
    lines.join("\n")
}

fn advice(library: &str) -> &'static str {
    let torch = ["libtorch", "libc10", "libcudart", "libcupti", "libgomp"];
    if torch.iter().any(|name| library.starts_with(name)) {
        "it belongs to libtorch 2.11.0; put libtorch's `lib` folder into LD_LIBRARY_PATH"
    } else {
        "install it or put its folder into LD_LIBRARY_PATH"
    }
}
