//! The component that is checked, and how more of it are made.

use advdmd_sdk::abi::{Plugin, loop_reward, loop_sampler};
use advdmd_sdk::{BackboneSpec, Device, Kind, Manifest, Result, Reward, RewardInit, Sampler, plugin};
use serde_json::Value;

/// A component of a plugin with a configuration.
pub struct Subject<'a> {
    source: Source<'a>,
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) config: Value,
    pub(crate) spec: BackboneSpec,
}

enum Source<'a> {
    Plugin(&'a Plugin),
    /// Linked into this program.
    Linked,
}

impl<'a> Subject<'a> {
    /// The component `name` of a loaded plugin. `config` holds the keys of its table, without `type`.
    pub fn of_plugin(plugin: &'a Plugin, kind: Kind, name: &str, config: &Value) -> Self {
        Self::new(Source::Plugin(plugin), kind, name, config)
    }

    /// A component that is linked into this program.
    pub fn linked(kind: Kind, name: &str, config: &Value) -> Subject<'static> {
        Subject::new(Source::Linked, kind, name, config)
    }

    fn new(source: Source<'a>, kind: Kind, name: &str, config: &Value) -> Self {
        let mut config = config.clone();
        if let Some(table) = config.as_object_mut() {
            table.insert("type".to_owned(), name.into());
        }
        Self { source, kind, name: name.to_owned(), config, spec: small_spec() }
    }

    /// With inputs of another backbone's shapes than the small one of this crate.
    #[must_use]
    pub fn with_spec(self, spec: BackboneSpec) -> Self {
        Self { spec, ..self }
    }

    pub(crate) fn manifest(&self) -> Result<Manifest> {
        match self.source {
            Source::Plugin(plugin) => Ok(plugin.manifest().clone()),
            Source::Linked => Manifest::of_this_binary(),
        }
    }

    /// Of which plugin it is, as its header says.
    pub(crate) fn header(&self) -> String {
        match self.source {
            Source::Plugin(plugin) => {
                let header = plugin.header();
                let libtorch = match header.libtorch() {
                    "" => "none".to_owned(),
                    version => version.to_owned(),
                };
                format!(
                    "{} {}, protocol {}, libtorch {libtorch}",
                    header.name(),
                    header.version(),
                    header.protocol()
                )
            }
            Source::Linked => "linked into this program".to_owned(),
        }
    }

    pub(crate) fn reward(&self, seed: u64) -> Result<Box<dyn Reward>> {
        self.reward_of(&self.config, seed)
    }

    pub(crate) fn reward_of(&self, config: &Value, seed: u64) -> Result<Box<dyn Reward>> {
        let init = RewardInit { device: Device::Cpu, seed, backbone: Some(self.spec.clone()) };
        match self.source {
            Source::Plugin(plugin) => plugin.reward(config, &init),
            Source::Linked => loop_reward(plugin::build_reward(config, &init)?),
        }
    }

    pub(crate) fn sampler_of(&self, config: &Value) -> Result<Box<dyn Sampler>> {
        match self.source {
            Source::Plugin(plugin) => plugin.sampler(config),
            Source::Linked => loop_sampler(plugin::build_sampler(config)?),
        }
    }

    #[cfg(feature = "torch")]
    pub(crate) fn backbone_of(&self, config: &Value) -> Result<Box<dyn advdmd_sdk::Backbone>> {
        let init = advdmd_sdk::BackboneInit { device: Device::Cpu, dtype: advdmd_sdk::DType::F32, seed: SEED };
        match self.source {
            Source::Plugin(plugin) => plugin.backbone(config, &init),
            Source::Linked => advdmd_sdk::abi::loop_backbone(plugin::build_backbone(config, &init)?),
        }
    }

    /// Makes the component of another table, to see whether it is refused.
    pub(crate) fn try_make(&self, config: &Value) -> Result<()> {
        match self.kind {
            Kind::Reward => self.reward_of(config, SEED).map(drop),
            Kind::Sampler => self.sampler_of(config).map(drop),
            #[cfg(feature = "torch")]
            Kind::Backbone => self.backbone_of(config).map(drop),
            #[cfg(not(feature = "torch"))]
            Kind::Backbone => Err(advdmd_sdk::Error::unsupported("backbones need the feature `torch`")),
        }
    }
}

/// The seed that every instance is made with.
pub(crate) const SEED: u64 = 7;

/// Shapes that are small and tell their dimensions apart.
fn small_spec() -> BackboneSpec {
    BackboneSpec {
        latent_shape: [4, 8, 8],
        image_shape: [3, 32, 32],
        depth: 4,
        feature_channels: 16,
        feature_grid: [4, 4],
        null_prompt: String::new(),
    }
}
