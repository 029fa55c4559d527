//! What holds for any scores, any trajectory and any measured accuracy: found false, proptest shows the smallest case.

use advdmd::config::Grpo;
use advdmd::objective::advantage::{self, Advantages, Judged, Normalize};
use advdmd::sampling::{Trajectory, generate};
use advdmd::train::checkpoint::State;
use advdmd_sdk::{Conditioning, Denoiser, LogProb, Prediction, Request, Sampler, Transition};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use tch::{Device, Kind, Tensor};

/// The same cases in each run: what fails here fails for whoever looks.
fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..ProptestConfig::default() }
}

/// Groups, samples of each, steps.
type Shape = [usize; 3];

/// Several rewards' scores of one shape, with their weights.
fn rewards() -> impl Strategy<Value = (Shape, Vec<(Vec<f32>, f64)>)> {
    ([1..5usize, 2..7usize, 1..4usize], 1..4usize).prop_flat_map(|(shape, rewards)| {
        // Few different levels, so that groups are dead now and then and spreads are never mere rounding errors.
        let score = (-8i8..8).prop_map(|level| f32::from(level) / 4.0);
        let reward = (vec(score, shape.iter().product::<usize>()), 0.1..3.0f64);
        (Just(shape), vec(reward, rewards))
    })
}

fn combine(shape: Shape, rewards: &[(Vec<f32>, f64)]) -> Advantages {
    combine_by(Normalize::Group, shape, rewards)
}

fn combine_by(normalize: Normalize, shape: Shape, rewards: &[(Vec<f32>, f64)]) -> Advantages {
    let shape = shape.map(|size| size as i64);
    let judged = |(scores, weight): &(Vec<f32>, f64)| Judged {
        scores: Tensor::from_slice(scores).view(shape),
        weight: *weight,
        on: vec![true; shape[2] as usize],
        discount: 1.0,
        std_floor: 0.0,
    };
    advantage::combine(&rewards.iter().map(judged).collect::<Vec<_>>(), normalize).unwrap()
}

const ALL: [Normalize; 3] = [Normalize::Group, Normalize::Global, Normalize::None];

fn numbers(advantages: &Advantages) -> Vec<f32> {
    Vec::try_from(advantages.values.reshape(-1)).unwrap()
}

fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-4 * expected.abs().max(1.0), "expected {expected}, found {found}");
    }
}

/// `values` with the samples of each group, and the groups, in reversed order.
fn reversed<T: Copy>([groups, size, steps]: Shape, values: &[T]) -> Vec<T> {
    let at = |group, sample, step| values[(group * size + sample) * steps + step];
    let samples = (0..groups).rev().flat_map(|group| (0..size).rev().map(move |sample| (group, sample)));
    samples.flat_map(|(group, sample)| (0..steps).map(move |step| at(group, sample, step))).collect()
}

