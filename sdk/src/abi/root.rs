//! What a plugin offers as a whole: the entry that the host looks up by its symbol, and the functions behind it.

use abi_stable::StableAbi;
use abi_stable::prefix_type::WithMetadata;
use abi_stable::std_types::RStr;
use abi_stable::type_layout::TypeLayout;

use super::guard::guard;
use super::trace::{self, HostLog};
use super::{BackboneObject, Header, RewardObject, SamplerObject, Sink, Status};
use crate::{Manifest, Result, plugin};

/// What the entry symbol of a plugin names. Frozen for each major version of the protocol.
#[repr(C)]
pub struct Entry {
    /// The same that stands in the file; being named here keeps it from being dropped by the linker.
    pub(super) header: &'static Header,
    /// `abi_stable`'s description of `vtable`, which the host compares with its own; null for a plugin in C.
    pub(super) layout: Option<&'static TypeLayout>,
    pub(super) vtable: PluginVtableRef,
}

impl Entry {
    /// The entry of the plugin crate that calls `export_plugin!`.
    #[doc(hidden)]
    #[must_use]
    pub const fn of_plugin(header: &'static Header) -> Self {
        Self {
            header,
            layout: Some(<PluginVtableRef as StableAbi>::LAYOUT),
            vtable: PluginVtableRef(VTABLE.static_as_prefix()),
        }
    }
}

/// The functions of a plugin. Configurations and inits are JSON; an object is written only with [`Status::OK`].
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = PluginVtableRef)))]
#[sabi(missing_field(option))]
pub struct PluginVtable {
    /// Text: the [`Manifest`] as JSON.
    pub manifest: unsafe extern "C" fn(out: &Sink) -> Status,
    /// Gives the plugin the host's log, which lives as long as the process. Called once, before any other function.
    pub connect: unsafe extern "C" fn(log: HostLog, out: &Sink) -> Status,
    /// The most verbose level that the host logs: 0 for none, 1 for errors, up to 5 for traces.
    pub set_log_level: unsafe extern "C" fn(level: u8),
    /// Makes a reward of a table with a `type` key and a [`RewardInit`](crate::RewardInit).
    pub reward: unsafe extern "C" fn(config: RStr<'_>, init: RStr<'_>, reward: *mut RewardObject, out: &Sink) -> Status,
    /// Makes a sampler of a table.
    pub sampler: unsafe extern "C" fn(config: RStr<'_>, sampler: *mut SamplerObject, out: &Sink) -> Status,
    /// Makes a backbone of a table and a [`BackboneInit`](crate::BackboneInit).
    #[sabi(last_prefix_field)]
    pub backbone:
        unsafe extern "C" fn(config: RStr<'_>, init: RStr<'_>, backbone: *mut BackboneObject, out: &Sink) -> Status,
}

static VTABLE: WithMetadata<PluginVtable> = WithMetadata::new(PluginVtable {
    manifest: manifest_fn_wrapper,
    connect: connect_fn_wrapper,
    set_log_level: set_log_level_fn_wrapper,
    reward: reward_fn_wrapper,
    sampler: sampler_fn_wrapper,
    backbone: backbone_fn_wrapper,
});

unsafe extern "C" fn manifest_fn_wrapper(out: &Sink) -> Status {
    guard(out, || out.json(&Manifest::of_this_binary()?))
}

unsafe extern "C" fn connect_fn_wrapper(log: HostLog, out: &Sink) -> Status {
    guard(out, || {
        // SAFETY: the host's log lives as long as the process.
        unsafe { trace::install(log) };
        Ok(())
    })
}

unsafe extern "C" fn set_log_level_fn_wrapper(level: u8) {
    // Without a subscriber that evaluates callbacks of others, this cannot panic; if it does, logging stays as it was.
    report_panic(super::guard::catch(|| crate::trace::forward::set_level(level)));
}

unsafe extern "C" fn reward_fn_wrapper(
    config: RStr<'_>,
    init: RStr<'_>,
    reward: *mut RewardObject,
    out: &Sink,
) -> Status {
    guard(out, || {
        let made = plugin::build_reward(&parse(config)?, &parse(init)?)?;
        // SAFETY: `reward` is the host's place for the result.
        unsafe { reward.write(RewardObject::new(made)) };
        Ok(())
    })
}

unsafe extern "C" fn sampler_fn_wrapper(config: RStr<'_>, sampler: *mut SamplerObject, out: &Sink) -> Status {
    guard(out, || {
        let made = plugin::build_sampler(&parse(config)?)?;
        // SAFETY: `sampler` is the host's place for the result.
        unsafe { sampler.write(SamplerObject::new(made)) };
        Ok(())
    })
}

#[cfg(feature = "torch")]
unsafe extern "C" fn backbone_fn_wrapper(
    config: RStr<'_>,
    init: RStr<'_>,
    backbone: *mut BackboneObject,
    out: &Sink,
) -> Status {
    guard(out, || {
        let made = plugin::build_backbone(&parse(config)?, &parse(init)?)?;
        // SAFETY: `backbone` is the host's place for the result.
        unsafe { backbone.write(BackboneObject::new(made)) };
        Ok(())
    })
}

#[cfg(not(feature = "torch"))]
unsafe extern "C" fn backbone_fn_wrapper(_: RStr<'_>, _: RStr<'_>, _: *mut BackboneObject, out: &Sink) -> Status {
    guard(out, || Err(crate::Error::unsupported("the plugin was built without libtorch, so it has no backbones")))
}

fn parse<T: serde::de::DeserializeOwned>(text: RStr<'_>) -> Result<T> {
    Ok(serde_json::from_str(text.as_str())?)
}

/// Logs the panic of a function that has no way to return it.
pub(super) fn report_panic(result: Result<()>) {
    if let Err(error) = result {
        tracing::error!("a destructor {error}");
    }
}
