//! What the dynamic edge costs: the same plugins linked into the program and loaded into it.

use std::path::Path;
use std::time::Instant;

use advdmd::registry::Registry;
use advdmd::train::Trainer;
use anyhow::Result;
use {backbone_digits as _, reward_adversarial as _, sampler_flow as _};

use crate::report::{Quartiles, Row};
use crate::worker::{loaded, trainer};

/// Trainers of each kind. Where a trainer's tensors happen to lie changes its speed by more than the edge does, for as
/// long as it lives: several of each make that a part of the spread.
const TRAINERS: usize = 3;

/// Time of an update over the edge against one without it, in one process.
pub fn measure(folder: &Path, name: &str, pairs: usize) -> Result<Vec<Row>> {
    let (linked, loaded) = (Registry::linked()?, loaded()?);
    let mut ratios = Vec::new();
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
            if pair > 0 {
                ratios.push(b / a);
            }
        }
    }
    Ok(vec![Row::new(name, "loaded plugins against linked ones", Quartiles::of(ratios), "of its time")])
}

fn seconds(trainer: &mut Trainer) -> Result<f64> {
    let begun = Instant::now();
    trainer.update()?;
    Ok(begun.elapsed().as_secs_f64())
}
