//! One call from a plugin's own tests.

use std::path::{Path, PathBuf};

use advdmd_sdk::Kind;
use serde_json::Value;

/// Checks a reward of this crate: expands to a test that loads the library that cargo built beside it.
///
/// ```ignore
/// advdmd_conformance::reward!("colorfulness");
/// // With a configuration, as JSON; a name of the test in front allows several in one file.
/// advdmd_conformance::reward!(twice_as_much: "colorfulness", { "scale": 2.0 });
/// ```
///
/// The crate's `[lib]` has `crate-type = ["cdylib", "rlib"]`, and the call stands in a file of `tests/`, alone or with other
/// such calls: tests of another sort, run at the same time in the same process, would be measured too.
#[macro_export]
macro_rules! reward {
    ($($rest:tt)*) => { $crate::__check!(Reward, reward_conforms, $($rest)*); };
}

/// Checks a sampler of this crate; see [`reward!`].
#[macro_export]
macro_rules! sampler {
    ($($rest:tt)*) => { $crate::__check!(Sampler, sampler_conforms, $($rest)*); };
}

/// Checks a backbone of this crate (feature `torch`); see [`reward!`].
#[macro_export]
macro_rules! backbone {
    ($($rest:tt)*) => { $crate::__check!(Backbone, backbone_conforms, $($rest)*); };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __check {
    ($kind:ident, $default:ident, $test:ident: $name:literal $(,)?) => {
        $crate::__check!($kind, $default, $test: $name, {});
    };
    ($kind:ident, $default:ident, $name:literal $(,)?) => { $crate::__check!($kind, $default, $default: $name, {}); };
    ($kind:ident, $default:ident, $name:literal, $config:tt $(,)?) => {
        $crate::__check!($kind, $default, $default: $name, $config);
    };
    ($kind:ident, $default:ident, $test:ident: $name:literal, $config:tt $(,)?) => {
        #[test]
        fn $test() {
            let library = $crate::library(env!("CARGO_PKG_NAME"));
            let config = $crate::__private::json!($config);
            $crate::check_file(&library, $crate::__private::Kind::$kind, $name, &config).assert();
        }
    };
}

/// The dynamic library of `package` that cargo built beside the running test: `target/<profile>/deps/lib<package>.so`.
///
/// # Panics
/// Outside a cargo target folder, or where there is no such library.
pub fn library(package: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test has a path");
    let deps = test.parent().unwrap_or(Path::new("."));
    let library = deps.join(format!("lib{}.so", package.replace('-', "_")));
    assert!(
        library.exists(),
        "{} is missing: the plugin's Cargo.toml needs `[lib] crate-type = [\"cdylib\", \"rlib\"]`",
        library.display()
    );
    library
}

/// What the macros name.
#[doc(hidden)]
pub mod __private {
    pub use advdmd_sdk::Kind;
    pub use serde_json::json;
}

/// Fails to compile where the types of the macros change.
const _: fn(&Path, Kind, &str, &Value) -> crate::Report = crate::check_file;
