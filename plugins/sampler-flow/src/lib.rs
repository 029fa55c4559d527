//! Samplers for rectified flow.
//!
//! Sigma runs from 1 (noise) to 0 (data): `x_s = (1 - s) x0 + s noise`, velocity `v = noise - x0`. A step goes from `s` to
//! `s' < s`; `dt = s' - s` is negative. Every kernel here is linear in the state, the velocities and fresh noise, so a
//! step is a [`Transition`](advdmd_sdk::Transition): `x' = a x + sum_i b_i v_i + c noise`.
//!
//! | type | kernel | keeps the noise level of its sigma |
//! | --- | --- | --- |
//! | `ode-euler` | [`OdeEuler`]: first order | yes |
//! | `ode-dpm2m` | [`OdeDpm2m`]: DPM-Solver++(2M), second order | yes |
//! | `sde-cps` | [`SdeCps`]: coefficient-preserving | yes, at any `eta` |
//! | `sde-flow` | [`SdeFlow`]: Flow-GRPO | no: coarse steps are over-noised |
//! | `sde-dance` | [`SdeDance`]: `DanceGRPO` | no: coarse steps are over-noised |
//!
//! The last step, to sigma 0, is deterministic in each of them: noise there would stay in the image.

mod cps;
mod dpm2m;
mod euler;
mod schedule;
mod sde;

pub use cps::SdeCps;
pub use dpm2m::OdeDpm2m;
pub use euler::OdeEuler;
pub use sde::{SdeDance, SdeFlow};

advdmd_sdk::register_sampler!("ode-euler", OdeEuler);
advdmd_sdk::register_sampler!("ode-dpm2m", OdeDpm2m);
advdmd_sdk::register_sampler!("sde-cps", SdeCps);
advdmd_sdk::register_sampler!("sde-flow", SdeFlow);
advdmd_sdk::register_sampler!("sde-dance", SdeDance);
advdmd_sdk::export_plugin!();
