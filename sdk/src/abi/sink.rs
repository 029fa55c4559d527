//! How results come back without an allocation crossing the edge: the plugin hands each piece to a function of the
//! host, which copies it.

use std::ffi::c_void;

use abi_stable::StableAbi;
use abi_stable::std_types::{RSlice, RStr};

/// Where a function of a plugin puts its results; lent for the call.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct Sink {
    pub(super) ctx: *mut c_void,
    pub(super) text: unsafe extern "C" fn(ctx: *mut c_void, text: RStr<'_>),
    pub(super) numbers: unsafe extern "C" fn(ctx: *mut c_void, numbers: RSlice<'_, f64>),
    pub(super) tensor: unsafe extern "C" fn(ctx: *mut c_void, name: RStr<'_>, handle: *mut c_void),
}

/// The plugin's side.
impl Sink {
    /// Replaces the text: a result as JSON, or the message of an error.
    pub(super) fn text(&self, text: &str) {
        // SAFETY: `ctx` belongs to `text`, and both live as long as the sink.
        unsafe { (self.text)(self.ctx, text.into()) }
    }

    /// Appends numbers.
    pub(super) fn numbers(&self, numbers: &[f64]) {
        // SAFETY: as in `text`.
        unsafe { (self.numbers)(self.ctx, numbers.into()) }
    }

    /// A value as JSON.
    pub(super) fn json(&self, value: &impl serde::Serialize) -> crate::Result<()> {
        self.text(&serde_json::to_string(value).map_err(crate::Error::failed)?);
        Ok(())
    }

    /// Appends a tensor, whose handle the host then owns.
    #[cfg(feature = "torch")]
    pub(super) fn tensor(&self, name: &str, tensor: tch::Tensor) {
        // SAFETY: as in `text`; the handle is an owned `at::Tensor*`.
        unsafe { (self.tensor)(self.ctx, name.into(), super::tensor::into_handle(tensor)) }
    }
}

#[cfg(feature = "loader")]
pub(super) use host::{call, lossy};

/// The host's side.
#[cfg(feature = "loader")]
mod host {
    use std::borrow::Cow;

    use super::{RSlice, RStr, Sink, c_void};
    use crate::abi::Status;
    use crate::{Error, Result};

    /// What a plugin handed to the sink.
    #[derive(Debug, Default)]
    pub struct Answer {
        text: String,
        /// All numbers in order.
        pub numbers: Vec<f64>,
        #[cfg(feature = "torch")]
        tensors: Vec<(String, tch::Tensor)>,
    }

    /// Calls a plugin's function with a sink and gives what it put there, or its error. libtorch's gradient mode is
    /// afterwards what it was before: it is one for the whole process, and a plugin may leave it switched.
    pub fn call(function: impl FnOnce(&Sink) -> Status) -> Result<Answer> {
        let mut answer = Answer::default();
        let sink = Sink { ctx: (&raw mut answer).cast(), text, numbers, tensor };
        #[cfg(feature = "torch")]
        let _grad_mode = crate::abi::guard::GradMode::save();
        let status = function(&sink);
        status.check(&answer.text)?;
        Ok(answer)
    }

    impl Answer {
        /// The text, read as JSON.
        pub fn json<T: serde::de::DeserializeOwned>(&self, what: &str) -> Result<T> {
            serde_json::from_str(&self.text)
                .map_err(|error| Error::failed(format!("the plugin's {what} cannot be read: {error}")))
        }

        /// The only number.
        pub fn number(&self, what: &str) -> Result<f64> {
            match self.numbers[..] {
                [number] => Ok(number),
                ref numbers => {
                    let count = numbers.len();
                    Err(Error::failed(format!("the plugin returned {count} numbers as {what}, expected 1")))
                }
            }
        }
    }

    #[cfg(feature = "torch")]
    impl Answer {
        /// All tensors with their names, in order.
        pub fn into_tensors(self) -> Vec<(String, tch::Tensor)> {
            self.tensors
        }

        /// Takes the tensor of that name, if there is one.
        pub fn take(&mut self, name: &str) -> Option<tch::Tensor> {
            let at = self.tensors.iter().position(|(found, _)| found == name)?;
            Some(self.tensors.remove(at).1)
        }

        /// Takes the tensor of that name.
        pub fn tensor(&mut self, name: &str) -> Result<tch::Tensor> {
            self.take(name).ok_or_else(|| Error::failed(format!("the plugin returned no tensor `{name}`")))
        }
    }

    /// A plugin in another language may send anything as a text.
    pub(in crate::abi) fn lossy(text: RStr<'_>) -> Cow<'_, str> {
        // The pointer of an empty text may be null, and a plugin may say that a text of no place has a length. As a `str`, even on
        // the way to its bytes, it would have to be UTF-8.
        if text.is_empty() || text.as_ptr().is_null() {
            Cow::Borrowed("")
        } else {
            String::from_utf8_lossy(text.as_rslice().as_slice())
        }
    }

    unsafe extern "C" fn text(ctx: *mut c_void, text: RStr<'_>) {
        // SAFETY: `ctx` is the answer that `call` made, which nobody else holds during the call.
        let answer = unsafe { &mut *ctx.cast::<Answer>() };
        answer.text = lossy(text).into_owned();
    }

    unsafe extern "C" fn numbers(ctx: *mut c_void, numbers: RSlice<'_, f64>) {
        // SAFETY: as in `text`.
        let answer = unsafe { &mut *ctx.cast::<Answer>() };
        if !numbers.is_empty() && !numbers.as_ptr().is_null() {
            answer.numbers.extend_from_slice(numbers.as_slice());
        }
    }

    #[cfg(feature = "torch")]
    unsafe extern "C" fn tensor(ctx: *mut c_void, name: RStr<'_>, handle: *mut c_void) {
        // SAFETY: as in `text`.
        let answer = unsafe { &mut *ctx.cast::<Answer>() };
        if !handle.is_null() {
            // SAFETY: the plugin gives up its handle.
            let tensor = unsafe { crate::abi::tensor::from_handle(handle) };
            answer.tensors.push((lossy(name).into_owned(), tensor));
        }
    }

    /// A host without libtorch calls nothing that returns tensors, and could not free one.
    #[cfg(not(feature = "torch"))]
    extern "C" fn tensor(_ctx: *mut c_void, _name: RStr<'_>, _handle: *mut c_void) {}
}
