//! Webdataset shards: tar files whose members share a key, `KEY.jpg` beside `KEY.txt` or `KEY.json`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value as Json;

use super::braces::expand;
use super::images::{Item, Source};
use crate::{Error, Result};

const IMAGES: [&str; 4] = ["jpg", "jpeg", "png", "webp"];
/// The first that is there gives the caption.
const CAPTIONS: [&str; 3] = ["txt", "caption", "json"];
/// A caption of more bytes is none.
const LONGEST_CAPTION: u64 = 1 << 20;

/// The samples of all shards, in order. `patterns` are tar files, patterns with braces, or folders, of which all `.tar`
/// files are taken by name. A sample without a usable caption has an empty one.
///
/// # Errors
/// No shard; one that is no tar file or is cut off; a member that is there twice: names the shard.
pub(super) fn list(patterns: &[PathBuf], text_key: &str) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    for shard in shards(patterns)? {
        read(&shard, text_key, &mut items)?;
    }
    if items.is_empty() {
        let shards: Vec<String> = patterns.iter().map(|path| path.display().to_string()).collect();
        let message = format!("{}: no image in any shard", shards.join(", "));
        let hint = format!("members are called KEY.{} and KEY.txt, KEY.caption or KEY.json", IMAGES.join("|"));
        return Err(Error::usage(message, hint));
    }
    Ok(items)
}

/// The files that the patterns stand for.
fn shards(patterns: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for pattern in patterns {
        if pattern.is_dir() {
            let entries = std::fs::read_dir(pattern).map_err(Error::file("read", pattern))?;
            let mut inside = Vec::new();
            for entry in entries {
                let path = entry.map_err(Error::file("read", pattern))?.path();
                if path.extension().is_some_and(|extension| extension == "tar") {
                    inside.push(path);
                }
            }
            if inside.is_empty() {
                return Err(Error::usage(format!("`data.shards`: {} holds no .tar file", pattern.display()), None));
            }
            inside.sort();
            found.append(&mut inside);
            continue;
        }
        let text = pattern.to_string_lossy();
        let names = expand(&text).map_err(|why| Error::usage(format!("`data.shards`: {text}: {why}"), None))?;
        for name in names.into_iter().map(PathBuf::from) {
            if !name.is_file() {
                let hint = "a shard is a .tar file; a relative path begins at the configuration file".to_owned();
                return Err(Error::usage(format!("`data.shards`: {} is not there", name.display()), hint));
            }
            found.push(name);
        }
    }
    Ok(found)
}

/// The members of one key.
#[derive(Debug, Default)]
struct Sample {
    image: Option<Source>,
    /// Caption by the index of its kind in [`CAPTIONS`].
    captions: BTreeMap<usize, String>,
}

/// Adds the samples of a shard.
fn read(shard: &Path, text_key: &str, items: &mut Vec<Item>) -> Result<()> {
    let path = Arc::new(shard.to_owned());
    let file = File::open(shard).map_err(Error::file("read", shard))?;
    let length = file.metadata().map_err(Error::file("read", shard))?.len();
    let mut archive = tar::Archive::new(file);
    let mut order: Vec<String> = Vec::new();
    let mut samples: BTreeMap<String, Sample> = BTreeMap::new();
    let mut last = String::new();
    let damaged = |last: &str, why: &dyn std::fmt::Display| {
        Error::content(
            shard,
            format!("no whole tar file: {why}{}; a compressed one must be unpacked first", behind(last)),
        )
    };
    for entry in archive.entries_with_seek().map_err(|error| damaged(&last, &error))? {
        let mut entry = entry.map_err(|error| damaged(&last, &error))?;
        let (offset, bytes) = (entry.raw_file_position(), entry.size());
        let member = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if offset + bytes > length {
            return Err(damaged(&last, &format!("{member} is cut off")));
        }
        last.clone_from(&member);
        let Some((key, extension)) = split(&member).filter(|_| entry.header().entry_type().is_file()) else { continue };
        let (image, kind) =
            (IMAGES.contains(&extension.as_str()), CAPTIONS.iter().position(|kind| *kind == extension.as_str()));
        if !image && kind.is_none() {
            continue;
        }
        if !samples.contains_key(&key) {
            order.push(key.clone());
        }
        let sample = samples.entry(key.clone()).or_default();
        let twice = || Error::content(shard, format!("{member} is there twice, or beside another of its key {key:?}"));
        if let Some(kind) = kind {
            let mut text = Vec::new();
            let read = entry.by_ref().take(LONGEST_CAPTION).read_to_end(&mut text);
            read.map_err(|error| damaged(&last, &error))?;
            if sample.captions.insert(kind, caption(CAPTIONS[kind], &text, text_key)).is_some() {
                return Err(twice());
            }
        } else {
            let source = Source::Member { shard: Arc::clone(&path), member: member.clone(), offset, bytes };
            if sample.image.replace(source).is_some() {
                return Err(twice());
            }
        }
    }
    if order.is_empty() && length > 0 && last.is_empty() {
        return Err(damaged(&last, &"it holds no member"));
    }
    for key in order {
        let Some(Sample { image: Some(source), captions }) = samples.remove(&key) else { continue };
        let caption = captions.into_values().find(|caption| !caption.is_empty()).unwrap_or_default();
        items.push(Item { caption, source });
    }
    Ok(())
}

