//! Which images are scored, in which order, and in which batches they are read.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use tch::Tensor;

use crate::picture::{self, Reading};
use crate::prompt_file::Assigned;
use crate::{Error, Result};

/// Endings of files that a folder's images have.
const ENDINGS: [&str; 5] = ["png", "jpg", "jpeg", "webp", "gif"];

/// An image and its prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The file.
    pub path: PathBuf,
    /// What the image was made for.
    pub prompt: String,
}

/// Images of one size, by their place in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Width and height.
    pub size: [u32; 2],
    /// Places in the list, rising.
    pub places: Vec<usize>,
}

/// The images of files and folders, in the order in which they are named; those of a folder in natural order of their names
/// (`2.png` before `10.png`). Folders in a folder are not looked into, and files without the ending of an image are no images.
///
/// # Errors
/// A path that leads nowhere, a folder without images, or a pipe, socket or device: names it.
pub fn list(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut images = Vec::new();
    for path in paths {
        if !path.is_dir() {
            fs::metadata(path).map_err(Error::file("read", path))?;
            refuse_special(path)?;
            images.push(path.clone());
            continue;
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(path).map_err(Error::file("read", path))? {
            let file = entry.map_err(Error::file("read", path))?.path();
            let ending = file.extension().unwrap_or_default().to_string_lossy().to_lowercase();
            if ENDINGS.contains(&ending.as_str()) && !file.is_dir() {
                refuse_special(&file)?;
                found.push(file);
            }
        }
        if found.is_empty() {
            let hint = format!("images end in {}; folders in it are not looked into", ENDINGS.join(", "));
            return Err(Error::usage(format!("{} holds no image", path.display()), hint));
        }
        found.sort_by(|a, b| natural(&name(a), &name(b)));
        images.append(&mut found);
    }
    Ok(images)
}

/// Refuses what would be waited for, or never ends. A link that leads nowhere is an image that cannot be read.
fn refuse_special(path: &Path) -> Result<()> {
    match fs::metadata(path) {
        Ok(about) if !about.is_file() => {
            let hint = "images are regular files: write it to one first".to_owned();
            Err(Error::usage(format!("{} is a pipe, a socket or a device", path.display()), hint))
        }
        _ => Ok(()),
    }
}

/// Gives each image its prompt.
///
/// # Errors
/// More or fewer prompts than images, or an image that no prompt names.
pub fn with_prompts(images: Vec<PathBuf>, prompts: Assigned, file: &Path) -> Result<Vec<Item>> {
    let count = images.len();
    let fail = |message: String| Err(Error::content(file, message));
    match prompts {
        Assigned::InOrder(prompts) => {
            if prompts.len() != count {
                return fail(format!(
                    "holds {} prompts for {count} images: expected one for each, in the order of their names",
                    prompts.len()
                ));
            }
            Ok(images.into_iter().zip(prompts).map(|(path, prompt)| Item { path, prompt }).collect())
        }
        Assigned::ByName(prompts) => {
            let found: Vec<Option<&String>> = images.iter().map(|path| of_path(path, &prompts)).collect();
            let missing: Vec<&PathBuf> =
                images.iter().zip(&found).filter(|(_, prompt)| prompt.is_none()).map(|(path, _)| path).collect();
            if let Some(first) = missing.first() {
                return fail(format!(
                    "names no prompt for {} of {count} images, the first {}",
                    missing.len(),
                    first.display()
                ));
            }
            if prompts.len() > count {
                tracing::warn!("{} names {} images, {count} are scored", file.display(), prompts.len());
            }
            let prompts: Vec<String> = found.into_iter().flatten().cloned().collect();
            Ok(images.into_iter().zip(prompts).map(|(path, prompt)| Item { path, prompt }).collect())
        }
    }
}

/// The prompt under the path, or under the longest end of it that is a key.
fn of_path<'a>(path: &Path, prompts: &'a BTreeMap<String, String>) -> Option<&'a String> {
    let text = path.to_string_lossy();
    let mut starts = std::iter::once(0).chain(text.match_indices('/').map(|(at, _)| at + 1));
    starts.find_map(|start| prompts.get(&text[start..]))
}

