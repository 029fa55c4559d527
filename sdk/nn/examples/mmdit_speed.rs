//! Times the digit scenes' MMDiT, for `mmdit_speed.py` to set against diffusers.
//!
//! Reads lines `forward N`, `train N`, `lora N` (the latter two: forward and backward) and answers each with the
//! milliseconds of one of N repetitions, so that the two programs can take turns.

use std::io::{BufRead, Write};
use std::time::Instant;

use advdmd_nn::mmdit::{Init, LORA_TARGETS, Mmdit, MmditConfig};
use advdmd_nn::{Params, optim::Gradients};
use advdmd_sdk::{Error, Request, Result, Tuning};
use tch::{Device, Kind, Tensor};

fn main() -> Result<()> {
    let argument = std::env::args().nth(1).unwrap_or_else(|| "128".to_owned());
    let batch: i64 =
        argument.parse().map_err(|_| Error::config(format!("batch: expected a number, found {argument}")))?;
    tch::set_num_threads(2);
    let config = MmditConfig {
        sample_size: 16,
        patch_size: 4,
        in_channels: 3,
        num_layers: 4,
        attention_head_dim: 32,
        num_attention_heads: 4,
        joint_attention_dim: 35,
        caption_projection_dim: 128,
        pooled_projection_dim: 216,
        out_channels: Some(3),
        pos_embed_max_size: 4,
        dual_attention_layers: vec![],
        qk_norm: Some("rms_norm".into()),
    };
    let base = Mmdit::init(&config, Init::Uniform, 0)?;
    let model = |tuning| Mmdit::new(&config, &Params::new(&base, &tuning, &LORA_TARGETS, 0)?);
    let full = model(Tuning::Full)?;
    let lora = model(Tuning::Lora { rank: 8, alpha: 16.0, targets: vec![] })?;
    let options = (Kind::Float, Device::Cpu);
    let latents = Tensor::f_randn([batch, 3, 16, 16], options)?;
    let timestep = Tensor::f_rand([batch], options)? * 1000.0;
    let context = Tensor::f_randn([batch, 8, 35], options)?;
    let pooled = Tensor::f_randn([batch, 216], options)?;
    let velocity = |model: &Mmdit| -> Result<Tensor> {
        let prediction = model.forward(&latents, &timestep, &context, &pooled, Request::VELOCITY)?;
        prediction.velocity.ok_or_else(|| Error::failed("no velocity"))
    };
    let train = |model: &Mmdit| -> Result<()> {
        Gradients::new(&model.parameters())?.drop_all()?;
        Ok(velocity(model)?.f_square()?.f_mean(Kind::Float)?.f_backward()?)
    };
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(Error::failed)?;
        let (what, count) = line.split_once(' ').unwrap_or((&line, "1"));
        let count: u32 = count.parse().map_err(|_| Error::config(format!("expected a count, found {count}")))?;
        let start = Instant::now();
        for _ in 0..count {
            match what {
                "forward" => {
                    let _no_grad = tch::no_grad_guard();
                    let _ = velocity(&full)?;
                }
                "train" => train(&full)?,
                "lora" => train(&lora)?,
                other => return Err(Error::config(format!("expected forward, train or lora, found {other}"))),
            }
        }
        println!("{}", start.elapsed().as_secs_f64() * 1000.0 / f64::from(count));
        std::io::stdout().flush().map_err(Error::failed)?;
    }
    Ok(())
}
