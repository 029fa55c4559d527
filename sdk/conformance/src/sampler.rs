//! The checks of samplers. Everything is numbers, and most of it exact.

use advdmd_sdk::{Error, LogProb, Result, Sampler, Transition};

use crate::config;
use crate::gaussian::{endpoint_error, half_log_snr_grid};
use crate::memory;
use crate::report::{Examiner, Report, Verdict, advice_on, described, fail, ok, skip};
use crate::subject::Subject;

const CHECKS: [&str; 7] = ["sigmas", "transition", "last_step", "refuses", "x0_coefficient", "noise_level", "order"];
/// Those that need libtorch, and `memory`.
const REST: [&str; 5] = ["grad_mode", "rng_state", "default_dtype", "threads", "memory"];

/// The most steps that are asked for.
const STEPS: usize = 50;
/// Schedules that are not the sampler's own: of few-step students, of a start below pure noise, uneven.
const SCHEDULES: [&[f64]; 4] =
    [&[1.0, 0.9, 0.75, 0.5, 0.0], &[0.999, 0.7, 0.0], &[1.0, 0.02, 0.0], &[0.6, 0.55, 0.3, 0.1, 0.05, 0.0]];
/// Ratios of coefficients and sigmas lose digits where two sigmas are close.
const EXACT: f64 = 1e-9;
/// Steps of the coarser and the finer trajectory that the order is read from.
const GRIDS: [usize; 2] = [64, 128];
/// How far below the declared order the measured one may lie.
const SLACK: f64 = 0.25;

/// A trajectory: its sigmas and transitions.
type Trajectory = (Vec<f64>, Vec<Transition>);

/// Runs all checks on a sampler.
pub(crate) fn check(subject: &Subject<'_>) -> Report {
    let mut examiner = Examiner::new(subject.kind, &subject.name);
    #[cfg(feature = "torch")]
    let state = crate::state::State::now();
    let made = config::examine(subject, &mut examiner).then(|| subject.sampler_of(&subject.config).ok()).flatten();
    let Some(sampler) = made else {
        examiner.skip(&CHECKS, "it could not be made (above)");
        examiner.skip(&REST, "it could not be made (above)");
        return examiner.finish();
    };
    let sampler = &*sampler;
    examiner.check("sigmas", || sigmas(sampler));
    let trajectories = trajectories(sampler);
    if examiner.check("transition", || transitions(&trajectories)) {
        let trajectories: Vec<_> = trajectories.into_iter().filter_map(Result::ok).collect();
        examiner.check("last_step", || last_step(&trajectories));
        examiner.check("refuses", || refuses(sampler));
        let keeps = examiner.check("x0_coefficient", || x0_coefficient(&trajectories));
        examiner.check("noise_level", || noise_level(sampler, &trajectories));
        examiner.check("order", || if keeps { order(sampler) } else { skip("it loses x0 (`x0_coefficient`)") });
    } else {
        examiner.skip(&CHECKS[2..], "its transitions are none (`transition`)");
    }
    #[cfg(feature = "torch")]
    state.examine(&mut examiner, &mut |_| call(sampler));
    #[cfg(not(feature = "torch"))]
    examiner.skip(&REST[..4], crate::WITHOUT_TORCH);
    examiner.check("memory", || memory::examine(|_| ((), 0), |()| call(sampler)));
    examiner.finish()
}

/// A trajectory; a sampler may refuse it.
fn call(sampler: &dyn Sampler) -> Result<()> {
    let sigmas = match sampler.sigmas(8) {
        Err(error @ Error::Panic(_)) => return Err(error),
        Err(_) => return Ok(()),
        Ok(sigmas) => sigmas,
    };
    (0..sigmas.len().saturating_sub(1)).try_for_each(|step| sampler.transition(&sigmas, step).map(drop))
}

/// Whether an error is an answer of its own, and no accident.
fn is_refusal(error: &Error) -> bool {
    !matches!(error, Error::Panic(_)) && !error.to_string().trim().is_empty()
}

