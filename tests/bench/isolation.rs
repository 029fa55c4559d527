//! What a process of its own costs a reward: the same plugin, whose scores cost nothing, in this process and in a child, with the
//! same images, in turns.

use std::time::Instant;

use advdmd::config::{Component, Containment, Isolation, OnRewardError};
use advdmd::containment;
use advdmd::registry::Registry;
use advdmd_sdk::{Device, Reward, RewardBatch, RewardInit, TensorView};
use advdmd_tests::profile_dir;
use anyhow::Result;
use tch::{Kind, Tensor};

use crate::report::{Quartiles, Row};

/// Images of a batch, and their height and width in pixels.
const BATCH: [i64; 2] = [32, 512];

/// Milliseconds of a call on 32 images of 512x512, and of starting the process.
pub fn measure(pairs: usize) -> Result<Vec<Row>> {
    let [samples, size] = BATCH;
    let images = Tensor::rand([samples, 3, size, size], (Kind::Float, tch::Device::Cpu));
    let prompts: Vec<String> = (0..samples).map(|index| format!("prompt {index}")).collect();
    let registry = Registry::of_files(&[profile_dir().join("deps/libadvdmd_constant.so")])?;
    let table = serde_json::json!({ "type": "constant", "value": 0.5 });
    let component: Component = serde_json::from_value(table)?;
    let init = RewardInit { device: Device::Cpu, seed: 0, backbone: None };
    let make = |isolation| {
        let containment = Containment { isolation, ..Containment::default() };
        containment::reward("constant", &component, &containment, OnRewardError::Stop, &registry, &init)
    };
    let mut here = make(Isolation::None)?;
    let begun = Instant::now();
    let mut apart = make(Isolation::Process)?;
    let start = begun.elapsed().as_secs_f64();
    let call = |reward: &mut dyn Reward| -> Result<(f64, Vec<f32>)> {
        let batch = RewardBatch {
            prompts: prompts.iter().map(String::as_str).collect(),
            images: Some(TensorView::from_torch(&images)?),
            ..RewardBatch::default()
        };
        let begun = Instant::now();
        let scores = reward.score(&batch)?;
        Ok((begun.elapsed().as_secs_f64() * 1e3, scores))
    };
    let (mut own, mut isolated, mut more) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..=pairs {
        let ((a, one), (b, other)) = (call(here.as_mut())?, call(apart.as_mut())?);
        anyhow::ensure!(one == other, "the scores differ");
        // The first touches fresh memory.
        if pair > 0 {
            own.push(a);
            isolated.push(b);
            more.push(b - a);
        }
    }
    let name = format!("{samples} images of {size}x{size}");
    Ok(vec![
        Row::new(&name, "reward in the run", Quartiles::of(own), "ms"),
        Row::new(&name, "in a process of its own", Quartiles::of(isolated), "ms"),
        Row::new(&name, "what isolation costs", Quartiles::of(more), "ms a call"),
        Row::exact(&name, "start of the process", start, "s"),
    ])
}
