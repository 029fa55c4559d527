//! A real plugin in a dynamic library: loading it, and every way in which that fails.

mod common;

use std::path::{Path, PathBuf};

use advdmd_sdk::abi::{HEADER_SIZE, Header, LIBTORCH, LoadError, MAGIC, PROTOCOL, Plugin, header_of_elf, read_header};
use advdmd_sdk::{Error, Kind, LogProb, Reward, RewardBatch, TensorView};
use common::{init, plugin, scratch};
use serde_json::json;

#[test]
fn the_header_is_read_without_loading() {
    let header = read_header(plugin()).unwrap();
    assert_eq!((header.name(), header.version()), ("advdmd-sdk", env!("CARGO_PKG_VERSION")));
    assert_eq!(header.protocol(), PROTOCOL);
    assert_eq!(header.entry(), "advdmd_plugin_minimal_plugin");
    assert_eq!(header.libtorch(), LIBTORCH);
    assert!(header.rustc().starts_with("rustc 1."), "{}", header.rustc());
    assert!(header.target().contains("linux"));
}

#[test]
fn the_manifest_lists_every_component() {
    let plugin = Plugin::open(plugin()).unwrap();
    let components = &plugin.manifest().components;
    let names: Vec<_> = components.iter().map(|component| (component.kind, component.name.as_str())).collect();
    assert_eq!(names, [(Kind::Reward, "brightness"), (Kind::Reward, "faulty"), (Kind::Sampler, "halving")]);
    let schema = serde_json::to_value(&components[0].schema).unwrap();
    assert_eq!(schema["properties"]["scale"]["description"], "Factor on the mean.");
    assert_eq!(schema["additionalProperties"], false);
}

fn brightness(plugin: &Plugin) -> Box<dyn Reward> {
    plugin.reward(&json!({ "type": "brightness", "scale": 0.5 }), &init()).unwrap()
}

#[test]
fn rewards_and_samplers_work() {
    let plugin = Plugin::open(plugin()).unwrap();
    let mut reward = brightness(&plugin);
    assert!(reward.needs().images && reward.needs().on_cpu);
    let pixels: Vec<f32> = (0..24).map(|i| i as f32 / 24.0).collect();
    let images = TensorView::from_f32(&pixels, &[2, 3, 2, 2]).unwrap();
    let batch = RewardBatch { prompts: vec!["", ""], images: Some(images), ..RewardBatch::default() };
    let mean = |pixels: &[f32]| 0.5 * (pixels.iter().sum::<f32>() / 12.0);
    assert_eq!(reward.score(&batch), Ok(vec![mean(&pixels[..12]), mean(&pixels[12..])]));

    let sampler = plugin.sampler(&json!({ "type": "halving" })).unwrap();
    assert_eq!(sampler.sigmas(2), Ok(vec![1.0, 0.5, 0.0]));
    let transition = sampler.transition(&[1.0, 0.5, 0.0], 0).unwrap();
    assert_eq!((transition.a, transition.b, transition.c), (1.0, vec![-0.5, 0.1 + 0.2], 0.0));
    assert_eq!(transition.log_prob, LogProb::None);
    assert!(!sampler.preserves_marginals() && sampler.order() == 2);
}

#[test]
fn configuration_errors_name_the_key() {
    let plugin = Plugin::open(plugin()).unwrap();
    let error = |config| plugin.reward(&config, &init()).err().expect("refused");
    let expected = |message: &str| Error::Config(message.to_owned());
    assert_eq!(
        error(json!({ "type": "brightness", "scale": 1.0, "sclae": 2.0 })),
        expected("unknown field `sclae`, expected `scale`")
    );
    assert_eq!(error(json!({ "type": "brightness" })), expected("missing field `scale`"));
    assert_eq!(error(json!({ "type": "brightness", "scale": -1.0 })), expected("scale: expected above 0, found -1"));
    assert_eq!(
        error(json!({ "type": "darkness" })),
        expected("unknown variant `darkness`, expected `brightness` or `faulty`")
    );
    assert_eq!(error(json!({ "scale": 1.0 })), expected("missing field `type`"));
    assert!(matches!(error(json!({ "type": "brightness", "scale": "a" })), Error::Config(_)));
}

