//! Sizes, filter and normalisation, as an image processor of transformers holds them.

use std::collections::BTreeMap;
use std::path::Path;

use advdmd_nn::read_json;
use advdmd_sdk::{Error, Result};
use serde::Deserialize;

/// CLIP's mean and standard deviation (Radford et al., `clip.py`).
const CLIP: [[f64; 3]; 2] = [[0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_58, 0.275_777_11]];

/// A filter of resizing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    Bilinear,
    Bicubic,
}

/// What images are resized to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// The shorter side; the other keeps the proportions.
    ShortestEdge(i64),
    /// Height and width, whatever the proportions.
    Sides([i64; 2]),
}

/// What is done to an image, in this order.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub size: Option<Size>,
    pub filter: Filter,
    /// Height and width of the centre crop.
    pub crop: Option<[i64; 2]>,
    /// Factor on pixels in 0..=255.
    pub rescale: Option<f64>,
    /// Mean and standard deviation of the channels.
    pub normalize: Option<[[f64; 3]; 2]>,
}

/// `preprocessor_config.json`; a key that is left out or null has `CLIPImageProcessor`'s default.
#[derive(Deserialize)]
struct File {
    do_resize: Option<bool>,
    size: Option<Sizes>,
    resample: Option<i64>,
    do_center_crop: Option<bool>,
    crop_size: Option<Sizes>,
    do_rescale: Option<bool>,
    rescale_factor: Option<f64>,
    do_normalize: Option<bool>,
    image_mean: Option<[f64; 3]>,
    image_std: Option<[f64; 3]>,
    do_pad: Option<bool>,
    use_square_size: Option<bool>,
}

/// `processor_config.json`, in which transformers 5 saves the image processor beside the tokenizer's settings.
#[derive(Deserialize)]
struct Processor {
    image_processor: Option<File>,
}

/// A size as older files hold it, or by names.
#[derive(Deserialize)]
#[serde(untagged)]
enum Sizes {
    Number(i64),
    Named(BTreeMap<String, Option<i64>>),
}

impl Settings {
    /// CLIP's own for a model of that size.
    pub fn clip(image_size: i64, filter: Filter) -> Self {
        Self {
            size: Some(Size::ShortestEdge(image_size)),
            filter,
            crop: Some([image_size; 2]),
            rescale: Some(1.0 / 255.0),
            normalize: Some(CLIP),
        }
    }

    /// Reads the folder's `processor_config.json`, if it describes an image processor, else `preprocessor_config.json`, as
    /// transformers does.
    ///
    /// # Errors
    /// A missing or malformed file, or one that asks for what is not offered; the message names file and key.
    pub fn read(folder: &Path, image_size: i64) -> Result<Self> {
        let whole = folder.join("processor_config.json");
        let nested = if whole.is_file() { read_json::<Processor>(&whole)?.image_processor } else { None };
        let path = if nested.is_some() { whole } else { folder.join("preprocessor_config.json") };
        let file = match nested {
            Some(file) => file,
            None if path.is_file() => read_json(&path)?,
            None => {
                return Err(Error::config(format!(
                    "{}: no preprocessor_config.json; add the model's, or set preprocess = \"tensor-bicubic\", which needs \
                     none",
                    folder.display()
                )));
            }
        };
        Self::of(file, image_size).map_err(|error| error.context(path.display()))
    }

    fn of(file: File, image_size: i64) -> Result<Self> {
        for (key, value) in [("do_pad", file.do_pad), ("use_square_size", file.use_square_size)] {
            if value == Some(true) {
                return Err(Error::unsupported(format!("{key}: expected false, found true")));
            }
        }
        let filter = match file.resample.unwrap_or(3) {
            2 => Filter::Bilinear,
            3 => Filter::Bicubic,
            found => {
                let name = ["nearest", "Lanczos", "", "", "box", "Hamming"].get(found as usize).unwrap_or(&"unknown");
                return Err(Error::unsupported(format!(
                    "resample: expected 2 (bilinear) or 3 (bicubic), found {found} ({name})"
                )));
            }
        };
        let size = file.size.map_or(Ok(Size::ShortestEdge(224)), |sizes| sizes.read("size"))?;
        let crop = match file.crop_size.map_or(Ok(Size::Sides([224; 2])), |sizes| sizes.read("crop_size"))? {
            Size::Sides(sides) => sides,
            // A number; of a crop it is both sides.
            Size::ShortestEdge(side) => [side; 2],
        };
        let size = file.do_resize.unwrap_or(true).then_some(size);
        let crop = file.do_center_crop.unwrap_or(true).then_some(crop);
        let output = crop.or(match size {
            Some(Size::Sides(sides)) => Some(sides),
            Some(Size::ShortestEdge(_)) | None => None,
        });
        if let Some([height, width]) = output.filter(|output| *output != [image_size; 2]) {
            let key = if crop.is_some() { "crop_size" } else { "size" };
            return Err(Error::config(format!(
                "{key}: expected {image_size} x {image_size}, the image_size of config.json, found {height} x {width}"
            )));
        }
        let factor = file.rescale_factor.unwrap_or(1.0 / 255.0);
        let normalize = [file.image_mean.unwrap_or(CLIP[0]), file.image_std.unwrap_or(CLIP[1])];
        let finite = normalize.iter().flatten().chain([&factor]).all(|number| number.is_finite());
        if !finite || normalize[1].iter().any(|&std| std <= 0.0) {
            return Err(Error::config(format!(
                "rescale_factor, image_mean, image_std: expected finite numbers and deviations above 0, found {factor}, \
                 {:?}, {:?}",
                normalize[0], normalize[1]
            )));
        }
        Ok(Self {
            size,
            filter,
            crop,
            rescale: file.do_rescale.unwrap_or(true).then_some(factor),
            normalize: file.do_normalize.unwrap_or(true).then_some(normalize),
        })
    }
}

impl Sizes {
    fn read(self, key: &str) -> Result<Size> {
        let named: Vec<(String, i64)> = match self {
            Self::Number(edge) => vec![("shortest_edge".to_owned(), edge)],
            Self::Named(named) => named.into_iter().filter_map(|(name, size)| Some((name, size?))).collect(),
        };
        let size = match &named[..] {
            [(name, edge)] if name == "shortest_edge" => Size::ShortestEdge(*edge),
            [(first, height), (second, width)] if first == "height" && second == "width" => {
                Size::Sides([*height, *width])
            }
            _ => {
                let found: Vec<_> = named.iter().map(|(name, _)| name.as_str()).collect();
                return Err(Error::unsupported(format!(
                    "{key}: expected a number, shortest_edge, or height and width, found {}",
                    found.join(", ")
                )));
            }
        };
        let sides = match size {
            Size::ShortestEdge(edge) => [edge; 2],
            Size::Sides(sides) => sides,
        };
        match sides.iter().find(|side| !(1..=1 << 14).contains(*side)) {
            Some(found) => Err(Error::config(format!("{key}: expected 1 to {}, found {found}", 1 << 14))),
            None => Ok(size),
        }
    }
}
