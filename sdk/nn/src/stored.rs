//! Safetensors files on disk, mapped: what is in them is known before any of it is read.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use advdmd_sdk::{Error, Result};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensors};
use tch::{Device, Kind, Tensor};

use crate::weights::{Fit, is_float, kind_of};
use crate::{Weights, ffi};

/// The tensors of one or more memory-mapped safetensors files. Reading one copies it once, straight to its type and
/// device.
#[derive(Debug, Default)]
pub struct Stored {
    files: Vec<(PathBuf, Mmap)>,
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<i64>,
    bytes: Range<usize>,
}

impl Stored {
    /// Maps one file.
    ///
    /// # Errors
    /// A file that cannot be read or is no safetensors file; the message names it.
    pub fn open(path: &Path) -> Result<Self> {
        let mut stored = Self::default();
        stored.map(path).map_err(|error| error.context(path.display()))?;
        Ok(stored)
    }

    /// As [`Stored::open_folder`], for a part of a model of which only other parts may have the variant: where this one has
    /// not, its plain files are taken, as diffusers does.
    ///
    /// # Errors
    /// As [`Stored::open_folder`].
    pub fn open_part(folder: &Path, stem: &str, variant: Option<&str>) -> Result<Self> {
        Self::open_folder(folder, stem, variant_of_part(folder, stem, variant))
    }

    /// Maps the weights of a folder of diffusers or transformers: `<stem>.safetensors`, or the shards that
    /// `<stem>.safetensors.index.json` names. `variant`, such as `fp16`, asks for the files with that infix
    /// (`<stem>.fp16.safetensors`); without it they are taken where there are no others.
    ///
    /// # Errors
    /// As [`Stored::open`]; no such file (the message lists what was looked for), an index that names a file outside
    /// the folder, or one that does not fit its shards.
    pub fn open_folder(folder: &Path, stem: &str, variant: Option<&str>) -> Result<Self> {
        match Place::find(folder, stem, variant)? {
            Place::Whole(path) => Self::open(&path),
            Place::Index(index) => Self::open_shards(folder, &index).map_err(|error| error.context(index.display())),
        }
    }

    /// The files that [`Stored::open_part`] would map, as [`Stored::files_of_folder`].
    ///
    /// # Errors
    /// As [`Stored::files_of_folder`].
    pub fn files_of_part(folder: &Path, stem: &str, variant: Option<&str>) -> Result<Vec<PathBuf>> {
        Self::files_of_folder(folder, stem, variant_of_part(folder, stem, variant))
    }

    /// The files that [`Stored::open_folder`] would map, the index first, without a look at their content.
    ///
    /// # Errors
    /// No such file, or an index that cannot be read.
    pub fn files_of_folder(folder: &Path, stem: &str, variant: Option<&str>) -> Result<Vec<PathBuf>> {
        let index = match Place::find(folder, stem, variant)? {
            Place::Whole(path) => return Ok(vec![path]),
            Place::Index(index) => index,
        };
        let places = weight_map(&index).map_err(|error| error.context(index.display()))?;
        let shards = shards_of(&places).into_iter().map(|file| folder.join(file));
        Ok(std::iter::once(index.clone()).chain(shards).collect())
    }

    fn open_shards(folder: &Path, index: &Path) -> Result<Self> {
        let mut stored = Self::default();
        let places = weight_map(index)?;
        for file in shards_of(&places) {
            let path = folder.join(file);
            stored.map(&path).map_err(|error| error.context(path.display()))?;
        }
        let absent: Vec<_> = places.keys().filter(|name| !stored.entries.contains_key(*name)).collect();
        match absent.first() {
            Some(first) => {
                let (file, count) = (&places[*first], absent.len());
                Err(Error::failed(format!("{first} is not in {file}, nor are {} more where they should be", count - 1)))
            }
            None => Ok(stored),
        }
    }

