//! Files of weights that others wrote: `torch.save`'s zip archives and safetensors, of which one tensor is read at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata};
use zip::{CompressionMethod, ZipArchive};

use super::pickle::{Pickle, StoredTensor, Value};
use crate::{Error, Result};

/// The longest header of a safetensors file, as its own reader has it.
const LONGEST_HEADER: u64 = 100_000_000;

/// Types of numbers that weights have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    /// float32.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
}

impl Number {
    /// Bytes of one.
    pub fn size(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }
}

/// The tensors of a file by name. Nothing of them is in memory but what they are.
#[derive(Debug)]
pub struct Archive {
    path: PathBuf,
    file: File,
    tensors: BTreeMap<String, Entry>,
    skipped: Vec<String>,
}

#[derive(Debug)]
struct Entry {
    number: Number,
    /// Byte of the file at which the first element lies.
    start: u64,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl Archive {
    /// Opens a file of `torch.save` or safetensors.
    ///
    /// # Errors
    /// Another format; a pickle that asks to run something; numbers of another type than float32, float16 and bfloat16;
    /// tensors that are not all there, or not those that the checksums of a zip archive tell of; two members of one name:
    /// names the file and the tensor or member.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::file("read", path))?;
        let length = file.metadata().map_err(Error::file("read", path))?.len();
        let mut start = [0; 9];
        let count = length.min(9) as usize;
        file.read_exact_at(&mut start[..count], 0).map_err(Error::file("read", path))?;
        let mut archive = Self { path: path.to_owned(), file, tensors: BTreeMap::new(), skipped: Vec::new() };
        let header =
            u64::from_le_bytes([start[0], start[1], start[2], start[3], start[4], start[5], start[6], start[7]]);
        if start.starts_with(b"PK\x03\x04") {
            archive.open_zip(length)?;
        } else if start[0] == 0x80 && (2..=5).contains(&start[1]) {
            return Err(archive.content(
                "the old format of torch.save (before torch 1.6), which is not read: load it where you trust it, and save it \
                 again: `torch.save(torch.load(IN, weights_only=True), OUT)`",
            ));
        } else if start[8] == b'{' && header <= LONGEST_HEADER {
            archive.open_safetensors(header, length)?;
        } else {
            return Err(archive.content("neither a zip archive of torch.save nor a safetensors file"));
        }
        Ok(archive)
    }

