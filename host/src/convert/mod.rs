//! Weights of other tools, brought to the layout that plugins read. Nothing of a file is executed.

pub mod archive;
pub mod open_clip;
pub mod pickle;
mod tokenizer;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use serde::Serialize;
use serde_json::json;

use crate::progress::Progress;
use crate::{Error, Result, files, interrupt};
use archive::{Archive, Number, shown};
use open_clip::{Architecture, Shapes, Target};

/// How a CLIP model is converted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClipOptions {
    /// Type of the written numbers; that of the file, or float32 where it holds several types, by default.
    pub dtype: Option<Number>,
    /// A folder with the tokenizer's files, or `open_clip`'s `bpe_simple_vocab_16e6.txt.gz`.
    pub tokenizer: Option<PathBuf>,
    /// Attention heads of images and of text, for models that are not published.
    pub heads: [Option<usize>; 2],
    /// Whether the activation is `quick_gelu`, `x sigmoid(1.702 x)`, instead of GELU.
    pub quick_gelu: bool,
}

/// What was converted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Converted {
    /// What the weights are.
    pub architecture: Architecture,
    /// Tensors that were written.
    pub tensors: usize,
    /// Their numbers.
    pub numbers: u64,
    /// Type of the written numbers.
    pub dtype: &'static str,
    /// Entries of the file that were left out, since a model makes them anew.
    pub skipped: Vec<String>,
}

/// Converts the weights of an `open_clip` model to a folder of transformers' `CLIPModel`.
///
/// What no weight tells is taken for what `CLIPModel` computes: the feature of an image is that of its class token, that of a
/// text is its end-of-text token's; texts have a causal mask; the epsilon of layer norms is 1e-5; GELU is exact unless
/// [`quick_gelu`](ClipOptions::quick_gelu) is set.
///
/// # Errors
/// A file that cannot be read, asks to run something, or holds something else than one CLIP model with a `ViT`; a tokenizer
/// that does not fit; an occupied folder; a disk error. Nothing is left behind.
pub fn clip(input: &Path, out: &Path, options: &ClipOptions) -> Result<Converted> {
    let out = std::path::absolute(out).map_err(Error::file("find", out))?;
    let occupied = fs::read_dir(&out).map_or_else(|_| out.exists(), |mut entries| entries.next().is_some());
    if occupied {
        let hint = "name another folder, or empty this one yourself".to_owned();
        return Err(Error::usage(format!("{} is occupied", out.display()), hint));
    }
    let archive = Archive::open(input)?;
    let shapes: Shapes = archive.shapes().collect();
    let fail = |message: String| archive.content(&message);
    let prefix = open_clip::prefix(&shapes).map_err(fail)?;
    let architecture = Architecture::of(&shapes, prefix, options.heads).map_err(fail)?;
    let targets = architecture.targets(prefix);
    open_clip::check(&shapes, &targets).map_err(fail)?;
    let dtype = options.dtype.unwrap_or_else(|| common(&archive, &targets));
    let activation = if options.quick_gelu { "quick_gelu" } else { "gelu" };
    files::create_dir(out.parent().unwrap_or(&out))?;
    files::replace_dir(&out, |folder| {
        write_weights(&folder.join("model.safetensors"), &archive, &targets, dtype)?;
        files::write_json(&folder.join("config.json"), &architecture.config(activation, dtype.torch()))?;
        files::write_json(&folder.join("preprocessor_config.json"), &architecture.preprocessor())?;
        match &options.tokenizer {
            Some(source) => tokenizer::write(source, folder, architecture.vocabulary, architecture.context),
            None => Ok(()),
        }
    })?;
    Ok(Converted {
        architecture,
        tensors: targets.len(),
        numbers: targets.iter().map(|target| target.shape.iter().product::<usize>() as u64).sum(),
        dtype: dtype.torch(),
        skipped: archive.skipped().iter().map(|name| shown(name)).collect(),
    })
}

/// The type that all of a file's numbers have; float32 where there are several.
fn common(archive: &Archive, targets: &[Target]) -> Number {
    let mut types = targets.iter().filter_map(|target| archive.number(&target.source));
    let first = types.next().unwrap_or(Number::F32);
    if types.all(|other| other == first) { first } else { Number::F32 }
}

impl Number {
    /// The name in a safetensors file.
    fn safetensors(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }

    /// The name in torch and in a `config.json`.
    fn torch(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    /// The bytes of numbers; `None` where one is too large for the type.
    fn bytes(self, numbers: &[f32]) -> Option<Vec<u8>> {
        match self {
            Self::F32 => Some(numbers.iter().flat_map(|number| number.to_le_bytes()).collect()),
            Self::F16 => {
                let halves = numbers.iter().map(|number| f16::from_f32(*number));
                halves
                    .map(|half| half.is_finite().then(|| half.to_le_bytes()))
                    .collect::<Option<Vec<_>>>()
                    .map(|all| all.concat())
            }
            Self::Bf16 => {
                let halves = numbers.iter().map(|number| bf16::from_f32(*number));
                halves
                    .map(|half| half.is_finite().then(|| half.to_le_bytes()))
                    .collect::<Option<Vec<_>>>()
                    .map(|all| all.concat())
            }
        }
    }
}

/// Writes a safetensors file with one tensor in memory at a time: its length, a JSON header, the numbers. The safetensors
/// crate's writer has no way to report a tensor that cannot be read.
fn write_weights(path: &Path, archive: &Archive, targets: &[Target], dtype: Number) -> Result<()> {
    let stop = interrupt::flag()?;
    let mut targets: Vec<&Target> = targets.iter().collect();
    targets.sort_by(|a, b| a.name.cmp(&b.name));
    let mut header = serde_json::Map::from_iter([("__metadata__".to_owned(), json!({ "format": "pt" }))]);
    let mut end = 0;
    for target in &targets {
        let start = end;
        end += target.shape.iter().product::<usize>() * dtype.size();
        let entry = json!({ "dtype": dtype.safetensors(), "shape": target.shape, "data_offsets": [start, end] });
        header.insert(target.name.clone(), entry);
    }
    let mut header = serde_json::to_vec(&header).map_err(Error::failed)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let fail = || Error::file("write", path);
    let mut file = BufWriter::new(File::create(path).map_err(fail())?);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(fail())?;
    file.write_all(&header).map_err(fail())?;
    let mut progress = Progress::new("converting", 0, targets.len() as u64);
    for (index, target) in targets.iter().enumerate() {
        if stop.is_raised() {
            return Err(Error::failed("stopped; nothing was kept"));
        }
        let numbers = target.take(archive.read(&target.source)?);
        let bytes = dtype.bytes(&numbers).ok_or_else(|| {
            archive.content(&format!("{} holds a number too large for {}", shown(&target.source), dtype.torch()))
        })?;
        file.write_all(&bytes).map_err(fail())?;
        progress.advance(index as u64 + 1, "");
    }
    file.flush().and_then(|()| file.get_ref().sync_all()).map_err(fail())
}
