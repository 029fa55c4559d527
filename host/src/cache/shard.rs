//! One safetensors file of a shelf: some entries, each of one or more named tensors with a checksum.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use advdmd_nn::Weights;
use flate2::Crc;
use safetensors::tensor::{Dtype, Metadata};
use tch::{Kind, Tensor};

use super::Key;
use crate::{Error, Result};

/// A header of more bytes is none.
const LARGEST_HEADER: u64 = 1 << 28;

/// A tensor in a shard.
#[derive(Debug, Clone)]
pub struct Part {
    /// What the entry calls it, such as `pooled`.
    pub name: String,
    kind: Kind,
    shape: Box<[i64]>,
    /// Place in the file.
    offset: u64,
    pub bytes: u64,
    crc: u32,
}

impl Part {
    /// The tensor, on the CPU.
    ///
    /// # Errors
    /// A file that cannot be read, or whose bytes are not those that were written: names it.
    pub fn read(&self, path: &Path) -> Result<Tensor> {
        let mut bytes = vec![0; self.bytes as usize];
        let read = File::open(path).and_then(|file| file.read_exact_at(&mut bytes, self.offset));
        read.map_err(Error::file("read", path))?;
        let found = crc(&bytes);
        if found != self.crc {
            let message = format!("damaged: {} has checksum {found:08x}, expected {:08x}", self.name, self.crc);
            return Err(Error::content(path, message));
        }
        Ok(Tensor::f_from_data_size(&bytes, &self.shape, self.kind)?)
    }
}

/// Tensors on their way to a shard, with their checksums.
#[derive(Debug, Default)]
pub struct Draft {
    tensors: Weights,
    checksums: BTreeMap<String, String>,
    pub bytes: u64,
}

impl Draft {
    /// Adds a tensor of an entry, by copy.
    ///
    /// # Errors
    /// libtorch's, for lack of memory.
    pub fn add(&mut self, entry: &str, part: &str, tensor: &Tensor) -> Result<()> {
        let tensor = tensor.f_detach()?.f_to_device(tch::Device::Cpu)?.f_contiguous()?;
        let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
        // A row of a batch would keep the whole batch.
        let tensor = Tensor::f_from_data_size(&bytes, &tensor.size(), tensor.kind())?;
        let name = format!("{entry}.{part}");
        self.checksums.insert(name.clone(), format!("{:08x}", crc(&bytes)));
        self.bytes += bytes.len() as u64;
        self.tensors.insert(name, tensor);
        Ok(())
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// A name that no other content has.
    pub fn name(&self) -> String {
        let names: Vec<&str> = self.checksums.iter().flat_map(|(name, crc)| [name.as_str(), crc]).collect();
        format!("{}-{}.safetensors", &super::hex(&super::key_of(names.join(" ")))[..24], std::process::id())
    }

    /// Writes the shard; it appears whole or not at all.
    ///
    /// # Errors
    /// The disk's.
    pub fn write(&self, path: &Path) -> Result<()> {
        Ok(self.tensors.save(path, &self.checksums)?)
    }
}

/// The entries of a shard, from its header alone.
///
/// # Errors
/// What is wrong with it, in words.
pub fn entries(path: &Path) -> Result<BTreeMap<Key, Vec<Part>>, String> {
    let mut file = File::open(path).map_err(|error| error.to_string())?;
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    let mut prefix = [0; 8];
    file.read_exact(&mut prefix).map_err(|error| error.to_string())?;
    let header = u64::from_le_bytes(prefix);
    if header > LARGEST_HEADER || 8 + header > length {
        return Err(format!("its header is said to have {header} bytes, the file has {length}"));
    }
    let mut text = vec![0; header as usize];
    file.read_exact(&mut text).map_err(|error| error.to_string())?;
    let header: Metadata = serde_json::from_slice(&text).map_err(|error| format!("its header: {error}"))?;
    let none = std::collections::HashMap::new();
    let checksums = header.metadata().as_ref().unwrap_or(&none);
    let begin = 8 + text.len() as u64;
    let mut found: BTreeMap<Key, Vec<Part>> = BTreeMap::new();
    let mut end = begin;
    for (name, info) in header.tensors() {
        let known = || {
            let (entry, part) = name.split_once('.')?;
            Some((key(entry)?, part, kind(info.dtype)?, u32::from_str_radix(checksums.get(&name)?, 16).ok()?))
        };
        let (entry, part, kind, crc) = known().ok_or_else(|| format!("tensor {name} is none of a cache"))?;
        let (first, last) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        end = end.max(begin + last);
        found.entry(entry).or_default().push(Part {
            name: part.to_owned(),
            kind,
            shape: info.shape.iter().map(|&n| n as i64).collect(),
            offset: begin + first,
            bytes: last - first,
            crc,
        });
    }
    if end == length { Ok(found) } else { Err(format!("expected {end} bytes, found {length}")) }
}

fn key(hex: &str) -> Option<Key> {
    let mut key = [0; 32];
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    for (byte, pair) in key.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(key)
}

fn kind(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::F32 => Some(Kind::Float),
        Dtype::F64 => Some(Kind::Double),
        Dtype::F16 => Some(Kind::Half),
        Dtype::BF16 => Some(Kind::BFloat16),
        Dtype::BOOL => Some(Kind::Bool),
        Dtype::I64 => Some(Kind::Int64),
        _ => None,
    }
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}