    fn map(&mut self, path: &Path) -> Result<()> {
        let map = ffi::map_file(path).map_err(Error::failed)?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(Error::failed)?;
        // Eight bytes of length, the header, the numbers.
        let start = 8 + header;
        let file = self.files.len();
        for (name, info) in metadata.tensors() {
            let bytes = start + info.data_offsets.0..start + info.data_offsets.1;
            let shape = info.shape.iter().map(|&n| n as i64).collect();
            let replaced = self.entries.insert(name.clone(), Entry { file, dtype: info.dtype, shape, bytes });
            if let Some(Entry { file, .. }) = replaced {
                return Err(Error::failed(format!("{name} is also in {}", self.files[file].0.display())));
            }
        }
        self.files.push((path.to_owned(), map));
        Ok(())
    }

    /// Names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[i64]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// The first file, as errors name the whole.
    pub fn source(&self) -> String {
        match &self.files[..] {
            [] => "no file".to_owned(),
            [(only, _)] => only.display().to_string(),
            [(first, _), ..] => first.parent().unwrap_or(first).display().to_string(),
        }
    }

    /// Reads a tensor to `device` and, if it is a floating-point one, as `kind` (`None` keeps the file's).
    ///
    /// # Errors
    /// No tensor of that name, or one of a type that libtorch lacks.
    pub fn read(&self, name: &str, kind: Option<Kind>, device: Device) -> Result<Tensor> {
        let rows = self.shape(name).and_then(|shape| shape.first()).copied();
        self.read_rows(name, 0..rows.unwrap_or(1), kind, device)
    }

    /// Reads the rows `rows` of a tensor, along its first dimension.
    ///
    /// # Errors
    /// As [`Stored::read`]; rows that the tensor does not have.
    pub fn read_rows(&self, name: &str, rows: Range<i64>, kind: Option<Kind>, device: Device) -> Result<Tensor> {
        let entry = self.entries.get(name);
        let entry = entry.ok_or_else(|| Error::invalid(format!("{}: there is no tensor {name}", self.source())))?;
        let (path, map) = &self.files[entry.file];
        let fail = |error: Error| error.context(format_args!("{}: {name}", path.display()));
        let source = kind_of(entry.dtype)
            .ok_or_else(|| fail(Error::unsupported(format!("type {:?}, which libtorch lacks", entry.dtype))))?;
        let target = kind.filter(|_| is_float(source)).unwrap_or(source);
        let mut shape = entry.shape.clone();
        let mut range = entry.bytes.clone();
        if let Some(all) = shape.first_mut() {
            if rows.start < 0 || rows.start > rows.end || rows.end > *all {
                return Err(fail(Error::invalid(format!("rows {rows:?} of {all}"))));
            }
            let row = range.len() / (*all).max(1) as usize;
            range = range.start + rows.start as usize * row..range.start + rows.end as usize * row;
            *all = rows.end - rows.start;
        }
        let read = ffi::tensor_from_bytes(&map[range.clone()], &shape, source, target, device).map_err(fail)?;
        // Or a model would be in memory twice until all of it is read.
        ffi::forget_pages(map, range);
        Ok(read)
    }

    /// Reads all tensors.
    ///
    /// # Errors
    /// As [`Stored::read`].
    pub fn read_all(&self, kind: Option<Kind>, device: Device) -> Result<Weights> {
        self.names().map(|name| Ok((name.to_owned(), self.read(name, kind, device)?))).collect()
    }

    /// Checks that names and shapes are exactly those of `layout`, and all floating-point numbers. `name_of` gives the
    /// layout's name of a stored tensor, and `None` for one that is left alone.
    ///
    /// # Errors
    /// As [`Weights::check`], led by the file or folder; a tensor of another type.
    pub fn check_layout(&self, layout: &[(String, Vec<i64>)], name_of: impl Fn(&str) -> Option<String>) -> Result<()> {
        self.fitted(layout, name_of).map(drop)
    }