#[test]
fn errors_and_panics_come_back() {
    let plugin = Plugin::open(plugin()).unwrap();
    let faulty = |how: &str| plugin.reward(&json!({ "type": "faulty", "how": how }), &init());
    let score = |how| faulty(how).unwrap().score(&RewardBatch::default()).unwrap_err();
    assert_eq!(score("failed"), Error::failed("the server is down"));
    assert_eq!(score("other"), Error::unsupported("how: other"));
    let panic = score("panic").to_string();
    assert!(panic.starts_with("panicked: score number 7 (at sdk/tests/fixtures/minimal_plugin.rs:"), "{panic}");
    let panic = faulty("panic in build").err().unwrap().to_string();
    assert!(panic.starts_with("panicked: no such brightness (at "), "{panic}");
}

#[cfg(feature = "torch")]
#[test]
fn gradients_flow_through_a_library() {
    let plugin = Plugin::open(plugin()).unwrap();
    let mut reward = brightness(&plugin);
    let images = tch::Tensor::ones([2, 3, 2, 2], (tch::Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
    let view = TensorView::from_torch(&images).unwrap();
    let batch = RewardBatch { prompts: vec!["", ""], images: Some(view), ..RewardBatch::default() };
    let score = reward.score_differentiable(&batch).unwrap().expect("the override has a slot");
    assert_eq!(score.size(), [2]);
    score.sum(tch::Kind::Float).backward();
    assert!((images.grad().double_value(&[0, 0, 0, 0]) - 0.5 / 12.0).abs() < 1e-7);
    assert_eq!(reward.score(&batch), Ok(vec![0.5, 0.5]));
    assert!(reward.learner().is_none());
}

/// A host with libtorch and a plugin without: the plugin reads the tensors' numbers.
#[cfg(feature = "torch")]
#[test]
fn a_plugin_without_libtorch_serves_a_host_with_it() {
    let plugin = Plugin::open(common::build("loader")).unwrap();
    assert_eq!(plugin.header().libtorch(), "");
    let mut reward = brightness(&plugin);
    let images = tch::Tensor::arange(24, (tch::Kind::Float, tch::Device::Cpu)).reshape([2, 3, 2, 2]) / 24.0;
    let view = TensorView::from_torch(&images).unwrap();
    let batch = RewardBatch { prompts: vec!["", ""], images: Some(view), ..RewardBatch::default() };
    assert_eq!(reward.score(&batch), Ok(vec![0.5 * 5.5 / 24.0, 0.5 * 17.5 / 24.0]));
    assert!(reward.score_differentiable(&batch).unwrap().is_none());
    assert!(reward.learner().is_none());
    let init = advdmd_sdk::BackboneInit { device: advdmd_sdk::Device::Cpu, dtype: advdmd_sdk::DType::F32, seed: 0 };
    assert!(matches!(plugin.backbone(&json!({ "type": "any" }), &init), Err(Error::Unsupported(_))));
}

/// The file of the fixture with `edit` applied.
fn edited(name: &str, edit: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let mut bytes = std::fs::read(plugin()).unwrap();
    edit(&mut bytes);
    let path = scratch().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn find(bytes: &[u8], pattern: &[u8]) -> usize {
    bytes.windows(pattern.len()).position(|window| window == pattern).expect("the pattern is in the file")
}

fn replace(bytes: &mut [u8], old: &[u8], new: &[u8]) {
    assert_eq!(old.len(), new.len());
    let at = find(bytes, old);
    bytes[at..at + new.len()].copy_from_slice(new);
}

/// Writes `new` over the header's field that begins with `old`; the field's own padding takes a longer one.
fn replace_field(bytes: &mut [u8], old: &str, new: &str) {
    let header = find(bytes, &MAGIC);
    let at = header + find(&bytes[header..header + HEADER_SIZE], old.as_bytes());
    bytes[at..at + old.len()].fill(0);
    bytes[at..at + new.len()].copy_from_slice(new.as_bytes());
}

/// Checks that loading fails with one line, the path and then `expected`.
#[track_caller]
fn refused(path: &Path, expected: &str) {
    let error = Plugin::open(path).expect_err("refused").to_string();
    println!("{error}");
    let rest = error.strip_prefix(&format!("{}: ", path.display())).expect("the path comes first");
    assert!(rest.starts_with(expected), "{rest}");
    assert_eq!(error.lines().count(), 1);
}

#[test]
fn every_failure_says_what_it_is() {
    refused(&scratch().join("libnothing.so"), "no such file");
    refused(&scratch(), "cannot be read: is a directory");
    let text = scratch().join("libtext.so");
    std::fs::write(&text, "#!/bin/sh\necho hello\n").unwrap();
    refused(&text, "a text file (it begins with \"#!/bin/sh\\necho hello\"), not a dynamic library");
    let link = scratch().join("liblink.so");
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink("nowhere/libgone.so", &link).unwrap();
    refused(&link, "cannot be read: a link to nowhere/libgone.so, which does not exist");
    refused(Path::new("/dev/null"), "cannot be read: neither a file nor a link to one");
    refused(&edited("libempty.so", Vec::clear), "an empty file");
    refused(&edited("libbinary.so", |bytes| bytes[0] = 0), "not an ELF file (it begins with");
    refused(&edited("libstub.so", |bytes| bytes.truncate(10)), "a truncated or damaged ELF file");
    refused(&edited("libhalf.so", |bytes| bytes.truncate(bytes.len() / 2)), "a truncated or damaged ELF file");
    let other = if cfg!(target_arch = "aarch64") { ("x86_64", 62) } else { ("aarch64", 183) };
    refused(&edited("libarm.so", |bytes| bytes[18] = other.1), &format!("a library for {}, this program", other.0));
    refused(&edited("object.o", |bytes| bytes[16] = 1), "an ELF file of type object, not a dynamic library");
    let ordinary = edited("libordinary.so", |bytes| {
        // The last one is the section's name; the first may be one in the code of this crate.
        let at = bytes.windows(9).rposition(|window| window == b"\0.advdmd\0").unwrap();
        bytes[at + 1] = b'_';
    });
    refused(&ordinary, "a library, but no AdvDMD plugin: it has no section `.advdmd`");
    refused(
        &edited("libmagic.so", |bytes| replace(bytes, &MAGIC, b"SOMEBODY")),
        "the section `.advdmd` does not begin with AdvDMD's magic bytes",
    );
    let entry = "advdmd_plugin_minimal_plugin";
    let renamed = edited("librenamed.so", |bytes| replace_field(bytes, entry, "advdmd_plugin_other"));
    refused(&renamed, "has no symbol `advdmd_plugin_other`, which its header names as entry");
}

#[test]
fn a_wrong_protocol_says_who_is_newer() {
    let protocol = |major: u8| {
        edited("libprotocol.so", |bytes| {
            let at = find(bytes, &MAGIC) + 12;
            bytes[at] = major;
        })
    };
    refused(
        &protocol(9),
        "protocol: plugin 9.0, host 1.0: the plugin is newer; update advdmd. (This number is not the product's version.)",
    );
    refused(&protocol(0), "protocol: plugin 0.0, host 1.0: the plugin is older; rebuild it with a newer advdmd-sdk.");
}

#[test]
fn other_fields_get_a_line_each() {
    let target = read_header(plugin()).unwrap().target().to_owned();
    let musl = edited("libtarget.so", |bytes| replace_field(bytes, &target, "x86_64-unknown-linux-musl"));
    refused(&musl, "target: plugin x86_64-unknown-linux-musl, host ");
    if !LIBTORCH.is_empty() {
        let older = edited("liblibtorch.so", |bytes| {
            replace_field(bytes, LIBTORCH, "2.9.1");
            replace_field(bytes, &target, "x86_64-unknown-linux-musl");
        });
        let Err(LoadError::Incompatible { mismatches, .. }) = Plugin::open(&older) else { panic!("not refused") };
        let fields: Vec<_> = mismatches.iter().map(|mismatch| mismatch.field).collect();
        assert_eq!(fields, ["target", "libtorch"]);
        println!("{}", Plugin::open(&older).unwrap_err());
    }
    // A header in C names no target; the ELF file does.
    assert!(Plugin::open(edited("libnotarget.so", |bytes| replace_field(bytes, &target, ""))).is_ok());
    // Newer minor versions of the protocol, other versions of SDK and rustc: the edge is C's.
    let minor = edited("libminor.so", |bytes| {
        let at = find(bytes, &MAGIC) + 14;
        bytes[at] = 7;
        let rustc = find(bytes, b"rustc 1.");
        bytes[rustc + 6] = b'2';
    });
    assert!(Plugin::open(minor).is_ok());
}

#[test]
fn a_missing_library_is_named() {
    let missing = edited("libmissing.so", |bytes| replace(bytes, b"libgcc_s.so.1", b"libgone.so.10"));
    refused(&missing, "needs libgone.so.10, which is not found: install it");
    if cfg!(feature = "torch") {
        let torch = edited("libneedstorch.so", |bytes| replace(bytes, b"libtorch_cpu.so", b"libtorch_gpu.so"));
        refused(&torch, "needs libtorch_gpu.so, which is not found: it belongs to libtorch 2.11.0");
    }
}

#[test]
fn damaged_files_are_refused_and_never_crash() {
    let bytes = std::fs::read(plugin()).unwrap();
    let header = find(&bytes, &MAGIC);
    let ranges = [0..64, header..header + HEADER_SIZE, bytes.len() - 4096..bytes.len()];
    // A small generator of our own: the same damage in each run.
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    let mut damaged = bytes.clone();
    for round in 0..3000 {
        let range = ranges[round % ranges.len()].clone();
        let at = range.start + random() % range.len();
        damaged[at] = random() as u8;
        if let Ok(header) = header_of_elf(&damaged[..]) {
            assert!(!header.name().is_empty());
        }
        // Every other change stays, so that several come together.
        if round % 2 == 0 {
            damaged[at] = bytes[at];
        }
    }
    for length in (0..HEADER_SIZE).chain([HEADER_SIZE + 1]) {
        let parsed = Header::parse(&bytes[header..header + length]);
        assert_eq!(parsed.is_ok(), length >= HEADER_SIZE, "{length}");
    }
}

#[test]
fn the_header_is_laid_out_for_ever() {
    let bytes = std::fs::read(plugin()).unwrap();
    let header = find(&bytes, &MAGIC);
    let at = |offset: usize, text: &str| bytes[header + offset..].starts_with(text.as_bytes());
    assert_eq!(HEADER_SIZE, 432);
    assert_eq!(bytes[header + 8..header + 16], [0xb0, 1, 0, 0, 1, 0, 0, 0]);
    assert!(at(16, env!("CARGO_PKG_VERSION")) && at(48, "rustc ") && at(128, std::env::consts::ARCH));
    assert!(at(176, LIBTORCH) && at(208, "advdmd-sdk\0") && at(272, env!("CARGO_PKG_VERSION")));
    assert!(at(304, "advdmd_plugin_minimal_plugin\0"));
}

/// The bytes are what counts, not what the file has become.
#[test]
fn a_plugin_is_loaded_from_the_bytes_that_were_read() {
    let path = edited("libreplaced.so", |_| {});
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, "something else").unwrap();
    let plugin = Plugin::open_bytes(&path, &bytes).unwrap();
    assert_eq!(plugin.path(), path);
    assert_eq!(plugin.sampler(&json!({ "type": "halving" })).unwrap().order(), 2);
    // Another copy is another library, and what is refused leaves the next one alone.
    let broken = Plugin::open_bytes(&path, &bytes[..bytes.len() / 2]).unwrap_err().to_string();
    assert!(broken.contains("libreplaced.so: a truncated or damaged ELF file"), "{broken}");
    let mut renamed = bytes.clone();
    replace_field(&mut renamed, "advdmd_plugin_minimal_plugin", "advdmd_plugin_other");
    let unnamed = Plugin::open_bytes(&path, &renamed).unwrap_err().to_string();
    assert!(unnamed.contains("has no symbol `advdmd_plugin_other`"), "{unnamed}");
    let again = Plugin::open_bytes(&path, &bytes).unwrap();
    assert_eq!((again.manifest(), again.header()), (plugin.manifest(), plugin.header()));
    assert!(Plugin::open(&path).is_err());
}

#[test]
fn loading_twice_gives_the_same_plugin() {
    let (first, second) = (Plugin::open(plugin()).unwrap(), Plugin::open(plugin()).unwrap());
    assert_eq!(first.manifest(), second.manifest());
    drop(first);
    assert_eq!(second.sampler(&json!({ "type": "halving" })).unwrap().order(), 2);
    let start = std::time::Instant::now();
    Plugin::open(plugin()).unwrap();
    println!("opening a plugin again: {:?}", start.elapsed());
}
