//! `AdamW`, clipping and averages against PyTorch (`tests/golden/mmdit.py`), and exact save and load.

use std::collections::BTreeMap;
use std::path::Path;

use advdmd_nn::optim::{AdamW, AdamWConfig, Ema, clip_grad_norm, grad_norm};
use advdmd_nn::{Weights, load_parameters};
use tch::{Device, Kind, Tensor};

const STEPS: usize = 12;

struct Problem {
    golden: Weights,
    parameters: Vec<(String, Tensor)>,
}

impl Problem {
    fn load() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/mmdit_adamw.safetensors");
        let golden = Weights::load(&path, None, Device::Cpu).unwrap();
        let start = golden.strip_prefix("start.");
        let parameters = start.into_iter().map(|(name, value)| (name, value.set_requires_grad(true))).collect();
        Self { golden, parameters }
    }

    fn config() -> AdamWConfig {
        AdamWConfig { lr: 0.01, betas: (0.8, 0.95), eps: 1e-6, weight_decay: 0.1 }
    }

    fn get(&self, name: &str) -> &Tensor {
        self.golden.get(name).unwrap()
    }

    /// One step of the reference script; returns the norm before clipping.
    fn step(&self, optimizer: &mut AdamW, step: usize) -> Tensor {
        optimizer.gradients().drop_all().unwrap();
        assert!(self.parameters.iter().all(|(_, parameter)| !parameter.grad().defined()));
        optimizer.set_lr(0.01 * (1.0 - step as f64 / 24.0));
        for (name, parameter) in &self.parameters {
            if let Some(gradient) = self.golden.get(&format!("grad.{step}.{name}")) {
                (parameter * gradient).sum(Kind::Float).backward();
            }
        }
        let norm = clip_grad_norm(&self.parameters, 4.0).unwrap();
        optimizer.step().unwrap();
        norm
    }
}

#[track_caller]
fn assert_close(name: &str, found: &Tensor, expected: &Tensor) {
    let error = (found - expected).abs().max().double_value(&[]);
    println!("{name}: largest absolute error {error:.1e}");
    assert!(error <= 1e-7, "{name}: largest absolute error {error:e}");
}

#[test]
fn twelve_steps_match_pytorch() {
    let problem = Problem::load();
    let mut optimizer = AdamW::new(&problem.parameters, Problem::config()).unwrap();
    let mut ema = Ema::new(&problem.parameters, 0.9).unwrap();
    for step in 0..STEPS {
        let norm = problem.step(&mut optimizer, step);
        ema.update().unwrap();
        let expected = problem.get("norms").get(step as i64);
        assert!((&norm / &expected - 1.0).abs().double_value(&[]) < 1e-6, "norm {step}: {norm} {expected}");
        assert!(grad_norm(&problem.parameters).unwrap().double_value(&[]) <= 4.000_001);
    }
    for (name, parameter) in &problem.parameters {
        assert_close(name, parameter, problem.get(&format!("end.{name}")));
    }
    for (name, average) in ema.averages() {
        assert_close(&name, &average, problem.get(&format!("average.{name}")));
    }
    for (name, value) in optimizer.state().iter() {
        assert_close(name, value, problem.get(&format!("state.{name}")));
    }
}

#[test]
fn a_saved_and_loaded_state_goes_on_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let whole = Problem::load();
    let mut optimizer = AdamW::new(&whole.parameters, Problem::config()).unwrap();
    let mut ema = Ema::new(&whole.parameters, 0.999).unwrap();
    for step in 0..STEPS {
        if step == 5 {
            let save = |weights: Weights, name: &str| weights.save(&path(name), &BTreeMap::new()).unwrap();
            let parameters = whole.parameters.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone()));
            save(parameters.collect(), "parameters");
            save(optimizer.state(), "optimizer");
            save(ema.state(), "ema");
        }
        let _ = whole.step(&mut optimizer, step);
        ema.update().unwrap();
    }

    let resumed = Problem::load();
    let mut other_optimizer = AdamW::new(&resumed.parameters, Problem::config()).unwrap();
    let mut other_ema = Ema::new(&resumed.parameters, 0.999).unwrap();
    let load = |name: &str| Weights::load(&path(name), None, Device::Cpu).unwrap();
    load_parameters(&resumed.parameters, &load("parameters")).unwrap();
    other_optimizer.load_state(&load("optimizer")).unwrap();
    other_ema.load_state(&load("ema")).unwrap();
    for step in 5..STEPS {
        let _ = resumed.step(&mut other_optimizer, step);
        other_ema.update().unwrap();
    }
    assert_eq!(whole.parameters, resumed.parameters);
    assert_eq!(ema.averages(), other_ema.averages());
    let states = optimizer.state().into_iter().zip(other_optimizer.state());
    assert!(states.into_iter().all(|(one, other)| one == other));
}