/// The scores of one group at one step.
fn group_at<T: Copy>([_, size, steps]: Shape, values: &[T], group: usize, step: usize) -> Vec<T> {
    (0..size).map(|sample| values[(group * size + sample) * steps + step]).collect()
}

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn advantages_of_a_group_add_up_to_zero((shape, rewards) in rewards()) {
        let values = numbers(&combine(shape, &rewards));
        for group in 0..shape[0] {
            for step in 0..shape[2] {
                let sum: f32 = group_at(shape, &values, group, step).iter().sum();
                prop_assert!(sum.abs() < 1e-4, "group {group} at step {step} adds up to {sum}");
            }
        }
    }

    #[test]
    fn scale_and_offset_of_a_reward_change_nothing(
        (shape, rewards) in rewards(), scale in 0.01..100.0f32, offset in -3.0..3.0f32,
    ) {
        let expected = numbers(&combine(shape, &rewards));
        let moved = |scores: &Vec<f32>| -> Vec<f32> { scores.iter().map(|score| scale * (score + offset)).collect() };
        let others: Vec<_> = rewards.iter().map(|(scores, weight)| (moved(scores), *weight)).collect();
        assert_close(&numbers(&combine(shape, &others)), &expected);
    }

    #[test]
    fn worse_is_the_opposite_of_better((shape, rewards) in rewards()) {
        let expected: Vec<f32> = numbers(&combine(shape, &rewards)).iter().map(|value| -value).collect();
        let negated: Vec<_> =
            rewards.iter().map(|(scores, weight)| (scores.iter().map(|score| -score).collect(), *weight)).collect();
        assert_close(&numbers(&combine(shape, &negated)), &expected);
    }

    #[test]
    fn the_order_of_samples_groups_and_rewards_does_not_matter((shape, rewards) in rewards()) {
        let expected = reversed(shape, &numbers(&combine(shape, &rewards)));
        let others: Vec<_> =
            rewards.iter().rev().map(|(scores, weight)| (reversed(shape, scores), *weight)).collect();
        assert_close(&numbers(&combine(shape, &others)), &expected);
    }

    #[test]
    fn a_constant_reward_adds_nothing((shape, rewards) in rewards(), at in 0..4usize, level in -5.0..5.0f32) {
        for normalize in ALL {
            let expected = numbers(&combine_by(normalize, shape, &rewards));
            let mut more = rewards.clone();
            more.insert(at.min(rewards.len()), (vec![level; shape.iter().product()], 2.0));
            let advantages = combine_by(normalize, shape, &more);
            prop_assert_eq!(&numbers(&advantages), &expected, "not a bit");
            let at = at.min(rewards.len()) as i64;
            prop_assert_eq!(advantages.dead.double_value(&[at]), 1.0);
            prop_assert_eq!(advantages.share.double_value(&[at]), 0.0);
        }
    }

    #[test]
    fn dead_groups_are_left_out((shape, rewards) in rewards(), place in 0..5usize) {
        for normalize in [Normalize::Group, Normalize::None] {
            let place = place.min(shape[0]);
            let size = shape[1] * shape[2];
            let with_dead = |(scores, weight): &(Vec<f32>, f64)| {
                let mut scores = scores.clone();
                scores.splice(place * size..place * size, std::iter::repeat_n(0.7, size));
                (scores, *weight)
            };
            let more: Vec<_> = rewards.iter().map(with_dead).collect();
            let mut found = numbers(&combine_by(normalize, [shape[0] + 1, shape[1], shape[2]], &more));
            let dead: Vec<f32> = found.splice(place * size..(place + 1) * size, []).collect();
            prop_assert!(dead.iter().all(|value| *value == 0.0));
            assert_close(&found, &numbers(&combine_by(normalize, shape, &rewards)));
        }
    }

    #[test]
    fn shares_add_up_to_one((shape, rewards) in rewards()) {
        for normalize in ALL {
            let advantages = combine_by(normalize, shape, &rewards);
            let sum = advantages.share.sum(Kind::Double).double_value(&[]);
            let alive = advantages.values.abs().max().double_value(&[]) > 0.0;
            prop_assert!((sum - f64::from(u8::from(alive))).abs() < 1e-5, "{sum}");
            let correlation = &advantages.correlation;
            prop_assert!(correlation.abs().max().double_value(&[]) <= 1.0 + 1e-6);
            prop_assert!(correlation.equal(&correlation.transpose(0, 1)));
        }
    }

    #[test]
    fn where_a_discount_leaves_nothing_a_reward_is_not_there((shape, rewards) in rewards(), weight in 0.1..5.0f64) {
        let judged = |scores: &[f32], weight, discount| Judged {
            scores: Tensor::from_slice(scores).view(shape.map(|size| size as i64)),
            weight,
            on: vec![true; shape[2]],
            discount,
            std_floor: 0.0,
        };
        let first = || judged(&rewards[0].0, 1.0, 1.0);
        let reversed = reversed(shape, &rewards[0].0);
        let both = advantage::combine(&[first(), judged(&reversed, weight, 0.0)], Normalize::Group).unwrap();
        let alone = advantage::combine(&[first()], Normalize::Group).unwrap();
        let earlier = shape[2] as i64 - 1;
        prop_assert!(both.values.narrow(2, 0, earlier).equal(&alone.values.narrow(2, 0, earlier)));
        prop_assert!(both.live.narrow(0, 0, earlier).equal(&alone.live.narrow(0, 0, earlier)));
    }

    #[test]
    fn a_discount_of_zero_leaves_the_last_step_alone((shape, rewards) in rewards()) {
        let judged = |discount: f64| Judged {
            scores: Tensor::from_slice(&rewards[0].0).view(shape.map(|size| size as i64)),
            weight: rewards[0].1,
            on: vec![true; shape[2]],
            discount,
            std_floor: 0.0,
        };
        let [spread, last] = [1.0, 0.0].map(|d| advantage::combine(&[judged(d)], Normalize::Group).unwrap().values);
        let steps = shape[2] as i64;
        prop_assert!(last.select(2, steps - 1).equal(&spread.select(2, steps - 1)));
        prop_assert_eq!(last.narrow(2, 0, steps - 1).abs().sum(Kind::Double).double_value(&[]), 0.0);
    }

    #[test]
    fn a_group_is_dead_exactly_where_no_reward_tells_its_samples_apart((shape, rewards) in rewards()) {
        let advantages = combine(shape, &rewards);
        let values = numbers(&advantages);
        let mut dead = 0;
        for group in 0..shape[0] {
            for step in 0..shape[2] {
                let equal = |scores: &Vec<f32>| group_at(shape, scores, group, step).windows(2).all(|pair| pair[0] == pair[1]);
                if rewards.iter().all(|(scores, _)| equal(scores)) {
                    dead += 1;
                    prop_assert!(group_at(shape, &values, group, step).iter().all(|value| *value == 0.0));
                }
            }
        }
        let share = f64::from(dead) / (shape[0] * shape[2]) as f64;
        prop_assert!((advantages.dead_groups.double_value(&[]) - share).abs() < 1e-6);
        prop_assert!((1.0 - advantages.live.mean(Kind::Double).double_value(&[]) - share).abs() < 1e-6);
    }

    #[test]
    fn one_reward_orders_samples_as_its_scores_do((shape, rewards) in rewards()) {
        let values = numbers(&combine(shape, &rewards[..1]));
        for group in 0..shape[0] {
            for step in 0..shape[2] {
                let scores = group_at(shape, &rewards[0].0, group, step);
                let values = group_at(shape, &values, group, step);
                for (a, b) in (0..shape[1]).flat_map(|a| (0..shape[1]).map(move |b| (a, b))) {
                    prop_assert_eq!(scores[a] < scores[b], values[a] < values[b]);
                }
            }
        }
    }
}

