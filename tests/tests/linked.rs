//! The same plugins linked into the program and loaded into it.

use {
    backbone_digits as _, backbone_sd3 as _, reward_adversarial as _, reward_clip as _, reward_remote as _,
    sampler_flow as _,
};

use advdmd::config::load_run;
use advdmd::registry::Registry;
use advdmd::train::{Trainer, Values};
use advdmd_tests::{PLUGINS, is_effort, plugin};

fn train(registry: &Registry) -> (Vec<Values>, Vec<(String, tch::Tensor)>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    std::fs::write(&path, include_str!("../digits.toml")).unwrap();
    let mut resolved = load_run(&path, &["student.optimizer.lr=1e-3".to_owned()]).unwrap();
    registry.resolve(&mut resolved).unwrap();
    let mut trainer = Trainer::new(&resolved, registry).unwrap();
    let timeless = |values: Values| values.into_iter().filter(|(name, _)| !is_effort(name)).collect();
    let values = (0..3).map(|_| timeless(trainer.update().unwrap())).collect();
    (values, trainer.networks.student.parameters())
}

#[test]
fn static_and_dynamic_plugins_train_the_same_student() {
    let (linked_values, linked) = train(&Registry::linked().unwrap());
    let (loaded_values, loaded) = train(&Registry::of_files(&PLUGINS.map(plugin)).unwrap());
    assert_eq!(linked_values, loaded_values);
    assert!(linked_values[2].contains_key("grpo/loss"), "all objectives took part");
    assert_eq!(linked.len(), loaded.len());
    for ((name, linked), (other, loaded)) in linked.iter().zip(&loaded) {
        assert_eq!(name, other);
        assert!(linked.equal(loaded), "{name} differs");
    }
}
