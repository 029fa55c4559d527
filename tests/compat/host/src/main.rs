//! A host of the next version of the protocol: loads the plugin that it is given and prints what it says, as JSON.

use std::process::ExitCode;

use advdmd_sdk::abi::Plugin;
use advdmd_sdk::{Device, RewardBatch, RewardInit, TensorView};
use serde_json::json;

fn main() -> ExitCode {
    let path = std::env::args().nth(1).expect("the plugin's path");
    let plugin = match Plugin::open(&path) {
        Ok(plugin) => plugin,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let init = RewardInit { device: Device::Cpu, seed: 0, backbone: None, run: "a run".to_owned() };
    let mut reward = plugin.reward(&json!({ "type": "compat-constant", "value": 0.5 }), &init).expect("a reward");
    let sampler = plugin.sampler(&json!({ "type": "compat-straight" })).expect("a sampler");
    let pixels = [0.0; 24];
    let images = TensorView::from_f32(&pixels, &[2, 3, 2, 2]).expect("the numbers fill the shape");
    let batch = RewardBatch { prompts: vec!["", ""], images: Some(images), ..RewardBatch::default() };
    let said = json!({
        "protocol": plugin.header().protocol().to_string(),
        "about": plugin.about(),
        "needs": reward.needs(),
        "score": reward.score(&batch).expect("scores"),
        "describe": reward.describe(),
        "sigmas": sampler.sigmas(2).expect("sigmas"),
        "title": sampler.title(),
    });
    println!("{said}");
    ExitCode::SUCCESS
}