fn sigmas(sampler: &dyn Sampler) -> Verdict {
    let mut given = 0;
    for steps in 1..=STEPS {
        let sigmas = match sampler.sigmas(steps) {
            Ok(sigmas) => sigmas,
            Err(error) if is_refusal(&error) => continue,
            Err(error) => return fail(format!("sigmas of {steps} steps"), described(&error), advice_on(&error)),
        };
        given += 1;
        let falling = sigmas.windows(2).all(|pair| pair[0] > pair[1]);
        let within = sigmas.iter().all(|sigma| (0.0..=1.0).contains(sigma));
        if sigmas.len() != steps + 1 || !falling || !within || sigmas.last() != Some(&0.0) {
            return fail(
                format!("{} numbers for {steps} steps that fall strictly from at most 1 to exactly 0", steps + 1),
                format!("{sigmas:?}"),
                "give `steps + 1` sigmas, the last one 0; refuse a number of steps that there is no schedule for",
            );
        }
    }
    if given == 0 {
        return fail(
            format!("sigmas for some number of steps from 1 to {STEPS}"),
            "a refusal of each",
            "give a schedule for the numbers of steps that users train with, 1 to 8",
        );
    }
    ok(format!("{given} of 1 to {STEPS} steps"))
}

/// The sampler's own trajectories and those of given sigmas, as far as it takes them.
fn trajectories(sampler: &dyn Sampler) -> Vec<Result<Trajectory>> {
    let own = [1, 2, 4, 25].into_iter().filter_map(|steps| sampler.sigmas(steps).ok());
    let all = own.chain(SCHEDULES.map(<[f64]>::to_vec));
    let made = all.map(|sigmas| {
        let steps = sigmas.len().saturating_sub(1);
        let transitions = (0..steps).map(|step| sampler.transition(&sigmas, step)).collect::<Result<Vec<_>>>()?;
        Ok((sigmas, transitions))
    });
    made.filter(|made| !matches!(made, Err(error) if is_refusal(error))).collect()
}

fn transitions(trajectories: &[Result<Trajectory>]) -> Verdict {
    if trajectories.is_empty() {
        let advice = "take any sigmas that fall strictly from at most 1 to 0: a run may name its own";
        return fail("transitions of some schedule", "a refusal of each", advice);
    }
    for trajectory in trajectories {
        let (sigmas, transitions) = match trajectory {
            Ok(trajectory) => trajectory,
            Err(error) => return fail("transitions", described(error), advice_on(error)),
        };
        for (step, transition) in transitions.iter().enumerate() {
            let Transition { a, b, c, log_prob } = transition;
            let wrong = if !b.iter().chain([a, c]).all(|number| number.is_finite()) {
                "finite coefficients"
            } else if !(1..=step + 1).contains(&b.len()) {
                "as many velocities as there were steps, and at least one"
            } else if *c < 0.0 {
                "a standard deviation `c` of at least 0"
            } else if (*c == 0.0) != (*log_prob == LogProb::None) {
                "`LogProb::None` exactly where `c` is 0"
            } else {
                continue;
            };
            let advice = "see `Transition`: x' = a x + sum b_i v_i + c noise, newest velocity first";
            return fail(wrong, format!("{transition:?} at step {step} of {sigmas:?}"), advice);
        }
    }
    ok(format!("of {} schedules", trajectories.len()))
}

fn last_step(trajectories: &[Trajectory]) -> Verdict {
    for (sigmas, transitions) in trajectories {
        if let Some(last) = transitions.last().filter(|last| last.c != 0.0) {
            return fail(
                "no noise in the step to sigma 0",
                format!("c = {} for {sigmas:?}", last.c),
                "end with a deterministic step: noise there would stay in the image",
            );
        }
    }
    ok("deterministic")
}

