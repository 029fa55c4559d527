//! What AdvDMD reads from files that others wrote, given any bytes: nothing panics, and what is accepted keeps its word.
//!
//! Each target is a function of bytes. libFuzzer drives it in `fuzz_targets/`, starting from `corpus/`; an ordinary test
//! runs it over the corpus and simple damage to it.

mod config;
mod header;
mod index;
mod pickle;
mod weights;

pub use config::config;
pub use header::header;
pub use index::index;
pub use pickle::pickle;
pub use weights::weights;

/// A target: its name, which is also that of its corpus, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 5] =
    [("header", header), ("config", config), ("index", index), ("weights", weights), ("pickle", pickle)];

/// A message that can stand in a list of messages.
fn assert_one_line(message: &str) {
    assert!(!message.trim().is_empty(), "an error says nothing");
    assert!(
        !message.contains(|c: char| c.is_control()),
        "a message of several lines or with control characters: {message:?}"
    );
}
