//! A caption is a structured request for a scene; its text is one of 3,250 sentences in six tasks.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::error::DigitsError;
use super::vocabulary::{Colour, Count, Digit, Relation, nearest};

/// The six tasks of `GenEval`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// "a 7"
    Single,
    /// "a 7 and a 3"
    Two,
    /// "three 7s"
    Counting,
    /// "a red 7"
    Colours,
    /// "a 7 left of a 3"
    Position,
    /// "a red 7 and a blue 3"
    Attribute,
}

impl Task {
    /// All six, in the order of tables and weights.
    pub const ALL: [Self; 6] =
        [Self::Single, Self::Two, Self::Counting, Self::Colours, Self::Position, Self::Attribute];

    /// The name used in configs and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Two => "two",
            Self::Counting => "counting",
            Self::Colours => "colours",
            Self::Position => "position",
            Self::Attribute => "attribute",
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl std::str::FromStr for Task {
    type Err = DigitsError;

    fn from_str(name: &str) -> Result<Self, DigitsError> {
        Self::ALL.into_iter().find(|task| task.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name);
            DigitsError::Name {
                kind: "task",
                found: name.to_owned(),
                expected: names.join(", "),
                nearest: nearest(name, &names),
            }
        })
    }
}

/// What a caption asks for, to match on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Request {
    /// One digit of any colour, anywhere.
    Single(Digit),
    /// Two different digits.
    Two(Digit, Digit),
    /// Exactly so many of one digit.
    Counting(Count, Digit),
    /// One digit of this colour.
    Colours(Colour, Digit),
    /// The first digit stands in this relation to the second, which is another.
    Position(Digit, Relation, Digit),
    /// Two different digits in two different colours.
    Attribute((Colour, Digit), (Colour, Digit)),
}

/// A request that a scene can fulfil; its [`Display`](fmt::Display) is the caption's text and
/// [`FromStr`](std::str::FromStr) reads it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Caption(Request);

impl Caption {
    /// # Errors
    /// Two digits, or two colours, that have to differ and do not.
    pub fn new(request: Request) -> Result<Self, DigitsError> {
        let repeated = match request {
            Request::Two(a, b) | Request::Position(a, _, b) => (a == b).then(|| format!("the digit {a}")),
            Request::Attribute((colour_a, a), (colour_b, b)) if a == b || colour_a == colour_b => {
                Some(if a == b { format!("the digit {a}") } else { format!("the colour {colour_a}") })
            }
            _ => None,
        };
        match repeated {
            None => Ok(Self(request)),
            Some(repeated) => Err(DigitsError::Request {
                caption: Self(request).to_string(),
                reason: format!("its two objects must differ, and {repeated} is in both"),
            }),
        }
    }

    /// A request whose objects are known to differ.
    pub(super) fn of_distinct(request: Request) -> Self {
        debug_assert!(Self::new(request).is_ok());
        Self(request)
    }

    /// The structure of the request.
    pub fn request(&self) -> Request {
        self.0
    }

    /// The task it belongs to.
    pub fn task(&self) -> Task {
        match self.0 {
            Request::Single(_) => Task::Single,
            Request::Two(..) => Task::Two,
            Request::Counting(..) => Task::Counting,
            Request::Colours(..) => Task::Colours,
            Request::Position(..) => Task::Position,
            Request::Attribute(..) => Task::Attribute,
        }
    }

    /// Every caption of a task, each once: 10 single, 90 two, 30 counting, 60 colours, 360 position, 2700 attribute.
    pub fn all(task: Task) -> Vec<Self> {
        let digits = Digit::ALL;
        let pairs = || digits.into_iter().flat_map(move |a| digits.map(|b| (a, b)));
        let requests: Vec<Request> = match task {
            Task::Single => digits.map(Request::Single).into(),
            Task::Two => pairs().map(|(a, b)| Request::Two(a, b)).collect(),
            Task::Counting => Count::ALL.into_iter().flat_map(|n| digits.map(|a| Request::Counting(n, a))).collect(),
            Task::Colours => Colour::ALL.into_iter().flat_map(|c| digits.map(|a| Request::Colours(c, a))).collect(),
            Task::Position => {
                pairs().flat_map(|(a, b)| Relation::ALL.map(|relation| Request::Position(a, relation, b))).collect()
            }
            Task::Attribute => pairs()
                .flat_map(|(a, b)| Colour::ALL.into_iter().map(move |colour| (a, b, colour)))
                .flat_map(|(a, b, first)| Colour::ALL.map(|second| Request::Attribute((first, a), (second, b))))
                .collect(),
        };
        requests.into_iter().filter_map(|request| Self::new(request).ok()).collect()
    }
}

impl fmt::Display for Caption {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Request::Single(a) => write!(out, "a {a}"),
            Request::Two(a, b) => write!(out, "a {a} and a {b}"),
            Request::Counting(count, a) => write!(out, "{} {a}s", count.word()),
            Request::Colours(colour, a) => write!(out, "a {colour} {a}"),
            Request::Position(a, relation, b) => write!(out, "a {a} {} a {b}", relation.phrase()),
            Request::Attribute((colour_a, a), (colour_b, b)) => write!(out, "a {colour_a} {a} and a {colour_b} {b}"),
        }
    }
}

impl From<Caption> for String {
    fn from(caption: Caption) -> Self {
        caption.to_string()
    }
}

impl TryFrom<String> for Caption {
    type Error = DigitsError;

    fn try_from(text: String) -> Result<Self, DigitsError> {
        text.parse()
    }
}
