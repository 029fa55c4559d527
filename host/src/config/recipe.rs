//! The presets that a configuration starts from with `recipe = "name"`.

use super::merge::merge;
use super::source::{Source, SourceKind};
use super::tree::Node;
use super::view::SchemaView;
use crate::Result;

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
    Recipe { name: "sd3-medium-4step", text: include_str!("../../recipes/sd3-medium-4step.toml") },
    Recipe { name: "sd35-medium-2step", text: include_str!("../../recipes/sd35-medium-2step.toml") },
    Recipe { name: "sd35-medium-4step", text: include_str!("../../recipes/sd35-medium-4step.toml") },
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

    /// The preset as a tree, on top of the preset that it starts from, if it names one.
    ///
    /// # Errors
    /// A text that is no TOML; none of those embedded, as a test shows.
    pub fn tree(&self, schema: SchemaView<'_>) -> Result<Node> {
        let own = Node::parse(&Source::new(SourceKind::Recipe(self.name.to_owned()), self.text))?;
        let Some(base) = own.string("recipe").and_then(Self::named).filter(|base| base != self) else { return Ok(own) };
        let mut tree = base.tree(schema)?;
        merge(&mut tree, own, Some(schema));
        Ok(tree)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree::KeyPath;
    use super::super::{RunConfig, json_schema, load_run};
    use super::*;

    #[test]
    fn every_recipe_needs_only_a_backbone_and_data() {
        let folder = tempfile::tempdir().unwrap();
        for recipe in RECIPES {
            let path = folder.path().join("run.toml");
            let reward = if recipe.text.lines().any(|line| line == "[[reward]]") {
                ""
            } else {
                "[[reward]]\ntype = \"any\"\nweight = 1.0\n"
            };
            let text = format!(
                "recipe = \"{}\"\n[backbone]\ntype = \"any\"\n[data]\ntype = \"digits\"\ntask_weights = [1, 1, 1, 1, 1, 1]\n{reward}",
                recipe.name
            );
            std::fs::write(&path, text).unwrap();
            let resolved = load_run(&path, &[]).unwrap_or_else(|error| panic!("{}: {error}", recipe.name));
            assert_eq!(resolved.config.recipe.as_deref(), Some(recipe.name));
            assert!(recipe.summary().ends_with('.'), "{}", recipe.name);
        }
    }

    #[test]
    fn a_recipe_builds_on_another() {
        let schema = json_schema::<RunConfig>();
        let tree = Recipe::named("sd35-medium-2step").unwrap().tree(SchemaView::new(&schema)).unwrap();
        let number = |key: &str| tree.get(&KeyPath::of(key)).map(|node| node.to_json().to_string());
        assert_eq!(number("sampler.steps").as_deref(), Some("2"));
        assert_eq!(number("critic.learner_optimizer.lr").as_deref(), Some("0.0001"));
        assert_eq!(tree.string("recipe"), Some("advdmd"));
    }

    #[test]
    fn every_number_of_a_recipe_has_a_source() {
        for recipe in RECIPES {
            let sections = ["[compute]", "[plugins]"];
            let mut section = "";
            for line in recipe.text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
                if line.starts_with('[') {
                    section = line;
                } else if !line.contains(" = \"") && !sections.contains(&section) {
                    assert!(line.contains("# "), "{}: no source for `{line}`", recipe.name);
                }
            }
        }
    }
}
