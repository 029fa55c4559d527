//! Embedded prompts by id: each prompt goes through the text encoder once in a run, or once ever with a cache.

use std::collections::BTreeMap;

use advdmd_sdk::{Backbone, Conditioning};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::cache::{self, Cache, Filling, Key, Shelf, Tensors, key_of};
use crate::device::upload;
use crate::{Error, Result};

/// Prompts encoded at a time, so that a large encoder's activations stay small.
const ENCODE_BATCH: usize = 64;

/// Embeddings of more bytes than this stay on disk: 256 MB are about 90 prompts of SD3, little beside its weights, and all
/// that a list of evaluation prompts needs.
const MEMORY_BUDGET: u64 = 256 << 20;

/// Embeddings of a list of prompts, and of the null prompt behind them.
#[derive(Debug)]
pub struct PromptTable {
    rows: Rows,
    null: i64,
    device: Device,
}

/// Where the rows are.
#[derive(Debug)]
enum Rows {
    /// All on the device.
    Memory(Conditioning),
    /// On disk, but for the null prompt's, which every batch reads.
    Disk { shelf: Box<Shelf>, keys: Vec<Key>, null: Conditioning },
}

impl PromptTable {
    /// Encodes `prompts` and the backbone's null prompt.
    ///
    /// # Errors
    /// A prompt that the backbone refuses.
    pub fn new(backbone: &dyn Backbone, prompts: &[&str]) -> Result<Self> {
        let null_prompt = backbone.spec().null_prompt;
        let all: Vec<&str> = prompts.iter().copied().chain([null_prompt.as_str()]).collect();
        let mut rows: Option<Conditioning> = None;
        for batch in all.chunks(ENCODE_BATCH) {
            let encoded = tch::no_grad(|| backbone.encode_text(batch))?;
            rows = Some(match rows {
                None => encoded,
                Some(rows) => rows.concat(&encoded),
            });
        }
        let rows = rows.unwrap_or_else(|| unreachable!("the null prompt is always there"));
        let device = rows.context.device();
        Ok(Self { rows: Rows::Memory(rows), null: prompts.len() as i64, device })
    }

    /// The same with a cache: encodes what it lacks, and leaves a large table on disk.
    ///
    /// # Errors
    /// A prompt that the backbone refuses, embeddings that are not finite, the disk's, or Ctrl-C.
    pub fn cached(backbone: &dyn Backbone, prompts: &[&str], cache: &Cache, device: Device) -> Result<Self> {
        Self::within(backbone, prompts, cache, device, MEMORY_BUDGET)
    }

    fn within(backbone: &dyn Backbone, prompts: &[&str], cache: &Cache, device: Device, budget: u64) -> Result<Self> {
        let null_prompt = backbone.spec().null_prompt;
        let all: Vec<&str> = prompts.iter().copied().chain([null_prompt.as_str()]).collect();
        let keys: Vec<Key> = all.iter().map(key_of).collect();
        let mut shelf = cache.shelf(cache::Kind::Text, &json!(null_prompt))?;
        let mut missing: BTreeMap<&str, Key> = all.iter().copied().zip(keys.iter().copied()).collect();
        missing.retain(|_, key| !shelf.has(key));
        fill(backbone, &missing.into_iter().collect::<Vec<_>>(), &mut shelf)?;
        let (last, null) = (keys[prompts.len()], prompts.len() as i64);
        let bytes: u64 = keys.iter().map(|key| shelf.bytes(key)).sum();
        let rows = if bytes <= budget {
            Rows::Memory(read(&shelf, &keys, device)?)
        } else {
            let null = read(&shelf, &[last], device)?;
            Rows::Disk { shelf: Box::new(shelf), keys, null }
        };
        Ok(Self { rows, null, device })
    }

    /// The table on another device, unless it lies on disk.
    #[must_use]
    pub fn on(self, device: Device) -> Self {
        let rows = match self.rows {
            Rows::Memory(rows) => Rows::Memory(rows.map(|tensor| tensor.to_device(device))),
            Rows::Disk { shelf, keys, null } => {
                Rows::Disk { shelf, keys, null: null.map(|tensor| tensor.to_device(device)) }
            }
        };
        Self { rows, device, ..self }
    }

