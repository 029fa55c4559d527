//! Named tensors and the safetensors files that hold them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use advdmd_sdk::{Error, Result};
use safetensors::tensor::{Dtype, SafeTensors};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::{Stored, ffi};

/// Names and shapes that a model wants, in the order in which it asks for them.
pub type Layout = Vec<(String, Vec<i64>)>;

/// Tensors by name, in the order of their names.
#[derive(Debug, Default)]
pub struct Weights {
    tensors: BTreeMap<String, Tensor>,
}

impl Weights {
    /// No tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads one safetensors file through a memory map, each tensor copied once, straight to `device` and, if it is a
    /// floating-point one, to `kind` (`None` keeps the file's).
    ///
    /// # Errors
    /// As [`Stored::open`] and [`Stored::read`].
    pub fn load(path: &Path, kind: Option<Kind>, device: Device) -> Result<Self> {
        Stored::open(path)?.read_all(kind, device)
    }

    /// Reads the weights of a folder of diffusers or transformers, as [`Stored::open_folder`] finds them.
    ///
    /// # Errors
    /// As [`Stored::open_folder`] and [`Stored::read`].
    pub fn load_folder(folder: &Path, stem: &str, kind: Option<Kind>, device: Device) -> Result<Self> {
        Stored::open_folder(folder, stem, None)?.read_all(kind, device)
    }

    /// Reads a safetensors file that lies in memory (an embedded one), as [`Weights::load`] reads one on disk.
    ///
    /// # Errors
    /// As [`Weights::load`].
    pub fn from_bytes(bytes: &[u8], kind: Option<Kind>, device: Device) -> Result<Self> {
        let mut weights = Self::new();
        for (name, view) in SafeTensors::deserialize(bytes).map_err(Error::failed)?.iter() {
            let source = kind_of(view.dtype()).ok_or_else(|| {
                Error::unsupported(format!("{name} has type {:?}, which libtorch lacks", view.dtype()))
            })?;
            let target = kind.filter(|_| is_float(source)).unwrap_or(source);
            let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
            let tensor = ffi::tensor_from_bytes(view.data(), &shape, source, target, device)
                .map_err(|error| error.context(name))?;
            weights.insert(name, tensor);
        }
        Ok(weights)
    }

    /// Writes one safetensors file: beside its place, flushed to disk, then renamed over it, so that a reader finds
    /// the old file or the new one. `metadata` joins `format = pt` in the header.
    ///
    /// # Errors
    /// A disk error or a tensor of a type that the format lacks; the message names the file.
    pub fn save(&self, path: &Path, metadata: &BTreeMap<String, String>) -> Result<()> {
        self.write(path, metadata).map_err(|error| error.context(path.display()))
    }

    /// Reads a file that these weights were saved to, one tensor at a time, and compares every bit.
    ///
    /// # Errors
    /// The first tensor that differs, or a file that cannot be read; names both.
    pub fn check_saved(&self, path: &Path) -> Result<()> {
        let stored = Stored::open(path)?;
        for (name, tensor) in self.iter() {
            let (found, written) = (stored.read(name, None, Device::Cpu)?, tensor.f_to(Device::Cpu)?);
            if found.kind() != written.kind() || !found.f_equal(&written)? {
                let path = path.display();
                return Err(Error::failed(format!("{path}: read back, {name} is not what was written")));
            }
        }
        Ok(())
    }

    fn write(&self, path: &Path, metadata: &BTreeMap<String, String>) -> Result<()> {
        let mut partial = path.file_name().unwrap_or_default().to_owned();
        partial.push(format!(".{}.partial", std::process::id()));
        let partial = path.with_file_name(partial);
        let written =
            self.stream_to(&partial, metadata).and_then(|()| std::fs::rename(&partial, path).map_err(Error::failed));
        if written.is_err() {
            // Best effort: the error that matters is the one being returned.
            let _ = std::fs::remove_file(&partial);
            return written;
        }
        // The rename itself is durable only once the folder is on disk.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::failed)
    }

    /// The format is a length, a JSON header and the numbers. Written here rather than by the safetensors crate, whose
    /// writer orders metadata at random and has no way to report a failed copy from the device: equal weights give
    /// equal bytes, one tensor at a time in memory.
    fn stream_to(&self, path: &Path, metadata: &BTreeMap<String, String>) -> Result<()> {
        let mut tensors: Vec<_> = self.iter().map(|(name, tensor)| (name, tensor, tensor.kind())).collect();
        // Wide types first, so that every tensor is aligned; the sort is stable, so names stay in order.
        tensors.sort_by_key(|(_, _, kind)| std::cmp::Reverse(kind.elt_size_in_bytes()));
        let mut metadata = metadata.clone();
        metadata.entry("format".to_owned()).or_insert_with(|| "pt".to_owned());
        let mut header = serde_json::Map::from_iter([("__metadata__".to_owned(), json!(metadata))]);
        let mut end = 0;
        for &(name, tensor, kind) in &tensors {
            let dtype = dtype_of(kind)
                .ok_or_else(|| Error::unsupported(format!("{name} has type {kind:?}, which safetensors lacks")))?;
            let begin = end;
            end += tensor.numel() * kind.elt_size_in_bytes();
            let entry = json!({ "dtype": dtype, "shape": tensor.size(), "data_offsets": [begin, end] });
            header.insert(name.to_owned(), entry);
        }
        let mut header = serde_json::to_vec(&header)?;
        header.resize(header.len().next_multiple_of(8), b' ');

        let mut file = BufWriter::new(File::create(path).map_err(Error::failed)?);
        file.write_all(&(header.len() as u64).to_le_bytes()).map_err(Error::failed)?;
        file.write_all(&header).map_err(Error::failed)?;
        let mut bytes = Vec::new();
        for (name, tensor, kind) in tensors {
            bytes.resize(tensor.numel() * kind.elt_size_in_bytes(), 0);
            // libtorch's copy makes the tensor dense and brings it to the CPU first.
            tensor.f_copy_data_u8(&mut bytes, tensor.numel()).map_err(|error| Error::from(error).context(name))?;
            file.write_all(&bytes).map_err(Error::failed)?;
        }
        file.into_inner().map_err(Error::failed)?.sync_all().map_err(Error::failed)
    }

