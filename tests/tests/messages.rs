//! What the program says when something is wrong, word for word: which file, key, plugin or sample it is, what was
//! expected, and what to do. The texts lie in `snapshots/`; CONTRIBUTING.md tells how to renew them.

use std::path::{Path, PathBuf};
use std::process::Output;

use advdmd_sdk::abi::{HEADER_SIZE, LIBTORCH, MAGIC};
use advdmd_tests::{CONFIG, Installation, PLUGINS, TINY, faulty, plugin};

/// Compares the exit code and all of stderr with the snapshot of that name.
#[track_caller]
fn assert_message(name: &str, advdmd: &Installation, output: &Output) {
    let code = output.status.code().expect("the program ends by itself");
    let text = format!("{}\nexit code {code}", String::from_utf8_lossy(&output.stderr).trim_end());
    let folder = advdmd.folder().canonicalize().unwrap();
    let filters = [
        (folder.to_str().unwrap(), "[FOLDER]"),
        (r"\.rs:\d+:\d+", ".rs:[PLACE]"),
        // The name of a cache and the pace of a progress line.
        (r"(text|latents)-[0-9a-f]{24}", "$1-[KEY]"),
        (r", [0-9.]+/s, ", ", [PACE], "),
        // Which library and which symbol the linker misses first differs from build to build.
        (r"libraries: lib(c10|torch_cpu)\.so", "libraries: [LIBTORCH]"),
        (r"undefined symbol: \w+", "undefined symbol: [SYMBOL]"),
    ];
    insta::with_settings!({ filters => filters, omit_expression => true }, {
        insta::assert_snapshot!(name, text);
    });
}

/// The message of `advdmd` with these arguments.
#[track_caller]
fn assert_says(name: &str, advdmd: &Installation, args: &[&str]) {
    assert_message(name, advdmd, &advdmd.run(args));
}

/// The message of `advdmd train` on the configuration of the tests with `old` replaced by `new`.
#[track_caller]
fn assert_train_says(name: &str, advdmd: &Installation, (old, new): (&str, &str)) {
    assert!(CONFIG.contains(old), "{old}");
    advdmd.write("run.toml", CONFIG.replacen(old, new, 1));
    let train = ["train", "run.toml", "--out", "out", "--quiet", "--set", TINY[0], "--set", TINY[1]];
    // What is wrong with the shipped model's table cannot stand beside another architecture.
    let args = if new.contains("model =") { &train[..5] } else { &train };
    assert_says(name, advdmd, args);
    assert!(!advdmd.folder().join("out/checkpoints").exists(), "{name} leaves a checkpoint");
}

fn complete() -> Installation {
    Installation::with(&PLUGINS)
}

#[test]
fn keys_and_values() {
    let advdmd = complete();
    let cases = [
        ("unknown-key", "groups = 2", "grups = 2"),
        ("unknown-key-of-a-plugin", "shift = 1.0", "shfit = 1.0"),
        ("wrong-type", "groups = 2", "groups = \"two\""),
        ("group-size-1", "group_size = 4", "group_size = 1"),
        ("sigmas-end-above-0", "shift = 1.0", "shift = 1.0\nsigmas = [1.0, 0.8, 0.6, 0.4, 0.2]"),
        ("sigmas-rise", "shift = 1.0", "shift = 1.0\nsigmas = [1.0, 0.5, 0.7, 0.2, 0.0]"),
        ("no-stochastic-step", "shift = 1.0", "shift = 1.0\nsteps = 1"),
        ("full-tuning-in-16-bits", "threads = 1", "threads = 1\ndtype = \"bf16\""),
        ("too-many-samples", "groups = 2", "groups = 9223372036854775807"),
        ("weight-nan", "[critic]", "[[reward]]\ntype = \"adversarial\"\nweight = nan\n\n[critic]"),
        ("missing-model", "type = \"digits\"", "type = \"digits\"\nmodel = \"models/digits\""),
        ("not-toml", "groups = 2", "groups = = 2"),
    ];
    for (name, old, new) in cases {
        assert_train_says(name, &advdmd, (old, new));
    }
}

