//! Tensors and batches as they are lent for a call.

use std::ffi::c_void;

use abi_stable::StableAbi;
use abi_stable::std_types::{RSlice, RStr};

use crate::{DType, Device, Error, Result, RewardBatch, TensorView};

/// Device code of the CPU; CUDA devices have their index.
const CPU: i32 = -1;

/// A tensor lent for the length of a call: as libtorch's own, as numbers on the CPU, or both.
#[repr(C)]
#[derive(Debug, Clone, Copy, StableAbi)]
pub struct LentTensor<'a> {
    /// `at::Tensor*`, the same as tch's `C_tensor*` and libtorch's `AtenTensorHandle`; null if there is none.
    pub(super) handle: *mut c_void,
    /// The first element; null unless the tensor lies on the CPU.
    pub(super) data: *const u8,
    /// Readable bytes from `data` on.
    pub(super) bytes: usize,
    pub(super) shape: RSlice<'a, i64>,
    pub(super) strides: RSlice<'a, i64>,
    /// Code of the [`DType`].
    pub(super) dtype: u8,
    /// -1 for the CPU, else the index of the CUDA device.
    pub(super) device: i32,
}

impl LentTensor<'_> {
    /// The tensor as the receiver's type.
    ///
    /// # Safety
    /// Handle and data are valid for the call that lent them.
    pub(super) unsafe fn view(&self) -> Result<TensorView<'_>> {
        #[cfg(feature = "torch")]
        if !self.handle.is_null() {
            // SAFETY: the handle is valid; the new one shares its tensor.
            let tensor = unsafe { tch::Tensor::clone_from_ptr(self.handle.cast()) };
            return TensorView::from_torch(&tensor);
        }
        if self.device != CPU {
            let device = Device::Cuda(self.device as usize);
            return Err(Error::invalid(format!("a tensor lies on {device}; ask for `on_cpu` in `needs`")));
        }
        let dtype = DType::from_code(self.dtype)
            .ok_or_else(|| Error::invalid(format!("a tensor has the unknown dtype {}", self.dtype)))?;
        let bytes = if self.data.is_null() {
            &[]
        } else {
            // SAFETY: the sender lends that many bytes.
            unsafe { std::slice::from_raw_parts(self.data, self.bytes) }
        };
        TensorView::from_bytes(dtype, self.shape.as_slice(), self.strides.as_slice(), bytes)
    }

    /// libtorch's tensor.
    ///
    /// # Safety
    /// As [`LentTensor::view`].
    #[cfg(feature = "torch")]
    pub(super) unsafe fn torch(&self) -> Result<tch::Tensor> {
        if self.handle.is_null() {
            // SAFETY: the caller's.
            return unsafe { self.view() }?.torch();
        }
        // SAFETY: the handle is valid; the new one shares its tensor.
        Ok(unsafe { tch::Tensor::clone_from_ptr(self.handle.cast()) })
    }
}

/// [`RewardBatch`], lent.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct LentBatch<'a> {
    pub(super) prompts: RSlice<'a, RStr<'a>>,
    pub(super) sigma: Option<&'a LentTensor<'a>>,
    pub(super) images: Option<&'a LentTensor<'a>>,
    pub(super) latents: Option<&'a LentTensor<'a>>,
    pub(super) features: RSlice<'a, LentTensor<'a>>,
}

impl LentBatch<'_> {
    /// The batch as the receiver's type.
    ///
    /// # Safety
    /// As [`LentTensor::view`].
    pub(super) unsafe fn view(&self) -> Result<RewardBatch<'_>> {
        fn view<'a>(tensor: &'a LentTensor<'_>) -> Result<TensorView<'a>> {
            // SAFETY: the caller of the method's.
            unsafe { tensor.view() }
        }
        Ok(RewardBatch {
            prompts: texts(self.prompts.as_slice()),
            sigma: self.sigma.map(view).transpose()?,
            images: self.images.map(view).transpose()?,
            latents: self.latents.map(view).transpose()?,
            features: self.features.iter().map(view).collect::<Result<_>>()?,
        })
    }
}

/// Lent texts as Rust's.
pub(super) fn texts<'a>(texts: &'a [RStr<'a>]) -> Vec<&'a str> {
    texts.iter().map(RStr::as_str).collect()
}

/// Gives up a tensor as a handle that the receiver owns.
#[cfg(feature = "torch")]
pub(super) fn into_handle(tensor: tch::Tensor) -> *mut c_void {
    std::mem::ManuallyDrop::new(tensor).as_mut_ptr().cast()
}

/// Takes over a handle.
///
/// # Safety
/// `handle` is a valid `at::Tensor*` that the caller owns.
#[cfg(all(feature = "torch", feature = "loader"))]
pub(super) unsafe fn from_handle(handle: *mut c_void) -> tch::Tensor {
    // SAFETY: the caller's.
    unsafe { tch::Tensor::from_ptr(handle.cast()) }
}

#[cfg(feature = "loader")]
mod lend {
    use super::{CPU, LentBatch, LentTensor, RStr, RewardBatch, TensorView};

    impl<'a> LentTensor<'a> {
        /// Lends `view` for a call.
        pub fn of(view: &'a TensorView<'_>) -> Self {
            let mut lent = Self {
                handle: std::ptr::null_mut(),
                data: std::ptr::null(),
                bytes: 0,
                shape: view.shape().into(),
                strides: view.strides().into(),
                dtype: view.dtype() as u8,
                device: CPU,
            };
            if let Some(bytes) = view.as_bytes() {
                (lent.data, lent.bytes) = (bytes.as_ptr(), bytes.len());
            }
            #[cfg(feature = "torch")]
            if let Some(tensor) = view.as_torch() {
                lent.handle = tensor.as_ptr().cast_mut().cast();
                if let tch::Device::Cuda(index) = tensor.device() {
                    lent.device = index as i32;
                } else {
                    // A plugin without libtorch reads the numbers where they lie.
                    (lent.data, lent.bytes) = (tensor.data_ptr().cast(), view.extent() * view.dtype().size());
                }
            }
            lent
        }
    }

    /// Lends a batch to `call`.
    pub fn with_batch<T>(batch: &RewardBatch<'_>, call: impl FnOnce(&LentBatch<'_>) -> T) -> T {
        let prompts: Vec<RStr<'_>> = batch.prompts.iter().map(|&prompt| prompt.into()).collect();
        let features: Vec<_> = batch.features.iter().map(LentTensor::of).collect();
        let [sigma, images, latents] =
            [&batch.sigma, &batch.images, &batch.latents].map(|view| view.as_ref().map(LentTensor::of));
        call(&LentBatch {
            prompts: prompts[..].into(),
            sigma: sigma.as_ref(),
            images: images.as_ref(),
            latents: latents.as_ref(),
            features: features[..].into(),
        })
    }
}

#[cfg(feature = "loader")]
pub(super) use lend::with_batch;
