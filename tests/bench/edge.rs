//! What the dynamic edge costs: the same plugins linked into the program and loaded into it.
//!
//! Whole updates take turns, which tells of everything that the edge could change, and of whatever else the machine does.
//! So the crossing itself is timed as well: a prediction of nothing, which each side answers at once, and a list of
//! parameters. Times their number in an update, that is the edge's share without the noise.

use std::path::Path;
use std::time::Instant;

use advdmd::registry::Registry;
use advdmd::train::Trainer;
use advdmd_sdk::Request;
use anyhow::Result;
use tch::{Kind, Tensor};
use {
    backbone_digits as _, backbone_sd3 as _, reward_adversarial as _, reward_clip as _, reward_remote as _,
    sampler_flow as _,
};

use crate::report::{Quartiles, Row};
use crate::worker::{loaded, trainer};

/// Trainers of each kind. Where a trainer's tensors happen to lie changes its speed by more than the edge does, for as
/// long as it lives: several of each make that a part of the spread.
const TRAINERS: usize = 3;

/// Crossings that are timed together.
const CROSSINGS: usize = 1000;

/// Calls of an update beside the predictions: scores, losses and learners of the reward, at most as many again as there are
/// predictions.
const CALLS_PER_PREDICTION: f64 = 2.0;

/// Lists of parameters in an update: for each clipping of the critic, for freezing it, for the student's.
const PARAMETER_LISTS: f64 = 9.0;

/// Time of an update over the edge against one without it, in one process, and the share of the crossings.
pub fn measure(folder: &Path, name: &str, pairs: usize) -> Result<Vec<Row>> {
    let (linked, loaded) = (Registry::linked()?, loaded()?);
    let mut ratios = Vec::new();
    let mut shares = Vec::new();
    for number in 0..TRAINERS {
        // Which is made first alternates, and so does which goes first.
        let (mut without, mut with) = if number % 2 == 0 {
            let without = trainer(folder, &linked)?;
            (without, trainer(folder, &loaded)?)
        } else {
            let with = trainer(folder, &loaded)?;
            (trainer(folder, &linked)?, with)
        };
        for pair in 0..=pairs {
            let (a, b) = if pair % 2 == 0 {
                let first = seconds(&mut without)?;
                (first, seconds(&mut with)?)
            } else {
                let first = seconds(&mut with)?;
                (seconds(&mut without)?, first)
            };
            // The first allocates.
            if pair > 0 {
                ratios.push(b / a);
                shares.push(100.0 * (crossings(&with)? - crossings(&without)?) / a);
            }
        }
    }
    Ok(vec![
        Row::new(name, "loaded plugins against linked ones", Quartiles::of(ratios), "of its time"),
        Row::new(name, "crossings of the edge", Quartiles::of(shares), "% of an update"),
    ])
}

fn seconds(trainer: &mut Trainer) -> Result<f64> {
    let begun = Instant::now();
    trainer.update()?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Seconds that as many calls as an update makes take where nothing is computed.
fn crossings(trainer: &Trainer) -> Result<f64> {
    let (config, networks) = (&trainer.config, &trainer.networks);
    let x = Tensor::zeros(
        [1].iter().chain(&networks.spec.latent_shape).copied().collect::<Vec<_>>(),
        (Kind::Float, networks.device),
    );
    let sigma = Tensor::zeros([1], (Kind::Float, networks.device));
    let text = trainer.table.null(1);
    let mean = |call: &dyn Fn() -> Result<()>| -> Result<f64> {
        let begun = Instant::now();
        (0..CROSSINGS).try_for_each(|_| call())?;
        Ok(begun.elapsed().as_secs_f64() / CROSSINGS as f64)
    };
    let prediction = mean(&|| {
        networks.fake.predict(&x, &sigma, &text, Request { velocity: false, taps: &[] })?;
        Ok(())
    })?;
    let parameters = mean(&|| {
        let _ = networks.fake.parameters();
        Ok(())
    })?;
    let steps = config.sampler.steps;
    let trained = if config.student.steps_per_update == 0 { steps } else { config.student.steps_per_update };
    // Rollout and rewards; two in each update of the critic; student, teacher and fake network at each trained step.
    let predictions = (steps + steps - 1 + 2 * config.critic.updates + 3 * trained) as f64;
    Ok(predictions * CALLS_PER_PREDICTION * prediction + PARAMETER_LISTS * parameters)
}
