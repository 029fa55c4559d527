//! [`Reward`](crate::Reward) and its learner across the edge.

use std::ffi::c_void;

use abi_stable::StableAbi;
use abi_stable::prefix_type::WithMetadata;

use super::guard::{catch, guard};
use super::{LentBatch, Sink, Status};
use crate::Reward;

/// A reward of a plugin: its data and what to do with them.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct RewardObject {
    pub(super) data: *mut c_void,
    pub(super) vtable: RewardVtableRef,
}

/// The functions of a reward and of its learner; `this` is the object's data.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = RewardVtableRef)))]
#[sabi(missing_field(option))]
pub struct RewardVtable {
    /// Frees the object.
    pub release: unsafe extern "C" fn(this: *mut c_void),
    /// Text: [`Needs`](crate::Needs) as JSON.
    pub needs: unsafe extern "C" fn(this: *mut c_void, out: &Sink) -> Status,
    /// Numbers: a score per sample.
    pub score: unsafe extern "C" fn(this: *mut c_void, batch: &LentBatch<'_>, out: &Sink) -> Status,
    /// Tensor `score` `[B]`, or none.
    pub score_differentiable: unsafe extern "C" fn(this: *mut c_void, batch: &LentBatch<'_>, out: &Sink) -> Status,
    /// Number: 1 where there is a learner, else 0; then the functions below are not called.
    pub has_learner: unsafe extern "C" fn(this: *mut c_void, out: &Sink) -> Status,
    /// Tensors under their names.
    pub learner_parameters: unsafe extern "C" fn(this: *mut c_void, out: &Sink) -> Status,
    /// Tensors `loss` (scalar), `real` and `fake` `[B]`.
    pub learner_discriminator_loss:
        unsafe extern "C" fn(this: *mut c_void, real: &LentBatch<'_>, fake: &LentBatch<'_>, out: &Sink) -> Status,
    /// Tensor `loss` `[B]`.
    #[sabi(last_prefix_field)]
    pub learner_generator_loss: unsafe extern "C" fn(this: *mut c_void, fake: &LentBatch<'_>, out: &Sink) -> Status,
}

static VTABLE: WithMetadata<RewardVtable> = WithMetadata::new(RewardVtable {
    release: release_fn_wrapper,
    needs: needs_fn_wrapper,
    score: score_fn_wrapper,
    score_differentiable: torch::score_differentiable_fn_wrapper,
    has_learner: torch::has_learner_fn_wrapper,
    learner_parameters: torch::learner_parameters_fn_wrapper,
    learner_discriminator_loss: torch::learner_discriminator_loss_fn_wrapper,
    learner_generator_loss: torch::learner_generator_loss_fn_wrapper,
});

impl RewardObject {
    /// Hands a reward to the host.
    pub(super) fn new(reward: Box<dyn Reward>) -> Self {
        Self { data: Box::into_raw(Box::new(reward)).cast(), vtable: RewardVtableRef(VTABLE.static_as_prefix()) }
    }
}

/// The reward behind `data`.
///
/// # Safety
/// `data` comes from [`RewardObject::new`], was not released, and is in use by no other call.
unsafe fn reward<'a>(data: *mut c_void) -> &'a mut dyn Reward {
    // SAFETY: the caller's.
    unsafe { &mut **data.cast::<Box<dyn Reward>>() }
}

unsafe extern "C" fn release_fn_wrapper(this: *mut c_void) {
    // SAFETY: the host releases an object once, and does not use it afterwards.
    let reward = unsafe { Box::from_raw(this.cast::<Box<dyn Reward>>()) };
    super::root::report_panic(catch(|| drop(reward)));
}

unsafe extern "C" fn needs_fn_wrapper(this: *mut c_void, out: &Sink) -> Status {
    // SAFETY: the host passes its object's data, one call at a time.
    let reward = unsafe { reward(this) };
    guard(out, || out.json(&reward.needs()))
}

unsafe extern "C" fn score_fn_wrapper(this: *mut c_void, batch: &LentBatch<'_>, out: &Sink) -> Status {
    // SAFETY: as in `needs_fn_wrapper`.
    let reward = unsafe { reward(this) };
    guard(out, || {
        // SAFETY: the host lends the batch for the call.
        let batch = unsafe { batch.view() }?;
        let scores: Vec<f64> = reward.score(&batch)?.into_iter().map(f64::from).collect();
        out.numbers(&scores);
        Ok(())
    })
}

/// The functions that need libtorch.
#[cfg(feature = "torch")]
mod torch {
    use super::{LentBatch, Sink, Status, c_void, guard, reward};
    use crate::{DiscriminatorLoss, Error, Learner, Result, Reward};

    fn learner(reward: &mut dyn Reward) -> Result<&mut dyn Learner> {
        reward.learner().ok_or_else(|| Error::unsupported("the reward has no learner"))
    }

    pub(super) unsafe extern "C" fn score_differentiable_fn_wrapper(
        this: *mut c_void,
        batch: &LentBatch<'_>,
        out: &Sink,
    ) -> Status {
        // SAFETY: the host passes its object's data, one call at a time.
        let reward = unsafe { reward(this) };
        guard(out, || {
            // SAFETY: the host lends the batch for the call.
            let batch = unsafe { batch.view() }?;
            if let Some(score) = reward.score_differentiable(&batch)? {
                out.tensor("score", score);
            }
            Ok(())
        })
    }

    pub(super) unsafe extern "C" fn has_learner_fn_wrapper(this: *mut c_void, out: &Sink) -> Status {
        // SAFETY: as in `score_differentiable_fn_wrapper`.
        let reward = unsafe { reward(this) };
        guard(out, || {
            out.numbers(&[f64::from(u8::from(reward.learner().is_some()))]);
            Ok(())
        })
    }

    pub(super) unsafe extern "C" fn learner_parameters_fn_wrapper(this: *mut c_void, out: &Sink) -> Status {
        // SAFETY: as in `score_differentiable_fn_wrapper`.
        let reward = unsafe { reward(this) };
        guard(out, || {
            for (name, tensor) in learner(reward)?.parameters() {
                out.tensor(&name, tensor);
            }
            Ok(())
        })
    }

    pub(super) unsafe extern "C" fn learner_discriminator_loss_fn_wrapper(
        this: *mut c_void,
        real: &LentBatch<'_>,
        fake: &LentBatch<'_>,
        out: &Sink,
    ) -> Status {
        // SAFETY: as in `score_differentiable_fn_wrapper`.
        let reward = unsafe { reward(this) };
        guard(out, || {
            // SAFETY: the host lends the batches for the call.
            let (real, fake) = unsafe { (real.view()?, fake.view()?) };
            let DiscriminatorLoss { loss, real, fake } = learner(reward)?.discriminator_loss(&real, &fake)?;
            out.tensor("loss", loss);
            out.tensor("real", real);
            out.tensor("fake", fake);
            Ok(())
        })
    }

    pub(super) unsafe extern "C" fn learner_generator_loss_fn_wrapper(
        this: *mut c_void,
        fake: &LentBatch<'_>,
        out: &Sink,
    ) -> Status {
        // SAFETY: as in `score_differentiable_fn_wrapper`.
        let reward = unsafe { reward(this) };
        guard(out, || {
            // SAFETY: the host lends the batch for the call.
            let fake = unsafe { fake.view() }?;
            out.tensor("loss", learner(reward)?.generator_loss(&fake)?);
            Ok(())
        })
    }
}

/// What a plugin without libtorch answers in their place.
#[cfg(not(feature = "torch"))]
mod torch {
    use super::{LentBatch, Sink, Status, c_void, guard};

    pub(super) extern "C" fn score_differentiable_fn_wrapper(_: *mut c_void, _: &LentBatch<'_>, _: &Sink) -> Status {
        Status::OK
    }

    pub(super) extern "C" fn has_learner_fn_wrapper(_: *mut c_void, out: &Sink) -> Status {
        out.numbers(&[0.0]);
        Status::OK
    }

    pub(super) extern "C" fn learner_parameters_fn_wrapper(_: *mut c_void, out: &Sink) -> Status {
        guard(out, || Err(no_learner()))
    }

    pub(super) extern "C" fn learner_discriminator_loss_fn_wrapper(
        _: *mut c_void,
        _: &LentBatch<'_>,
        _: &LentBatch<'_>,
        out: &Sink,
    ) -> Status {
        guard(out, || Err(no_learner()))
    }

    pub(super) extern "C" fn learner_generator_loss_fn_wrapper(
        _: *mut c_void,
        _: &LentBatch<'_>,
        out: &Sink,
    ) -> Status {
        guard(out, || Err(no_learner()))
    }

    fn no_learner() -> crate::Error {
        crate::Error::unsupported("the plugin was built without libtorch, so its rewards have no learner")
    }
}
