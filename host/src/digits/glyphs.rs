//! The 1,797 handwritten digits (UCI Optical Recognition of Handwritten Digits, 8x8) that scenes are made of.

use std::io::Read;
use std::sync::OnceLock;

use flate2::read::GzDecoder;

use super::error::DigitsError;
use super::vocabulary::Digit;

/// Pixels on one side of a glyph, and of a cell of a scene.
pub const GLYPH_SIDE: usize = 8;
/// Pixels of a glyph.
pub const GLYPH_PIXELS: usize = GLYPH_SIDE * GLYPH_SIDE;

static EMBEDDED: &[u8] = include_bytes!("../../data/digits.csv.gz");

/// Which part of the data: every tenth glyph (index 9, 19, ...) is held out from all training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// Nine tenths: the teacher and the checker learn from these.
    Train,
    /// One tenth: only for measuring.
    HeldOut,
}

impl Split {
    /// The split that row `index` of the table belongs to.
    pub fn of(index: usize) -> Self {
        if index % 10 == 9 { Self::HeldOut } else { Self::Train }
    }
}

/// One handwritten digit.
#[derive(Clone, Debug, PartialEq)]
pub struct Glyph {
    /// What was written.
    pub digit: Digit,
    /// Ink, 0 (none) to 1, row by row from the top left; the table's 0..=16 divided by 16.
    pub alpha: [f32; GLYPH_PIXELS],
}

/// The table of glyphs with an index by split and digit.
#[derive(Clone, Debug)]
pub struct Glyphs {
    glyphs: Vec<Glyph>,
    by_digit: [[Vec<usize>; 10]; 2],
}

impl Glyphs {
    /// The table that is part of the program, parsed once.
    ///
    /// # Errors
    /// As [`Glyphs::parse`]; the embedded table itself is checked by the tests.
    pub fn embedded() -> Result<&'static Self, DigitsError> {
        static TABLE: OnceLock<Glyphs> = OnceLock::new();
        if let Some(table) = TABLE.get() {
            return Ok(table);
        }
        let table = Self::parse(EMBEDDED)?;
        Ok(TABLE.get_or_init(|| table))
    }

    /// Reads a gzipped table without a header: 64 intensities 0..=16 and the digit, one glyph a line.
    ///
    /// # Errors
    /// A damaged archive; a line without 65 numbers, with an intensity outside 0..=16 or a label outside 0..=9;
    /// a digit of which one of the splits has no glyph.
    pub fn parse(gzipped: &[u8]) -> Result<Self, DigitsError> {
        let mut text = String::new();
        GzDecoder::new(gzipped)
            .read_to_string(&mut text)
            .map_err(|error| DigitsError::Glyphs(format!("cannot be decompressed: {error}")))?;
        let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(text.as_bytes());
        let mut table = Self { glyphs: Vec::new(), by_digit: Default::default() };
        for (index, row) in reader.deserialize::<Vec<f32>>().enumerate() {
            let row = row.map_err(|error| DigitsError::Glyphs(format!("row {index}: {error}")))?;
            let glyph = glyph(&row).map_err(|problem| DigitsError::Glyphs(format!("row {index}: {problem}")))?;
            table.by_digit[Split::of(index) as usize][glyph.digit.index()].push(index);
            table.glyphs.push(glyph);
        }
        for split in [Split::Train, Split::HeldOut] {
            if let Some(digit) = Digit::ALL.into_iter().find(|digit| table.indices(split, *digit).is_empty()) {
                return Err(DigitsError::Glyphs(format!("no glyph of digit {digit} in the {split:?} split")));
            }
        }
        Ok(table)
    }

    /// How many glyphs there are, in both splits.
    pub fn len(&self) -> usize {
        self.glyphs.len()
    }

    /// Whether there are none (never so for a parsed table).
    pub fn is_empty(&self) -> bool {
        self.glyphs.is_empty()
    }

    /// The glyph of row `index`, `None` past the end.
    pub fn get(&self, index: usize) -> Option<&Glyph> {
        self.glyphs.get(index)
    }

    /// The rows of `split` that show `digit`, ascending.
    pub fn indices(&self, split: Split, digit: Digit) -> &[usize] {
        &self.by_digit[split as usize][digit.index()]
    }

    /// All glyphs of `split` with their rows, ascending.
    pub fn iter(&self, split: Split) -> impl Iterator<Item = (usize, &Glyph)> {
        self.glyphs.iter().enumerate().filter(move |(index, _)| Split::of(*index) == split)
    }
}

fn glyph(row: &[f32]) -> Result<Glyph, String> {
    let [intensities @ .., label] = row else { return Err("is empty".into()) };
    let mut alpha = [0.0; GLYPH_PIXELS];
    if intensities.len() != GLYPH_PIXELS {
        return Err(format!("has {} numbers, expected {}", row.len(), GLYPH_PIXELS + 1));
    }
    for (alpha, intensity) in alpha.iter_mut().zip(intensities) {
        if !(0.0..=16.0).contains(intensity) {
            return Err(format!("intensity {intensity} is outside 0..=16"));
        }
        *alpha = intensity / 16.0;
    }
    let digit = (0..10u8)
        .find(|digit| f32::from(*digit) == *label)
        .and_then(|digit| Digit::new(digit).ok())
        .ok_or_else(|| format!("label {label} is not a digit"))?;
    Ok(Glyph { digit, alpha })
}
