//! The loop on the digit scenes, with the real plugins.

use std::collections::BTreeMap;
use std::path::Path;

use advdmd::config::{Resolved, RunConfig, load_run};
use advdmd::registry::Registry;
use advdmd::train::{TrainOptions, Trainer, checkpoint, run};
use advdmd_tests::{PLUGINS, plugin};
use tch::Tensor;

const CONFIG: &str = include_str!("../digits.toml");

fn resolved(folder: &Path, sets: &[&str]) -> Resolved<RunConfig> {
    let path = folder.join("run.toml");
    std::fs::write(&path, CONFIG).unwrap();
    let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
    load_run(&path, &sets).unwrap()
}

fn dynamic() -> Registry {
    Registry::of_files(&PLUGINS.map(plugin)).unwrap()
}

fn trainer(registry: &Registry, sets: &[&str]) -> Trainer {
    let folder = tempfile::tempdir().unwrap();
    let mut resolved = resolved(folder.path(), sets);
    registry.resolve(&mut resolved).unwrap();
    Trainer::new(&resolved, registry).unwrap()
}

fn student(trainer: &Trainer) -> Vec<(String, Tensor)> {
    let parameters = trainer.networks.student.parameters();
    parameters.into_iter().map(|(name, tensor)| (name, tensor.detach().copy())).collect()
}

fn assert_same(a: &[(String, Tensor)], b: &[(String, Tensor)]) {
    assert_eq!(a.len(), b.len());
    for ((name, a), (other, b)) in a.iter().zip(b) {
        assert_eq!(name, other);
        assert!(a.equal(b), "{name} differs");
    }
}

/// The numbers of the second update: the policy gradient waits for a first measurement of the discriminator.
fn measured(trainer: &mut Trainer) -> BTreeMap<String, f64> {
    let first = trainer.update().unwrap();
    assert!(!first.contains_key("grpo/loss"));
    trainer.update().unwrap()
}

/// The stored log-probabilities and the replayed ones come from the same batches, so before any update they are the
/// same bits, whatever the micro-batch, with and without a remainder.
#[test]
fn the_ratio_of_an_unchanged_student_is_exactly_one() {
    for micro_batch in [8, 3, 1] {
        let set = format!("batch.micro_batch={micro_batch}");
        let values = measured(&mut trainer(&dynamic(), &[&set]));
        for name in ["ratio_min", "ratio_max"] {
            assert_eq!(values[&format!("grpo/{name}")], 1.0, "grpo/{name} at micro_batch {micro_batch}");
        }
    }
}

/// The second update replays a student that has moved since the first, and the ratio is 1 again: each update rolls
/// out anew.
#[test]
fn the_student_moves_and_stays_on_policy() {
    let mut trainer = trainer(&dynamic(), &["student.optimizer.lr=1e-3", "student.optimizer.warmup=1"]);
    let before = student(&trainer);
    trainer.update().unwrap();
    let moved = student(&trainer).iter().zip(&before).filter(|((_, a), (_, b))| !a.equal(b)).count();
    assert!(moved > before.len() / 2, "{moved} of {} tensors moved", before.len());
    let values = trainer.update().unwrap();
    assert_eq!((values["grpo/ratio_min"], values["grpo/ratio_max"]), (1.0, 1.0));
    for (name, value) in &values {
        assert!(value.is_finite(), "{name} is {value}");
    }
    for objective in ["dmd", "gan", "grpo"] {
        assert!(values[&format!("{objective}/grad_norm")] > 0.0, "{objective} gives a gradient");
    }
}

/// Passes per update, counted: K rollout, `updates` critic, K - 1 reward and K student forwards of each sample.
#[test]
fn an_update_costs_the_passes_that_the_design_says() {
    let mut trainer = trainer(&dynamic(), &[]);
    trainer.update().unwrap();
    let mut passes = BTreeMap::new();
    trainer.networks.passes.record_into(&mut passes);
    let (samples, steps, critic) = (8.0, 4.0, 2.0);
    assert_eq!(passes["passes/student/forward"], samples * (steps + steps), "rollout and replay");
    assert_eq!(passes["passes/student/backward"], samples * steps);
    assert_eq!(passes["passes/teacher/forward"], samples * steps * 2.0, "guided: two per sample");
    assert_eq!(
        passes["passes/fake/forward"],
        samples * (2.0 * critic + (steps - 1.0) + steps),
        "critic, reward, student"
    );
}

#[test]
fn a_lora_student_shares_the_base_and_starts_as_the_teacher() {
    let lora = "student.tuning={ type = \"lora\", rank = 4, alpha = 8.0 }";
    let trainer = trainer(&dynamic(), &[lora]);
    let parameters = student(&trainer);
    assert!(parameters.iter().all(|(name, _)| name.contains(".lora_")), "only the low-rank parts are trained");
    let rollout = trainer.roll(0).unwrap();
    let chunk = &rollout.chunks[0];
    let sigma = Tensor::ones([8], (tch::Kind::Float, tch::Device::Cpu));
    let predict = |denoiser: &dyn advdmd_sdk::Denoiser| {
        let request = advdmd_sdk::Request::VELOCITY;
        denoiser.predict(&chunk.states[0], &sigma, &chunk.conditioning, request).unwrap().velocity.unwrap()
    };
    assert!(predict(trainer.networks.student.as_ref()).equal(&predict(trainer.networks.teacher.as_ref())));
}

/// Four updates in one go and two plus two after a resume write the same checkpoint, bit for bit.
#[test]
fn resumed_equals_uninterrupted() {
    let folder = tempfile::tempdir().unwrap();
    let train = |name: &str, sets: &[&str], resume: bool| {
        let out = folder.path().join(name);
        run(resolved(folder.path(), sets), &TrainOptions { out: out.clone(), resume }).unwrap();
        checkpoint::latest(&out).unwrap().unwrap()
    };
    let whole = train("whole", &[], false);
    // The same configuration, stopped by its own checkpoint: only the first of the two is kept.
    let halves = train("halves", &[], false);
    let last = checkpoint::list(&folder.path().join("halves")).unwrap().pop().unwrap();
    assert_eq!((last.0, &last.1), (4, &halves));
    std::fs::remove_dir_all(&last.1).unwrap();
    let resumed = train("halves", &[], true);
    for part in ["student", "student.optimizer", "student.ema", "fake", "fake.optimizer", "reward.adversarial"] {
        let read = |checkpoint: &Path| checkpoint::read(checkpoint, part, tch::Device::Cpu).unwrap();
        let (a, b): (Vec<_>, Vec<_>) = (read(&whole).into_iter().collect(), read(&resumed).into_iter().collect());
        assert_same(&a, &b);
    }
}
