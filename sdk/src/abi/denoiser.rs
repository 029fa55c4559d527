//! [`Denoiser`](crate::Tuning) across the edge.

use std::ffi::c_void;

use abi_stable::StableAbi;
use abi_stable::std_types::RSlice;

use super::{LentTensor, Sink, Status};

/// A denoiser of a plugin: its data and what to do with them.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct DenoiserObject {
    pub(super) data: *mut c_void,
    pub(super) vtable: DenoiserVtableRef,
}

/// The functions of a denoiser; `this` is the object's data.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = DenoiserVtableRef)))]
#[sabi(missing_field(option))]
pub struct DenoiserVtable {
    /// Frees the object.
    pub release: unsafe extern "C" fn(this: *mut c_void),
    /// Tensor `velocity` exactly if it was asked for, and `feature` for each tap, in order.
    pub predict: unsafe extern "C" fn(
        this: *mut c_void,
        x: &LentTensor<'_>,
        sigma: &LentTensor<'_>,
        conditioning: &LentConditioning<'_>,
        request: &LentRequest<'_>,
        out: &Sink,
    ) -> Status,
    /// Tensors under their names.
    #[sabi(last_prefix_field)]
    pub parameters: unsafe extern "C" fn(this: *mut c_void, out: &Sink) -> Status,
}

/// `Conditioning`, lent.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct LentConditioning<'a> {
    pub(super) context: LentTensor<'a>,
    pub(super) pooled: Option<&'a LentTensor<'a>>,
    pub(super) mask: Option<&'a LentTensor<'a>>,
}

/// [`Request`](crate::Request), lent.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct LentRequest<'a> {
    pub(super) taps: RSlice<'a, usize>,
    pub(super) velocity: bool,
}

#[cfg(feature = "torch")]
mod wrappers {
    use abi_stable::prefix_type::WithMetadata;

    use super::super::guard::{catch, guard};
    use super::{
        DenoiserObject, DenoiserVtable, DenoiserVtableRef, LentConditioning, LentRequest, LentTensor, Sink, Status,
        c_void,
    };
    use crate::{Conditioning, Denoiser, Prediction, Request, Result};

    static VTABLE: WithMetadata<DenoiserVtable> = WithMetadata::new(DenoiserVtable {
        release: release_fn_wrapper,
        predict: predict_fn_wrapper,
        parameters: parameters_fn_wrapper,
    });

    impl DenoiserObject {
        /// Hands a denoiser to the host.
        pub(in crate::abi) fn new(denoiser: Box<dyn Denoiser>) -> Self {
            let vtable = DenoiserVtableRef(VTABLE.static_as_prefix());
            Self { data: Box::into_raw(Box::new(denoiser)).cast(), vtable }
        }
    }

    /// The denoiser behind `data`.
    ///
    /// # Safety
    /// `data` comes from [`DenoiserObject::new`] and was not released.
    unsafe fn denoiser<'a>(data: *mut c_void) -> &'a dyn Denoiser {
        // SAFETY: the caller's.
        unsafe { &**data.cast::<Box<dyn Denoiser>>() }
    }

    impl LentConditioning<'_> {
        /// New handles on the same tensors.
        ///
        /// # Safety
        /// The tensors are valid for the call that lent them.
        unsafe fn torch(&self) -> Result<Conditioning> {
            // SAFETY: the caller's.
            let torch = |tensor: &LentTensor<'_>| unsafe { tensor.torch() };
            Ok(Conditioning {
                context: torch(&self.context)?,
                pooled: self.pooled.map(torch).transpose()?,
                mask: self.mask.map(torch).transpose()?,
            })
        }
    }

    unsafe extern "C" fn release_fn_wrapper(this: *mut c_void) {
        // SAFETY: the host releases an object once, and does not use it afterwards.
        let denoiser = unsafe { Box::from_raw(this.cast::<Box<dyn Denoiser>>()) };
        super::super::root::report_panic(catch(|| drop(denoiser)));
    }

    unsafe extern "C" fn predict_fn_wrapper(
        this: *mut c_void,
        x: &LentTensor<'_>,
        sigma: &LentTensor<'_>,
        conditioning: &LentConditioning<'_>,
        request: &LentRequest<'_>,
        out: &Sink,
    ) -> Status {
        // SAFETY: the host passes its object's data.
        let denoiser = unsafe { denoiser(this) };
        guard(out, || {
            // SAFETY: the host lends the tensors for the call.
            let (x, sigma, conditioning) = unsafe { (x.torch()?, sigma.torch()?, conditioning.torch()?) };
            let request = Request { velocity: request.velocity, taps: request.taps.as_slice() };
            let Prediction { velocity, features } = denoiser.predict(&x, &sigma, &conditioning, request)?;
            if let Some(velocity) = velocity {
                out.tensor("velocity", velocity);
            }
            for feature in features {
                out.tensor("feature", feature);
            }
            Ok(())
        })
    }

    unsafe extern "C" fn parameters_fn_wrapper(this: *mut c_void, out: &Sink) -> Status {
        // SAFETY: the host passes its object's data.
        let denoiser = unsafe { denoiser(this) };
        guard(out, || {
            for (name, tensor) in denoiser.parameters() {
                out.tensor(&name, tensor);
            }
            Ok(())
        })
    }
}

