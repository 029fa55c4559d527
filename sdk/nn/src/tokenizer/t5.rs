//! T5's tokenizer.

use std::path::Path;

use advdmd_sdk::Error;

/// The tokens of a folder that names none: transformers' `T5Tokenizer`.
pub const DEFAULTS: [(&str, &str); 3] = [("eos_token", "</s>"), ("unk_token", "<unk>"), ("pad_token", "<pad>")];

/// The error of a folder without `tokenizer.json`.
pub fn missing(folder: &Path) -> Error {
    if !folder.join("spiece.model").exists() {
        return Error::invalid("no tokenizer: tokenizer.json is missing");
    }
    let path = folder.display().to_string();
    Error::invalid(format!(
        "tokenizer.json is missing, and its SentencePiece model spiece.model is not read. Convert it once with \
         transformers: python -c 'import sys; from transformers import T5TokenizerFast as T; \
         T.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])' {path:?}"
    ))
}
