//! [`Backbone`](crate::BackboneSpec) across the edge.
//!
//! Both sides have libtorch here, so tensors always cross as its handles.

use std::ffi::c_void;

use abi_stable::StableAbi;
use abi_stable::std_types::{RSlice, RStr};

use super::{DenoiserObject, LentTensor, Sink, Status};

/// A backbone of a plugin: its data and what to do with them.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct BackboneObject {
    pub(super) data: *mut c_void,
    pub(super) vtable: BackboneVtableRef,
}

/// The functions of a backbone; `this` is the object's data.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = BackboneVtableRef)))]
#[sabi(missing_field(option))]
pub struct BackboneVtable {
    /// Frees the object. Its denoisers live on.
    pub release: unsafe extern "C" fn(this: *mut c_void),
    /// Text: [`BackboneSpec`](crate::BackboneSpec) as JSON.
    pub spec: unsafe extern "C" fn(this: *mut c_void, out: &Sink) -> Status,
    /// Tensors `context` and, where the architecture has them, `pooled` and `mask`.
    pub encode_text: unsafe extern "C" fn(this: *mut c_void, prompts: RSlice<'_, RStr<'_>>, out: &Sink) -> Status,
    /// Tensor `latents`.
    pub encode_images: unsafe extern "C" fn(this: *mut c_void, images: &LentTensor<'_>, out: &Sink) -> Status,
    /// Tensor `images`.
    pub decode_latents: unsafe extern "C" fn(this: *mut c_void, latents: &LentTensor<'_>, out: &Sink) -> Status,
    /// Writes a model folder; `options` are [`SaveOptions`](crate::SaveOptions) as JSON.
    pub save: unsafe extern "C" fn(
        this: *mut c_void,
        folder: RStr<'_>,
        parameters: RSlice<'_, NamedTensor<'_>>,
        options: RStr<'_>,
        out: &Sink,
    ) -> Status,
    /// Text: a list of [`OriginalModule`](crate::OriginalModule) as JSON.
    pub original_modules: unsafe extern "C" fn(this: *mut c_void, out: &Sink) -> Status,
    /// Text: [`Sources`](crate::Sources) as JSON, or `null`.
    pub sources: unsafe extern "C" fn(this: *mut c_void, out: &Sink) -> Status,
    /// Frees the encoders until they are needed again.
    pub release_encoders: unsafe extern "C" fn(this: *mut c_void, out: &Sink) -> Status,
    /// Puts a denoiser into `denoiser`; `tuning` is a [`Tuning`](crate::Tuning) as JSON.
    #[sabi(last_prefix_field)]
    pub denoiser: unsafe extern "C" fn(
        this: *mut c_void,
        tuning: RStr<'_>,
        seed: u64,
        denoiser: *mut DenoiserObject,
        out: &Sink,
    ) -> Status,
}

/// A tensor and its name, lent for a call.
#[repr(C)]
#[derive(Debug, Clone, Copy, StableAbi)]
pub struct NamedTensor<'a> {
    pub(super) name: RStr<'a>,
    pub(super) tensor: LentTensor<'a>,
}

#[cfg(feature = "torch")]
mod wrappers {
    use abi_stable::prefix_type::WithMetadata;

    use super::super::guard::{catch, guard};
    use super::super::tensor::texts;
    use super::{
        BackboneObject, BackboneVtable, BackboneVtableRef, DenoiserObject, LentTensor, NamedTensor, RSlice, RStr, Sink,
        Status, c_void,
    };
    use crate::{Backbone, Conditioning, Result};

    static VTABLE: WithMetadata<BackboneVtable> = WithMetadata::new(BackboneVtable {
        release: release_fn_wrapper,
        spec: spec_fn_wrapper,
        encode_text: encode_text_fn_wrapper,
        encode_images: encode_images_fn_wrapper,
        decode_latents: decode_latents_fn_wrapper,
        save: save_fn_wrapper,
        original_modules: original_modules_fn_wrapper,
        sources: sources_fn_wrapper,
        release_encoders: release_encoders_fn_wrapper,
        denoiser: denoiser_fn_wrapper,
    });

    impl BackboneObject {
        /// Hands a backbone to the host.
        pub(in crate::abi) fn new(backbone: Box<dyn Backbone>) -> Self {
            let vtable = BackboneVtableRef(VTABLE.static_as_prefix());
            Self { data: Box::into_raw(Box::new(backbone)).cast(), vtable }
        }
    }

    /// The backbone behind `data`.
    ///
    /// # Safety
    /// `data` comes from [`BackboneObject::new`] and was not released.
    unsafe fn backbone<'a>(data: *mut c_void) -> &'a dyn Backbone {
        // SAFETY: the caller's.
        unsafe { &**data.cast::<Box<dyn Backbone>>() }
    }

