//! From the text of a caption to its structure, with an error that names the word that does not fit.

use std::str::FromStr;

use super::caption::{Caption, Request};
use super::error::DigitsError;
use super::vocabulary::{Colour, Count, Digit, Relation, nearest};

impl FromStr for Caption {
    type Err = DigitsError;

    /// Reads a caption; any white space separates words.
    ///
    /// # Errors
    /// The first word that cannot stand where it is, with the nearest one that can; a caption that ends too early;
    /// two objects that must differ and do not.
    fn from_str(text: &str) -> Result<Self, DigitsError> {
        let mut parser = Parser { text, words: text.split_whitespace().collect(), next: 0 };
        let request = parser.caption()?;
        Self::new(request)
    }
}

struct Parser<'a> {
    text: &'a str,
    words: Vec<&'a str>,
    next: usize,
}

/// One of several words, with what it means.
type Choice<T> = (&'static str, T);

/// The first word of an object after its "a".
#[derive(Clone, Copy)]
enum Start {
    Digit(Digit),
    Colour(Colour),
}

impl Parser<'_> {
    fn caption(&mut self) -> Result<Request, DigitsError> {
        let mut openings = vec![("a", None)];
        openings.extend(Count::ALL.map(|count| (count.word(), Some(count))));
        if let Some(count) = self.one_of("\"a\", \"two\", \"three\" or \"four\"", &openings)? {
            let digit = self.one_of("a digit with an s, \"0s\" to \"9s\"", &plural_digits())?;
            self.end()?;
            return Ok(Request::Counting(count, digit));
        }
        match self.one_of("a colour or a digit", &starts())? {
            Start::Digit(first) => self.plain(first),
            Start::Colour(colour) => self.coloured(colour),
        }
    }

    /// After "a 7".
    fn plain(&mut self, first: Digit) -> Result<Request, DigitsError> {
        if self.finished() {
            return Ok(Request::Single(first));
        }
        let mut joints = vec![("and", None)];
        joints.extend(Relation::ALL.map(|relation| (relation.word(), Some(relation))));
        let relation = self.one_of("\"and\", \"left\", \"right\", \"above\", \"below\" or the end", &joints)?;
        if let Some(Relation::LeftOf | Relation::RightOf) = relation {
            self.one_of("\"of\"", &[("of", ())])?;
        }
        self.one_of("\"a\"", &[("a", ())])?;
        let second = self.one_of("a digit", &digits())?;
        self.end()?;
        Ok(relation.map_or(Request::Two(first, second), |relation| Request::Position(first, relation, second)))
    }

    /// After "a red".
    fn coloured(&mut self, colour: Colour) -> Result<Request, DigitsError> {
        let first = (colour, self.one_of("a digit", &digits())?);
        if self.finished() {
            return Ok(Request::Colours(colour, first.1));
        }
        self.one_of("\"and\" or the end", &[("and", ())])?;
        self.one_of("\"a\"", &[("a", ())])?;
        let second = (self.one_of("a colour", &colours())?, self.one_of("a digit", &digits())?);
        self.end()?;
        Ok(Request::Attribute(first, second))
    }

    fn finished(&self) -> bool {
        self.next == self.words.len()
    }

    /// Takes the next word, which must be one of `choices`.
    fn one_of<T: Copy>(&mut self, expected: &str, choices: &[Choice<T>]) -> Result<T, DigitsError> {
        let Some(word) = self.words.get(self.next) else {
            return Err(DigitsError::CaptionEnds {
                caption: self.text.to_owned(),
                words: self.words.len(),
                expected: expected.to_owned(),
            });
        };
        self.next += 1;
        choices.iter().find(|(name, _)| name == word).map(|(_, meaning)| *meaning).ok_or_else(|| {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            self.misplaced(word, expected, nearest(word, &names))
        })
    }

    fn end(&self) -> Result<(), DigitsError> {
        match self.words.get(self.next) {
            None => Ok(()),
            Some(word) => Err(DigitsError::Word {
                caption: self.text.to_owned(),
                position: self.next + 1,
                found: (*word).to_owned(),
                expected: "the end".to_owned(),
                nearest: None,
            }),
        }
    }

    /// The error for the word that was just taken.
    fn misplaced(&self, word: &str, expected: &str, nearest: Option<String>) -> DigitsError {
        DigitsError::Word {
            caption: self.text.to_owned(),
            position: self.next,
            found: word.to_owned(),
            expected: expected.to_owned(),
            nearest,
        }
    }
}

fn digits() -> Vec<Choice<Digit>> {
    Digit::ALL.map(|digit| (digit.word(), digit)).into()
}

fn plural_digits() -> Vec<Choice<Digit>> {
    let words = ["0s", "1s", "2s", "3s", "4s", "5s", "6s", "7s", "8s", "9s"];
    words.into_iter().zip(Digit::ALL).collect()
}

fn colours() -> Vec<Choice<Colour>> {
    Colour::ALL.map(|colour| (colour.word(), colour)).into()
}

fn starts() -> Vec<Choice<Start>> {
    let digits = digits().into_iter().map(|(word, digit)| (word, Start::Digit(digit)));
    colours().into_iter().map(|(word, colour)| (word, Start::Colour(colour))).chain(digits).collect()
}
