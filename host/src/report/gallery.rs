//! The newest samples side by side, and the student's over time.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::samples::Sheet;
use super::svg::grouped;
use crate::eval::Subject;
use crate::png::Image;

/// The longest side of a picture in the gallery, and in the film strip.
const GALLERY_SIDE: usize = 192;
const FILM_SIDE: usize = 96;
/// Prompts and updates of the film strip.
const FILM_PROMPTS: usize = 6;
const FILM_UPDATES: usize = 8;

/// A picture as an `img` element's attributes.
#[derive(Debug)]
pub(super) struct Picture {
    /// A `data:` address.
    pub source: String,
    pub alt: String,
    /// The colour of what made it.
    pub colour: String,
    /// Tiny images are enlarged without smoothing.
    pub pixelated: bool,
    /// What made it, and whether it is correct or why not.
    pub title: String,
    /// The class of the verdict's mark.
    pub mark: &'static str,
}

/// A prompt with its pictures.
#[derive(Debug)]
pub(super) struct Card {
    pub prompt: String,
    pub pictures: Vec<Picture>,
}

/// The newest samples: a card for each prompt, its pictures in the order of the rows.
pub(super) fn cards(sheets: &[Sheet]) -> Vec<Card> {
    let Some(sheet) = sheets.last() else { return Vec::new() };
    let card = |(index, prompt): (usize, &String)| {
        let pictures = (0..sheet.rows.len()).filter_map(|row| picture(sheet, row, index, GALLERY_SIDE));
        Card { prompt: prompt.clone(), pictures: pictures.collect() }
    };
    sheet.prompts.iter().enumerate().map(card).collect()
}

/// The rows of the newest samples with their colours, in the order of the cards' pictures.
pub(super) fn legend(sheets: &[Sheet]) -> Vec<(String, String)> {
    let rows = sheets.last().map_or(&[][..], |sheet| &sheet.rows);
    rows.iter().enumerate().map(|(row, info)| (info.label.clone(), colour(row))).collect()
}

fn colour(row: usize) -> String {
    format!("var(--c{})", row % 6)
}

/// Pictures over time: a column for each of some updates and one for the teacher, a row for each of some prompts.
#[derive(Debug)]
pub(super) struct Film {
    pub columns: Vec<String>,
    /// (prompt, a picture for each column).
    pub rows: Vec<(String, Vec<Option<Picture>>)>,
}

/// The student's samples at updates spread over the run, and the teacher's; `None` with fewer than two sample grids.
pub(super) fn film(sheets: &[Sheet]) -> Option<Film> {
    let (last, rest) = sheets.split_last()?;
    if rest.is_empty() {
        return None;
    }
    let frames: Vec<&Sheet> = spread(sheets.len(), FILM_UPDATES).map(|index| &sheets[index]).collect();
    let teacher = last.rows.iter().position(|row| row.subject == Subject::Teacher);
    let mut columns: Vec<String> = frames.iter().map(|sheet| grouped(sheet.update as f64)).collect();
    columns.extend(teacher.map(|row| last.rows[row].label.clone()));
    let row = |prompt: usize| {
        let text = &last.prompts[prompt];
        let student = |sheet: &&Sheet| {
            let row = sheet.rows.iter().position(|row| row.subject == Subject::Student)?;
            picture(sheet, row, sheet.prompts.iter().position(|other| other == text)?, FILM_SIDE)
        };
        let mut pictures: Vec<Option<Picture>> = frames.iter().map(student).collect();
        pictures.extend(teacher.map(|row| picture(last, row, prompt, FILM_SIDE)));
        (text.clone(), pictures)
    };
    Some(Film { columns, rows: spread(last.prompts.len(), FILM_PROMPTS).map(row).collect() })
}

/// At most `wanted` of `0..count`, evenly spread, with both ends.
fn spread(count: usize, wanted: usize) -> impl Iterator<Item = usize> {
    let taken = wanted.min(count);
    (0..taken).map(move |index| if taken < 2 { 0 } else { (index * (count - 1) + (taken - 1) / 2) / (taken - 1) })
}

fn picture(sheet: &Sheet, row: usize, prompt: usize, side: usize) -> Option<Picture> {
    let image: Image = sheet.tile(row, prompt)?;
    let longest = image.width().max(image.height());
    let png = image.shrink(longest.div_ceil(side)).encode().ok()?;
    let info = &sheet.rows[row];
    let verdict = info.verdicts.as_ref().and_then(|verdicts| verdicts.get(prompt));
    let (mark, reason) = match verdict {
        None => ("", ""),
        Some(verdict) if verdict.correct => ("right", ": correct"),
        Some(verdict) => ("wrong", verdict.reason.as_str()),
    };
    let separator = if mark == "wrong" { ": " } else { "" };
    Some(Picture {
        source: format!("data:image/png;base64,{}", STANDARD.encode(png)),
        alt: format!("{}: {}", info.label, sheet.prompts[prompt]),
        colour: colour(row),
        pixelated: longest < 96,
        title: format!("{}{separator}{reason}", info.label),
        mark,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_both_ends() {
        assert_eq!(spread(10, 4).collect::<Vec<_>>(), [0, 3, 6, 9]);
        assert_eq!(spread(3, 8).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(spread(1, 8).collect::<Vec<_>>(), [0]);
        assert_eq!(spread(0, 8).count(), 0);
    }
}
