//! What a plugin contains: components registered by macros, collected in one manifest.
//!
//! A component is a configuration type: `serde` reads it from the user's TOML, `schemars` describes it, and
//! its `build` makes the reward, sampler or backbone. [`register_reward!`](crate::register_reward) and its
//! siblings enter it under a name; [`export_plugin!`](crate::export_plugin) turns all entries of the crate into
//! what the host loads.
//!
//! Entries are collected with `inventory` and read with `typetag`, both inside one binary only: a dynamic library
//! has its own copies of their registries. The host never deserialises a plugin's type; it forwards the
//! table as JSON and the plugin picks its own variant.

use schemars::{JsonSchema, Schema};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::reward::RewardInit;
use crate::{Error, Result, Reward, Sampler};

/// What a component is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Scores samples.
    Reward,
    /// Gives the transitions of a trajectory.
    Sampler,
    /// Gives denoisers and encoders.
    Backbone,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Reward => "reward",
            Self::Sampler => "sampler",
            Self::Backbone => "backbone",
        })
    }
}

/// One component of a plugin, as the host lists it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Component {
    /// Reward, sampler or backbone.
    pub kind: Kind,
    /// The `type` that a config names.
    pub name: String,
    /// JSON Schema of its configuration, without the `type` key.
    pub schema: Schema,
}

/// Everything a plugin offers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Components in order of kind and name.
    pub components: Vec<Component>,
}

impl Manifest {
    /// The components registered in this binary: the plugin's own inside a dynamic library, those of all
    /// linked plugins inside a program.
    ///
    /// # Errors
    /// Two components of one kind under one name.
    pub fn of_this_binary() -> Result<Self> {
        let mut components: Vec<_> = inventory::iter::<Registration>
            .into_iter()
            .map(|entry| Component { kind: entry.kind, name: entry.name.to_owned(), schema: (entry.schema)() })
            .collect();
        components.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        for pair in components.windows(2) {
            if (pair[0].kind, &pair[0].name) == (pair[1].kind, &pair[1].name) {
                return Err(Error::config(format!("{} `{}` is registered twice", pair[0].kind, pair[0].name)));
            }
        }
        Ok(Self { components })
    }
}

/// An entry of the inventory; made by the `register_*!` macros.
#[derive(Debug)]
pub struct Registration {
    /// Reward, sampler or backbone.
    pub kind: Kind,
    /// The `type` that a config names.
    pub name: &'static str,
    /// JSON Schema of the configuration.
    pub schema: fn() -> Schema,
}

inventory::collect!(Registration);

/// JSON Schema of a configuration type.
#[doc(hidden)]
pub fn schema_of<T: JsonSchema>() -> Schema {
    schemars::schema_for!(T)
}

/// The configuration of a reward, and how to make the reward from it.
pub trait RewardConfig: DeserializeOwned + JsonSchema {
    /// Makes the reward.
    ///
    /// # Errors
    /// Values that do not fit together or the backbone, missing files.
    fn build(self, init: &RewardInit) -> Result<Box<dyn Reward>>;
}

/// The configuration of a sampler.
pub trait SamplerConfig: DeserializeOwned + JsonSchema {
    /// Makes the sampler.
    ///
    /// # Errors
    /// Values out of range.
    fn build(self) -> Result<Box<dyn Sampler>>;
}

/// The configuration of a backbone.
#[cfg(feature = "torch")]
pub trait BackboneConfig: DeserializeOwned + JsonSchema {
    /// Loads or initialises the model.
    ///
    /// # Errors
    /// Missing, unexpected or misshapen tensors, by name.
    fn build(self, init: &crate::BackboneInit) -> Result<Box<dyn crate::Backbone>>;
}

/// The object-safe faces of the configuration traits: what `typetag` reads by the `type` key.
#[doc(hidden)]
pub mod entry {
    #![allow(missing_docs, reason = "hidden: only the register macros implement these")]

    use crate::reward::RewardInit;
    use crate::{Result, Reward, Sampler};

    #[typetag::deserialize(tag = "type")]
    pub trait RewardEntry {
        fn build(self: Box<Self>, init: &RewardInit) -> Result<Box<dyn Reward>>;
    }

    #[typetag::deserialize(tag = "type")]
    pub trait SamplerEntry {
        fn build(self: Box<Self>) -> Result<Box<dyn Sampler>>;
    }

    #[cfg(feature = "torch")]
    #[typetag::deserialize(tag = "type")]
    pub trait BackboneEntry {
        fn build(self: Box<Self>, init: &crate::BackboneInit) -> Result<Box<dyn crate::Backbone>>;
    }
}

/// Makes a reward registered in this binary from its table (a JSON object with a `type` key).
///
/// # Errors
/// An unknown type, unknown or missing keys, or what the reward refuses.
pub fn build_reward(config: &serde_json::Value, init: &RewardInit) -> Result<Box<dyn Reward>> {
    Box::<dyn entry::RewardEntry>::deserialize(config)?.build(init)
}

/// Makes a sampler registered in this binary from its table.
///
/// # Errors
/// As [`build_reward`].
pub fn build_sampler(config: &serde_json::Value) -> Result<Box<dyn Sampler>> {
    Box::<dyn entry::SamplerEntry>::deserialize(config)?.build()
}

/// Makes a backbone registered in this binary from its table.
///
/// # Errors
/// As [`build_reward`].
#[cfg(feature = "torch")]
pub fn build_backbone(config: &serde_json::Value, init: &crate::BackboneInit) -> Result<Box<dyn crate::Backbone>> {
    Box::<dyn entry::BackboneEntry>::deserialize(config)?.build(init)
}

/// Registers a [`RewardConfig`] under a name: `register_reward!("colorfulness", Colorfulness);`
#[macro_export]
macro_rules! register_reward {
    ($name:literal, $config:ty) => {
        $crate::__register!(Reward, $name, $config, RewardEntry, RewardConfig,
            $crate::Reward, init: &$crate::RewardInit);
    };
}

/// Registers a [`SamplerConfig`] under a name.
#[macro_export]
macro_rules! register_sampler {
    ($name:literal, $config:ty) => {
        $crate::__register!(Sampler, $name, $config, SamplerEntry, SamplerConfig, $crate::Sampler,);
    };
}

/// Registers a [`BackboneConfig`] under a name (feature `torch`).
#[cfg(feature = "torch")]
#[macro_export]
macro_rules! register_backbone {
    ($name:literal, $config:ty) => {
        $crate::__register!(Backbone, $name, $config, BackboneEntry, BackboneConfig,
            $crate::Backbone, init: &$crate::BackboneInit);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __register {
    ($kind:ident, $name:literal, $config:ty, $entry:ident, $trait:ident, $object:path, $($arg:ident: $arg_ty:ty)?) => {
        const _: () = {
            // typetag's expansion names its crate by path; this lets a plugin do without it among its dependencies.
            use $crate::__private::typetag;

            #[derive($crate::__private::serde::Deserialize)]
            #[serde(transparent, crate = "advdmd_sdk::__private::serde")]
            struct Entry($config);

            #[typetag::deserialize(name = $name)]
            impl $crate::plugin::entry::$entry for Entry {
                fn build(self: Box<Self>, $($arg: $arg_ty)?) -> $crate::Result<Box<dyn $object>> {
                    <$config as $crate::$trait>::build(self.0, $($arg)?)
                }
            }

            $crate::__private::inventory::submit! {
                $crate::plugin::Registration {
                    kind: $crate::Kind::$kind,
                    name: $name,
                    schema: $crate::plugin::schema_of::<$config>,
                }
            }
        };
    };
}
