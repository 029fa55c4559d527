//! The edge between host and plugins.
//!
//! This is the only place with `unsafe` and `repr(C)`; everybody else implements and calls the traits at the crate's
//! root. How it works:
//!
//! * A plugin's file carries a [`Header`] in the ELF section [`SECTION`], which the host reads and compares before it
//!   loads the library (`read_header`, `mismatches`, `Plugin::open`; feature `loader`).
//! * The header names a symbol, the plugin's [`Entry`]: a table of functions ([`PluginVtable`]), with `abi_stable`'s
//!   description of every type in it, which the host compares with its own.
//! * An object of the plugin is a pointer and a table: [`RewardObject`], [`SamplerObject`], [`BackboneObject`],
//!   [`DenoiserObject`]. Each method of the trait, defaulted ones too, has a slot. The plugin's side of a slot is a
//!   `<method>_fn_wrapper`, the host's a `Foreign…` type that implements the trait.
//! * Arguments are lent for the call. Results go to a [`Sink`], functions of the host that copy texts and numbers and take
//!   over tensor handles, so that neither side frees what the other allocated. A [`Status`] tells success from the kinds
//!   of [`Error`](crate::Error).
//! * Every exported function catches the plugin's panics, and the host restores libtorch's gradient mode after each call.
//! * The plugin's `tracing` events and spans go to the host's [`HostLog`].
//!
//! Tables are `abi_stable` prefix types: a new minor version of the protocol appends functions, and the older side does
//! without them. Everything here can be written in C as well: texts and slices are a pointer and a length.

#![allow(clippy::expl_impl_clone_on_copy, reason = "abi_stable's derive writes it for references to tables")]

mod backbone;
mod denoiser;
mod export;
mod guard;
mod header;
mod reward;
mod root;
mod sampler;
mod sink;
mod status;
mod tensor;
mod trace;

#[cfg(feature = "loader")]
mod compatibility;
#[cfg(feature = "loader")]
pub mod cuda;
#[cfg(feature = "loader")]
mod elf;
#[cfg(feature = "loader")]
mod foreign_reward;
#[cfg(feature = "loader")]
mod layout;
#[cfg(all(feature = "loader", feature = "torch"))]
pub mod libtorch;
#[cfg(feature = "loader")]
mod load_error;
#[cfg(feature = "loader")]
mod loader;
#[cfg(feature = "loader")]
mod looped;

/// The edge in C: `include/advdmd.h`.
#[cfg(feature = "loader")]
pub const C_HEADER: &str = include_str!("../../include/advdmd.h");

pub use backbone::{BackboneObject, BackboneVtable, BackboneVtableRef, NamedTensor};
pub use denoiser::{DenoiserObject, DenoiserVtable, DenoiserVtableRef, LentConditioning, LentRequest};
pub use header::{HEADER_SIZE, Header, HeaderError, LIBTORCH, MAGIC, PROTOCOL, Protocol, SECTION};
pub use reward::{RewardObject, RewardVtable, RewardVtableRef};
pub use root::{Entry, PluginVtable, PluginVtableRef};
pub use sampler::{SamplerObject, SamplerVtable, SamplerVtableRef};
pub use sink::Sink;
pub use status::Status;
pub use tensor::{LentBatch, LentTensor};
pub use trace::{HostLog, HostLogVtable, HostLogVtableRef, LogRecord};

#[cfg(feature = "loader")]
pub use compatibility::{Mismatch, mismatches};
#[cfg(feature = "loader")]
pub use elf::{header_of_elf, read_header};
#[cfg(all(feature = "loader", feature = "torch"))]
pub use guard::take_switched_grad_mode;
#[cfg(feature = "loader")]
pub use layout::{Layout, layouts};
#[cfg(feature = "loader")]
pub use load_error::LoadError;
#[cfg(feature = "loader")]
pub use loader::Plugin;
#[cfg(all(feature = "loader", feature = "torch"))]
pub use looped::loop_backbone;
#[cfg(feature = "loader")]
pub use looped::{loop_reward, loop_sampler};