/// A sampler of given numbers.
#[derive(Debug, Clone)]
struct Table {
    sigmas: Vec<f64>,
    transitions: Vec<Transition>,
}

impl Sampler for Table {
    fn sigmas(&self, _steps: usize) -> advdmd_sdk::Result<Vec<f64>> {
        Ok(self.sigmas.clone())
    }

    fn transition(&self, _sigmas: &[f64], step: usize) -> advdmd_sdk::Result<Transition> {
        Ok(self.transitions[step].clone())
    }
}

/// Any falling sigmas, and any coefficients that the contract allows.
fn tables() -> impl Strategy<Value = Table> {
    vec(0.01..1.0f64, 1..7).prop_flat_map(|gaps| {
        let whole: f64 = gaps.iter().sum();
        let mut sigmas: Vec<f64> = gaps
            .iter()
            .scan(whole, |left, gap| {
                let sigma = *left / whole;
                *left -= gap;
                Some(sigma)
            })
            .collect();
        sigmas.push(0.0);
        let steps = gaps.len();
        let transitions: Vec<_> = (0..steps)
            .map(|step| {
                let noise =
                    if step + 1 == steps { Just(0.0).boxed() } else { prop_oneof![Just(0.0), 0.01..1.0f64].boxed() };
                (-1.5..1.5f64, vec(-1.0..1.0f64, 1..=step + 1), noise).prop_map(|(a, b, c)| {
                    let log_prob = if c == 0.0 { LogProb::None } else { LogProb::SquaredError };
                    Transition { a, b, c, log_prob }
                })
            })
            .collect();
        (Just(sigmas), transitions).prop_map(|(sigmas, transitions)| Table { sigmas, transitions })
    })
}

/// `v = x / 2 + sigma`.
struct Linear;

impl Denoiser for Linear {
    fn predict(&self, x: &Tensor, sigma: &Tensor, _: &Conditioning, _: Request<'_>) -> advdmd_sdk::Result<Prediction> {
        Ok(Prediction { velocity: Some(x * 0.5 + sigma.view([-1, 1, 1, 1])), features: Vec::new() })
    }