    /// Checks that names and shapes are exactly those of `expected`.
    ///
    /// # Errors
    /// One error that lists what is missing, unexpected and misshapen; `source` (a file, a model) leads it.
    pub fn check(&self, expected: &[(String, Vec<i64>)], source: &str) -> Result<()> {
        Fit::of(expected, self.iter().map(|(name, tensor)| (name, tensor.size()))).into_result(source)
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// Adds or replaces a tensor.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) {
        self.tensors.insert(name.into(), tensor);
    }

    /// Names and tensors, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The tensors whose names begin with `prefix`, which is cut off. Handles to the same storage.
    #[must_use]
    pub fn strip_prefix(&self, prefix: &str) -> Self {
        let inside = self.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)));
        inside.map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())).collect()
    }
}

impl FromIterator<(String, Tensor)> for Weights {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(tensors: I) -> Self {
        Self { tensors: tensors.into_iter().collect() }
    }
}

impl IntoIterator for Weights {
    type Item = (String, Tensor);
    type IntoIter = std::collections::btree_map::IntoIter<String, Tensor>;

    fn into_iter(self) -> Self::IntoIter {
        self.tensors.into_iter()
    }
}

/// How names and shapes that were found differ from those expected.
#[derive(Debug, Default)]
pub(crate) struct Fit {
    missing: Vec<String>,
    unexpected: Vec<String>,
    misshapen: Vec<String>,
}

impl Fit {
    pub(crate) fn of<'a>(
        expected: &[(String, Vec<i64>)],
        found: impl IntoIterator<Item = (&'a str, Vec<i64>)>,
    ) -> Self {
        let wanted: BTreeMap<&str, &[i64]> = expected.iter().map(|(name, shape)| (name.as_str(), &shape[..])).collect();
        let found: BTreeMap<&str, Vec<i64>> = found.into_iter().collect();
        let mut fit = Self::default();
        for (name, shape) in &wanted {
            match found.get(name) {
                None => fit.missing.push(format!("{name} {shape:?}")),
                Some(found) if found != shape => {
                    fit.misshapen.push(format!("{name} expected {shape:?}, found {found:?}"));
                }
                Some(_) => {}
            }
        }
        let unexpected = found.iter().filter(|(name, _)| !wanted.contains_key(*name));
        fit.unexpected = unexpected.map(|(name, shape)| format!("{name} {shape:?}")).collect();
        fit
    }

    /// One error that lists all that does not fit, led by `source`.
    pub(crate) fn into_result(self, source: &str) -> Result<()> {
        let parts = [("missing", self.missing), ("unexpected", self.unexpected), ("misshapen", self.misshapen)];
        let parts: Vec<_> = parts.into_iter().filter(|(_, names)| !names.is_empty()).collect();
        if parts.is_empty() {
            return Ok(());
        }
        let parts = parts.iter().map(|(what, names)| format!("{} {what}: {}", names.len(), list(names)));
        Err(Error::invalid(format!("{source}: weights do not fit; {}", parts.collect::<Vec<_>>().join("; "))))
    }
}

fn list(names: &[String]) -> String {
    const SHOWN: usize = 24;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

pub(crate) fn is_float(kind: Kind) -> bool {
    matches!(kind, Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16)
}

/// Types in both safetensors and libtorch.
const KINDS: [(Dtype, Kind); 10] = [
    (Dtype::F32, Kind::Float),
    (Dtype::F64, Kind::Double),
    (Dtype::F16, Kind::Half),
    (Dtype::BF16, Kind::BFloat16),
    (Dtype::I64, Kind::Int64),
    (Dtype::I32, Kind::Int),
    (Dtype::I16, Kind::Int16),
    (Dtype::I8, Kind::Int8),
    (Dtype::U8, Kind::Uint8),
    (Dtype::BOOL, Kind::Bool),
];

pub(crate) fn kind_of(dtype: Dtype) -> Option<Kind> {
    KINDS.iter().find(|(candidate, _)| *candidate == dtype).map(|&(_, kind)| kind)
}

fn dtype_of(kind: Kind) -> Option<Dtype> {
    KINDS.iter().find(|(_, candidate)| *candidate == kind).map(|&(dtype, _)| dtype)
}
