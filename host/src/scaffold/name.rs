//! Names of plugins: those of a package, of a component and of a folder at once.

use crate::error::{Error, Result};

/// Longest name that the header of a plugin holds.
const MAX: usize = 63;

/// Packages that the plugin depends on; one of the same name could not name them.
const DEPENDENCIES: [&str; 8] =
    ["advdmd", "advdmd-build", "advdmd-conformance", "advdmd-nn", "advdmd-sdk", "schemars", "serde", "tch"];

/// What cargo refuses as the name of a package, or could not build: Rust's words and its own crates.
const RESERVED: [&str; 61] = [
    "abstract",
    "alloc",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "build",
    "const",
    "continue",
    "core",
    "crate",
    "deps",
    "do",
    "dyn",
    "else",
    "enum",
    "example",
    "examples",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "incremental",
    "let",
    "loop",
    "macro",
    "match",
    "mod",
    "move",
    "mut",
    "override",
    "priv",
    "proc-macro",
    "pub",
    "ref",
    "return",
    "self",
    "static",
    "std",
    "struct",
    "super",
    "test",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    "unsafe",
    "unsized",
    "use",
    "virtual",
    "where",
    "while",
    "yield",
];

/// # Errors
/// A name that one of its uses forbids; says which names are good.
pub fn check(name: &str) -> Result<()> {
    let refuse = |message: String| {
        let mut hint = "lower-case letters, digits and `-`, such as `my-reward`".to_owned();
        let better = suggestion(name);
        if better != name && plain(&better) && !taken(&better) {
            hint = format!("`{better}` would do: {hint}");
        }
        Err(Error::usage(message, hint))
    };
    if name.len() > MAX {
        return refuse(format!("the name has {} letters, and a plugin's header holds {MAX}", name.len()));
    }
    if !plain(name) {
        return refuse(format!("{name:?} cannot be the name of a package and of a component"));
    }
    if taken(name) {
        return refuse(format!("{name:?} is a word of Rust or the name of a crate that the plugin uses"));
    }
    Ok(())
}

fn plain(name: &str) -> bool {
    let parts = || name.split('-');
    name.len() <= MAX
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && parts().all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()))
}

fn taken(name: &str) -> bool {
    DEPENDENCIES.contains(&name) || RESERVED.contains(&name)
}

/// The name in the letters that are allowed.
fn suggestion(name: &str) -> String {
    let mut better = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && better.ends_with(|last: char| last.is_ascii_lowercase()) {
            better.push('-');
        }
        better.push(if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '-' });
    }
    let parts: Vec<_> = better.split('-').filter(|part| !part.is_empty()).collect();
    parts.join("-").trim_start_matches(|first: char| first.is_ascii_digit() || first == '-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The Rust Reference, "Keywords": strict and reserved ones of the 2024 edition, in lower case.
    const KEYWORDS: &str = "as break const continue crate else enum extern false fn for if impl in let loop match mod move mut pub \
                            ref return self static struct super trait true type unsafe use where while async await dyn \
                            abstract become box do final gen macro override priv try typeof unsized virtual yield";
    /// What else cargo refuses: names of its own folders and of crates that come with Rust.
    const OF_CARGO: &str = "deps examples build incremental alloc core proc-macro std test";

    #[test]
    fn no_word_of_rust_is_a_name() {
        for word in KEYWORDS.split_whitespace().chain(OF_CARGO.split_whitespace()) {
            let error = check(word).err().unwrap_or_else(|| panic!("{word} is taken for a name")).to_string();
            assert!(error.contains("is a word of Rust"), "{error}");
        }
        // Weak keywords are names.
        for word in ["union", "safe", "raw", "my-type"] {
            assert!(check(word).is_ok(), "{word}");
        }
    }
}
