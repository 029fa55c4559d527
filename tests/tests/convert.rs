//! `advdmd convert`, on files that Python wrote (`tests/golden/open_clip_weights.py`).

use std::fs;
use std::path::{Path, PathBuf};

use advdmd_nn::Weights;
use advdmd_tests::Installation;
use tch::{Device, Kind};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/open_clip").join(name)
}

fn weights(path: &Path) -> Weights {
    Weights::load(path, None, Device::Cpu).unwrap()
}

/// Runs the command on a golden file; its exit code, stdout and stderr.
fn convert(advdmd: &Installation, name: &str, more: &[&str]) -> (i32, String, String) {
    let input = golden(name);
    let args = ["convert", "clip", input.to_str().unwrap(), "out", "--quiet"];
    let output = advdmd.run(&[&args[..], more].concat());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// The folder holds exactly these tensors.
fn assert_same(found: &Weights, expected: &Weights) {
    assert_eq!(
        found.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        expected.iter().map(|(name, _)| name).collect::<Vec<_>>()
    );
    for (name, tensor) in expected.iter() {
        let found = found.get(name).unwrap();
        assert_eq!((found.size(), found.kind()), (tensor.size(), tensor.kind()), "{name}");
        assert!(found.equal(tensor), "{name}");
    }
}

#[test]
fn tensors_arrive_under_their_names_in_transformers() {
    let cases: [(&str, [&str; 2], &[&str]); 3] = [
        ("vit-b.pt", ["4", "2"], &["--quick-gelu"]),
        ("vit-b.safetensors", ["4", "2"], &["--quick-gelu"]),
        // In halves, under `state_dict`, with a prefix, transposed views and shared storages.
        ("vit-h.pt", ["2", "3"], &[]),
    ];
    for (name, [vision, text], more) in cases {
        let advdmd = Installation::new(&[]);
        let (code, out, err) =
            convert(&advdmd, name, &[&["--vision-heads", vision, "--text-heads", text], more].concat());
        assert_eq!(code, 0, "{name}: {err}");
        assert!(out.contains("causal mask of texts, layer norm eps 1e-5"), "{out}");
        assert!(out.contains("still to be copied to out: the tokenizer's"), "{out}");
        let folder = advdmd.folder().join("out");
        let stem = name.split('.').next().unwrap();
        assert_same(
            &weights(&folder.join("model.safetensors")),
            &weights(&golden(&format!("{stem}.expected.safetensors"))),
        );
        let config: serde_json::Value = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
        let (act, dtype) = if stem == "vit-b" { ("quick_gelu", "float32") } else { ("gelu", "float16") };
        assert_eq!(out.contains("gelu (no weight tells it"), stem == "vit-h", "{out}");
        for (tower, heads) in [("vision_config", vision), ("text_config", text)] {
            assert_eq!(config[tower]["hidden_act"], act);
            assert_eq!(config[tower]["num_attention_heads"].to_string(), heads);
        }
        assert_eq!(config["torch_dtype"], dtype);
        let processor: serde_json::Value =
            serde_json::from_slice(&fs::read(folder.join("preprocessor_config.json")).unwrap()).unwrap();
        assert_eq!(processor["crop_size"]["height"], config["vision_config"]["image_size"]);
    }
}

#[test]
fn numbers_take_the_type_that_is_asked_for() {
    for (dtype, kind) in [("f32", Kind::Float), ("f16", Kind::Half), ("bf16", Kind::BFloat16)] {
        let advdmd = Installation::new(&[]);
        let args = ["--vision-heads", "4", "--text-heads", "2", "--dtype", dtype];
        assert_eq!(convert(&advdmd, "vit-b.pt", &args).0, 0);
        let expected = weights(&golden("vit-b.expected.safetensors"));
        let expected: Weights = expected.iter().map(|(name, tensor)| (name.to_owned(), tensor.to_kind(kind))).collect();
        assert_same(&weights(&advdmd.folder().join("out/model.safetensors")), &expected);
    }
}

#[test]
fn a_tokenizer_is_copied_if_it_is_the_models() {
    let advdmd = Installation::new(&[]);
    fs::create_dir(advdmd.folder().join("words")).unwrap();
    let vocabulary: serde_json::Map<_, _> = (0..64).map(|id| (format!("t{id}"), id.into())).collect();
    advdmd.write("words/vocab.json", serde_json::to_vec(&vocabulary).unwrap());
    advdmd.write("words/merges.txt", "#version: 0.2\na b\n");
    let heads = ["--vision-heads", "4", "--text-heads", "2", "--tokenizer"];
    let (code, out, err) = convert(&advdmd, "vit-b.pt", &[&heads[..], &["words"]].concat());
    assert_eq!(code, 0, "{err}");
    assert!(!out.contains("still to be copied"), "{out}");
    assert_eq!(fs::read(advdmd.folder().join("out/merges.txt")).unwrap(), b"#version: 0.2\na b\n");
    // The other model has 40 tokens.
    fs::remove_dir_all(advdmd.folder().join("out")).unwrap();
    let (code, _, err) =
        convert(&advdmd, "vit-h.pt", &["--vision-heads", "2", "--text-heads", "3", "--tokenizer", "words"]);
    assert!(code == 1 && err.contains("vocab.json: has 64 tokens, the model 40"), "{err}");
    assert_eq!(left(&advdmd), ["advdmd", "plugins", "words"]);
}

/// What is in the installation's folder.
fn left(advdmd: &Installation) -> Vec<String> {
    let entries = fs::read_dir(advdmd.folder()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_would_run_or_is_something_else_is_refused_and_leaves_nothing() {
    let cases: [(&str, &[&str]); 11] = [
        ("system.pt", &["asks to run `posix.system`; refused", "Weights need no program"]),
        ("eval.pt", &["asks to run `builtins.eval`; refused"]),
        ("nested.pt", &["asks to run `posix.system`; refused"]),
        ("old-protocol.pt", &["asks to run `posix.system`; refused"]),
        ("module.pt", &["asks to run `torch.nn.modules.linear.Linear`; refused"]),
        ("script.pt", &["a TorchScript archive", "torch.jit.load(IN"]),
        ("legacy.pt", &["the old format of torch.save", "weights_only=True"]),
        ("double.pt", &["visual.conv1.weight: numbers of type float64, expected float32, float16 or bfloat16"]),
        ("compressed.pt", &["`byteorder` is compressed"]),
        ("no-tensors.pt", &["holds no tensors, and no \"state_dict\"; its keys are epoch, name"]),
        ("vit-b.expected.safetensors", &["holds no `visual.conv1.weight`", "such as logit_scale"]),
    ];
    for (name, parts) in cases {
        let advdmd = Installation::new(&[]);
        let (code, out, err) = convert(&advdmd, name, &[]);
        assert_eq!((code, out.as_str()), (1, ""), "{name}: {err}");
        for part in parts.iter().chain([&name]) {
            assert!(err.contains(part), "{name}: {part:?} in {err}");
        }
        assert_eq!(left(&advdmd), ["advdmd", "plugins"], "{name}");
    }
    assert!(!Path::new("/tmp/advdmd-was-here").exists());
}

#[test]
fn heads_are_never_guessed_and_folders_never_replaced() {
    let advdmd = Installation::new(&[]);
    let (code, _, err) = convert(&advdmd, "vit-b.pt", &["--vision-heads", "4"]);
    assert!(code == 1 && err.contains("give `--vision-heads` and `--text-heads`"), "{err}");
    fs::create_dir(advdmd.folder().join("out")).unwrap();
    advdmd.write("out/mine", "");
    let (code, _, err) = convert(&advdmd, "vit-b.pt", &["--vision-heads", "4", "--text-heads", "2"]);
    assert!(code == 2 && err.contains("is occupied"), "{err}");
    assert_eq!(fs::read_dir(advdmd.folder().join("out")).unwrap().count(), 1);
}

/// The zip archive's own checksums, and names, of which each must stand there once.
#[test]
fn what_an_archive_says_of_its_members_holds() {
    let whole = fs::read(golden("vit-b.pt")).unwrap();
    let mut flipped = whole.clone();
    // A low bit of a number in the middle, which stays finite.
    flipped[whole.len() / 2 / 4 * 4 - 256] ^= 1;
    let mut doubled = whole.clone();
    let (from, to) = (b"/data/11", b"/data/10");
    let places: Vec<usize> = (0..whole.len() - from.len()).filter(|at| whole[*at..].starts_with(from)).collect();
    assert_eq!(places.len(), 2);
    for at in places {
        doubled[at..at + to.len()].copy_from_slice(to);
    }
    for (bytes, parts) in
        [(flipped, ["damaged: `vit-b/data/", "is damaged: "]), (doubled, ["damaged: ", "two members of one name"])]
    {
        let advdmd = Installation::new(&[]);
        advdmd.write("damaged", bytes);
        let args = ["convert", "clip", "damaged", "out", "--vision-heads", "4", "--text-heads", "2", "--quiet"];
        let output = advdmd.run(&args);
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{err}");
        for part in parts {
            assert!(err.contains(part), "{part:?} in {err}");
        }
        assert_eq!(left(&advdmd), ["advdmd", "damaged", "plugins"]);
    }
}

#[test]
fn a_damaged_file_is_an_error() {
    for name in ["vit-b.pt", "vit-b.safetensors"] {
        let whole = fs::read(golden(name)).unwrap();
        let advdmd = Installation::new(&[]);
        let mut nan = whole.clone();
        // A number in the middle of the weights becomes NaN.
        let at = whole.len() / 2 / 4 * 4;
        nan[at - 64..at + 64].fill(0xff);
        for damaged in [&whole[..whole.len() - 9], &whole[..100], &nan] {
            advdmd.write("damaged", damaged);
            let args = ["convert", "clip", "damaged", "out", "--vision-heads", "4", "--text-heads", "2", "--quiet"];
            let output = advdmd.run(&args);
            let err = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(
                output.status.code() == Some(1) && err.contains("damaged: "),
                "{name}, {} bytes: {err}",
                damaged.len()
            );
            assert_eq!(left(&advdmd), ["advdmd", "damaged", "plugins"]);
        }
    }
}