    /// Reads exactly the tensors of `layout`; nothing is read unless all fit.
    ///
    /// # Errors
    /// As [`Stored::check_layout`].
    pub fn read_layout(
        &self,
        layout: &[(String, Vec<i64>)],
        name_of: impl Fn(&str) -> Option<String>,
        kind: Option<Kind>,
        device: Device,
    ) -> Result<Weights> {
        let fitted = self.fitted(layout, name_of)?;
        fitted.into_iter().map(|(name, stored)| Ok((name, self.read(stored, kind, device)?))).collect()
    }

    /// The stored names by those of the layout.
    fn fitted(
        &self,
        layout: &[(String, Vec<i64>)],
        name_of: impl Fn(&str) -> Option<String>,
    ) -> Result<BTreeMap<String, &str>> {
        let named =
            self.entries.iter().filter_map(|(stored, entry)| Some((name_of(stored)?, (stored.as_str(), entry))));
        let named: BTreeMap<String, (&str, &Entry)> = named.collect();
        let found = named.iter().map(|(name, (_, entry))| (name.as_str(), entry.shape.clone()));
        Fit::of(layout, found).into_result(&self.source())?;
        // What libtorch lacks is said when it is read.
        let counts = |entry: &Entry| kind_of(entry.dtype).is_some_and(|kind| !is_float(kind));
        match named.values().find(|(_, entry)| counts(entry)) {
            Some((stored, Entry { dtype, .. })) => {
                let source = self.source();
                Err(Error::invalid(format!("{source}: {stored}: expected a floating type, found {dtype:?}")))
            }
            None => Ok(named.into_iter().map(|(name, (stored, _))| (name, stored)).collect()),
        }
    }
}

/// Where the weights of a folder are.
enum Place {
    Whole(PathBuf),
    /// In the shards that this file names.
    Index(PathBuf),
}

impl Place {
    fn find(folder: &Path, stem: &str, variant: Option<&str>) -> Result<Self> {
        let names = |variant: Option<&str>| match variant {
            None => [format!("{stem}.safetensors"), format!("{stem}.safetensors.index.json")],
            Some(v) => [format!("{stem}.{v}.safetensors"), format!("{stem}.safetensors.index.{v}.json")],
        };
        let wanted: &[Option<&str>] = if variant.is_some() { &[variant] } else { &[None, Some("fp16"), Some("bf16")] };
        for variant in wanted {
            let [single, index] = names(*variant).map(|name| folder.join(name));
            if single.is_file() {
                return Ok(Self::Whole(single));
            }
            if index.is_file() {
                return Ok(Self::Index(index));
            }
        }
        let [single, index] = names(variant);
        let hint = match stem_in_pickle(folder, stem) {
            Some(file) => format!("; {file} is a pickle, which is not read: save the model as safetensors"),
            None => String::new(),
        };
        Err(Error::failed(format!("{}: neither {single} nor {index} is there{hint}", folder.display())))
    }
}

/// The files that an index names, sorted.
fn shards_of(places: &BTreeMap<String, String>) -> BTreeSet<&String> {
    places.values().collect()
}

/// The variant, if the part has files of it.
fn variant_of_part<'a>(folder: &Path, stem: &str, variant: Option<&'a str>) -> Option<&'a str> {
    variant.filter(|variant| {
        let names = [format!("{stem}.{variant}.safetensors"), format!("{stem}.safetensors.index.{variant}.json")];
        names.iter().any(|name| folder.join(name).is_file())
    })
}

/// The file of each tensor, as an index says.
fn weight_map(index: &Path) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(index).map_err(Error::failed)?;
    let places = serde_json::from_str::<Index>(&text)?.weight_map;
    // A downloaded index must not reach outside its folder.
    match places.values().find(|file| file.contains(['/', '\\']) || file.as_str() == "..") {
        Some(file) => Err(Error::invalid(format!("shard {file:?} is not a plain file name"))),
        None => Ok(places),
    }
}

/// The name of a pickle that lies where safetensors were looked for.
fn stem_in_pickle(folder: &Path, stem: &str) -> Option<String> {
    let stem = if stem == "model" { "pytorch_model" } else { stem };
    let name = format!("{stem}.bin");
    folder.join(&name).is_file().then_some(name)
}
