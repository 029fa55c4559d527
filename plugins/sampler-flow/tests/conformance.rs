//! The contract of samplers, on the built library.

advdmd_conformance::sampler!(euler: "ode-euler");
advdmd_conformance::sampler!(dpm2m: "ode-dpm2m");
advdmd_conformance::sampler!(cps: "sde-cps");
advdmd_conformance::sampler!(cps_without_noise: "sde-cps", { "eta": 0.0, "shift": 1.0 });
advdmd_conformance::sampler!(flow: "sde-flow");
advdmd_conformance::sampler!(dance: "sde-dance", { "a": 0.7 });
