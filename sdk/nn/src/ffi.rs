//! The crate's only unsafe code: libtorch's dispatcher behind its stable C functions, memory-mapped files, and the
//! counters of `memory.cpp`.
//!
//! tch's generator leaves out every `_foreach_*` and `_fused_*` operator. They are reached by name through
//! `torch_call_dispatcher` (libtorch >= 2.10, `torch/csrc/stable/c/shim.h`), for which `tch`'s tensor pointer and
//! `AtenTensorHandle` are the same thing: a heap-allocated `at::Tensor*`. Operators with a `Scalar` argument have no
//! conversion there, so only overloads with float, bool and tensor arguments are used.

use std::ffi::{CStr, c_char};
use std::fs::File;
use std::ops::Range;
use std::path::Path;

use advdmd_sdk::{Error, Result};
use memmap2::{Mmap, UncheckedAdvice};
use tch::{Device, Kind, Tensor};

use crate::memory::Memory;

/// An argument on the dispatcher's stack: every value is 64 bits wide, lists and tensors are owned pointers.
type StableValue = u64;

/// `StableListOpaque` of the shim.
#[repr(C)]
struct List {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    fn aoti_torch_abi_version() -> u64;
    fn torch_call_dispatcher(
        operator: *const c_char,
        overload: *const c_char,
        stack: *mut StableValue,
        version: u64,
    ) -> i32;
    fn torch_new_list_reserve_size(size: usize, list: *mut *mut List) -> i32;
    fn torch_list_push_back(list: *mut List, element: StableValue) -> i32;
    fn advdmd_boxed(value: StableValue) -> *mut StableValue;
}

