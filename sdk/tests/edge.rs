//! Rewards and samplers behind the edge, without a library: every call takes the way of a loaded plugin.

use advdmd_sdk::abi::{loop_reward, loop_sampler};
use advdmd_sdk::{
    DType, Error, FeatureNeeds, FeatureSource, LogProb, Needs, Result, Reward, RewardBatch, Sampler, Scope, TensorView,
    Transition,
};

/// A reward made of a closure.
struct Scorer<F>(F, Needs);

impl<F: FnMut(&RewardBatch<'_>) -> Result<Vec<f32>> + Send> Reward for Scorer<F> {
    fn needs(&self) -> Needs {
        self.1.clone()
    }

    fn score(&mut self, batch: &RewardBatch<'_>) -> Result<Vec<f32>> {
        (self.0)(batch)
    }
}

fn behind_edge(score: impl FnMut(&RewardBatch<'_>) -> Result<Vec<f32>> + Send + 'static) -> Box<dyn Reward> {
    loop_reward(Box::new(Scorer(score, Needs::default()))).unwrap()
}

#[test]
fn needs_arrive_whole() {
    let needs = Needs {
        scope: Scope::EveryStep,
        images: false,
        latents: true,
        features: Some(FeatureNeeds { source: FeatureSource::Teacher, taps: vec![1, 3] }),
        on_cpu: true,
        scores_on_device: true,
        differentiable: true,
        background: true,
        groupwise: true,
    };
    let reward = loop_reward(Box::new(Scorer(|_: &RewardBatch<'_>| Ok(vec![]), needs.clone()))).unwrap();
    assert_eq!(reward.needs(), needs);
}

#[test]
fn scores_are_the_same_bits() {
    let scores = [0.1f32, -0.0, f32::MIN_POSITIVE / 2.0, f32::MAX, 1.0 + f32::EPSILON, f32::INFINITY];
    let mut reward = behind_edge(move |_| Ok(scores.to_vec()));
    let bits = |scores: &[f32]| scores.iter().map(|score| score.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&reward.score(&RewardBatch::default()).unwrap()), bits(&scores));
    let mut reward = behind_edge(|_| Ok(vec![f32::NAN]));
    assert!(reward.score(&RewardBatch::default()).unwrap()[0].is_nan(), "it is the host's to refuse");
}

#[test]
fn batches_arrive_whole() {
    let (pixels, sigma) = ([0.5f32, 0.25, 0.125, 1.0], [0.75f32, 0.0]);
    let batch = RewardBatch {
        prompts: vec!["", "a three: \u{2462}"],
        sigma: Some(TensorView::from_f32(&sigma, &[2]).unwrap()),
        images: None,
        latents: Some(TensorView::from_bytes(DType::F32, &[2, 2], &[1, 2], bytes(&pixels)).unwrap()),
        features: vec![
            TensorView::from_f32(&pixels[..2], &[2, 1]).unwrap(),
            TensorView::from_f32(&[], &[2, 0]).unwrap(),
        ],
    };
    let mut reward = behind_edge(|batch| {
        assert_eq!(batch.prompts, ["", "a three: \u{2462}"]);
        assert!(batch.images.is_none());
        assert_eq!(*batch.sigma.as_ref().unwrap().to_f32()?, [0.75, 0.0]);
        let latents = batch.latents()?;
        assert_eq!((latents.dtype(), latents.shape(), latents.strides()), (DType::F32, &[2, 2][..], &[1, 2][..]));
        assert_eq!(*latents.to_f32()?, [0.5, 0.125, 0.25, 1.0]);
        assert_eq!(batch.features.len(), 2);
        assert_eq!(*batch.features[0].to_f32()?, [0.5, 0.25]);
        assert_eq!(batch.features[1].shape(), [2, 0]);
        Ok(vec![])
    });
    reward.score(&batch).unwrap();
}

fn bytes(values: &[f32]) -> &[u8] {
    bytemuck::cast_slice(values)
}

#[test]
fn every_error_keeps_kind_and_message() {
    let errors = [
        Error::config("scale: too large"),
        Error::invalid("images: expected 3 channels"),
        Error::unsupported("no gradients"),
        Error::failed("line one\nline two: \u{e9}"),
    ];
    for error in errors {
        let sent = error.clone();
        let mut reward = behind_edge(move |_| Err(sent.clone()));
        assert_eq!(reward.score(&RewardBatch::default()), Err(error));
    }
}

#[test]
fn a_panic_is_an_error_with_message_and_place() {
    let mut calls = 0;
    let mut reward = behind_edge(move |_| {
        calls += 1;
        assert!(calls > 1, "panic number {calls}");
        Ok(vec![calls as f32])
    });
    let error = reward.score(&RewardBatch::default()).unwrap_err();
    let Error::Panic(message) = &error else { panic!("{error:?}") };
    assert!(message.starts_with("panic number 1 (at sdk/tests/edge.rs:"), "{message}");
    assert_eq!(reward.score(&RewardBatch::default()), Ok(vec![2.0]), "the plugin lives on");
    let mut reward = behind_edge(|_| std::panic::panic_any(5u8));
    let Err(Error::Panic(message)) = reward.score(&RewardBatch::default()) else { panic!("no panic") };
    assert!(message.starts_with("no message (at "), "{message}");
}

#[test]
fn a_panicking_destructor_does_not_reach_the_host() {
    struct Explosive;
    impl Drop for Explosive {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    let explosive = Explosive;
    let reward = behind_edge(move |_| {
        let _ = &explosive;
        Ok(vec![])
    });
    drop(reward);
}

/// A sampler that answers what the test says.
struct Fixed(Result<Transition>);

impl Sampler for Fixed {
    fn sigmas(&self, steps: usize) -> Result<Vec<f64>> {
        if steps == 0 {
            return Err(Error::invalid("0 steps"));
        }
        Ok((0..=steps).map(|k| 1.0 - k as f64 / steps as f64).collect())
    }

    fn transition(&self, _sigmas: &[f64], _step: usize) -> Result<Transition> {
        self.0.clone()
    }

    fn preserves_marginals(&self) -> bool {
        false
    }

    fn order(&self) -> u32 {
        3
    }
}

#[test]
fn samplers_keep_every_bit_and_every_override() {
    for log_prob in [LogProb::None, LogProb::Gaussian, LogProb::SquaredError] {
        let transition = Transition { a: 0.1 + 0.2, b: vec![-1.0 / 3.0, 5e-324], c: f64::MAX, log_prob };
        let sampler = loop_sampler(Box::new(Fixed(Ok(transition.clone())))).unwrap();
        assert_eq!(sampler.transition(&[1.0, 0.0], 0), Ok(transition));
        assert_eq!(sampler.sigmas(3), Fixed(Err(Error::failed(""))).sigmas(3));
        assert_eq!(sampler.sigmas(0), Err(Error::invalid("0 steps")));
        assert!(!sampler.preserves_marginals());
        assert_eq!(sampler.order(), 3);
    }
}

#[test]
fn a_call_through_the_edge_is_cheap() {
    let transition = Transition { a: 1.0, b: vec![-0.5], c: 0.0, log_prob: LogProb::None };
    let sampler = loop_sampler(Box::new(Fixed(Ok(transition)))).unwrap();
    // The quickest of several rounds: other programs take their share of the rest.
    let each = (0..20).map(|_| {
        let calls = 2_000;
        let start = std::time::Instant::now();
        for _ in 0..calls {
            std::hint::black_box(sampler.transition(&[1.0, 0.0], 0).unwrap());
        }
        start.elapsed() / calls
    });
    let each = each.min().unwrap();
    println!("one transition through the edge: {each:?}");
    assert!(each < std::time::Duration::from_micros(50), "{each:?}");
}
