//! Scores depend on the sample and the seed, not on the call or the company.

use advdmd_sdk::{Needs, Reward};

use super::{apart, ordinary, scores};
use crate::report::{Examiner, Verdict, fail, ok, skip};
use crate::samples::Samples;
use crate::subject::{SEED, Subject};

/// The same computation again.
const SAME: f64 = 1e-6;
/// The same in float32 with sums in another order.
const ROUNDING: f64 = 1e-4;

pub(super) fn examine(subject: &Subject<'_>, reward: &mut dyn Reward, needs: &Needs, examiner: &mut Examiner) {
    let samples = ordinary(subject, needs, 5);
    examiner.check("deterministic", || deterministic(subject, reward, &samples));
    examiner.check("permutation", || permutation(reward, needs, &samples));
    examiner.check("batch_split", || batch_split(reward, needs, &samples));
}

fn deterministic(subject: &Subject<'_>, reward: &mut dyn Reward, samples: &Samples) -> Verdict {
    let (first, second) = (scores(reward, samples)?, scores(reward, samples)?);
    let fresh = scores(&mut *subject.reward(SEED)?, samples)?;
    for (what, found) in [("a second call", second), ("a new instance of the same seed", fresh)] {
        if apart(&found, &first) > SAME {
            return fail(
                format!("{first:?} from {what} as from the first"),
                format!("{found:?}"),
                "draw random numbers from `RewardInit::seed` when it is made, never from a clock or a global generator",
            );
        }
    }
    ok("twice, and by a new instance of the same seed")
}

fn permutation(reward: &mut dyn Reward, needs: &Needs, samples: &Samples) -> Verdict {
    if needs.groupwise {
        return skip("it declares itself groupwise");
    }
    let order = [3, 0, 4, 2, 1];
    let first = scores(reward, samples)?;
    let expected: Vec<f32> = order.iter().map(|&at| first[at]).collect();
    let found = scores(reward, &samples.select(&order))?;
    if apart(&found, &expected) > ROUNDING {
        return fail(
            format!("samples in the order {order:?} to keep their scores, {expected:?}"),
            format!("{found:?}"),
            "let no score depend on its place in the batch, or set `groupwise` in `needs`",
        );
    }
    ok(format!("within {:.0e} of the largest", apart(&found, &expected)))
}

fn batch_split(reward: &mut dyn Reward, needs: &Needs, samples: &Samples) -> Verdict {
    if needs.groupwise {
        return skip("it declares itself groupwise");
    }
    let whole = scores(reward, samples)?;
    let splits: [&[&[usize]]; 2] = [&[&[0, 1], &[2, 3, 4]], &[&[0], &[1], &[2], &[3], &[4]]];
    let mut furthest = 0.0;
    for split in splits {
        let parts = split.iter().map(|part| scores(reward, &samples.select(part)));
        let found = parts.collect::<Result<Vec<_>, _>>()?.concat();
        furthest = apart(&found, &whole).max(furthest);
        if furthest > ROUNDING {
            let sizes: Vec<_> = split.iter().map(|part| part.len()).collect();
            return fail(
                format!("{whole:?} from batches of {sizes:?} samples, as from one of {}", samples.len()),
                format!("{found:?}"),
                "let no score depend on the other samples, or set `groupwise` in `needs`",
            );
        }
    }
    ok(format!("within {furthest:.0e} of the largest"))
}