    fn parameters(&self) -> Vec<(String, Tensor)> {
        Vec::new()
    }
}

proptest! {
    #![proptest_config(cases(64))]

    /// `x' = a x + sum_i b_i v_i + c noise`, v newest first, for any kernel of that form.
    #[test]
    fn trajectories_follow_their_transitions(table in tables(), start in -2.0..2.0f64) {
        let trajectory = Trajectory::new(&table, table.transitions.len(), None).unwrap();
        let noise_at = |step: usize| 0.3 - 0.2 * step as f64;
        let (mut x, mut velocities) = (start, Vec::new());
        for (step, transition) in table.transitions.iter().enumerate() {
            velocities.insert(0, 0.5 * x + table.sigmas[step]);
            let flow: f64 = transition.b.iter().zip(&velocities).map(|(b, velocity)| b * velocity).sum();
            x = transition.a * x + flow + transition.c * noise_at(step);
        }
        let full = |value: f64| Tensor::full([2, 1, 1, 1], value, (Kind::Double, Device::Cpu));
        let conditioning = Conditioning { context: full(0.0), pooled: None, mask: None };
        let found = generate(&Linear, &trajectory, full(start), &conditioning, None, |step| Ok(full(noise_at(step)))).unwrap();
        // Sigmas are float32.
        prop_assert!((found.double_value(&[1, 0, 0, 0]) - x).abs() < 1e-4 * x.abs().max(1.0), "expected {}, found {}", x, found);
        let actions: Vec<usize> = trajectory.stochastic().collect();
        let expected: Vec<usize> = (0..table.transitions.len()).filter(|&step| table.transitions[step].c > 0.0).collect();
        prop_assert_eq!(actions, expected);
    }

    #[test]
    fn only_sigmas_that_fall_from_at_most_1_to_0_make_a_trajectory(
        mut given in vec(prop_oneof![Just(0.0), Just(1.0), Just(f64::NAN), Just(f64::INFINITY), -0.2..1.4f64], 0..4),
        sorted in any::<bool>(),
        ends in any::<bool>(),
    ) {
        if sorted {
            given.sort_by(|a, b| b.total_cmp(a));
        }
        if ends {
            given.push(0.0);
        }
        let steps = given.len().saturating_sub(1);
        let euler = Transition { a: 1.0, b: vec![-0.1], c: 0.0, log_prob: LogProb::None };
        let table = Table { sigmas: Vec::new(), transitions: vec![euler; steps] };
        let fits = steps >= 1 && given[steps] == 0.0 && given[0] <= 1.0 && given.is_sorted_by(|a, b| a > b);
        prop_assert_eq!(Trajectory::new(&table, steps, Some(&given)).is_ok(), fits);
    }

    /// The running accuracy is an average: where all that was measured lies on one side of the gate's bounds, so does it.
    #[test]
    fn the_gate_is_open_where_all_accuracies_lie_in_it(
        measured in vec(0.0..=1.0f64, 1..20), (low, high) in (0.0..0.5f64, 0.5..1.0f64), step in 0..4usize, update in 0..20u64,
    ) {
        let settings = Grpo {
            weight: 1.0,
            clip_range: [1e-3, 1e-3],
            advantage_clip: 5.0,
            normalize: Normalize::Group,
            std_floor: 0.0,
            warmup: 10,
            accuracy_gate: [low, high],
        };
        let mut gate = State::default().gate;
        for accuracy in &measured {
            gate.observe(step, *accuracy);
        }
        let open = gate.is_open(&settings, update, step, true);
        prop_assert!(!open || update >= 10, "open in the warm-up");
        prop_assert!(!gate.is_open(&settings, update, step + 1, true), "nothing was measured there");
        // An average of equal numbers may leave them by a rounding error.
        let within = |accuracy: &f64| (low + 1e-12..=high - 1e-12).contains(accuracy);
        if update >= 10 && measured.iter().all(within) {
            prop_assert!(open);
        }
        if measured.iter().all(|accuracy| *accuracy < low - 1e-12) || measured.iter().all(|accuracy| *accuracy > high + 1e-12) {
            prop_assert!(!open);
        }
    }
}
