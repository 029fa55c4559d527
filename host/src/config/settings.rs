//! What loading needs to know of a configuration type.

use advdmd_sdk::Kind;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::rules::{self, Problem};
use super::schema::{Component, Plugins, RunConfig};
use super::{KeyPath, PretrainConfig};

/// A configuration that [`load_run`](super::load_run) and its siblings can read.
pub trait Settings: DeserializeOwned + Serialize + JsonSchema {
    /// Whether it can start from a recipe.
    const RECIPES: bool;
    /// The sections that are tables of components.
    const SECTIONS: &[(&str, Kind)];

    /// What no schema can say: values that do not fit together.
    fn problems(&self) -> Vec<Problem>;

    /// Where to look for plugins.
    fn plugins(&self) -> &Plugins;

    /// The components it names, with the path of each one's table.
    fn components(&self) -> Vec<(KeyPath, Kind, &Component)>;
}

impl Settings for RunConfig {
    const RECIPES: bool = true;
    const SECTIONS: &[(&str, Kind)] = &[
        ("backbone", Kind::Backbone),
        ("sampler", Kind::Sampler),
        ("reward", Kind::Reward),
        ("held_out", Kind::Reward),
    ];

    fn problems(&self) -> Vec<Problem> {
        rules::of_run(self)
    }

    fn plugins(&self) -> &Plugins {
        &self.plugins
    }

    fn components(&self) -> Vec<(KeyPath, Kind, &Component)> {
        let mut found = vec![
            (KeyPath::of("backbone"), Kind::Backbone, &self.backbone),
            (KeyPath::of("sampler"), Kind::Sampler, &self.sampler.component),
        ];
        let rewards = self.reward.iter().enumerate();
        found.extend(rewards.map(|(i, reward)| (KeyPath::of(&format!("reward.{i}")), Kind::Reward, &reward.component)));
        let held_out = self.held_out.iter().enumerate();
        let key = |index| KeyPath::of(&format!("held_out.{index}"));
        found.extend(held_out.map(|(index, reward)| (key(index), Kind::Reward, &reward.component)));
        found
    }
}

impl Settings for PretrainConfig {
    const RECIPES: bool = false;
    const SECTIONS: &[(&str, Kind)] = &[("backbone", Kind::Backbone)];

    fn problems(&self) -> Vec<Problem> {
        rules::of_pretraining(self)
    }

    fn plugins(&self) -> &Plugins {
        &self.plugins
    }

    fn components(&self) -> Vec<(KeyPath, Kind, &Component)> {
        vec![(KeyPath::of("backbone"), Kind::Backbone, &self.backbone)]
    }
}