enum Argument<'a> {
    Tensors(&'a [Tensor]),
    Tensor(&'a Tensor),
    Float(f64),
    Bool(bool),
    /// `Tensor?`
    Optional(Option<&'a Tensor>),
}

impl Argument<'_> {
    fn into_stable(self) -> Result<StableValue> {
        Ok(match self {
            Self::Tensor(tensor) => owned_handle(tensor),
            Self::Float(value) => value.to_bits(),
            Self::Bool(value) => u64::from(value),
            Self::Optional(None) => 0,
            Self::Optional(Some(tensor)) => {
                // SAFETY: takes no pointers; libtorch owns the value from here on.
                let place = unsafe { advdmd_boxed(owned_handle(tensor)) };
                if place.is_null() {
                    return Err(Error::failed("out of memory"));
                }
                place as StableValue
            }
            Self::Tensors(tensors) => {
                let mut list = std::ptr::null_mut();
                // SAFETY: `list` is a valid place for the new list's pointer.
                let mut code = unsafe { torch_new_list_reserve_size(tensors.len(), &raw mut list) };
                for tensor in tensors {
                    if code == 0 {
                        // SAFETY: `list` was just made, and takes ownership of the new handle.
                        code = unsafe { torch_list_push_back(list, owned_handle(tensor)) };
                    }
                }
                if code != 0 {
                    return Err(Error::failed("libtorch could not build a tensor list"));
                }
                list as StableValue
            }
        })
    }
}

/// A new handle on the same tensor, owned by whoever reads the stack.
fn owned_handle(tensor: &Tensor) -> StableValue {
    let mut handle = tensor.shallow_clone();
    let pointer = handle.as_mut_ptr();
    std::mem::forget(handle);
    pointer as StableValue
}

/// Calls an operator that returns nothing. libtorch takes the arguments' handles; when it refuses, handles that it did
/// not come to are leaked, never freed twice.
///
/// # Safety
/// `arguments` must have the types and the number of the operator's schema, defaults included.
unsafe fn call<const N: usize>(operator: &CStr, overload: &CStr, arguments: [Argument<'_>; N]) -> Result<()> {
    // libtorch refuses empty lists, on which there is nothing to do.
    if matches!(arguments[0], Argument::Tensors([])) {
        return Ok(());
    }
    let mut stack = [0; N];
    for (slot, argument) in stack.iter_mut().zip(arguments) {
        *slot = argument.into_stable()?;
    }
    // SAFETY: the strings end in NUL, and the caller vouches for the stack.
    let code = unsafe {
        torch_call_dispatcher(operator.as_ptr(), overload.as_ptr(), stack.as_mut_ptr(), aoti_torch_abi_version())
    };
    if code == 0 {
        return Ok(());
    }
    // The C functions print libtorch's own message to stderr and return only a code.
    Err(Error::failed(format!("libtorch refused {}.{}", operator.to_string_lossy(), overload.to_string_lossy())))
}

/// The tensor lists of one `AdamW` step, all of one length; `steps` are 0-dim float32.
pub(crate) struct AdamWLists<'a> {
    pub parameters: &'a [Tensor],
    pub gradients: &'a [Tensor],
    pub exp_avgs: &'a [Tensor],
    pub exp_avg_sqs: &'a [Tensor],
    pub steps: &'a [Tensor],
}

/// `aten::_fused_adamw_`; the caller has already added one to the steps. Nothing is done where `skip` (0-dim float32) is 1.
pub(crate) fn fused_adamw_(
    lists: &AdamWLists<'_>,
    lr: f64,
    (beta1, beta2): (f64, f64),
    weight_decay: f64,
    eps: f64,
    skip: Option<&Tensor>,
) -> Result<()> {
    let arguments = [
        Argument::Tensors(lists.parameters),
        Argument::Tensors(lists.gradients),
        Argument::Tensors(lists.exp_avgs),
        Argument::Tensors(lists.exp_avg_sqs),
        Argument::Tensors(&[]), // max_exp_avg_sqs, of amsgrad only
        Argument::Tensors(lists.steps),
        Argument::Float(lr),
        Argument::Float(beta1),
        Argument::Float(beta2),
        Argument::Float(weight_decay),
        Argument::Float(eps),
        Argument::Bool(false),    // amsgrad
        Argument::Bool(false),    // maximize
        Argument::Optional(None), // grad_scale
        Argument::Optional(skip), // found_inf
    ];
    // SAFETY: (Tensor[] x6, float x5, bool x2, Tensor? x2) is the operator's schema.
    unsafe { call(c"aten::_fused_adamw_", c"", arguments) }
}

/// `targets += weight (sources - targets)`, in one pass over both lists.
///
/// `aten::_foreach_lerp_` takes its weight as a `Scalar`, which the C functions cannot pass, or as tensors of full size.
/// `aten::_fused_sgd_` takes floats: with `maximize` the gradient is `-sources`, weight decay 1 adds `targets`, and the
/// step of length `weight` against that is the interpolation.
///
/// Nothing is done where `skip` (0-dim float32) is 1.
pub(crate) fn fused_lerp_(targets: &[Tensor], sources: &[Tensor], weight: f64, skip: Option<&Tensor>) -> Result<()> {
    let arguments = [
        Argument::Tensors(targets),
        Argument::Tensors(sources),
        Argument::Tensors(&[]),   // momentum buffers
        Argument::Float(1.0),     // weight_decay
        Argument::Float(0.0),     // momentum
        Argument::Float(weight),  // lr
        Argument::Float(0.0),     // dampening
        Argument::Bool(false),    // nesterov
        Argument::Bool(true),     // maximize
        Argument::Bool(true),     // is_first_step
        Argument::Optional(None), // grad_scale
        Argument::Optional(skip), // found_inf
    ];
    // SAFETY: (Tensor[] x3, float x4, bool x3, Tensor? x2) is the operator's schema.
    unsafe { call(c"aten::_fused_sgd_", c"", arguments) }
}

/// `aten::_foreach_mul_.Tensor`: every tensor times the 0-dim tensor `factor`, which stays on its device.
pub(crate) fn foreach_mul_(tensors: &[Tensor], factor: &Tensor) -> Result<()> {
    // SAFETY: (Tensor[], Tensor) is the operator's schema.
    unsafe { call(c"aten::_foreach_mul_", c"Tensor", [Argument::Tensors(tensors), Argument::Tensor(factor)]) }
}

/// `aten::_foreach_zero_`.
pub(crate) fn foreach_zero_(tensors: &[Tensor]) -> Result<()> {
    // SAFETY: (Tensor[]) is the operator's schema.
    unsafe { call(c"aten::_foreach_zero_", c"", [Argument::Tensors(tensors)]) }
}

/// `aten::_foreach_copy_`: `targets <- sources`, pairwise.
pub(crate) fn foreach_copy_(targets: &[Tensor], sources: &[Tensor]) -> Result<()> {
    let arguments = [Argument::Tensors(targets), Argument::Tensors(sources), Argument::Bool(false)];
    // SAFETY: (Tensor[], Tensor[], bool) is the operator's schema.
    unsafe { call(c"aten::_foreach_copy_", c"", arguments) }
}

/// Maps a whole file for reading.
pub(crate) fn map_file(path: &Path) -> std::io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: weight files are replaced by renaming, never written in place, so the mapped bytes do not change.
    unsafe { Mmap::map(&file) }
}