/// Batches of at most `most` images of one size each, in the order of their first images; images without a size are left out.
pub fn batches(sizes: &[Option<[u32; 2]>], most: usize) -> Vec<Batch> {
    let mut all: Vec<Batch> = Vec::new();
    // Of each size, the batch that has room.
    let mut open: HashMap<[u32; 2], usize> = HashMap::new();
    for (place, size) in sizes.iter().enumerate().filter_map(|(place, size)| Some((place, (*size)?))) {
        let batch = *open.entry(size).or_insert_with(|| {
            all.push(Batch { size, places: Vec::new() });
            all.len() - 1
        });
        all[batch].places.push(place);
        if all[batch].places.len() >= most {
            open.remove(&size);
        }
    }
    all
}

/// An image as `[3, H, W]`, 0 to 255, uint8, on the CPU.
///
/// # Errors
/// A file that cannot be read or is no image, or of another size than its header said; in words.
pub fn read(path: &Path, size: [u32; 2]) -> Result<Result<Tensor, String>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let decoded = picture::decode(&bytes, Reading::Pillow);
    drop(bytes);
    let image = match decoded {
        Ok(image) => image,
        Err(why) => return Ok(Err(why)),
    };
    if image.dimensions() != (size[0], size[1]) {
        return Ok(Err(format!("has another size than its header said, {} x {}", size[0], size[1])));
    }
    Ok(Ok(picture::bytes(image.as_raw(), size)?))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Compares names as people do: runs of digits by their number.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a, b);
    loop {
        let (first, second) = match (left.chars().next(), right.chars().next()) {
            (None, None) => return a.cmp(b),
            (None, _) => return Ordering::Less,
            (_, None) => return Ordering::Greater,
            (Some(first), Some(second)) => (first, second),
        };
        let order = if first.is_ascii_digit() && second.is_ascii_digit() {
            let (number, rest) = digits(left);
            let (other, other_rest) = digits(right);
            (left, right) = (rest, other_rest);
            number.len().cmp(&other.len()).then(number.cmp(other))
        } else {
            (left, right) = (&left[first.len_utf8()..], &right[second.len_utf8()..]);
            first.cmp(&second)
        };
        if order.is_ne() {
            return order;
        }
    }
}

/// The digits that a text begins with, without zeros in front, and the rest.
fn digits(text: &str) -> (&str, &str) {
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    (text[..end].trim_start_matches('0'), &text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_natural_order() {
        let sorted =
            ["", "1.png", "02.png", "2.png", "10.png", "a", "a1b2", "a1b10", "a1c", "a99999999999999999999999", "é"];
        for (i, a) in sorted.iter().enumerate() {
            for (j, b) in sorted.iter().enumerate() {
                assert_eq!(natural(a, b), i.cmp(&j), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn batches_are_of_one_size_and_keep_all() {
        let (a, b) = (Some([2, 1]), Some([1, 2]));
        let found = batches(&[a, b, a, None, a, b, a], 3);
        let expected = [([2, 1], vec![0, 2, 4]), ([1, 2], vec![1, 5]), ([2, 1], vec![6])];
        assert_eq!(found, expected.map(|(size, places)| Batch { size, places }));
        assert_eq!(batches(&[a; 5], 1).len(), 5);
    }

    #[test]
    fn prompts_go_by_order_or_by_name() {
        let images = || vec![PathBuf::from("x/a.png"), PathBuf::from("x/b.png")];
        let file = Path::new("p.json");
        let of = |prompts: Assigned| {
            with_prompts(images(), prompts, file)
                .map(|items| items.into_iter().map(|item| item.prompt).collect::<Vec<_>>())
                .map_err(|error| error.to_string())
        };
        let names = |pairs: &[(&str, &str)]| {
            Assigned::ByName(pairs.iter().map(|(name, prompt)| ((*name).into(), (*prompt).into())).collect())
        };
        assert_eq!(of(Assigned::InOrder(vec!["1".into(), "2".into()])).unwrap(), ["1", "2"]);
        assert_eq!(of(names(&[("x/b.png", "B"), ("a.png", "A"), ("c.png", "C")])).unwrap(), ["A", "B"]);
        assert!(of(Assigned::InOrder(vec!["1".into()])).unwrap_err().contains("holds 1 prompts for 2 images"));
        // Part of a name is another name.
        assert!(
            of(names(&[("a.png", "A"), (".png", "B")])).unwrap_err().contains("for 1 of 2 images, the first x/b.png")
        );
    }
}
