//! What the dynamic edge costs: the same plugins linked into the program and loaded into it.
//!
//! Whole updates take turns, which tells of everything that the edge could change, and of whatever else the machine does.
//! So the crossing itself is timed as well: a prediction of nothing, which each side answers at once, and a list of
//! parameters. Times their number in an update, that is the edge's share without the noise. And a reward that returns
//! constants is called directly and over the edge, in turns: the price of one call.

use std::path::Path;
use std::time::Instant;

use advdmd::registry::Registry;
use advdmd::train::Trainer;
use advdmd_sdk::abi::Plugin;
use advdmd_sdk::plugin::build_reward;
use advdmd_sdk::{Request, Reward, RewardBatch, RewardInit, TensorView};
use advdmd_tests::profile_dir;
use anyhow::Result;
use serde_json::json;
use tch::{Device, Kind, Tensor};
use {
    advdmd_constant as _, backbone_digits as _, backbone_sd3 as _, reward_adversarial as _, reward_clip as _,
    reward_remote as _, sampler_flow as _,
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

/// Samples of a call of the reward, and the side of their images.
const BATCH: usize = 64;
const SIDE: i64 = 16;

/// Turns of either side, and calls in each.
const ROUNDS: usize = 201;
const CALLS: usize = 200;

/// What the call of a reward over the edge may take longer than a direct one.
const BAR_MICROSECONDS: f64 = 20.0;

/// What all calls over the edge may take of an update.
const BAR_PERCENT: f64 = 1.0;

/// A reward that returns constants for a batch, linked and loaded: microseconds of a call, and the edge's part of them.
fn measure_call(name: &str) -> Result<(Vec<Row>, f64)> {
    let init = RewardInit { device: advdmd_sdk::Device::Cpu, seed: 0, backbone: None };
    let config = json!({ "type": "constant", "value": 0.5 });
    let mut linked = build_reward(&config, &init)?;
    let mut loaded = Plugin::open(profile_dir().join("deps/libadvdmd_constant.so"))?.reward(&config, &init)?;
    let images = Tensor::zeros([BATCH as i64, 3, SIDE, SIDE], (Kind::Float, Device::Cpu));
    let batch = RewardBatch {
        prompts: vec!["a red 7 and a blue 3"; BATCH],
        images: Some(TensorView::from_torch(&images)?),
        ..RewardBatch::default()
    };
    let (mut direct, mut over) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        // Which goes first alternates.
        let (a, b) = if round % 2 == 0 {
            let first = microseconds(&mut *linked, &batch)?;
            (first, microseconds(&mut *loaded, &batch)?)
        } else {
            let first = microseconds(&mut *loaded, &batch)?;
            (microseconds(&mut *linked, &batch)?, first)
        };
        // The first round fills caches.
        if round > 0 {
            direct.push(a);
            over.push(b);
        }
    }
    let minimum = |values: &[f64]| values.iter().copied().fold(f64::INFINITY, f64::min);
    let more = Quartiles::of(direct.iter().zip(&over).map(|(direct, over)| over - direct));
    let bar = format!("the edge's part of it; bar {BAR_MICROSECONDS}: {}", met(more.median() < BAR_MICROSECONDS));
    let rows = vec![
        Row::exact(name, "reward of constants, called directly, minimum", minimum(&direct), "us"),
        Row::new(name, "reward of constants, called directly", Quartiles::of(direct), "us"),
        Row::exact(name, "reward of constants, over the edge, minimum", minimum(&over), "us"),
        Row::new(name, "reward of constants, over the edge", Quartiles::of(over), "us"),
        Row::new(name, bar, more, "us"),
    ];
    Ok((rows, more.median()))
}

fn met(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

/// Mean time of a call.
fn microseconds(reward: &mut dyn Reward, batch: &RewardBatch<'_>) -> Result<f64> {
    let begun = Instant::now();
    for _ in 0..CALLS {
        std::hint::black_box(reward.score(std::hint::black_box(batch))?);
    }
    Ok(begun.elapsed().as_secs_f64() * 1e6 / CALLS as f64)
}

/// Time of an update over the edge against one without it, in one process, and the share of the crossings.
pub fn measure(folder: &Path, name: &str, pairs: usize) -> Result<Vec<Row>> {
    let (mut rows, price) = measure_call(name)?;
    let (linked, loaded) = (Registry::linked()?, loaded()?);
    let (mut seconds_of_update, mut calls) = (Vec::new(), 0.0);
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
                seconds_of_update.push(b);
                calls = predictions(&with) * CALLS_PER_PREDICTION + PARAMETER_LISTS;
            }
        }
    }
    let update = Quartiles::of(seconds_of_update);
    let share = 100.0 * calls * price / 1e6 / update.median();
    let bar = format!("{calls} calls at that price; bar {BAR_PERCENT}: {}", met(share < BAR_PERCENT));
    rows.extend([
        Row::new(name, "an update, its plugins loaded", update, "s"),
        Row::exact(name, bar, share, "% of an update"),
        Row::new(name, "loaded plugins against linked ones", Quartiles::of(ratios), "of its time"),
        Row::new(name, "crossings of the edge", Quartiles::of(shares), "% of an update"),
    ]);
    Ok(rows)
}

/// Predictions in an update.
fn predictions(trainer: &Trainer) -> f64 {
    let config = &trainer.config;
    let steps = config.sampler.steps;
    let trained = if config.student.steps_per_update == 0 { steps } else { config.student.steps_per_update };
    // Rollout and rewards; two in each update of the critic; student, teacher and fake network at each trained step.
    (steps + steps - 1 + 2 * config.critic.updates + 3 * trained) as f64
}

fn seconds(trainer: &mut Trainer) -> Result<f64> {
    let begun = Instant::now();
    trainer.update()?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Seconds that as many calls as an update makes take where nothing is computed.
fn crossings(trainer: &Trainer) -> Result<f64> {
    let networks = &trainer.networks;
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
    Ok(predictions(trainer) * CALLS_PER_PREDICTION * prediction + PARAMETER_LISTS * parameters)
}
