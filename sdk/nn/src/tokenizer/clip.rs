//! CLIP's tokenizer from `vocab.json` and `merges.txt`.

use std::path::Path;

use advdmd_sdk::{Error, Result};
use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use super::read_if_there;
use super::special::Special;

/// The tokens of a folder that names none: transformers' `CLIPTokenizer`.
pub const DEFAULTS: [(&str, &str); 4] = [
    ("bos_token", "<|startoftext|>"),
    ("eos_token", "<|endoftext|>"),
    ("unk_token", "<|endoftext|>"),
    ("pad_token", "<|endoftext|>"),
];

pub const FILES: [&str; 2] = ["vocab.json", "merges.txt"];

/// What counts as a word: transformers' `CLIPTokenizer`.
const WORDS: &str =
    concat!(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d", r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+");

/// The tokenizer that transformers 5 builds from the two files, by way of the `tokenizer.json` that it would write.
///
/// # Errors
/// A missing or malformed file; the message names it.
pub fn from_vocabulary(folder: &Path, special: &Special) -> Result<Tokenizer> {
    let missing: Vec<_> = FILES.into_iter().filter(|file| !folder.join(file).exists()).collect();
    if !missing.is_empty() {
        let missing = missing.join(" and ");
        return Err(Error::invalid(format!(
            "no tokenizer: expected tokenizer.json, or vocab.json and merges.txt; {missing} missing"
        )));
    }
    let vocabulary: Map<String, Value> = read_if_there(folder, FILES[0])?.unwrap_or_default();
    let id = |role| -> Result<(String, Value)> {
        let token = special.named(role)?;
        let id = vocabulary.get(token).ok_or_else(|| Error::invalid(format!("vocab.json lacks {role} {token:?}")))?;
        Ok((token.to_owned(), id.clone()))
    };
    let (bos, eos) = (id("bos_token")?, id("eos_token")?);
    let unknown = special.named("unk_token")?;
    let merges = read_merges(&folder.join(FILES[1])).map_err(|error| error.context(FILES[1]))?;
    let description = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "NFC" },
            { "type": "Replace", "pattern": { "Regex": r"\s+" }, "content": " " },
            { "type": "Lowercase" },
        ] },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": WORDS }, "behavior": "Removed", "invert": true },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        ] },
        "post_processor": { "type": "RobertaProcessing", "sep": eos, "cls": bos, "trim_offsets": false,
            "add_prefix_space": false },
        "decoder": null,
        "model": { "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary,
            "merges": merges },
    });
    let built = Tokenizer::from_bytes(serde_json::to_vec(&description)?);
    built.map_err(|error| Error::failed(error).context("vocab.json and merges.txt"))
}

/// The pairs of the file, without its version line.
fn read_merges(path: &Path) -> Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(path).map_err(Error::failed)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with("#version") && !line.is_empty());
    let pairs = lines.map(|(index, line)| match line.split_once(' ') {
        Some((left, right)) if !right.contains(' ') => Ok((left.to_owned(), right.to_owned())),
        _ => Err(Error::invalid(format!("line {}: expected two pieces, found {line:?}", index + 1))),
    });
    pairs.collect()
}
