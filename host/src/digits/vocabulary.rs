//! What captions speak of: digits, colours, counts and relations, with their words.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::error::DigitsError;

/// A digit, 0 to 9.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Digit(u8);

impl Digit {
    /// All ten, ascending.
    pub const ALL: [Self; 10] =
        [Self(0), Self(1), Self(2), Self(3), Self(4), Self(5), Self(6), Self(7), Self(8), Self(9)];

    /// # Errors
    /// A number above 9.
    pub fn new(value: u8) -> Result<Self, DigitsError> {
        if value < 10 {
            Ok(Self(value))
        } else {
            Err(DigitsError::Value { name: "digit", value: value.to_string(), expected: "0 to 9".into() })
        }
    }

    /// The number, 0 to 9.
    pub fn value(self) -> u8 {
        self.0
    }

    /// The number as an index, 0 to 9.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// The word of the vocabulary: "0" to "9".
    pub fn word(self) -> &'static str {
        ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"][self.index()]
    }
}

impl TryFrom<u8> for Digit {
    type Error = DigitsError;

    fn try_from(value: u8) -> Result<Self, DigitsError> {
        Self::new(value)
    }
}

impl From<Digit> for u8 {
    fn from(digit: Digit) -> Self {
        digit.0
    }
}

impl fmt::Display for Digit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.word())
    }
}

/// One of the six colours of the palette.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Colour {
    /// (1, 0.1, 0.1)
    Red,
    /// (0.1, 0.9, 0.1)
    Green,
    /// (0.2, 0.35, 1)
    Blue,
    /// (1, 0.9, 0.1)
    Yellow,
    /// (0.85, 0.2, 0.95)
    Purple,
    /// (0.1, 0.9, 0.9)
    Cyan,
}

impl Colour {
    /// All six, in the order of the vocabulary.
    pub const ALL: [Self; 6] = [Self::Red, Self::Green, Self::Blue, Self::Yellow, Self::Purple, Self::Cyan];

    /// Red, green and blue, 0 to 1.
    pub fn rgb(self) -> [f32; 3] {
        match self {
            Self::Red => [1.0, 0.1, 0.1],
            Self::Green => [0.1, 0.9, 0.1],
            Self::Blue => [0.2, 0.35, 1.0],
            Self::Yellow => [1.0, 0.9, 0.1],
            Self::Purple => [0.85, 0.2, 0.95],
            Self::Cyan => [0.1, 0.9, 0.9],
        }
    }

    /// The word of the vocabulary.
    pub fn word(self) -> &'static str {
        match self {
            Self::Red => "red",
            Self::Green => "green",
            Self::Blue => "blue",
            Self::Yellow => "yellow",
            Self::Purple => "purple",
            Self::Cyan => "cyan",
        }
    }
}

impl fmt::Display for Colour {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.word())
    }
}

/// How many digits a counting caption asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Count {
    /// 2
    Two,
    /// 3
    Three,
    /// 4
    Four,
}

impl Count {
    /// All three, ascending.
    pub const ALL: [Self; 3] = [Self::Two, Self::Three, Self::Four];

    /// The number, 2 to 4.
    pub fn number(self) -> usize {
        self as usize + 2
    }

    /// The word of the vocabulary.
    pub fn word(self) -> &'static str {
        match self {
            Self::Two => "two",
            Self::Three => "three",
            Self::Four => "four",
        }
    }
}

/// Where the first object of a position caption stands, seen from the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Relation {
    /// In a lower column.
    LeftOf,
    /// In a higher column.
    RightOf,
    /// In a lower row (rows count from the top).
    Above,
    /// In a higher row.
    Below,
}

impl Relation {
    /// All four, in the order of the vocabulary.
    pub const ALL: [Self; 4] = [Self::LeftOf, Self::RightOf, Self::Above, Self::Below];

    /// The word of the vocabulary that names it ("left" and "right" are followed by "of").
    pub fn word(self) -> &'static str {
        match self {
            Self::LeftOf => "left",
            Self::RightOf => "right",
            Self::Above => "above",
            Self::Below => "below",
        }
    }

    /// The words of a caption: "left of", "right of", "above", "below".
    pub fn phrase(self) -> &'static str {
        match self {
            Self::LeftOf => "left of",
            Self::RightOf => "right of",
            Self::Above => "above",
            Self::Below => "below",
        }
    }

    /// The relation of the second object to the first.
    #[must_use]
    pub fn inverse(self) -> Self {
        match self {
            Self::LeftOf => Self::RightOf,
            Self::RightOf => Self::LeftOf,
            Self::Above => Self::Below,
            Self::Below => Self::Above,
        }
    }
}

/// The nearest of `candidates` to a mistyped `word`: within one edit and one more for every three letters, where
/// digits are compared by their English names, so that "seven", "sevn" and "7s" are near "7" and "6" is not.
pub(crate) fn nearest(word: &str, candidates: &[&str]) -> Option<String> {
    let word = spelled(word);
    let allowed = 1 + word.chars().count() / 3;
    candidates
        .iter()
        .map(|candidate| (strsim::osa_distance(&word, &spelled(candidate)), *candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate.to_owned())
}

fn spelled(word: &str) -> String {
    const NAMES: [&str; 10] = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
    let word = word.to_lowercase();
    let digit = word.strip_suffix('s').unwrap_or(&word).parse::<usize>().ok();
    digit.and_then(|digit| NAMES.get(digit)).map_or(word, |name| (*name).to_owned())
}