    unsafe extern "C" fn release_fn_wrapper(this: *mut c_void) {
        // SAFETY: the host releases an object once, and does not use it afterwards.
        let backbone = unsafe { Box::from_raw(this.cast::<Box<dyn Backbone>>()) };
        super::super::root::report_panic(catch(|| drop(backbone)));
    }

    unsafe extern "C" fn spec_fn_wrapper(this: *mut c_void, out: &Sink) -> Status {
        // SAFETY: the host passes its object's data.
        let backbone = unsafe { backbone(this) };
        guard(out, || out.json(&backbone.spec()))
    }

    unsafe extern "C" fn encode_text_fn_wrapper(
        this: *mut c_void,
        prompts: RSlice<'_, RStr<'_>>,
        out: &Sink,
    ) -> Status {
        // SAFETY: the host passes its object's data.
        let backbone = unsafe { backbone(this) };
        guard(out, || {
            let Conditioning { context, pooled, mask } = backbone.encode_text(&texts(prompts.as_slice()))?;
            out.tensor("context", context);
            for (name, tensor) in [("pooled", pooled), ("mask", mask)] {
                if let Some(tensor) = tensor {
                    out.tensor(name, tensor);
                }
            }
            Ok(())
        })
    }

    unsafe extern "C" fn encode_images_fn_wrapper(this: *mut c_void, images: &LentTensor<'_>, out: &Sink) -> Status {
        // SAFETY: the host passes its object's data.
        let backbone = unsafe { backbone(this) };
        guard(out, || {
            // SAFETY: the host lends the tensor for the call.
            let images = unsafe { images.torch() }?;
            out.tensor("latents", backbone.encode_images(&images)?);
            Ok(())
        })
    }

    unsafe extern "C" fn decode_latents_fn_wrapper(this: *mut c_void, latents: &LentTensor<'_>, out: &Sink) -> Status {
        // SAFETY: the host passes its object's data.
        let backbone = unsafe { backbone(this) };
        guard(out, || {
            // SAFETY: the host lends the tensor for the call.
            let latents = unsafe { latents.torch() }?;
            out.tensor("images", backbone.decode_latents(&latents)?);
            Ok(())
        })
    }

    unsafe extern "C" fn save_fn_wrapper(
        this: *mut c_void,
        folder: RStr<'_>,
        parameters: RSlice<'_, NamedTensor<'_>>,
        options: RStr<'_>,
        out: &Sink,
    ) -> Status {
        // SAFETY: the host passes its object's data.
        let backbone = unsafe { backbone(this) };
        guard(out, || {
            let parameters = parameters.iter().map(|NamedTensor { name, tensor }| {
                // SAFETY: the host lends the tensors for the call.
                Ok((name.to_string(), unsafe { tensor.torch() }?))
            });
            let options = serde_json::from_str(options.as_str())?;
            backbone.save(folder.as_str().as_ref(), &parameters.collect::<Result<Vec<_>>>()?, &options)
        })
    }

    unsafe extern "C" fn original_modules_fn_wrapper(this: *mut c_void, out: &Sink) -> Status {
        // SAFETY: the host passes its object's data.
        let backbone = unsafe { backbone(this) };
        guard(out, || out.json(&backbone.original_modules()))
    }

    unsafe extern "C" fn sources_fn_wrapper(this: *mut c_void, out: &Sink) -> Status {
        // SAFETY: the host passes its object's data.
        let backbone = unsafe { backbone(this) };
        guard(out, || out.json(&backbone.sources()?))
    }

    unsafe extern "C" fn release_encoders_fn_wrapper(this: *mut c_void, out: &Sink) -> Status {
        // SAFETY: the host passes its object's data.
        let backbone = unsafe { backbone(this) };
        guard(out, || backbone.release_encoders())
    }

    unsafe extern "C" fn denoiser_fn_wrapper(
        this: *mut c_void,
        tuning: RStr<'_>,
        seed: u64,
        denoiser: *mut DenoiserObject,
        out: &Sink,
    ) -> Status {
        // SAFETY: the host passes its object's data.
        let backbone = unsafe { backbone(this) };
        guard(out, || {
            let made = backbone.denoiser(&serde_json::from_str(tuning.as_str())?, seed)?;
            // SAFETY: `denoiser` is the host's place for the result.
            unsafe { denoiser.write(DenoiserObject::new(made)) };
            Ok(())
        })
    }
}

#[cfg(all(feature = "torch", feature = "loader"))]
pub(super) use foreign::ForeignBackbone;

#[cfg(all(feature = "torch", feature = "loader"))]
mod foreign {
    use std::mem::MaybeUninit;
    use std::path::Path;

    use tch::Tensor;

    use super::super::denoiser::ForeignDenoiser;
    use super::super::sink::call;
    use super::{BackboneObject, LentTensor, NamedTensor, RStr};
    use crate::{
        Backbone, BackboneSpec, Conditioning, Denoiser, Error, OriginalModule, Result, SaveOptions, Sources,
        TensorView, Tuning,
    };