#[test]
fn models_that_are_not_there() {
    let advdmd = complete();
    let sample = ["sample", "--backbone", "digits", "--prompt", "a 7", "--out", "images", "--model"];
    assert_says("model-of-the-command-line", &advdmd, &[&sample[..], &["org/model@v1"]].concat());
    let refs = advdmd.folder().join("hub/models--org--model/refs");
    std::fs::create_dir_all(&refs).unwrap();
    std::fs::write(refs.join("main"), "0123456789abcdef0123456789abcdef01234567").unwrap();
    assert_says("model-without-snapshot", &advdmd, &[&sample[..], &["org/model"]].concat());
    assert_train_says("missing-model-path", &advdmd, ("type = \"digits\"", "type = \"digits\"\nmodel = \"./models\""));
}

#[test]
fn a_gradient_that_is_not_finite() {
    let advdmd = complete();
    for (name, objective) in [("not-finite-dmd", "dmd"), ("not-finite-gan", "gan")] {
        let weight = format!("[objective.{objective}]\nweight = 1e60\n\n[critic]");
        assert_train_says(name, &advdmd, ("[critic]", &weight));
        std::fs::remove_dir_all(advdmd.folder().join("out")).unwrap();
    }
}

/// A learning rate that makes the weights themselves infinite: they are not saved over what is whole.
#[test]
fn weights_that_are_not_finite() {
    let advdmd = complete();
    advdmd.write("run.toml", CONFIG);
    let train = ["train", "run.toml", "--out", "out", "--quiet", "--set", TINY[0], "--set", TINY[1]];
    let start = [&train[..], &["--set", "schedule.updates=2", "--set", "student.optimizer.warmup=0"]].concat();
    assert!(advdmd.run(&start).status.success());
    let huge = ["--resume", "--allow-drift", "--set", "student.optimizer.lr=1e39", "--set", "schedule.updates=3"];
    assert_says("weights-not-finite", &advdmd, &[&start[..], &huge].concat());
    let kept: Vec<_> = std::fs::read_dir(advdmd.folder().join("out/checkpoints")).unwrap().collect();
    assert_eq!(kept.len(), 1, "the whole checkpoint is the only one: {kept:?}");
}

#[test]
fn checkpoints_that_cannot_be_gone_on_with() {
    let advdmd = complete();
    advdmd.write("run.toml", CONFIG);
    let train = ["train", "run.toml", "--out", "out", "--quiet", "--set", TINY[0], "--set", TINY[1]];
    assert!(advdmd.run(&train).status.success());
    assert_says("run-holds-one-already", &advdmd, &train);
    let resume = [&train[..], &["--resume"]].concat();
    assert_says("run-of-another-configuration", &advdmd, &[&resume[..], &["--set", "batch.groups=3"]].concat());
    let newest = Path::new("out/checkpoints/update-000004");
    advdmd.write(newest.join("fake.safetensors"), "cut");
    assert_says("checkpoint-cut", &advdmd, &resume);
    advdmd.write(newest.join("index.json"), "{\"format\": 1,");
    assert_says("checkpoint-index-cut", &advdmd, &resume);
    advdmd.write(newest.join("index.json"), "{\"format\": 7}");
    assert_says("checkpoint-of-another-format", &advdmd, &resume);
}

#[test]
fn prompts() {
    let advdmd = complete();
    advdmd.write("empty.txt", "\n\n");
    advdmd.write("broken.txt", "a red 7\n\na purpel 7\n");
    advdmd.write("number.json", "[\n  \"a red 7\",\n  8\n]\n");
    advdmd.write("broken.json", "[\"a red 7\", \"a 7 and a 7\"]");
    advdmd.write("latin.txt", b"a red 7\na gr\xfcn 7\n");
    advdmd.write("counting.txt", "two 7s\n");
    for name in ["empty.txt", "broken.txt", "number.json", "broken.json", "latin.txt", "absent.txt", "counting.txt"] {
        let weights = "task_weights = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]";
        let none_for_counting = "task_weights = [1.0, 1.0, 0.0, 1.0, 1.0, 1.0]";
        let keys = format!("{none_for_counting}\nprompts = \"{name}\"");
        assert_train_says(&format!("data-prompts-{name}"), &advdmd, (weights, &keys));
    }
    for name in ["empty.txt", "broken.txt", "number.json", "latin.txt", "absent.txt"] {
        let args = ["sample", "--backbone", "digits", "--steps", "1", "--prompts", name, "--out", "images"];
        assert_says(&format!("sample-prompts-{name}"), &advdmd, &args);
    }
}