/// Takes the pages of `bytes` out of the process, which has copied what it wants: they stay in the system's cache of the file.
pub(crate) fn forget_pages(map: &Mmap, bytes: Range<usize>) {
    // SAFETY: the map is of a file and never written to, so that a page that is read again comes back as it was.
    let forgotten = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, bytes.start, bytes.len()) };
    if let Err(error) = forgotten {
        tracing::debug!("read pages stay mapped: {error}");
    }
}

/// A copy, as `kind` on `device`, of the dense tensor whose `source` elements fill `bytes`.
pub(crate) fn tensor_from_bytes(
    bytes: &[u8],
    shape: &[i64],
    source: Kind,
    kind: Kind,
    device: Device,
) -> Result<Tensor> {
    let size = source.elt_size_in_bytes();
    if shape.iter().product::<i64>() as usize * size != bytes.len() {
        return Err(Error::shape("data", format!("of {} bytes", bytes.len()), shape));
    }
    if bytes.is_empty() || bytes.as_ptr().align_offset(size) != 0 {
        return Ok(Tensor::f_from_data_size(bytes, shape, source)?.f_to_device_(device, kind, false, false)?);
    }
    // SAFETY: the view covers exactly `bytes`, is aligned, is only read, and does not outlive the copy made of it.
    let view = unsafe { Tensor::f_from_blob(bytes.as_ptr(), shape, &[], source, Device::Cpu)? };
    Ok(view.f_to_device_(device, kind, false, true)?)
}

/// `AdvdmdMemory` of `memory.cpp`.
#[repr(C)]
struct RawMemory {
    current: i64,
    peak: i64,
    allocations: i64,
}

unsafe extern "C" {
    fn advdmd_memory_count_cpu();
    fn advdmd_memory_read(device: i32, out: *mut RawMemory) -> i32;
    fn advdmd_memory_reset_peak(device: i32) -> i32;
    fn advdmd_memory_keep_freed() -> i32;
}

/// Whether the C library agreed to keep freed memory.
pub(crate) fn memory_keep_freed() -> bool {
    // SAFETY: takes no pointers, and sets two numbers of the C library.
    unsafe { advdmd_memory_keep_freed() == 1 }
}

/// Puts the counting allocator in the place of libtorch's for the CPU.
pub(crate) fn memory_count_cpu() {
    // SAFETY: the allocator is static, and memory of the one before is still released by that one. libtorch writes the
    // pointer without a lock; whoever reads it beside that gets one allocator or the other, and both stay valid.
    unsafe { advdmd_memory_count_cpu() }
}

/// Counters of the CPU (-1) or of a CUDA device; `None` where there are none.
pub(crate) fn memory_read(device: i32) -> Option<Memory> {
    let mut raw = RawMemory { current: 0, peak: 0, allocations: 0 };
    // SAFETY: `raw` is a valid place for the result.
    let code = unsafe { advdmd_memory_read(device, &raw mut raw) };
    let RawMemory { current, peak, allocations } = raw;
    // Never below zero but for what was made before counting began.
    let count = |value: i64| u64::try_from(value).unwrap_or(0);
    (code == 0).then(|| Memory { current: count(current), peak: count(peak), allocations: count(allocations) })
}

/// Whether the peak could be lowered.
pub(crate) fn memory_reset_peak(device: i32) -> bool {
    // SAFETY: takes no pointers.
    unsafe { advdmd_memory_reset_peak(device) == 0 }
}
