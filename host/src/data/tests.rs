//! Folders and shards end to end, on a backbone that counts what it encodes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::Device;

use super::*;
use crate::cache::toy::{Toy, cache};
use crate::config::{ImageOptions, OnBroken, Shards};

fn options() -> ImageOptions {
    ImageOptions { text_key: "text".into(), random_crops: 0, on_broken: OnBroken::Skip, cache: None }
}

/// A PNG of one colour with a corner of another.
fn png(colour: u8, [width, height]: [u32; 2]) -> Vec<u8> {
    let image = image::RgbImage::from_fn(width, height, |x, y| image::Rgb([colour, (x * 9) as u8, (y * 7) as u8]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// Four images of three captions, one of them smaller than the toy's 8 x 8.
fn folder(path: &Path) {
    fs::create_dir_all(path.join("sub")).unwrap();
    let images = [
        ("a.png", "a seven", [8, 8]),
        ("sub/b.png", "a seven", [20, 9]),
        ("c.png", "two", [9, 30]),
        ("d.png", "three", [4, 4]),
    ];
    let mut lines = String::new();
    for (index, (name, text, size)) in images.into_iter().enumerate() {
        fs::write(path.join(name), png(40 * index as u8, size)).unwrap();
        lines += &format!("{{\"file_name\": {name:?}, \"text\": {text:?}}}\n");
    }
    fs::write(path.join("metadata.jsonl"), lines).unwrap();
}

fn opened(
    data: &Path,
    options: &ImageOptions,
    toy: &Toy,
    cache: Option<&Cache>,
    scope: Scope,
) -> Result<Box<dyn Dataset>> {
    let config = Data::Images { path: data.to_owned(), images: options.clone() };
    open(&config, &Preparation { backbone: toy, device: Device::Cpu, cache, scope })
}

/// Latents of many draws.
fn drawn(data: &dyn Dataset, toy: &Toy) -> Tensor {
    let reals: Vec<Real> = (0..40)
        .map(|seed| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let prompt = data.draw(&mut rng);
            data.real(prompt, &mut rng).unwrap()
        })
        .collect();
    latents(&reals, toy, Device::Cpu).unwrap()
}

#[test]
fn with_and_without_a_cache_the_same_is_drawn_and_each_crop_is_encoded_once() {
    let place = tempfile::tempdir().unwrap();
    let (data, kept) = (place.path().join("data"), cache(&place.path().join("cache")));
    folder(&data);
    for random_crops in [0, 3] {
        let options = ImageOptions { random_crops, ..options() };
        let toy = Toy::default();
        let plain = opened(&data, &options, &toy, None, Scope::All).unwrap();
        let expected = drawn(plain.as_ref(), &toy);
        assert_eq!(plain.prompts(), ["a seven", "two", "three"]);
        for run in 0..2 {
            let toy = Toy::default();
            let cached = opened(&data, &options, &toy, Some(&kept), Scope::All).unwrap();
            assert_eq!(toy.encoded()[1], if run == 0 { 4 * random_crops.max(1) } else { 0 }, "run {run}");
            let before = toy.encoded();
            assert_eq!(drawn(cached.as_ref(), &toy), expected);
            assert_eq!(toy.encoded(), before, "the encoder is not needed");
            let (plain, cached) = (plain.summary().unwrap(), cached.summary().unwrap());
            assert_eq!((plain.images, plain.latents, plain.enlarged), (4, 4 * random_crops.max(1), 1));
            assert_eq!(Summary { cache: None, ..cached.clone() }, *plain);
        }
    }
}

#[test]
fn a_changed_image_is_encoded_again_and_the_set_is_another() {
    let place = tempfile::tempdir().unwrap();
    let (data, kept) = (place.path().join("data"), cache(&place.path().join("cache")));
    folder(&data);
    let sha256 = |expected: usize| {
        let toy = Toy::default();
        let set = opened(&data, &options(), &toy, Some(&kept), Scope::All).unwrap();
        assert_eq!(toy.encoded()[1], expected);
        set.summary().unwrap().sha256.clone()
    };
    let before = sha256(4);
    fs::write(data.join("a.png"), png(1, [8, 8])).unwrap();
    let changed = sha256(1);
    assert_ne!(changed, before);
    assert_eq!(sha256(0), changed);
}

#[test]
fn broken_images_are_named_counted_and_left_out() {
    let place = tempfile::tempdir().unwrap();
    let (data, kept) = (place.path().join("data"), cache(&place.path().join("cache")));
    folder(&data);
    let whole = fs::read(data.join("c.png")).unwrap();
    fs::write(data.join("c.png"), &whole[..whole.len() / 2]).unwrap();
    fs::remove_file(data.join("sub/b.png")).unwrap();
    let lines = fs::read_to_string(data.join("metadata.jsonl")).unwrap();
    fs::write(data.join("metadata.jsonl"), lines + "{\"file_name\": \"a.png\", \"text\": \" \"}\n").unwrap();
    for with in [None, Some(&kept), Some(&kept)] {
        let toy = Toy::default();
        let set = opened(&data, &options(), &toy, with, Scope::All).unwrap();
        let summary = set.summary().unwrap();
        assert_eq!(set.prompts(), ["a seven", "three"], "the caption of the broken image is gone");
        assert_eq!((summary.images, summary.broken.len()), (2, 3));
        let names: Vec<&str> = summary.broken.iter().map(|broken| broken.name.rsplit('/').next().unwrap()).collect();
        assert_eq!(names, ["b.png", "c.png", "a.png"]);
        assert!(summary.broken[0].why.contains("No such file") && summary.broken[2].why.contains("caption is empty"));
        assert_eq!(drawn(set.as_ref(), &toy).size(), [40, 3, 2, 2]);
    }
    let stop = ImageOptions { on_broken: OnBroken::Stop, ..options() };
    let message = opened(&data, &stop, &Toy::default(), None, Scope::All).err().unwrap().to_string();
    assert!(
        message.contains("3 of 5 images cannot be used") && message.contains("sub/b.png: No such file"),
        "{message}"
    );
}

#[test]
fn a_set_without_a_whole_image_is_refused() {
    let place = tempfile::tempdir().unwrap();
    folder(place.path());
    for name in ["a.png", "sub/b.png", "c.png", "d.png"] {
        fs::write(place.path().join(name), "no image").unwrap();
    }
    let message = opened(place.path(), &options(), &Toy::default(), None, Scope::All).err().unwrap().to_string();
    assert!(
        message.contains("4 of 4 images cannot be used") && message.contains("not a JPEG, PNG or WebP"),
        "{message}"
    );
}

#[test]
fn a_look_reads_a_few_and_writes_nothing() {
    let place = tempfile::tempdir().unwrap();
    let (data, kept) = (place.path().join("data"), cache(&place.path().join("cache")));
    fs::create_dir_all(&data).unwrap();
    let lines: Vec<String> =
        (0..100).map(|n| format!("{{\"file_name\": \"{n}.png\", \"text\": \"number {n}\"}}")).collect();
    for n in 0..100_u8 {
        fs::write(data.join(format!("{n}.png")), png(n, [8, 8])).unwrap();
    }
    fs::write(data.join("metadata.jsonl"), lines.join("\n")).unwrap();
    let toy = Toy::default();
    let set = opened(&data, &options(), &toy, Some(&kept), Scope::Sample).unwrap();
    let summary = set.summary().unwrap();
    assert_eq!((summary.prompts, summary.images, summary.latents), (100, 100, 100));
    assert!(set.prompts().len() < 10 && toy.encoded()[1] < 10, "{} prompts", set.prompts().len());
    assert_eq!(drawn(set.as_ref(), &toy).size(), [40, 3, 2, 2]);
    assert!(!place.path().join("cache").exists());
}

#[test]
fn the_photographs_of_the_examples_are_whole() {
    let toy = Toy::default();
    let photos = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/photos");
    let set = opened(&photos, &options(), &toy, None, Scope::All).unwrap();
    assert_eq!((set.prompts().len(), set.summary().unwrap().broken.len()), (13, 0));
    assert_eq!(drawn(set.as_ref(), &toy).size(), [40, 3, 2, 2]);
}

/// The same images as a shard: the same latents, and each of a caption's images is drawn.
#[test]
fn shards_hold_what_a_folder_holds() {
    let place = tempfile::tempdir().unwrap();
    let (data, kept) = (place.path().join("data"), cache(&place.path().join("cache")));
    folder(&data);
    let mut shard = tar::Builder::new(File::create(place.path().join("set-0.tar")).unwrap());
    for (name, caption) in [("a.png", "a seven"), ("sub/b.png", "a seven"), ("c.png", "two"), ("d.png", "three")] {
        shard.append_path_with_name(data.join(name), name).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(caption.len() as u64);
        shard.append_data(&mut header, name.replace("png", "txt"), caption.as_bytes()).unwrap();
    }
    shard.into_inner().unwrap().sync_all().unwrap();
    let toy = Toy::default();
    let of_folder = opened(&data, &options(), &toy, Some(&kept), Scope::All).unwrap();
    let config = Data::Webdataset { shards: Shards::One(place.path().join("set-{0..0}.tar")), images: options() };
    let with = Preparation { backbone: &toy, device: Device::Cpu, cache: Some(&kept), scope: Scope::All };
    let of_shard = open(&config, &with).unwrap();
    assert_eq!(toy.encoded()[1], 4, "the content is the same");
    assert_eq!(drawn(of_shard.as_ref(), &toy), drawn(of_folder.as_ref(), &toy));
    let (ours, theirs) = (of_shard.summary().unwrap(), of_folder.summary().unwrap());
    assert_eq!((&ours.sha256, ours.images), (&theirs.sha256, 4));
    let seven: BTreeSet<String> = (0..20)
        .map(|seed| match of_shard.real(0, &mut ChaCha8Rng::seed_from_u64(seed)).unwrap() {
            Real::Latents(latents) | Real::Image(latents) => format!("{:.5}", latents.sum(tch::Kind::Double)),
        })
        .collect();
    assert_eq!(seven.len(), 2, "both images of the caption");
}