/// Data of the user's own: each fault names the file and its line, the shard and its member, or the key.
#[test]
fn images() {
    let advdmd = complete();
    let good = "{\"file_name\": \"a.png\", \"text\": \"a 7\"}\n";
    let metadata = [
        ("no-metadata", None),
        ("not-json", Some("{\"file_name\": \"b.png\", \"text\": \"two\n")),
        ("no-caption-key", Some("{\"file_name\": \"b.png\", \"caption\": \"two 7s\"}\n")),
        ("outside", Some("{\"file_name\": \"../b.png\", \"text\": \"two 7s\"}\n")),
        ("twice", Some(good)),
        ("all-broken", Some("")),
    ];
    let digits = "type = \"digits\"\ntask_weights = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]";
    for (name, lines) in metadata {
        let _ = std::fs::remove_dir_all(advdmd.folder().join("images"));
        std::fs::create_dir(advdmd.folder().join("images")).unwrap();
        advdmd.write("images/a.png", "no image");
        if let Some(lines) = lines {
            advdmd.write("images/metadata.jsonl", format!("{good}{lines}"));
        }
        let keys = "type = \"images\"\npath = \"images\"\ncache = \"none\"";
        assert_train_says(&format!("data-images-{name}"), &advdmd, (digits, keys));
    }
    advdmd.write("page.tar", "<!DOCTYPE html>\n<title>404</title>\n");
    let cases = [
        ("images-nowhere", "type = \"images\"\npath = \"nowhere\""),
        ("images-no-path", "type = \"images\""),
        ("images-unknown-key", "type = \"images\"\npath = \"images\"\nrandom_crop = 2"),
        ("images-key-of-digits", "type = \"images\"\npath = \"images\"\ntask_weights = [1.0]"),
        ("images-on-broken", "type = \"images\"\npath = \"images\"\non_broken = \"ignore\""),
        ("webdataset-nowhere", "type = \"webdataset\"\nshards = \"{00..02}.tar\""),
        ("webdataset-braces", "type = \"webdataset\"\nshards = \"{02..00}.tar\""),
        ("webdataset-not-tar", "type = \"webdataset\"\nshards = [\"page.tar\"]"),
        ("webdataset-no-shards", "type = \"webdataset\"\nshards = 3"),
    ];
    for (name, keys) in cases {
        assert_train_says(&format!("data-{name}"), &advdmd, (digits, keys));
    }
    assert_train_says("eval-prompts-of-digits", &advdmd, ("grid = 0", "grid = 0\nprompts = \"run.toml\""));
}

/// A cache that cannot be written.
#[test]
fn a_cache_without_a_place() {
    let advdmd = complete();
    std::fs::create_dir(advdmd.folder().join("images")).unwrap();
    let image = advdmd::png::Image::filled(16, 16, [9, 0, 0]).encode().unwrap();
    advdmd.write("images/a.png", image);
    advdmd.write("images/metadata.jsonl", "{\"file_name\": \"a.png\", \"text\": \"a 7\"}\n");
    advdmd.write("file", "");
    let digits = "type = \"digits\"\ntask_weights = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]";
    let keys = "type = \"images\"\npath = \"images\"\ncache = \"file\"";
    assert_train_says("data-cache-no-place", &advdmd, (digits, keys));
}

#[test]
fn options() {
    let advdmd = complete();
    let cases: [(&str, &[&str]); 6] = [
        ("option-device", &["--device", "gpu"]),
        ("option-dtype", &["--dtype", "f8"]),
        ("option-steps-0", &["--steps", "0"]),
        ("option-sigmas", &["--sigmas", "1,0.5,0.1"]),
        ("option-model", &["--model", "models/digits"]),
        ("option-prompts-per-task-0", &["--prompts-per-task", "0"]),
    ];
    for (name, options) in cases {
        assert_says(name, &advdmd, &[&["eval", "--backbone", "digits", "--suite", "digits"], options].concat());
    }
    assert_says("option-run", &advdmd, &["eval", "--run", "runs/mine", "--suite", "digits"]);
    advdmd.write("run.toml", CONFIG);
    let many_threads = ["train", "run.toml", "--threads", "99999999999"];
    assert_says("option-threads", &advdmd, &many_threads);
}

