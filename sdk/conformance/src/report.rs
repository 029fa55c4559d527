//! What the checks found.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use advdmd_sdk::{Error, Kind};
use serde::{Deserialize, Serialize};

/// The checks of one component, in the order in which they ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What the component is.
    pub kind: Kind,
    /// Its `type`.
    pub name: String,
    /// Each check.
    pub checks: Vec<Check>,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Its name, as in the table of this crate's documentation.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// What was measured; for a failure what was expected and found, and what to do; why it was skipped.
    pub explanation: String,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The contract is kept.
    Ok,
    /// It is broken.
    Failed,
    /// It does not apply, or could not be tried.
    Skipped,
    /// The contract is kept, and something could be better.
    Note,
}

impl Report {
    /// Whether no check failed.
    pub fn passed(&self) -> bool {
        self.failed().next().is_none()
    }

    /// The checks that failed.
    pub fn failed(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| check.outcome == Outcome::Failed)
    }

    /// Panics with the whole report if a check failed: for tests.
    ///
    /// # Panics
    /// See above.
    #[track_caller]
    pub fn assert(&self) {
        let failed = self.failed().count();
        assert!(failed == 0, "{failed} of {} checks failed\n{self}", self.checks.len());
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Failed => "FAILED",
            Self::Skipped => "skipped",
            Self::Note => "note",
        })
    }
}

/// A line for each check, under the component's name.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `{}`", self.kind, self.name)?;
        let width = self.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
        for Check { name, outcome, explanation } in &self.checks {
            // A line for a check: messages of others may have several.
            let explanation = explanation.split('\n').map(str::trim).collect::<Vec<_>>().join(" ");
            write!(f, "\n  {name:<width$}  {outcome:<7}  {explanation}")?;
        }
        Ok(())
    }
}

/// How a check ends that does not fail.
#[derive(Debug)]
pub(crate) enum Passed {
    Ok(String),
    Skipped(String),
    Note(String),
}

/// Why a check failed.
#[derive(Debug)]
pub(crate) struct Failure {
    expected: String,
    found: String,
    advice: String,
}

pub(crate) type Verdict = Result<Passed, Failure>;

#[allow(clippy::unnecessary_wraps, reason = "the last expression of a check")]
pub(crate) fn ok(measured: impl fmt::Display) -> Verdict {
    Ok(Passed::Ok(measured.to_string()))
}

#[allow(clippy::unnecessary_wraps, reason = "as above")]
pub(crate) fn skip(why: impl fmt::Display) -> Verdict {
    Ok(Passed::Skipped(why.to_string()))
}

pub(crate) fn fail<T>(
    expected: impl fmt::Display,
    found: impl fmt::Display,
    advice: impl fmt::Display,
) -> Result<T, Failure> {
    Err(Failure { expected: expected.to_string(), found: found.to_string(), advice: advice.to_string() })
}

/// What to do about an error where there should be none.
pub(crate) fn advice_on(error: &Error) -> &'static str {
    match error {
        Error::Panic(_) => "return an `Err` where the code panics (indexing, unwrap, division by zero)",
        _ => "mend what the error names, or say in `needs` and the documentation what is taken",
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (found, advice) = (described(&error), advice_on(&error).to_owned());
        Self { expected: "a result".to_owned(), found, advice }
    }
}

/// The error in words that tell its kind.
pub(crate) fn described(error: &Error) -> String {
    match error {
        Error::Panic(_) => format!("it {error}"),
        _ => format!("the error \"{error}\""),
    }
}

#[cfg(feature = "torch")]
impl From<tch::TchError> for Failure {
    fn from(error: tch::TchError) -> Self {
        Error::from(error).into()
    }
}

/// Runs checks and writes them down.
pub(crate) struct Examiner(Report);

impl Examiner {
    pub(crate) fn new(kind: Kind, name: &str) -> Self {
        Self(Report { kind, name: name.to_owned(), checks: Vec::new() })
    }

    /// Runs a check; its own panic is a failure too. Tells whether it did not fail.
    pub(crate) fn check(&mut self, name: &str, body: impl FnOnce() -> Verdict) -> bool {
        // Where the plugin ends the process, this is the last that is heard of it.
        tracing::debug!("{} `{}`: {name}", self.0.kind, self.0.name);
        // Methods that cannot return an error raise the plugin's panic again.
        let verdict = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
            let text = payload.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
            fail("a result", format!("a panic: {text}"), "make the method work on every valid input")
        });
        let (outcome, explanation) = match verdict {
            Ok(Passed::Ok(text)) => (Outcome::Ok, text),
            Ok(Passed::Skipped(text)) => (Outcome::Skipped, text),
            Ok(Passed::Note(text)) => (Outcome::Note, text),
            Err(Failure { expected, found, advice }) => {
                (Outcome::Failed, format!("expected {expected}; found {found}; to mend it: {advice}"))
            }
        };
        self.0.checks.push(Check { name: name.to_owned(), outcome, explanation });
        outcome != Outcome::Failed
    }

    /// Writes down checks that cannot run.
    pub(crate) fn skip(&mut self, names: &[&str], why: &str) {
        for name in names {
            self.check(name, || skip(why));
        }
    }

    pub(crate) fn finish(self) -> Report {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_is_a_line_and_a_panic_a_failure() {
        let mut examiner = Examiner::new(Kind::Reward, "mine");
        assert!(examiner.check("first", || ok("3 calls")));
        assert!(!examiner.check("second", || fail("one", "two\nthree", "count")));
        assert!(!examiner.check("third", || panic!("no more")));
        assert!(examiner.check("fourth", || skip("it learns nothing")));
        let report = examiner.finish();
        assert!(!report.passed() && report.failed().count() == 2);
        let text = report.to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[..3],
            [
                "reward `mine`",
                "  first   ok       3 calls",
                "  second  FAILED   expected one; found two three; to mend it: count"
            ]
        );
        assert!(lines[3].contains("a panic: no more") && lines[4].contains("skipped  it learns nothing"));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["checks"][1]["outcome"], "failed");
        assert_eq!(serde_json::from_value::<Report>(json).unwrap(), report);
    }
}