/// Where in a shard, by the last member that was whole.
fn behind(member: &str) -> String {
    if member.is_empty() { String::new() } else { format!(", behind {member}") }
}

/// `dir/0001.seg.png` is member `seg.png` of the key `dir/0001`; `None` for names without either part.
fn split(member: &str) -> Option<(String, String)> {
    let (folder, name) = member.rsplit_once('/').map_or(("", member), |(folder, name)| (folder, name));
    let (stem, extension) = name.split_once('.')?;
    let key = if folder.is_empty() { stem.to_owned() } else { format!("{folder}/{stem}") };
    (!stem.is_empty()).then(|| (key, extension.to_lowercase()))
}

/// The caption in a member's bytes; empty where there is none.
fn caption(kind: &str, bytes: &[u8], text_key: &str) -> String {
    let text = if kind == "json" {
        let json: Option<Json> = serde_json::from_slice(bytes).ok();
        json.and_then(|json| json.get(text_key).and_then(Json::as_str).map(str::to_owned))
    } else {
        std::str::from_utf8(bytes).ok().map(str::to_owned)
    };
    text.unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn listed(shard: &[u8]) -> Result<Vec<(String, Vec<u8>)>, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("00.tar"), shard).unwrap();
        let items = list(&[folder.path().to_owned()], "prompt").map_err(|error| error.to_string())?;
        Ok(items.into_iter().map(|item| (item.caption, item.source.read().unwrap())).collect())
    }

    #[test]
    fn members_of_a_key_are_a_sample() {
        let long = format!("{}/1.jpg", "deep/".repeat(30));
        let shard = tar(&[
            ("a/0001.jpg", b"one"),
            ("a/0001.txt", b" first \n"),
            ("a/0001.seg.png", b"ignored"),
            ("0002.json", b"{\"prompt\": \"second\", \"width\": 3}"),
            ("0002.PNG", b"two"),
            ("0003.webp", b"three"),
            ("0003.json", b"{\"text\": \"another key\"}"),
            ("0004.txt", b"no image"),
            (&long, b"long"),
        ]);
        let pair = |caption: &str, image: &[u8]| (caption.to_owned(), image.to_owned());
        let expected = [pair("first", b"one"), pair("second", b"two"), pair("", b"three"), pair("", b"long")];
        assert_eq!(listed(&shard).unwrap(), expected);
    }

    #[test]
    fn what_is_no_shard_is_named() {
        let good = tar(&[("a.jpg", &[7; 2000]), ("a.txt", b"x")]);
        let cases: [(&[u8], &str); 6] = [
            (&good[..1000], "a.jpg is cut off"),
            (b"<!DOCTYPE html><title>404</title>", "no whole tar file"),
            (&[0x1f; 4096], "must be unpacked first"),
            (b"", "no image in any shard"),
            (&tar(&[("a.jpg", b"1"), ("a.jpg", b"2")]), "a.jpg is there twice"),
            (&tar(&[("a.jpg", b"1"), ("a.png", b"2")]), "a.png is there twice, or beside another"),
        ];
        for (bytes, part) in cases {
            let message = listed(bytes).unwrap_err();
            assert!(message.contains(part), "{part:?} in {message}");
        }
        let absent = list(&["/nowhere/{0..1}.tar".into()], "text").unwrap_err().to_string();
        assert_eq!(absent, "`data.shards`: /nowhere/0.tar is not there");
    }
}
