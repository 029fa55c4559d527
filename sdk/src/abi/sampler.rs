//! [`Sampler`](crate::Sampler) across the edge.

use std::ffi::c_void;

use abi_stable::StableAbi;
use abi_stable::prefix_type::WithMetadata;
use abi_stable::std_types::RSlice;

use super::guard::{catch, guard};
use super::{Sink, Status};
use crate::{LogProb, Sampler, Transition};

/// A sampler of a plugin: its data and what to do with them.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct SamplerObject {
    pub(super) data: *mut c_void,
    pub(super) vtable: SamplerVtableRef,
}

/// The functions of a sampler; `this` is the object's data.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = SamplerVtableRef)))]
#[sabi(missing_field(option))]
pub struct SamplerVtable {
    /// Frees the object.
    pub release: unsafe extern "C" fn(this: *mut c_void),
    /// Numbers: the sigmas.
    pub sigmas: unsafe extern "C" fn(this: *mut c_void, steps: usize, out: &Sink) -> Status,
    /// Numbers: a, c, the code of the log-probability, then b.
    pub transition: unsafe extern "C" fn(this: *mut c_void, sigmas: RSlice<'_, f64>, step: usize, out: &Sink) -> Status,
    /// Number: 0 or 1.
    pub preserves_marginals: unsafe extern "C" fn(this: *mut c_void, out: &Sink) -> Status,
    /// Number: the order.
    #[sabi(last_prefix_field)]
    pub order: unsafe extern "C" fn(this: *mut c_void, out: &Sink) -> Status,
}

/// The conventions at the index of their code.
const LOG_PROBS: [LogProb; 3] = [LogProb::None, LogProb::Gaussian, LogProb::SquaredError];

static VTABLE: WithMetadata<SamplerVtable> = WithMetadata::new(SamplerVtable {
    release: release_fn_wrapper,
    sigmas: sigmas_fn_wrapper,
    transition: transition_fn_wrapper,
    preserves_marginals: preserves_marginals_fn_wrapper,
    order: order_fn_wrapper,
});

impl SamplerObject {
    /// Hands a sampler to the host.
    pub(super) fn new(sampler: Box<dyn Sampler>) -> Self {
        Self { data: Box::into_raw(Box::new(sampler)).cast(), vtable: SamplerVtableRef(VTABLE.static_as_prefix()) }
    }
}

/// The sampler behind `data`.
///
/// # Safety
/// `data` comes from [`SamplerObject::new`] and was not released.
unsafe fn sampler<'a>(data: *mut c_void) -> &'a dyn Sampler {
    // SAFETY: the caller's.
    unsafe { &**data.cast::<Box<dyn Sampler>>() }
}

unsafe extern "C" fn release_fn_wrapper(this: *mut c_void) {
    // SAFETY: the host releases an object once, and does not use it afterwards.
    let sampler = unsafe { Box::from_raw(this.cast::<Box<dyn Sampler>>()) };
    super::root::report_panic(catch(|| drop(sampler)));
}

unsafe extern "C" fn sigmas_fn_wrapper(this: *mut c_void, steps: usize, out: &Sink) -> Status {
    // SAFETY: the host passes its object's data.
    let sampler = unsafe { sampler(this) };
    guard(out, || {
        out.numbers(&sampler.sigmas(steps)?);
        Ok(())
    })
}

unsafe extern "C" fn transition_fn_wrapper(
    this: *mut c_void,
    sigmas: RSlice<'_, f64>,
    step: usize,
    out: &Sink,
) -> Status {
    // SAFETY: the host passes its object's data.
    let sampler = unsafe { sampler(this) };
    guard(out, || {
        let Transition { a, b, c, log_prob } = sampler.transition(sigmas.as_slice(), step)?;
        let code = LOG_PROBS.iter().position(|&known| known == log_prob).expect("all conventions are listed");
        out.numbers(&[a, c, code as f64]);
        out.numbers(&b);
        Ok(())
    })
}

unsafe extern "C" fn preserves_marginals_fn_wrapper(this: *mut c_void, out: &Sink) -> Status {
    // SAFETY: the host passes its object's data.
    let sampler = unsafe { sampler(this) };
    guard(out, || {
        out.numbers(&[f64::from(u8::from(sampler.preserves_marginals()))]);
        Ok(())
    })
}

unsafe extern "C" fn order_fn_wrapper(this: *mut c_void, out: &Sink) -> Status {
    // SAFETY: the host passes its object's data.
    let sampler = unsafe { sampler(this) };
    guard(out, || {
        out.numbers(&[f64::from(sampler.order())]);
        Ok(())
    })
}

#[cfg(feature = "loader")]
pub(super) use foreign::ForeignSampler;

#[cfg(feature = "loader")]
mod foreign {
    use super::{LOG_PROBS, Sampler, SamplerObject, Transition};
    use crate::abi::sink::call;
    use crate::{Error, Result};

    /// A plugin's sampler as the host's own.
    pub struct ForeignSampler {
        object: SamplerObject,
        preserves_marginals: bool,
        order: u32,
    }

    // SAFETY: the object holds a `Sampler`, which is `Send`; the protocol asks the same of other languages.
    unsafe impl Send for ForeignSampler {}

    impl ForeignSampler {
        /// Takes over an object and asks it what never changes, so that a failure there is an error and no panic.
        ///
        /// # Safety
        /// The object is valid and nobody else's.
        pub unsafe fn new(object: SamplerObject) -> Result<Self> {
            let mut this = Self { object, preserves_marginals: true, order: 1 };
            let SamplerObject { data, vtable } = object;
            // SAFETY: the object is valid.
            let answer = call(|out| unsafe { vtable.preserves_marginals()(data, out) })?;
            this.preserves_marginals = answer.number("preserves_marginals")? != 0.0;
            // SAFETY: the object is valid.
            this.order = call(|out| unsafe { vtable.order()(data, out) })?.number("order")? as u32;
            Ok(this)
        }
    }

    impl Drop for ForeignSampler {
        fn drop(&mut self) {
            // SAFETY: the object is valid and not used again.
            unsafe { self.object.vtable.release()(self.object.data) }
        }
    }

    impl Sampler for ForeignSampler {
        fn sigmas(&self, steps: usize) -> Result<Vec<f64>> {
            let SamplerObject { data, vtable } = self.object;
            // SAFETY: the object is valid until it is dropped.
            Ok(call(|out| unsafe { vtable.sigmas()(data, steps, out) })?.numbers)
        }

        fn transition(&self, sigmas: &[f64], step: usize) -> Result<Transition> {
            let SamplerObject { data, vtable } = self.object;
            // SAFETY: as in `sigmas`.
            let answer = call(|out| unsafe { vtable.transition()(data, sigmas.into(), step, out) })?;
            let [a, c, code, ref b @ ..] = answer.numbers[..] else {
                return Err(Error::failed("the plugin returned fewer than 3 numbers as transition"));
            };
            let log_prob = LOG_PROBS.into_iter().zip(0u8..).find(|(_, known)| f64::from(*known) == code);
            let (log_prob, _) =
                log_prob.ok_or_else(|| Error::failed(format!("the plugin returned the unknown log_prob {code}")))?;
            Ok(Transition { a, b: b.to_vec(), c, log_prob })
        }

        fn preserves_marginals(&self) -> bool {
            self.preserves_marginals
        }

        fn order(&self) -> u32 {
            self.order
        }
    }
}
