//! One base for all networks. Alone in its program, which counts every tensor.

use advdmd_nn::memory;
use advdmd_sdk::plugin::build_backbone;
use advdmd_sdk::{BackboneInit, DType, Device, Tuning};
use backbone_sd3 as _;
use serde_json::json;

#[test]
fn networks_share_the_base() {
    memory::count_cpu();
    let bytes = || memory::read(tch::Device::Cpu).unwrap().current;
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/sd3/sd35-tiny");
    let config = json!({ "type": "sd3", "model": model });
    let init = BackboneInit { device: Device::Cpu, dtype: DType::F32, seed: 3 };
    let backbone = build_backbone(&config, &init).unwrap();
    let empty = bytes();
    let _teacher = backbone.denoiser(&Tuning::Frozen, 0).unwrap();
    let base = bytes() - empty;
    let lora = Tuning::Lora { rank: 1, alpha: 1.0, targets: vec!["attn.to_q".to_owned()] };
    let students = [1, 2].map(|seed| backbone.denoiser(&lora, seed).unwrap());
    let factors: usize = students.iter().flat_map(|student| student.parameters()).map(|(_, p)| p.numel() * 4).sum();
    let more = bytes() - empty - base;
    assert!(more < 2 * factors as u64 + 1024, "{more} bytes beside {base} for {factors} of factors");
}
