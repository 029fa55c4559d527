//! Sample grids: `RUN/samples/update-000250.png`, and beside each a JSON file that says what its tiles are.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::digits::Verdict;
use crate::eval::Subject;
use crate::png::{Grid, Image, write_tiles};
use crate::{Error, Result, files};

/// A row of a sample grid: one image for each prompt, made by one model.
#[derive(Debug)]
pub struct SampleRow<'a> {
    /// What made the images: "student, 4 steps".
    pub label: &'a str,
    /// The kind of model; the report shows the student's row over time.
    pub subject: Subject,
    /// `[P, 3, H, W]` in 0..1, one for each prompt.
    pub images: &'a Tensor,
    /// Whether each image shows what its prompt asks for, where that is known.
    pub verdicts: Option<&'a [Verdict]>,
}

/// The JSON file beside a grid.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Sidecar {
    update: u64,
    prompts: Vec<String>,
    rows: Vec<RowInfo>,
    grid: Grid,
}

/// A row of the grid.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct RowInfo {
    pub label: String,
    pub subject: Subject,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdicts: Option<Vec<Verdict>>,
}

/// Larger tiles are averaged down to this side: a grid shows a trend, and full images come from `advdmd sample`.
const MAX_TILE: usize = 256;

/// Where a run keeps the samples of an update.
pub fn samples_of(run: &Path, update: u64) -> PathBuf {
    run.join("samples").join(format!("update-{update:06}.png"))
}

/// Writes the samples of an update to `run/samples` and returns the image's path. All rows have one image per prompt,
/// all of one size; sides above 256 pixels are divided by a whole number.
///
/// # Errors
/// No prompt or row; a row with another number of images or verdicts; NaN or infinity; the files cannot be written.
pub fn write_samples(run: &Path, update: u64, prompts: &[&str], rows: &[SampleRow<'_>]) -> Result<PathBuf> {
    for row in rows {
        let (images, verdicts) = (row.images.size(), row.verdicts.map_or(prompts.len(), <[_]>::len));
        if images.first() != Some(&(prompts.len() as i64)) || verdicts != prompts.len() {
            return Err(Error::contract(format!(
                "samples {:?}: images of shape {images:?} and {verdicts} verdicts for {} prompts",
                row.label,
                prompts.len()
            )));
        }
    }
    let images: Vec<Vec<Image>> = rows.iter().map(|row| Image::from_batch(row.images)).collect::<Result<_>>()?;
    let small = |image: Image| image.shrink(image.width().max(image.height()).div_ceil(MAX_TILE));
    let tiles: Vec<Image> = images.into_iter().flatten().map(small).collect();
    let folder = run.join("samples");
    files::create_dir(&folder)?;
    let path = samples_of(run, update);
    let grid = write_tiles(&path, &tiles, prompts.len())?;
    let info = |row: &SampleRow<'_>| RowInfo {
        label: row.label.to_owned(),
        subject: row.subject,
        verdicts: row.verdicts.map(<[_]>::to_vec),
    };
    let prompts = prompts.iter().map(|prompt| (*prompt).to_owned()).collect();
    let sidecar = Sidecar { update, prompts, rows: rows.iter().map(info).collect(), grid };
    files::write_json(&path.with_extension("json"), &sidecar)?;
    Ok(path)
}

/// A sample grid, cut up again.
#[derive(Debug)]
pub(super) struct Sheet {
    pub update: u64,
    pub prompts: Vec<String>,
    pub rows: Vec<RowInfo>,
    grid: Grid,
    image: Image,
}

impl Sheet {
    /// The tile of a row and a prompt at its own size; `None` where the image does not have it.
    pub fn tile(&self, row: usize, prompt: usize) -> Option<Image> {
        self.image.cut(&self.grid, row * self.prompts.len() + prompt)
    }

    fn read(path: &Path) -> Result<Self> {
        let Sidecar { update, prompts, rows, grid } = files::read_json(path)?;
        let picture = path.with_extension("png");
        let bytes = std::fs::read(&picture).map_err(Error::file("read", &picture))?;
        let image = Image::decode(&bytes).map_err(|error| Error::content(&picture, error))?;
        let sheet = Self { update, prompts, rows, grid, image };
        if sheet.prompts.is_empty()
            || sheet.rows.is_empty()
            || sheet.tile(sheet.rows.len() - 1, sheet.prompts.len() - 1).is_none()
        {
            return Err(Error::content(path, "its grid does not fit the image beside it"));
        }
        Ok(sheet)
    }
}

/// All sample grids of a folder, by update.
pub(super) fn read_all(folder: &Path) -> Result<Vec<Sheet>> {
    let mut sheets = Vec::new();
    for file in std::fs::read_dir(folder).map_err(Error::file("read", folder))? {
        let path = file.map_err(Error::file("read", folder))?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            sheets.push(Sheet::read(&path)?);
        }
    }
    sheets.sort_by_key(|sheet| sheet.update);
    Ok(sheets)
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn row<'a>(images: &'a Tensor, verdicts: Option<&'a [Verdict]>) -> SampleRow<'a> {
        SampleRow { label: "student", subject: Subject::Student, images, verdicts }
    }

    #[test]
    fn samples_are_read_back_tile_by_tile() {
        let run = tempfile::tempdir().unwrap();
        let dark = Tensor::zeros([2, 3, 16, 16], (Kind::Float, Device::Cpu));
        let bright = Tensor::ones([2, 3, 16, 16], (Kind::Float, Device::Cpu));
        let verdict = Verdict { correct: false, reason: "expected 7 >=1, found 0".into() };
        let verdicts = [verdict.clone(), verdict];
        for update in [500, 0] {
            let rows = [row(&dark, None), row(&bright, Some(&verdicts))];
            write_samples(run.path(), update, &["a 7", "a 3"], &rows).unwrap();
        }
        let sheets = read_all(&run.path().join("samples")).unwrap();
        assert_eq!(sheets.iter().map(|sheet| sheet.update).collect::<Vec<_>>(), [0, 500]);
        let sheet = &sheets[1];
        assert_eq!(sheet.tile(0, 1).unwrap(), Image::filled(16, 16, [0; 3]));
        assert_eq!(sheet.tile(1, 0).unwrap(), Image::filled(16, 16, [255; 3]));
        assert_eq!(sheet.rows[1].verdicts.as_ref().unwrap()[0].reason, "expected 7 >=1, found 0");
    }

    #[test]
    fn rows_that_do_not_fit_are_refused() {
        let run = tempfile::tempdir().unwrap();
        let images = Tensor::zeros([2, 3, 16, 16], (Kind::Float, Device::Cpu));
        assert!(
            write_samples(run.path(), 0, &["a 7"], &[row(&images, None)])
                .unwrap_err()
                .to_string()
                .contains("1 prompts")
        );
        assert!(write_samples(run.path(), 0, &["a 7", "a 3"], &[row(&images, Some(&[]))]).is_err());
        assert!(write_samples(run.path(), 0, &[], &[]).is_err());
    }
}