fn refuses(sampler: &dyn Sampler) -> Verdict {
    let sigmas = [1.0, 0.5, 0.0];
    let cases: [(&str, Result<()>); 4] = [
        ("0 steps", sampler.sigmas(0).map(drop)),
        ("step 2 of 2", sampler.transition(&sigmas, 2).map(drop)),
        ("sigmas that rise", sampler.transition(&[0.5, 1.0, 0.0], 0).map(drop)),
        ("no sigmas", sampler.transition(&[], 0).map(drop)),
    ];
    for (case, found) in cases {
        let advice = "return `Error::invalid` with what was expected and found";
        match found {
            Err(error) if is_refusal(&error) => {}
            Err(error) => return fail(format!("an error with a text for {case}"), described(&error), advice),
            Ok(()) => return fail(format!("an error for {case}"), "an answer", advice),
        }
    }
    ok("0 steps, a step beyond the last, sigmas that rise, no sigmas")
}

/// With exact velocities `v = noise - x0`, all alike, x0 must come with 1 - s' after the step.
fn x0_coefficient(trajectories: &[Trajectory]) -> Verdict {
    let mut furthest = 0.0_f64;
    for (sigmas, transitions) in trajectories {
        for (step, Transition { a, b, .. }) in transitions.iter().enumerate() {
            let found = a * (1.0 - sigmas[step]) - b.iter().sum::<f64>();
            let expected = 1.0 - sigmas[step + 1];
            let error = (found - expected).abs();
            furthest = furthest.max(error);
            // Not so of NaN, which infinite sums give.
            let close = error <= EXACT;
            if !close {
                return fail(
                    format!("x0 with the coefficient 1 - s' = {expected} after step {step} of {sigmas:?}"),
                    found,
                    "keep a (1 - s) - sum(b) = 1 - s': in Euler's step a = 1 and b = s' - s",
                );
            }
        }
    }
    ok(format!("1 - s' within {furthest:.0e}"))
}

/// x's noise `s n` and fresh noise are independent: `(a s + sum b)^2 + c^2 = s'^2`.
fn noise_level(sampler: &dyn Sampler, trajectories: &[Trajectory]) -> Verdict {
    if !sampler.preserves_marginals() {
        return skip("it does not claim to preserve marginals");
    }
    let mut furthest = 0.0_f64;
    for (sigmas, transitions) in trajectories {
        for (step, Transition { a, b, c, .. }) in transitions.iter().enumerate() {
            let found = (a * sigmas[step] + b.iter().sum::<f64>()).hypot(*c);
            let expected = sigmas[step + 1];
            let error = (found - expected).abs();
            furthest = furthest.max(error);
            // Not so of NaN, which infinite sums give.
            let close = error <= EXACT;
            if !close {
                return fail(
                    format!("noise of the standard deviation s' = {expected} after step {step} of {sigmas:?}"),
                    found,
                    "keep (a s + sum(b))^2 + c^2 = s'^2, or let `preserves_marginals` be false",
                );
            }
        }
    }
    ok(format!("s' within {furthest:.0e}"))
}

/// On a Gaussian whose flow is known.
fn order(sampler: &dyn Sampler) -> Verdict {
    let declared = sampler.order();
    let mut errors = Vec::new();
    for steps in GRIDS {
        let sigmas = half_log_snr_grid(steps);
        let transitions: Result<Vec<_>> = (0..=steps).map(|step| sampler.transition(&sigmas, step)).collect();
        match transitions {
            Ok(transitions) if transitions.iter().any(|transition| transition.c > 0.0) => {
                return skip("it is stochastic");
            }
            Ok(transitions) => errors.push(endpoint_error(&sigmas, &transitions)),
            Err(error) if is_refusal(&error) => {
                return skip(format!("it refuses the schedule that orders are measured on: {error}"));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let measured = (errors[0] / errors[1]).log2();
    // Of a solver that is exact here only rounding is left. Neither is so of NaN.
    let (exact, falls) = (errors[1] <= 1e-12, measured >= f64::from(declared) - SLACK);
    if !(exact || falls) {
        return fail(
            format!("an error that falls with the order {declared} that it declares"),
            format!("{:.2e} of {} steps, {:.2e} of {}: order {measured:.2}", errors[0], GRIDS[0], errors[1], GRIDS[1]),
            "correct the coefficients, or declare the order that it has",
        );
    }
    ok(format!("{measured:.2} measured, {declared} declared"))
}