    fn open_zip(&mut self, length: u64) -> Result<()> {
        let file = self.file.try_clone().map_err(Error::file("read", &self.path))?;
        let fail =
            |error: zip::result::ZipError| Error::content(&self.path, format!("not a whole zip archive: {error}"));
        let mut zip = ZipArchive::new(BufReader::new(file)).map_err(fail)?;
        // Which of two is read would be up to the reader.
        let doubled = || self.content("a zip archive with two members of one name: torch.save did not write it");
        if zip.has_duplicate_names() {
            return Err(doubled());
        }
        let mut members = HashMap::new();
        for index in 0..zip.len() {
            let member = zip.by_index_raw(index).map_err(fail)?;
            let name = member.name().map_err(fail)?.into_owned();
            let stored = member.compression() == CompressionMethod::Stored && !member.encrypted();
            if members.insert(name, (index, stored, member.data_start(), member.size())).is_some() {
                return Err(doubled());
            }
        }
        let mut roots = members.keys().filter_map(|name| name.strip_suffix("data.pkl"));
        let root = match (roots.next(), roots.next()) {
            (Some(root), None) => root.to_owned(),
            (None, _) => return Err(self.content("a zip archive without `data.pkl`: torch.save did not write it")),
            (Some(_), Some(_)) => return Err(self.content("a zip archive with several `data.pkl`")),
        };
        if members.keys().any(|name| {
            name.strip_prefix(&root).is_some_and(|name| name == "constants.pkl" || name.starts_with("code/"))
        }) {
            return Err(self.content(
                "a TorchScript archive, which holds a program beside its weights and is not read: where you trust it, \
                 `torch.save(torch.jit.load(IN, map_location=\"cpu\").state_dict(), OUT)` keeps the weights alone",
            ));
        }
        let mut text = |name: &str, most: u64| -> Result<Option<Vec<u8>>> {
            let Some(&(index, stored, ..)) = members.get(&format!("{root}{name}")) else { return Ok(None) };
            if !stored {
                return Err(Error::content(
                    &self.path,
                    format!("`{name}` is compressed or encrypted, which torch.save does not do"),
                ));
            }
            let mut bytes = Vec::new();
            let member = zip.by_index(index).map_err(fail)?;
            member.take(most + 1).read_to_end(&mut bytes).map_err(Error::file("read", &self.path))?;
            Ok(Some(bytes))
        };
        if let Some(order) = text("byteorder", 16)?.filter(|order| order != b"little") {
            let order = String::from_utf8_lossy(&order).escape_debug().to_string();
            return Err(self.content(&format!("its byte order is {order:?}, only \"little\" is read")));
        }
        let pickle = text("data.pkl", super::pickle::LONGEST as u64)?.unwrap_or_default();
        let pickle = Pickle::read(&pickle).map_err(|message| self.unpickled(&message))?;
        let mut tensors = BTreeMap::new();
        let mut skipped = Vec::new();
        let mut used = BTreeSet::new();
        for (name, value) in state_dict(&pickle).map_err(|message| self.content(&message))? {
            let Value::Tensor(tensor) = value else {
                skipped.push(name.to_owned());
                continue;
            };
            if is_buffer(name) {
                skipped.push(name.to_owned());
                continue;
            }
            let storage = &tensor.storage;
            let fail = |message: String| self.content(&format!("{}: {message}", shown(name)));
            let number = match storage.dtype {
                "float32" => Number::F32,
                "float16" => Number::F16,
                "bfloat16" => Number::Bf16,
                other => return Err(fail(format!("numbers of type {other}, expected float32, float16 or bfloat16"))),
            };
            let member = members.get(&format!("{root}data/{}", storage.key));
            let Some(&(index, stored, Some(start), size)) = member else {
                return Err(fail(format!("its numbers, `data/{}`, are not in the archive", storage.key)));
            };
            let needed = storage.count.checked_mul(number.size() as u64);
            if !stored
                || needed.is_none_or(|needed| needed > size)
                || start.checked_add(size).is_none_or(|end| end > length)
            {
                return Err(fail(format!("its numbers, `data/{}`, are compressed or cut off", storage.key)));
            }
            used.insert(index);
            tensors.insert(
                name.to_owned(),
                Entry::of(tensor, number, start).ok_or_else(|| fail("is too large".to_owned()))?,
            );
        }
        for index in used {
            let mut member = zip.by_index(index).map_err(fail)?;
            let name = shown(&member.name().map_err(fail)?);
            // The crate compares checksums at a member's end.
            std::io::copy(&mut member, &mut std::io::sink())
                .map_err(|error| self.content(&format!("`{name}` is damaged: {error}")))?;
        }
        (self.tensors, self.skipped) = (tensors, skipped);
        Ok(())
    }

    fn open_safetensors(&mut self, header: u64, length: u64) -> Result<()> {
        let cut = || self.content("is cut off: not all of its tensors are there");
        let start = 8 + header;
        if start > length {
            return Err(cut());
        }
        let mut text = vec![0; header as usize];
        self.file.read_exact_at(&mut text, 8).map_err(Error::file("read", &self.path))?;
        let metadata: Metadata = serde_json::from_slice(&text).map_err(|error| Error::content(&self.path, error))?;
        let mut tensors = BTreeMap::new();
        let mut skipped = Vec::new();
        for (name, info) in metadata.tensors() {
            if is_buffer(&name) {
                skipped.push(name);
                continue;
            }
            let number = match info.dtype {
                Dtype::F32 => Number::F32,
                Dtype::F16 => Number::F16,
                Dtype::BF16 => Number::Bf16,
                other => {
                    let message = format!("{}: numbers of type {other:?}, expected F32, F16 or BF16", shown(&name));
                    return Err(self.content(&message));
                }
            };
            let elements = info.shape.iter().try_fold(1_usize, |product, size| product.checked_mul(*size));
            let bytes = elements.and_then(|elements| elements.checked_mul(number.size()));
            let (first, end) = info.data_offsets;
            if bytes.is_none_or(|bytes| end.checked_sub(first) != Some(bytes)) || end as u64 > length - start {
                return Err(cut());
            }
            let mut strides = vec![1_usize; info.shape.len()];
            for axis in (1..strides.len()).rev() {
                strides[axis - 1] = strides[axis].saturating_mul(info.shape[axis].max(1));
            }
            tensors.insert(name, Entry { number, start: start + first as u64, shape: info.shape.clone(), strides });
        }
        (self.tensors, self.skipped) = (tensors, skipped);
        Ok(())
    }