#[test]
fn cuda_that_is_absent() {
    let advdmd = complete();
    advdmd.write("run.toml", CONFIG);
    let sample = ["sample", "--backbone", "digits", "--prompt", "a 7", "--out", "images", "--device", "cuda:1"];
    let train = ["train", "run.toml", "--out", "out", "--device", "cuda"];
    let set = ["train", "run.toml", "--out", "out", "--set", "compute.device=cuda"];
    for (name, args) in [("cuda-sample", &sample[..]), ("cuda-train", &train), ("cuda-set", &set)] {
        // A folder without it, because the machine of the tests may well have one.
        let output = advdmd.command(args).env("ADVDMD_TORCH_LIB", advdmd.folder()).output().unwrap();
        assert_message(name, &advdmd, &output);
    }
}

/// The file of a plugin with `edit` applied to its bytes.
fn edited(library: &Path, edit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = std::fs::read(library).unwrap();
    edit(&mut bytes);
    bytes
}

fn find(bytes: &[u8], pattern: &[u8]) -> usize {
    bytes.windows(pattern.len()).position(|window| window == pattern).expect("the pattern is in the file")
}

/// Writes over the header of a plugin at the field that begins with `old`.
fn replace_in_header(bytes: &mut [u8], old: &str, new: &str) {
    let header = find(bytes, &MAGIC);
    let at = header + find(&bytes[header..header + HEADER_SIZE], old.as_bytes());
    bytes[at..at + old.len()].fill(0);
    bytes[at..at + new.len()].copy_from_slice(new.as_bytes());
}

/// A run that needs the discriminator, whose library is replaced by `file`.
#[track_caller]
fn assert_plugin_says(name: &str, file: Option<Vec<u8>>) {
    let advdmd = Installation::with(&["sampler_flow", "backbone_digits"]);
    if let Some(file) = file {
        advdmd.write("plugins/libreward_adversarial.so", file);
    }
    assert_train_says(name, &advdmd, ("", ""));
}

#[test]
fn plugins_that_do_not_load() {
    let good = plugin("reward_adversarial");
    assert_plugin_says("plugin-missing", None);
    assert_plugin_says("plugin-empty", Some(Vec::new()));
    assert_plugin_says("plugin-truncated", Some(edited(&good, |bytes| bytes.truncate(bytes.len() / 2))));
    assert_plugin_says("plugin-text", Some(b"<!DOCTYPE html>\n<title>404</title>\n".to_vec()));
    let ordinary = edited(&good, |bytes| {
        let at = bytes.windows(9).rposition(|window| window == b"\0.advdmd\0").unwrap();
        bytes[at + 1] = b'_';
    });
    assert_plugin_says("plugin-ordinary-library", Some(ordinary));
    let newer = edited(&good, |bytes| {
        let at = find(bytes, &MAGIC) + 12;
        bytes[at] = 2;
    });
    assert_plugin_says("plugin-newer-protocol", Some(newer));
    let older = edited(&good, |bytes| {
        let at = find(bytes, &MAGIC) + 12;
        bytes[at] = 0;
    });
    assert_plugin_says("plugin-older-protocol", Some(older));
    assert_plugin_says(
        "plugin-other-libtorch",
        Some(edited(&good, |bytes| replace_in_header(bytes, LIBTORCH, "2.9.1"))),
    );
    let needs_more = edited(&good, |bytes| {
        let at = find(bytes, b"libtorch_cpu.so\0");
        bytes[at..at + 15].copy_from_slice(b"libtorch_gpu.so");
    });
    assert_plugin_says("plugin-without-libtorch", Some(needs_more));
}

