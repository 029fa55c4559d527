//! Every target over its corpus and over simple damage to it: the same in each run, and quick.

use std::path::Path;

use advdmd_fuzz::TARGETS;

/// Damaged copies of each file.
const COPIES: usize = 200;

/// A small generator of our own, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound.max(1)
    }
}

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap())
        .map(|file| (file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap()))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{target} has no corpus");
    files
}

/// One change: a byte, a piece cut out, repeated or brought from `other`, or the end lost.
fn damage(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = random.below(bytes.len());
    let end = (at + 1 + random.below(16)).min(bytes.len());
    match random.below(5) {
        0 if !bytes.is_empty() => bytes[at] = random.below(256) as u8,
        1 => drop(bytes.drain(at.min(end)..end)),
        2 => bytes.extend_from_within(at.min(end)..end),
        3 if !other.is_empty() => {
            let from = random.below(other.len());
            let piece = &other[from..(from + 1 + random.below(32)).min(other.len())];
            bytes.splice(at..at, piece.iter().copied());
        }
        _ => bytes.truncate(at),
    }
}

/// Runs the target of that name over its corpus and the damaged copies.
fn holds(name: &str) {
    let (_, target) = TARGETS.into_iter().find(|(target, _)| *target == name).unwrap();
    let files = corpus(name);
    let mut random = Random(1);
    for (file, bytes) in &files {
        println!("{file}");
        target(bytes);
        for _ in 0..COPIES {
            let mut copy = bytes.clone();
            for _ in 0..=random.below(3) {
                let other = &files[random.below(files.len())].1;
                damage(&mut copy, other, &mut random);
            }
            target(&copy);
        }
    }
}

#[test]
fn headers() {
    holds("header");
}

#[test]
fn configurations() {
    holds("config");
}

#[test]
fn indices() {
    holds("index");
}

#[test]
fn weights() {
    holds("weights");
}

#[test]
fn pickles() {
    holds("pickle");
}
