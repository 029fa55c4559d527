//! Whether a plugin fits this host, field by field.

use std::cmp::Ordering;
use std::fmt;

use super::Header;

/// A field of the header that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// Name of the field.
    pub field: &'static str,
    /// The plugin's value.
    pub plugin: String,
    /// The host's value.
    pub host: String,
    /// What to do about it.
    pub advice: &'static str,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: plugin {}, host {}: {}", self.field, self.plugin, self.host, self.advice)
    }
}

/// The fields in which `plugin` does not fit `host`, most basic first. Versions of the SDK and of rustc may differ: the
/// edge is C's.
#[must_use]
pub fn mismatches(plugin: &Header, host: &Header) -> Vec<Mismatch> {
    let mut found = Vec::new();
    let mut add = |field, plugin: String, host: String, advice| found.push(Mismatch { field, plugin, host, advice });
    let (theirs, ours) = (plugin.protocol(), host.protocol());
    let advice = match theirs.major.cmp(&ours.major) {
        Ordering::Equal => None,
        Ordering::Less => {
            Some("the plugin is older; rebuild it with a newer advdmd-sdk. (This number is not the product's version.)")
        }
        Ordering::Greater => Some("the plugin is newer; update advdmd. (This number is not the product's version.)"),
    };
    if let Some(advice) = advice {
        add("protocol", theirs.to_string(), ours.to_string(), advice);
    }
    // A header in C may leave it empty: the machine stands in the ELF file, which was looked at before.
    if !plugin.target().is_empty() && plugin.target() != host.target() {
        let advice = "build the plugin for the host's target";
        add("target", plugin.target().to_owned(), host.target().to_owned(), advice);
    }
    // A host without libtorch passes numbers, which a plugin with libtorch takes as well.
    let (theirs, ours) = (plugin.libtorch(), host.libtorch());
    if !theirs.is_empty() && !ours.is_empty() && theirs != ours {
        let advice = "rebuild the plugin with the tch version that advdmd-sdk names";
        add("libtorch", theirs.to_owned(), ours.to_owned(), advice);
    }
    found
}
