//! The loop on the digit scenes, with the real plugins.

use std::collections::BTreeMap;

use advdmd::registry::Registry;
use advdmd::train::{TrainOptions, Trainer, checkpoint, replay, run};
use advdmd_tests::{PLUGINS, TINY, plugin, resolved};
use tch::Tensor;

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

/// One chunk, even chunks, uneven chunks: the same student but for the order of float additions.
#[test]
fn the_cut_into_micro_batches_does_not_change_the_student() {
    let train = |micro_batch: &str| {
        let sets = ["batch.group_size=16", "student.steps_per_update=2", "student.optimizer.warmup=1", micro_batch];
        let mut trainer = trainer(&dynamic(), &[&sets[..], &TINY].concat());
        for _ in 0..3 {
            let values = trainer.update().unwrap();
            if values.contains_key("grpo/ratio_min") {
                assert_eq!((values["grpo/ratio_min"], values["grpo/ratio_max"]), (1.0, 1.0), "{micro_batch}");
            }
        }
        student(&trainer)
    };
    let whole = train("batch.micro_batch=32");
    let start = student(&trainer(&dynamic(), &TINY));
    for micro_batch in ["batch.micro_batch=8", "batch.micro_batch=5", "batch.micro_batch=64"] {
        let cut = train(micro_batch);
        let (mut apart, mut moved) = (0.0f64, 0.0f64);
        for (((_, a), (_, b)), (_, start)) in whole.iter().zip(&cut).zip(&start) {
            apart = apart.max((a - b).abs().max().double_value(&[]));
            moved = moved.max((a - start).abs().max().double_value(&[]));
        }
        println!("{micro_batch}: {apart:e} apart, moved {moved:e}");
        // Another order of float additions: found 7e-9 apart after moving 9e-5.
        assert!(apart <= 1e-3 * moved, "{micro_batch}: {apart:e} apart after moving {moved:e}");
    }
}

/// A weight so large that the gradient overflows: the update moves nothing, names the objective and the tensor, and is
/// kept; its replay finds the same.
#[test]
fn an_update_that_is_not_finite_is_named_kept_and_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let sets = [&["objective.dmd.weight=1e60", "plugins.paths=[]"][..], &TINY].concat();
    let error = run(resolved(folder.path(), &sets), &TrainOptions { out: out.clone(), ..TrainOptions::default() });
    let error = error.unwrap_err();
    let text = error.to_string();
    let advdmd::Error::NotFinite { update, finding: Some(finding), kept: Some(kept), .. } = error else {
        panic!("{text}");
    };
    assert_eq!((update, &kept), (0, &out.join("failures/update-000000")));
    assert_eq!(finding.seen.name, "gradient of dmd at the student's velocity", "{text}");
    assert!(finding.seen.place.starts_with("student update 0, chunk 0, step 0"), "{text}");
    assert!(text.contains("advdmd replay"), "{text}");
    let replayed = replay(&kept, &[]).unwrap();
    assert_eq!(replayed.first_bad().map(ToString::to_string), Some(finding.to_string()));
    let names: Vec<&str> = replayed.seen().iter().map(|seen| seen.name.as_str()).collect();
    for expected in
        ["state.0", "real latents", "critic/denoise_loss", "scores of adversarial", "velocity of the teacher"]
    {
        assert!(names.contains(&expected), "{expected} in {names:?}");
    }
    let kept_student = checkpoint::Checkpoint::open(&kept).unwrap().read("student", tch::Device::Cpu).unwrap();
    for (name, start) in student(&trainer(&dynamic(), &TINY)) {
        assert!(kept_student.get(&name).unwrap().equal(&start), "{name} has moved");
    }
}