#[test]
fn gradients_are_zeroed_in_place_or_dropped() {
    let problem = Problem::load();
    let optimizer = AdamW::new(&problem.parameters, Problem::config()).unwrap();
    let (_, parameter) = &problem.parameters[0];
    (parameter * 2.0).sum(Kind::Float).backward();
    let memory = parameter.grad().data_ptr();
    optimizer.gradients().zero().unwrap();
    assert_eq!(parameter.grad().data_ptr(), memory);
    assert_eq!(parameter.grad().abs().max().double_value(&[]), 0.0);
    optimizer.gradients().drop_all().unwrap();
    assert!(!parameter.grad().defined());
    assert_eq!(grad_norm(&problem.parameters).unwrap().double_value(&[]), 0.0);
    assert_eq!(clip_grad_norm(&problem.parameters, 1.0).unwrap().double_value(&[]), 0.0);
    optimizer.gradients().zero().unwrap();
}

#[test]
fn averages_swap_in_and_out() {
    let problem = Problem::load();
    let mut ema = Ema::new(&problem.parameters, 0.5).unwrap();
    let (_, parameter) = &problem.parameters[0];
    let start = parameter.detach().copy();
    tch::no_grad(|| {
        let _ = parameter.shallow_clone().g_add_scalar_(1.0);
    });
    ema.swap().unwrap();
    assert_eq!(parameter.detach(), start);
    ema.swap().unwrap();
    assert_eq!(parameter.detach(), &start + 1.0);
}

#[test]
fn wrong_states_and_settings_are_refused() {
    let problem = Problem::load();
    let mut optimizer = AdamW::new(&problem.parameters, Problem::config()).unwrap();
    let error = optimizer.load_state(&Weights::new()).unwrap_err().to_string();
    assert!(error.contains("9 missing") && error.contains("a.exp_avg [5, 7]"), "{error}");
    let config = AdamWConfig { betas: (0.9, 1.0), ..Problem::config() };
    let error = AdamW::new(&problem.parameters, config).unwrap_err().to_string();
    assert!(error.contains("betas"), "{error}");
    let twice = [problem.parameters[0].0.clone(), problem.parameters[0].0.clone()];
    let twice = twice.map(|name| (name, problem.parameters[0].1.shallow_clone()));
    assert!(AdamW::new(&twice, Problem::config()).unwrap_err().to_string().contains("given twice"));
    let frozen = [("a".to_owned(), Tensor::zeros([1], (Kind::Float, Device::Cpu)))];
    assert!(AdamW::new(&frozen, Problem::config()).unwrap_err().to_string().contains("takes no gradient"));
}

#[test]
fn a_step_is_skipped_on_the_device_where_it_is_told_so() {
    let parameter = Tensor::from_slice(&[1f32, 2.0]).set_requires_grad(true);
    let parameters = [("p".to_owned(), parameter.shallow_clone())];
    let mut optimizer = AdamW::new(&parameters, AdamWConfig::with_lr(0.1)).unwrap();
    let mut ema = Ema::new(&parameters, 0.5).unwrap();
    (&parameter * f64::NAN).sum(Kind::Float).backward();
    let flag = |value: f32| Tensor::from(value);
    optimizer.step_unless(&flag(1.0)).unwrap();
    ema.update_unless(&flag(1.0)).unwrap();
    let untouched = Tensor::from_slice(&[1f32, 2.0]);
    assert!(parameter.equal(&untouched) && ema.averages()[0].1.equal(&untouched));
    assert!(optimizer.state().get("p.exp_avg").unwrap().equal(&Tensor::zeros([2], (Kind::Float, Device::Cpu))));
    optimizer.step_unless(&flag(0.0)).unwrap();
    assert!(Vec::<f32>::try_from(parameter.detach()).unwrap()[0].is_nan(), "0 means go");
}
