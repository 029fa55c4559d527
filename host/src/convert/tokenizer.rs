//! The tokenizer's files of transformers' `CLIPTokenizer`: copied, or made of `open_clip`'s list of merges.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;
use serde_json::json;

use crate::{Error, Result, files};

/// What a `CLIPTokenizer` may read; the first two, or the third, are enough.
const FILES: [&str; 5] =
    ["vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// Longer lists of merges are refused; CLIP's has 3 MB.
const LONGEST: u64 = 64 << 20;

/// Writes the tokenizer's files to `folder`: those of a folder, or made of `bpe_simple_vocab_16e6.txt.gz`. `vocabulary` and
/// `context` are the model's.
///
/// # Errors
/// Files that are missing, or have another number of tokens than the model: names them.
pub fn write(source: &Path, folder: &Path, vocabulary: usize, context: usize) -> Result<()> {
    if source.is_dir() { copy(source, folder, vocabulary) } else { make(source, folder, vocabulary, context) }
}

fn copy(source: &Path, folder: &Path, vocabulary: usize) -> Result<()> {
    let has = |name: &str| source.join(name).is_file();
    let (path, tokens) = if has("vocab.json") && has("merges.txt") {
        let path = source.join("vocab.json");
        let tokens = files::read_json::<BTreeMap<String, usize>>(&path)?.len();
        (path, tokens)
    } else if has("tokenizer.json") {
        #[derive(serde::Deserialize)]
        struct Tokenizer {
            model: Model,
        }
        #[derive(serde::Deserialize)]
        struct Model {
            vocab: BTreeMap<String, usize>,
        }
        let path = source.join("tokenizer.json");
        let tokens = files::read_json::<Tokenizer>(&path)?.model.vocab.len();
        (path, tokens)
    } else {
        let message =
            format!("{} holds no tokenizer: expected vocab.json and merges.txt, or tokenizer.json", source.display());
        return Err(Error::usage(message, None));
    };
    fits(&path, tokens, vocabulary)?;
    for name in FILES.into_iter().filter(|name| has(name)) {
        let from = source.join(name);
        files::write(&folder.join(name), &fs::read(&from).map_err(Error::file("read", &from))?)?;
    }
    Ok(())
}

fn make(source: &Path, folder: &Path, vocabulary: usize, context: usize) -> Result<()> {
    let packed = File::open(source).map_err(Error::file("read", source))?;
    let mut text = String::new();
    let read = GzDecoder::new(packed).take(LONGEST + 1).read_to_string(&mut text);
    read.map_err(|error| {
        Error::content(
            source,
            format!("expected a gzip file of text, as open_clip's bpe_simple_vocab_16e6.txt.gz: {error}"),
        )
    })?;
    if text.len() as u64 > LONGEST {
        return Err(Error::content(source, format!("holds more than {LONGEST} bytes of text")));
    }
    // A line about the version comes first; behind CLIP's own merges come others, which its tokenizer leaves out.
    let count = vocabulary.checked_sub(2 * 256 + 2).ok_or_else(|| {
        Error::content(
            source,
            format!("the model has {vocabulary} tokens, fewer than the 514 that CLIP's tokenizer has without merges"),
        )
    })?;
    let merges: Vec<&str> = text.lines().skip(1).take(count).collect();
    fits(source, merges.len() + 514, vocabulary)?;
    if let Some(at) = merges.iter().position(|merge| merge.split(' ').filter(|part| !part.is_empty()).count() != 2) {
        return Err(Error::content(
            source,
            format!("line {}: expected a pair of tokens, found {:?}", at + 2, merges[at]),
        ));
    }
    let letters: Vec<String> = letters().iter().map(char::to_string).collect();
    let ends = letters.iter().map(|letter| format!("{letter}</w>"));
    let merged = merges.iter().map(|merge| merge.replace(' ', ""));
    let tokens = letters.iter().cloned().chain(ends).chain(merged).chain([START.to_owned(), END.to_owned()]);
    let ids: BTreeMap<String, usize> = tokens.enumerate().map(|(id, token)| (token, id)).collect();
    fits(source, ids.len(), vocabulary)?;
    files::write_json(&folder.join("vocab.json"), &ids)?;
    let lines = merges.join("\n");
    files::write(&folder.join("merges.txt"), format!("#version: 0.2\n{lines}\n").as_bytes())?;
    files::write_json(
        &folder.join("tokenizer_config.json"),
        &json!({
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": context,
            "do_lower_case": true,
            "errors": "replace",
            "bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END,
        }),
    )?;
    let special = json!({ "bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END });
    files::write_json(&folder.join("special_tokens_map.json"), &special)
}

fn fits(path: &Path, tokens: usize, vocabulary: usize) -> Result<()> {
    if tokens == vocabulary {
        return Ok(());
    }
    Err(Error::content(path, format!("has {tokens} tokens, the model {vocabulary}: it is another model's tokenizer")))
}

/// The letters that stand for the 256 bytes, in the order of their tokens: those that can be seen stand for themselves, the
/// others are letters from U+0100 on (`bytes_to_unicode` of GPT-2).
fn letters() -> Vec<char> {
    let seen = |byte: &u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let own = (0..256).filter(seen);
    let others = (0..256).filter(|byte| !seen(byte)).zip(0x100..).map(|(_, letter)| letter);
    own.chain(others).filter_map(char::from_u32).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    #[test]
    fn merges_become_tokens_in_clips_order() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("bpe.txt.gz");
        let mut packed = GzEncoder::new(File::create(&source).unwrap(), Compression::fast());
        packed.write_all(b"\"bpe_simple_vocab_16e6.txt#version: 0.2\nt h\nth e</w>\nin g\n").unwrap();
        packed.finish().unwrap();
        write(&source, folder.path(), 516, 77).unwrap();
        let ids: BTreeMap<String, usize> = files::read_json(&folder.path().join("vocab.json")).unwrap();
        let expected = [
            ("!", 0),
            ("!</w>", 256),
            ("\u{100}", 188),
            ("\u{143}", 255),
            ("th", 512),
            ("the</w>", 513),
            (START, 514),
            (END, 515),
        ];
        for (token, id) in expected {
            assert_eq!(ids[token], id, "{token}");
        }
        let merges = fs::read_to_string(folder.path().join("merges.txt")).unwrap();
        assert_eq!(merges, "#version: 0.2\nt h\nth e</w>\n");
        // What was made is a folder that can be copied.
        let copied = folder.path().join("copied");
        files::create_dir(&copied).unwrap();
        write(folder.path(), &copied, 516, 77).unwrap();
        assert_eq!(fs::read(copied.join("vocab.json")).unwrap(), fs::read(folder.path().join("vocab.json")).unwrap());
        for (path, part) in
            [(folder.path(), "has 516 tokens, the model 600"), (&source, "has 517 tokens, the model 600")]
        {
            assert!(write(path, &copied, 600, 77).unwrap_err().to_string().contains(part));
        }
        assert!(
            write(&copied.join("merges.txt"), &copied, 516, 77)
                .unwrap_err()
                .to_string()
                .contains("expected a gzip file")
        );
    }
}
