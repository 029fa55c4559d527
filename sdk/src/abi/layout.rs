//! The sizes and places of everything that crosses the edge, to hold against a golden file and against the C header.

use std::mem::{align_of, offset_of, size_of};

use abi_stable::prefix_type::WithMetadata;
use abi_stable::std_types::{RSlice, RStr};
use abi_stable::type_layout::TypeLayout;

use super::{
    BackboneObject, BackboneVtable, DenoiserObject, DenoiserVtable, Entry, Header, HostLog, HostLogVtable, LentBatch,
    LentConditioning, LentRequest, LentTensor, LogRecord, NamedTensor, PluginVtable, RewardObject, RewardVtable,
    SamplerObject, SamplerVtable, Sink, Status,
};

/// How a type lies in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Name of the type.
    pub name: &'static str,
    /// Bytes of it.
    pub size: usize,
    /// Alignment in bytes.
    pub align: usize,
    /// Name and offset in bytes of each field, in order.
    pub fields: Vec<(&'static str, usize)>,
}

macro_rules! layouts {
    ($($name:literal = $type:ty { $($field:tt),* })*) => {
        vec![$(Layout {
            name: $name,
            size: size_of::<$type>(),
            align: align_of::<$type>(),
            fields: vec![$((stringify!($field), offset_of!($type, $field))),*],
        }),*]
    };
}

/// The layout of every `repr(C)` type of the edge. Tables of functions are followed by nothing: a later minor version
/// appends to them, so their size may grow; nothing else may change within a major version.
#[must_use]
pub fn layouts() -> Vec<Layout> {
    layouts! {
        "Header" = Header {
            magic, size, protocol_major, protocol_minor, sdk, rustc, target, libtorch, name, version, entry
        }
        "Entry" = Entry { header, layout, vtable }
        "Status" = Status { 0 }
        "Sink" = Sink { ctx, text, numbers, tensor }
        "LentTensor" = LentTensor<'_> { handle, data, bytes, shape, strides, dtype, device }
        "LentBatch" = LentBatch<'_> { prompts, sigma, images, latents, features }
        "LentConditioning" = LentConditioning<'_> { context, pooled, mask }
        "LentRequest" = LentRequest<'_> { taps, velocity }
        "NamedTensor" = NamedTensor<'_> { name, tensor }
        "LogRecord" = LogRecord<'_> { level, line, name, target, file, message, fields }
        "HostLog" = HostLog { ctx, marker, vtable }
        "HostLogVtable" = HostLogVtable { event, span_new, span_record, span_enter, span_exit, span_close }
        "PluginVtable" = PluginVtable { manifest, connect, set_log_level, reward, sampler, backbone }
        "RewardObject" = RewardObject { data, vtable }
        "RewardVtable" = RewardVtable {
            release, needs, score, score_differentiable, has_learner, learner_parameters, learner_discriminator_loss,
            learner_generator_loss
        }
        "SamplerObject" = SamplerObject { data, vtable }
        "SamplerVtable" = SamplerVtable { release, sigmas, transition, preserves_marginals, order }
        "BackboneObject" = BackboneObject { data, vtable }
        "BackboneVtable" = BackboneVtable {
            release, spec, encode_text, encode_images, decode_latents, save, original_modules, sources,
            release_encoders, denoiser
        }
        "DenoiserObject" = DenoiserObject { data, vtable }
        "DenoiserVtable" = DenoiserVtable { release, predict, parameters }
        // What a reference to a table points to: abi_stable's two words, then the table.
        "WithMetadata<SamplerVtable>" = WithMetadata<SamplerVtable> { value }
        "RStr" = RStr<'_> {}
        "RSlice" = RSlice<'_, u64> {}
        // The description that the host reads from a plugin.
        "TypeLayout" = TypeLayout {}
    }
}
