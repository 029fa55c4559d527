//! The presets that a configuration starts from with `recipe = "name"`.

use std::sync::Arc;

use super::source::{Source, SourceKind};

/// A preset embedded in the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    /// What a configuration writes.
    pub name: &'static str,
    /// The TOML text.
    pub text: &'static str,
}

/// All presets, by name.
pub const RECIPES: &[Recipe] = &[
    Recipe { name: "advdmd", text: include_str!("../../recipes/advdmd.toml") },
    Recipe { name: "dmd2", text: include_str!("../../recipes/dmd2.toml") },
    Recipe { name: "flow-grpo", text: include_str!("../../recipes/flow-grpo.toml") },
];

impl Recipe {
    /// The preset of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        RECIPES.iter().copied().find(|recipe| recipe.name == name)
    }

    /// What the preset is for: the comment at the head of its text, as one paragraph.
    #[must_use]
    pub fn summary(&self) -> String {
        let lines = self.text.lines().map_while(|line| line.strip_prefix('#')).map(str::trim);
        lines.take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
    }

    /// The preset as a text of a configuration.
    #[must_use]
    pub fn source(&self) -> Arc<Source> {
        Source::new(SourceKind::Recipe(self.name.to_owned()), self.text)
    }
}
