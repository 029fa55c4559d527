//! What a run comes to in a sentence: the student against its teacher at the same number of steps.

use std::cmp::Reverse;

use crate::eval::{Difference, Entry, Subject};

/// How it came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Better,
    Worse,
    Undecided,
    Unknown,
}

impl Outcome {
    /// The class of its colour.
    pub fn class(self) -> &'static str {
        match self {
            Self::Better => "good",
            Self::Worse => "bad",
            Self::Undecided | Self::Unknown => "even",
        }
    }
}

/// The sentence and its evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    pub outcome: Outcome,
    /// The verdict in a few words.
    pub heading: String,
    /// The comparison at equal steps.
    pub text: String,
    /// What else has to be known: the Fréchet distance, the teacher at full length, the protocol.
    pub details: Vec<String>,
}

/// What is said of a run on data whose images nothing judges.
pub(super) fn unjudged() -> Verdict {
    let text = "Nothing here judges images of this data, so no score is given: look at the samples, where teacher and student \
                begin with the same noise.";
    Verdict { outcome: Outcome::Unknown, heading: "See for yourself".into(), text: text.into(), details: Vec::new() }
}

/// Compares the newest evaluation of the student with the teacher's best one at as many steps. A student that was
/// evaluated at several numbers of steps is judged by the largest, which it was trained for.
pub(super) fn verdict(entries: &[Entry]) -> Verdict {
    let unknown =
        |text: String| Verdict { outcome: Outcome::Unknown, heading: "No verdict".into(), text, details: Vec::new() };
    let mut newest = newest_students(entries).into_iter();
    let Some(student) = newest.next() else {
        return unknown("The student has not been evaluated.".into());
    };
    let Some(teacher) = best(entries, |entry| entry.steps == student.steps) else {
        let steps = student.steps;
        return unknown(format!(
            "The teacher has not been evaluated at the student's {steps} steps, so there is nothing to compare with."
        ));
    };
    let Some(difference) = student.scores.difference(&teacher.scores) else {
        return unknown("Student and teacher were evaluated by different protocols, which do not compare.".into());
    };
    let outcome = match difference.mean {
        _ if !difference.is_clear() => Outcome::Undecided,
        0.0.. => Outcome::Better,
        _ => Outcome::Worse,
    };
    let weight = match outcome {
        Outcome::Undecided => "too little to tell from chance".to_owned(),
        _ if difference.standard_error == 0.0 => "the same on every prompt".to_owned(),
        _ => format!("{:.1} standard errors", difference.z().abs()),
    };
    let text = format!("{}, {weight}.", comparison(student, teacher, &difference));
    let mut details: Vec<String> = newest
        .filter_map(|student| {
            let teacher = best(entries, |entry| entry.steps == student.steps)?;
            Some(comparison(student, teacher, &student.scores.difference(&teacher.scores)?) + ".")
        })
        .collect();
    details
        .extend(best(entries, |entry| entry.steps > student.steps).and_then(|full| beside_full_length(student, full)));
    details.push(frechet(student, teacher));
    let heading = match outcome {
        Outcome::Better => "Better than its teacher",
        Outcome::Worse => "Worse than its teacher",
        Outcome::Undecided | Outcome::Unknown => "As good as its teacher, as far as can be told,",
    };
    Verdict { outcome, heading: format!("{heading} at {} steps", student.steps), text, details }
}

/// The student's evaluations at its newest update, from most to fewest steps.
pub(super) fn newest_students(entries: &[Entry]) -> Vec<&Entry> {
    let students = || entries.iter().filter(|entry| entry.subject == Subject::Student);
    let newest = students().map(|entry| entry.update).max();
    let mut found: Vec<&Entry> = students().filter(|entry| Some(entry.update) == newest).collect();
    found.sort_by_key(|entry| Reverse(entry.steps));
    found
}

/// The teacher's evaluation with the highest score.
pub(super) fn best(entries: &[Entry], wanted: impl Fn(&Entry) -> bool) -> Option<&Entry> {
    let score = |entry: &Entry| entry.scores.tasks.overall.unwrap_or(f64::NEG_INFINITY);
    let teachers = entries.iter().filter(|entry| entry.subject == Subject::Teacher && wanted(entry));
    teachers.max_by(|a, b| score(a).total_cmp(&score(b)))
}

