//! What a reward answers to hard inputs, and to those that it did not ask for.

use advdmd_sdk::{BackboneSpec, Error, Needs, Result, Reward};

use super::{ordinary, scores};
use crate::report::{Examiner, Verdict, advice_on, described, fail, ok, skip};
use crate::samples::{Content, Samples};
use crate::subject::Subject;

struct Answer {
    input: String,
    samples: usize,
    /// Whether it may be refused.
    refusable: bool,
    scores: Result<Vec<f32>>,
}

/// Tells whether the reward gives scores that later checks can compare.
pub(super) fn examine(subject: &Subject<'_>, reward: &mut dyn Reward, needs: &Needs, examiner: &mut Examiner) -> bool {
    let mut answers = Vec::new();
    let answered = examiner.check("answers", || {
        for (input, samples, refusable) in inputs(subject, needs) {
            answers.push(Answer { input, samples: samples.len(), refusable, scores: scores(reward, &samples) });
        }
        all_answered(&answers)
    });
    let lengths = examiner.check("length", || lengths(&answers));
    let finite = examiner.check("finite", || finite(&answers));
    examiner.check("refuses", || refuses(subject, reward, needs));
    answered && lengths && finite
}

/// Samples that a run may meet, and some that a reward may refuse.
fn inputs(subject: &Subject<'_>, needs: &Needs) -> Vec<(String, Samples, bool)> {
    let spec = &subject.spec;
    let four = ("a batch of four".to_owned(), ordinary(subject, needs, 4), false);
    // The host never cuts a group of those that compare its samples.
    let other = if needs.groupwise { ("a batch of two groups", 8) } else { ("a batch of one", 1) };
    let mut inputs = vec![four, (other.0.to_owned(), ordinary(subject, needs, other.1), false)];
    let of_prompt = |prompt: &str| {
        let mut samples = ordinary(subject, needs, 2);
        let first = usize::from(!needs.groupwise);
        samples.prompts[first..].fill(prompt.to_owned());
        samples
    };
    for (what, prompt) in [
        ("an empty prompt", ""),
        ("a prompt in many scripts", "一只猫 🐈‍⬛ na\u{ef}ve \u{202e}кот\u{202c} \t قطة"),
        ("a prompt of 4,000 letters", &"a lighthouse at night, oil on canvas; ".repeat(106)),
    ] {
        inputs.push((what.to_owned(), of_prompt(prompt), false));
    }
    if needs.images || needs.latents || needs.features.is_some() {
        for (what, value) in [("black images or zeros", 0.0), ("white images or ones", 1.0), ("a constant 0.5", 0.5)] {
            inputs.push((what.to_owned(), Samples::new(needs, spec, 2, Content::Constant(value), 0), false));
        }
    }
    if needs.images && !needs.latents && needs.features.is_none() {
        let wide = BackboneSpec { image_shape: [3, 24, 40], ..spec.clone() };
        inputs.push(("images of 24x40".to_owned(), Samples::new(needs, &wide, 2, Content::Random(0.0), 2), true));
    }
    inputs
}

fn all_answered(answers: &[Answer]) -> Verdict {
    for Answer { input, refusable, scores, .. } in answers {
        let Err(error) = scores else { continue };
        let refused = matches!(error, Error::Invalid(_) | Error::Unsupported(_) | Error::Failed(_));
        if !(*refusable && refused && !error.to_string().trim().is_empty()) {
            let expected = if *refusable { "scores, or an error with a text," } else { "scores" };
            return fail(format!("{expected} for {input}"), described(error), advice_on(error));
        }
    }
    let refused: Vec<_> =
        answers.iter().filter(|answer| answer.scores.is_err()).map(|answer| answer.input.as_str()).collect();
    let refused = if refused.is_empty() { String::new() } else { format!(", refused {}", refused.join(", ")) };
    ok(format!("scored {} kinds of input{refused}", answers.iter().filter(|answer| answer.scores.is_ok()).count()))
}

/// What was scored; none of it is nothing to check.
fn given(answers: &[Answer]) -> impl Iterator<Item = (&Answer, &Vec<f32>)> {
    answers.iter().filter_map(|answer| Some((answer, answer.scores.as_ref().ok()?)))
}

fn lengths(answers: &[Answer]) -> Verdict {
    if given(answers).next().is_none() {
        return skip("it scored nothing (`answers`)");
    }
    match given(answers).find(|(answer, scores)| scores.len() != answer.samples) {
        Some((Answer { input, samples, .. }, scores)) => fail(
            format!("{samples} scores for {input}, one a sample"),
            scores.len(),
            "give exactly one score for each of `batch.len()` samples, in their order",
        ),
        None => ok("one score a sample"),
    }
}

fn finite(answers: &[Answer]) -> Verdict {
    if given(answers).next().is_none() {
        return skip("it scored nothing (`answers`)");
    }
    for (Answer { input, .. }, scores) in given(answers) {
        if let Some(at) = scores.iter().position(|score| !score.is_finite()) {
            return fail(
                format!("finite scores for {input}"),
                format!("{} for sample {at}", scores[at]),
                "guard divisions, logarithms and roots: a spread or norm can be 0",
            );
        }
    }
    let all = given(answers).flat_map(|(_, scores)| scores.iter().copied());
    let (least, most) = all.fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), score| (a.min(score), b.max(score)));
    ok(format!("scores from {least} to {most}"))
}

/// Batches that lack what was asked for.
fn refuses(subject: &Subject<'_>, reward: &mut dyn Reward, needs: &Needs) -> Verdict {
    let whole = ordinary(subject, needs, 2);
    let mut lacking = Vec::new();
    if needs.images {
        lacking.push(("images", Samples { images: None, ..whole.clone() }));
    }
    if needs.latents {
        lacking.push(("latents", Samples { latents: None, ..whole.clone() }));
    }
    if needs.features.is_some() {
        lacking.push(("features", Samples { features: Vec::new(), ..whole.clone() }));
    }
    if lacking.is_empty() {
        return skip("it reads no tensors");
    }
    let advice = "take inputs with `batch.images()?` and its siblings, and check shapes with `expect_shape`";
    for (what, samples) in &lacking {
        let expected = || format!("an error with a text for a batch without the {what} that `needs` asked for");
        match scores(reward, samples) {
            Ok(scores) => return fail(expected(), format!("the scores {scores:?}"), advice),
            Err(error @ Error::Panic(_)) => return fail(expected(), described(&error), advice),
            Err(error) if error.to_string().trim().is_empty() => {
                return fail(expected(), "an error without a text", advice);
            }
            Err(_) => {}
        }
    }
    let names: Vec<_> = lacking.iter().map(|(what, _)| *what).collect();
    ok(format!("without {}", names.join(", ")))
}