/// A file that the configuration names is meant to be a plugin: what is wrong with it is said at once.
#[test]
fn a_named_file_that_is_no_plugin() {
    let advdmd = complete();
    advdmd.write("reward.so", "not a library");
    let reward = "[[reward]]\ntype = \"mine\"\nweight = 1.0";
    for (name, path) in [("plugin-named-text", "reward.so"), ("plugin-named-absent", "rewards")] {
        let keys = format!("[plugins]\npaths = [\"{path}\"]\n\n{reward}\n\n[backbone]");
        assert_train_says(name, &advdmd, ("[backbone]", &keys));
    }
}

/// A run with one component of `tests/faulty`.
#[track_caller]
fn assert_fault_says(kind: &str, how: &str) {
    let libraries: Vec<PathBuf> = PLUGINS.iter().map(|stem| plugin(stem)).chain([faulty()]).collect();
    let advdmd = Installation::new(&libraries);
    let name = format!("faulty-{kind}-{how}");
    if kind == "sampler" {
        let sampler = format!("type = \"faulty-sampler\"\nhow = \"{how}\"");
        assert_train_says(&name, &advdmd, ("shift = 1.0", &sampler));
    } else {
        let reward =
            format!("[[reward]]\ntype = \"faulty-{kind}\"\nhow = \"{how}\"\nname = \"mine\"\nweight = 1.0\n\n[batch]");
        assert_train_says(&name, &advdmd, ("[batch]", &reward));
    }
}

#[test]
fn rewards_that_cannot_be_made() {
    for how in ["panic", "panic-in-needs", "failed", "refused"] {
        assert_fault_says("construction", how);
    }
    for how in ["panic", "panic-in-parameters"] {
        assert_fault_says("learner", how);
    }
}

#[test]
fn rewards_that_cannot_score() {
    for how in ["panic", "failed", "nan", "one-for-all"] {
        assert_fault_says("score", how);
    }
}

#[test]
fn samplers_with_wrong_numbers() {
    for how in ["ends-above-zero", "nan-coefficient", "noise-without-probability"] {
        assert_fault_says("sampler", how);
    }
}

/// The folder of the libtorch that this program was linked to.
fn libtorch() -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut paths = maps.lines().filter_map(|line| Some(Path::new(&line[line.find('/')?..])));
    paths.find(|path| path.ends_with("libtorch_cpu.so")).unwrap().parent().unwrap().to_owned()
}

/// The dynamic linker speaks before the program can: its words name the library, and README.md says what to do.
#[test]
fn no_libtorch() {
    let advdmd = complete();
    let folder = libtorch();
    let folder = folder.to_str().unwrap().as_bytes();
    let mut bytes = std::fs::read(advdmd.program()).unwrap();
    let places: Vec<usize> = (0..bytes.len() - folder.len()).filter(|&at| bytes[at..].starts_with(folder)).collect();
    assert!(!places.is_empty(), "the program knows where libtorch is");
    for at in places {
        bytes[at] = b'#';
    }
    // A hard link to the built program must not be written to.
    std::fs::remove_file(advdmd.program()).unwrap();
    std::fs::copy(advdmd_tests::program(), advdmd.program()).unwrap();
    advdmd.write("advdmd", bytes);
    assert_says("no-libtorch", &advdmd, &["plugins", "list"]);
}

#[test]
fn a_libtorch_of_another_version() {
    let advdmd = complete();
    let output = advdmd.command(&["plugins", "list"]).env("LD_PRELOAD", faulty()).output().unwrap();
    let message = String::from_utf8(output.stderr.clone()).unwrap();
    let stderr = message.replace(libtorch().to_str().unwrap(), "[LIBTORCH]").into_bytes();
    assert_message("other-libtorch", &advdmd, &Output { stderr, ..output });
}

/// A version that lacks functions does not even start.
#[test]
fn a_library_in_libtorchs_place() {
    let advdmd = complete();
    std::fs::create_dir(advdmd.folder().join("lib")).unwrap();
    advdmd.write("lib/libtorch_cpu.so", std::fs::read(plugin("sampler_flow")).unwrap());
    let folder = advdmd.folder().join("lib");
    let output = advdmd.command(&["plugins", "list"]).env("LD_LIBRARY_PATH", folder).output().unwrap();
    assert_message("no-libtorch-but-its-name", &advdmd, &output);
}