#[cfg(all(feature = "torch", feature = "loader"))]
pub(super) use foreign::ForeignDenoiser;

#[cfg(all(feature = "torch", feature = "loader"))]
mod foreign {
    use tch::Tensor;

    use super::super::sink::call;
    use super::{DenoiserObject, LentConditioning, LentRequest, LentTensor};
    use crate::{Conditioning, Denoiser, Prediction, Request, Result, TensorView};

    /// A plugin's denoiser as the host's own.
    pub struct ForeignDenoiser(DenoiserObject);

    // SAFETY: the object holds a `Denoiser`, which is `Send`; the protocol asks the same of other languages.
    unsafe impl Send for ForeignDenoiser {}

    impl ForeignDenoiser {
        /// Takes over an object.
        ///
        /// # Safety
        /// The object is valid and nobody else's.
        pub unsafe fn new(object: DenoiserObject) -> Self {
            Self(object)
        }
    }

    impl Drop for ForeignDenoiser {
        fn drop(&mut self) {
            // SAFETY: the object is valid and not used again.
            unsafe { self.0.vtable.release()(self.0.data) }
        }
    }

    impl Denoiser for ForeignDenoiser {
        fn predict(
            &self,
            x: &Tensor,
            sigma: &Tensor,
            conditioning: &Conditioning,
            request: Request<'_>,
        ) -> Result<Prediction> {
            let DenoiserObject { data, vtable } = self.0;
            let Conditioning { context, pooled, mask } = conditioning;
            let option = |tensor: &Option<Tensor>| tensor.as_ref().map(TensorView::from_torch).transpose();
            let views = (TensorView::from_torch(x)?, TensorView::from_torch(sigma)?);
            let (context, pooled, mask) = (TensorView::from_torch(context)?, option(pooled)?, option(mask)?);
            let (pooled, mask) = (pooled.as_ref().map(LentTensor::of), mask.as_ref().map(LentTensor::of));
            let conditioning =
                LentConditioning { context: LentTensor::of(&context), pooled: pooled.as_ref(), mask: mask.as_ref() };
            let (x, sigma) = (LentTensor::of(&views.0), LentTensor::of(&views.1));
            let request = LentRequest { taps: request.taps.into(), velocity: request.velocity };
            // SAFETY: the object is valid until it is dropped.
            let answer = call(|out| unsafe { vtable.predict()(data, &x, &sigma, &conditioning, &request, out) })?;
            let mut prediction = Prediction::default();
            for (name, tensor) in answer.into_tensors() {
                match name.as_str() {
                    "velocity" => prediction.velocity = Some(tensor),
                    _ => prediction.features.push(tensor),
                }
            }
            Ok(prediction)
        }

        fn parameters(&self) -> Vec<(String, Tensor)> {
            let DenoiserObject { data, vtable } = self.0;
            // SAFETY: as in `predict`.
            let answer = call(|out| unsafe { vtable.parameters()(data, out) });
            // The trait leaves no way to fail but the panic that the denoiser itself would have raised here.
            answer.unwrap_or_else(|error| panic!("{error}")).into_tensors()
        }
    }
}