fn comparison(student: &Entry, teacher: &Entry, difference: &Difference) -> String {
    format!(
        "At {} steps the student scores {} and the teacher {}{}: a difference of {} ± {:.3}",
        student.steps,
        overall(student),
        overall(teacher),
        guidance(teacher),
        signed(difference.mean),
        difference.standard_error,
    )
}

fn overall(entry: &Entry) -> String {
    entry.scores.tasks.overall.map_or_else(|| "nothing (not all tasks)".to_owned(), |overall| format!("{overall:.3}"))
}

/// With a plus or a true minus sign.
fn signed(value: f64) -> String {
    format!("{value:+.3}").replace('-', "−")
}

fn guidance(entry: &Entry) -> String {
    if entry.guidance_scale == 1.0 { String::new() } else { format!(" (guidance {})", entry.guidance_scale) }
}

fn frechet(student: &Entry, teacher: &Entry) -> String {
    let (ours, theirs) = (student.scores.frechet, teacher.scores.frechet);
    let side = if ours < theirs { "nearer to real images" } else { "further from real images" };
    format!("Fréchet distance {ours:.2} against {theirs:.2}: {side} (lower is better).")
}

fn beside_full_length(student: &Entry, full: &Entry) -> Option<String> {
    let difference = student.scores.difference(&full.scores)?;
    Some(format!(
        "The teacher at {} steps{} scores {} with {} evaluations per image, the student with {} differs by {} ± {:.3}.",
        full.steps,
        guidance(full),
        overall(full),
        full.evaluations,
        student.evaluations,
        signed(difference.mean),
        difference.standard_error,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::tests::scores;

    fn entry(subject: Subject, steps: usize, share: f64, frechet: f64) -> Entry {
        let (label, sampler) = ("x".to_owned(), "euler".to_owned());
        let scores = scores(share, frechet, 1.0);
        Entry { update: 0, label, subject, sampler, steps, guidance_scale: 1.0, evaluations: steps, scores }
    }

    #[test]
    fn better_worse_and_even_are_told_apart() {
        let teacher = entry(Subject::Teacher, 4, 0.6, 2.0);
        let cases = [(0.8, Outcome::Better), (0.6, Outcome::Undecided), (0.4, Outcome::Worse)];
        for (share, expected) in cases {
            let verdict = verdict(&[teacher.clone(), entry(Subject::Student, 4, share, 1.0)]);
            assert_eq!(verdict.outcome, expected, "{}", verdict.text);
            assert!(verdict.details.last().unwrap().contains("nearer to real"));
        }
    }

    #[test]
    fn the_newest_student_meets_the_best_teacher_of_its_steps() {
        let entries = [
            entry(Subject::Teacher, 4, 0.5, 2.0),
            entry(Subject::Teacher, 4, 0.7, 2.0),
            entry(Subject::Teacher, 40, 0.9, 2.0),
            entry(Subject::Teacher, 2, 0.3, 2.0),
            entry(Subject::Student, 4, 0.2, 3.0),
            Entry { update: 9, ..entry(Subject::Student, 2, 0.5, 3.0) },
            Entry { update: 9, ..entry(Subject::Student, 4, 0.6, 3.0) },
        ];
        let verdict = verdict(&entries);
        assert_eq!(verdict.outcome, Outcome::Worse);
        assert!(
            verdict
                .text
                .starts_with("At 4 steps the student scores 0.600 and the teacher 0.700: a difference of −0.100"),
            "{}",
            verdict.text
        );
        assert!(
            verdict.details[0].starts_with("At 2 steps the student scores 0.500 and the teacher 0.300"),
            "{:?}",
            verdict.details
        );
        assert!(verdict.details[1].contains("at 40 steps scores 0.900"), "{:?}", verdict.details);
    }

    #[test]
    fn without_a_comparison_it_says_why() {
        let student = entry(Subject::Student, 4, 0.6, 1.0);
        let other = Entry { scores: scores(0.5, 1.0, 1.0), ..entry(Subject::Teacher, 4, 0.5, 1.0) };
        let mut other_protocol = other.clone();
        other_protocol.scores.protocol.version = 9;
        let cases: [(&[Entry], &str); 3] = [
            (&[], "not been evaluated"),
            (&[student.clone(), entry(Subject::Teacher, 40, 0.9, 1.0)], "student's 4 steps"),
            (&[other_protocol, student], "different protocols"),
        ];
        for (entries, part) in cases {
            let verdict = verdict(entries);
            assert_eq!(verdict.outcome, Outcome::Unknown);
            assert!(verdict.text.contains(part), "{}", verdict.text);
        }
    }
}