    /// Names and shapes of the tensors.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors.iter().map(|(name, entry)| (name.as_str(), entry.shape.as_slice()))
    }

    /// What lies beside the tensors, such as the number of an epoch, and is not read.
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }

    /// Type of a tensor's numbers.
    pub fn number(&self, name: &str) -> Option<Number> {
        self.tensors.get(name).map(|entry| entry.number)
    }

    /// The numbers of a tensor in row-major order.
    ///
    /// # Errors
    /// No tensor of that name, a disk error, or a number that is not finite.
    pub fn read(&self, name: &str) -> Result<Vec<f32>> {
        let Some(entry) = self.tensors.get(name) else {
            return Err(self.content(&format!("there is no tensor {}", shown(name))));
        };
        let width = entry.number.size();
        let mut bytes = vec![0; entry.extent() * width];
        self.file.read_exact_at(&mut bytes, entry.start).map_err(Error::file("read", &self.path))?;
        let number: fn(&[u8]) -> f32 = match entry.number {
            Number::F32 => |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            Number::F16 => |b| f16::from_le_bytes([b[0], b[1]]).to_f32(),
            Number::Bf16 => |b| bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        };
        let values: Vec<f32> = entry.places().map(|at| number(&bytes[at * width..])).collect();
        match values.iter().position(|value| !value.is_finite()) {
            Some(at) => Err(self.content(&format!("{}: number {at} is {}", shown(name), values[at]))),
            None => Ok(values),
        }
    }

    /// An error about this file.
    pub fn content(&self, message: &str) -> Error {
        Error::content(&self.path, message)
    }

    fn unpickled(&self, message: &str) -> Error {
        let hint = if message.contains("asks to run") {
            ". Weights need no program. Where you trust the file, keep its state dict alone: \
             `torch.save(torch.load(IN, weights_only=False)[\"state_dict\"], OUT)`"
        } else {
            ""
        };
        self.content(&format!("{message}{hint}"))
    }
}

impl Entry {
    fn of(tensor: &StoredTensor, number: Number, storage: u64) -> Option<Self> {
        let sizes = |sizes: &[u64]| sizes.iter().map(|size| usize::try_from(*size).ok()).collect::<Option<Vec<_>>>();
        let start = storage.checked_add(tensor.offset.checked_mul(number.size() as u64)?)?;
        Some(Self { number, start, shape: sizes(&tensor.shape)?, strides: sizes(&tensor.strides)? })
    }

    /// Numbers from the first to the last in use.
    fn extent(&self) -> usize {
        if self.shape.contains(&0) {
            return 0;
        }
        1 + self.shape.iter().zip(&self.strides).map(|(size, stride)| (size - 1) * stride).sum::<usize>()
    }

    /// The place of each element, in row-major order.
    fn places(&self) -> impl Iterator<Item = usize> {
        let count: usize = self.shape.iter().product();
        (0..count).map(|flat| {
            let axes = self.shape.iter().zip(&self.strides).rev();
            axes.fold((flat, 0), |(rest, at), (size, stride)| (rest / size, at + rest % size * stride)).1
        })
    }
}

/// The entries of a file's state dict: under `state_dict`, or the whole.
fn state_dict(pickle: &Pickle) -> Result<Vec<(&str, &Value)>, String> {
    let Value::Dict(all) = pickle.root() else {
        return Err("its pickle is no dict: expected a state dict, or one under \"state_dict\"".to_owned());
    };
    if let Some((_, Value::Dict(inner))) = pickle.entries(all).find(|(key, _)| *key == "state_dict") {
        return Ok(pickle.entries(inner).collect());
    }
    let entries: Vec<_> = pickle.entries(all).collect();
    if entries.iter().any(|(_, value)| matches!(value, Value::Tensor(_))) {
        return Ok(entries);
    }
    let keys: Vec<String> = entries.iter().take(8).map(|(key, _)| shown(key)).collect();
    Err(format!("holds no tensors, and no \"state_dict\"; its keys are {}", keys.join(", ")))
}

/// Whether an entry is one that a model makes anew: a mask, or a number that `OpenAI`'s release carries.
fn is_buffer(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    ["attn_mask", "position_ids", "input_resolution", "context_length", "vocab_size"].contains(&last)
}

/// A name as an error shows it: short, and without control characters.
pub fn shown(name: &str) -> String {
    name.chars().take(120).flat_map(char::escape_debug).collect()
}