    /// A plugin's backbone as the host's own.
    pub struct ForeignBackbone {
        object: BackboneObject,
        spec: Option<BackboneSpec>,
        modules: Vec<OriginalModule>,
    }

    // SAFETY: the object holds a `Backbone`, which is `Send`; the protocol asks the same of other languages.
    unsafe impl Send for ForeignBackbone {}

    impl ForeignBackbone {
        /// Takes over an object and asks for its spec, so that a failure there is an error and no panic.
        ///
        /// # Safety
        /// The object is valid and nobody else's.
        pub unsafe fn new(object: BackboneObject) -> Result<Self> {
            let mut this = Self { object, spec: None, modules: Vec::new() };
            let BackboneObject { data, vtable } = object;
            // SAFETY: the object is valid.
            this.spec = Some(call(|out| unsafe { vtable.spec()(data, out) })?.json("spec")?);
            // SAFETY: as above.
            this.modules = call(|out| unsafe { vtable.original_modules()(data, out) })?.json("original modules")?;
            Ok(this)
        }
    }

    impl Drop for ForeignBackbone {
        fn drop(&mut self) {
            // SAFETY: the object is valid and not used again.
            unsafe { self.object.vtable.release()(self.object.data) }
        }
    }

    impl Backbone for ForeignBackbone {
        fn spec(&self) -> BackboneSpec {
            self.spec.clone().expect("`new` asked for it")
        }

        fn encode_text(&self, prompts: &[&str]) -> Result<Conditioning> {
            let BackboneObject { data, vtable } = self.object;
            let prompts: Vec<RStr<'_>> = prompts.iter().map(|&prompt| prompt.into()).collect();
            // SAFETY: the object is valid until it is dropped.
            let mut answer = call(|out| unsafe { vtable.encode_text()(data, prompts[..].into(), out) })?;
            let context = answer.tensor("context")?;
            Ok(Conditioning { context, pooled: answer.take("pooled"), mask: answer.take("mask") })
        }

        fn encode_images(&self, images: &Tensor) -> Result<Tensor> {
            let BackboneObject { data, vtable } = self.object;
            let images = TensorView::from_torch(images)?;
            // SAFETY: as in `encode_text`.
            call(|out| unsafe { vtable.encode_images()(data, &LentTensor::of(&images), out) })?.tensor("latents")
        }

        fn decode_latents(&self, latents: &Tensor) -> Result<Tensor> {
            let BackboneObject { data, vtable } = self.object;
            let latents = TensorView::from_torch(latents)?;
            // SAFETY: as in `encode_text`.
            call(|out| unsafe { vtable.decode_latents()(data, &LentTensor::of(&latents), out) })?.tensor("images")
        }

        fn save(&self, folder: &Path, parameters: &[(String, Tensor)], options: &SaveOptions) -> Result<()> {
            let BackboneObject { data, vtable } = self.object;
            let folder = folder
                .to_str()
                .ok_or_else(|| Error::invalid(format!("{}: the path is not UTF-8", folder.display())))?;
            let views: Vec<_> =
                parameters.iter().map(|(_, tensor)| TensorView::from_torch(tensor)).collect::<Result<_>>()?;
            let named = parameters.iter().zip(&views);
            let named: Vec<_> = named
                .map(|((name, _), view)| NamedTensor { name: name.as_str().into(), tensor: LentTensor::of(view) })
                .collect();
            let options = serde_json::to_string(options)?;
            // SAFETY: as in `encode_text`.
            call(|out| unsafe { vtable.save()(data, folder.into(), named[..].into(), options.as_str().into(), out) })
                .map(drop)
        }

        fn original_modules(&self) -> Vec<OriginalModule> {
            self.modules.clone()
        }

        fn sources(&self) -> Result<Option<Sources>> {
            let BackboneObject { data, vtable } = self.object;
            // SAFETY: as in `encode_text`.
            call(|out| unsafe { vtable.sources()(data, out) })?.json("sources")
        }

        fn release_encoders(&self) -> Result<()> {
            let BackboneObject { data, vtable } = self.object;
            // SAFETY: as in `encode_text`.
            call(|out| unsafe { vtable.release_encoders()(data, out) }).map(drop)
        }

        fn denoiser(&self, tuning: &Tuning, seed: u64) -> Result<Box<dyn Denoiser>> {
            let BackboneObject { data, vtable } = self.object;
            let tuning = serde_json::to_string(tuning)?;
            let mut denoiser = MaybeUninit::uninit();
            let place = denoiser.as_mut_ptr();
            // SAFETY: as in `encode_text`; `place` holds a denoiser.
            call(|out| unsafe { vtable.denoiser()(data, tuning.as_str().into(), seed, place, out) })?;
            // SAFETY: a call without error has put a denoiser there, which is ours.
            Ok(Box::new(unsafe { ForeignDenoiser::new(denoiser.assume_init()) }))
        }
    }
}