    /// Number of prompts, the null prompt not among them.
    #[expect(clippy::len_without_is_empty, reason = "a table without prompts is of no use, and of no harm")]
    pub fn len(&self) -> usize {
        self.null as usize
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> u64 {
        let row = self.null(1);
        let tensors = [Some(&row.context), row.pooled.as_ref(), row.mask.as_ref()];
        tensors.into_iter().flatten().map(|tensor| (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64).sum()
    }

    /// The embeddings of prompts by id, one row each.
    ///
    /// # Errors
    /// The disk's, where the table lies there; names the file.
    pub fn rows(&self, ids: &[usize]) -> Result<Conditioning> {
        self.select(&ids.iter().map(|&id| id as i64).collect::<Vec<_>>())
    }

    /// The same with the null prompt for `None`.
    ///
    /// # Errors
    /// As [`PromptTable::rows`].
    pub fn rows_or_null(&self, ids: &[Option<usize>]) -> Result<Conditioning> {
        self.select(&ids.iter().map(|id| id.map_or(self.null, |id| id as i64)).collect::<Vec<_>>())
    }

    /// The null prompt's embedding, `count` times.
    pub fn null(&self, count: usize) -> Conditioning {
        let (rows, row) = match &self.rows {
            Rows::Memory(rows) => (rows, self.null),
            Rows::Disk { null, .. } => (null, 0),
        };
        rows.select(&Tensor::full([count as i64], row, (Kind::Int64, self.device)))
    }

    fn select(&self, ids: &[i64]) -> Result<Conditioning> {
        let (shelf, keys) = match &self.rows {
            Rows::Memory(rows) => return Ok(rows.select(&upload(&Tensor::f_from_slice(ids)?, self.device)?)),
            Rows::Disk { shelf, keys, .. } => (shelf, keys),
        };
        // A group repeats its prompt: each is read and sent once, and repeated on the device.
        let mut different = ids.to_vec();
        different.sort_unstable();
        different.dedup();
        let read_keys: Vec<Key> = different.iter().map(|&id| keys[id as usize]).collect();
        let rows = read(shelf, &read_keys, self.device)?;
        let place = |id: &i64| different.partition_point(|other| other < id) as i64;
        let places: Vec<i64> = ids.iter().map(place).collect();
        Ok(rows.select(&upload(&Tensor::f_from_slice(&places)?, self.device)?))
    }
}

/// Encodes prompts and puts them on the shelf.
fn fill(backbone: &dyn Backbone, missing: &[(&str, Key)], shelf: &mut Shelf) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let mut filling = Filling::new("encoding prompts", missing.len())?;
    let mut done = 0;
    for batch in missing.chunks(ENCODE_BATCH) {
        let prompts: Vec<&str> = batch.iter().map(|(prompt, _)| *prompt).collect();
        let encoded = tch::no_grad(|| backbone.encode_text(&prompts))?;
        for (row, (prompt, key)) in batch.iter().enumerate() {
            let row = |tensor: &Tensor| tensor.f_get(row as i64);
            let context = row(&encoded.context)?;
            // What is kept for good had better be a number.
            if context.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
                return Err(Error::contract(format!("the backbone's embedding of {prompt:?} is not finite")));
            }
            let pooled = encoded.pooled.as_ref().map(row).transpose()?;
            let mask = encoded.mask.as_ref().map(row).transpose()?;
            let parts = [("context", Some(&context)), ("pooled", pooled.as_ref()), ("mask", mask.as_ref())];
            let parts: Vec<_> = parts.into_iter().filter_map(|(name, part)| Some((name, part?))).collect();
            shelf.put(*key, &parts)?;
        }
        done += batch.len();
        filling.advance(done, "");
        if let Some(stopped) = filling.stopped(done, true) {
            shelf.flush()?;
            return Err(stopped);
        }
    }
    shelf.flush()
}

/// The rows of `keys` in that order, on `device`.
fn read(shelf: &Shelf, keys: &[Key], device: Device) -> Result<Conditioning> {
    let rows: Vec<Tensors> = keys.iter().map(|key| shelf.get(key)).collect::<Result<_>>()?;
    let part = |name: &str| -> Result<Option<Tensor>> {
        let tensors: Vec<&Tensor> =
            rows.iter().filter_map(|row| Some(&row.iter().find(|(found, _)| found == name)?.1)).collect();
        match tensors.len() {
            0 => Ok(None),
            found if found == keys.len() => Ok(Some(upload(&Tensor::f_stack(&tensors, 0)?, device)?)),
            found => Err(Error::contract(format!("{found} of {} embedded prompts have a {name}", keys.len()))),
        }
    };
    let context = part("context")?.ok_or_else(|| Error::contract("embedded prompts without a context"))?;
    Ok(Conditioning { context, pooled: part("pooled")?, mask: part("mask")? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::toy::{DEVICE, Toy, cache};

    const PROMPTS: [&str; 4] = ["a red seven", "two", "a", "above the blue three"];

    fn same(a: &Conditioning, b: &Conditioning) -> bool {
        let pooled = a.pooled.as_ref().zip(b.pooled.as_ref()).is_some_and(|(a, b)| a.equal(b));
        pooled && a.context.equal(&b.context) && a.mask.is_none() && b.mask.is_none()
    }

    #[test]
    fn memory_cache_and_disk_give_the_same_rows_and_each_prompt_is_encoded_once() {
        let folder = tempfile::tempdir().unwrap();
        let toy = Toy::default();
        let plain = PromptTable::new(&toy, &PROMPTS).unwrap();
        let before = toy.encoded()[0];
        for budget in [u64::MAX, 0, 0] {
            let table = PromptTable::within(&toy, &PROMPTS, &cache(folder.path()), DEVICE, budget).unwrap();
            assert_eq!(matches!(table.rows, Rows::Disk { .. }), budget == 0);
            for ids in [&[3, 3, 0, 0, 0, 2][..], &[1]] {
                assert!(same(&table.rows(ids).unwrap(), &plain.rows(ids).unwrap()), "{ids:?}");
            }
            let mixed = [Some(2), None, Some(2)];
            assert!(same(&table.rows_or_null(&mixed).unwrap(), &plain.rows_or_null(&mixed).unwrap()));
            assert!(same(&table.null(3), &plain.null(3)));
            assert_eq!((table.len(), table.row_bytes()), (4, plain.row_bytes()));
            assert_eq!(toy.encoded()[0] - before, PROMPTS.len() + 1, "four prompts and the null one, once");
        }
        let more = [&PROMPTS[..], &["a new one"]].concat();
        PromptTable::cached(&toy, &more, &cache(folder.path()), DEVICE).unwrap();
        assert_eq!(toy.encoded()[0] - before, PROMPTS.len() + 2, "only the new one");
    }
}
