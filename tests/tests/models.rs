//! Models of the Hugging Face cache, and digests that are remembered.

use std::os::unix::fs::symlink;
use std::path::Path;

use advdmd_tests::{CONFIG, Installation, PLUGINS};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the cache calls the weights: any digest, so that it is seen where it is believed.
const BLOB: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

/// Puts the shipped teacher into the cache as `me/digits`, its weights as a blob behind a link.
fn cache_teacher(advdmd: &Installation) {
    let teacher = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/backbone-digits/teacher/model");
    let folder = advdmd.folder().join("hub/models--me--digits");
    let snapshot = folder.join("snapshots").join(COMMIT);
    for folder in [&snapshot, &folder.join("blobs"), &folder.join("refs")] {
        std::fs::create_dir_all(folder).unwrap();
    }
    std::fs::write(folder.join("refs/main"), COMMIT).unwrap();
    for file in ["config.json", "text_encoder.json"] {
        std::fs::copy(teacher.join(file), snapshot.join(file)).unwrap();
    }
    std::fs::copy(teacher.join(WEIGHTS), folder.join("blobs").join(BLOB)).unwrap();
    symlink(format!("../../blobs/{BLOB}"), snapshot.join(WEIGHTS)).unwrap();
}

#[test]
fn a_model_of_the_cache_is_used_and_its_commit_kept() {
    let advdmd = Installation::with(&PLUGINS);
    cache_teacher(&advdmd);
    advdmd.write(
        "run.toml",
        CONFIG.replace("type = \"digits\"\n\n[data]", "type = \"digits\"\nmodel = \"me/digits\"\n\n[data]"),
    );
    let train =
        ["train", "run.toml", "--out", "out", "--quiet", "--set", "schedule.updates=1", "--set", "batch.groups=1"];
    let output = advdmd.run(&train);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let run: serde_json::Value =
        serde_json::from_slice(&std::fs::read(advdmd.folder().join("out/run.json")).unwrap()).unwrap();
    let weights = run["files"].as_array().unwrap().iter().find(|file| file["sha256"] == BLOB).unwrap();
    assert_eq!(weights["key"], "backbone.model");
    let path = weights["path"].as_str().unwrap();
    assert!(path.ends_with(&format!("snapshots/{COMMIT}/{WEIGHTS}")), "{path}");
    assert!(std::fs::read_to_string(advdmd.folder().join("out/config.toml")).unwrap().contains(COMMIT));

    // The branch moves on; the run stays with its commit.
    std::fs::write(advdmd.folder().join("hub/models--me--digits/refs/main"), "f".repeat(40)).unwrap();
    let sample = ["sample", "--run", "out", "--prompt", "a 7", "--out", "images"];
    let output = advdmd.run(&sample);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_model_of_the_cache_is_named_on_the_command_line() {
    let advdmd = Installation::with(&PLUGINS);
    cache_teacher(&advdmd);
    let sample = |out: &str, model: &[&str]| {
        let args = ["sample", "--backbone", "digits", "--prompt", "a red 7", "--steps", "2", "--out", out];
        let output = advdmd.run(&[&args[..], model].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::read(advdmd.folder().join(out).join("00000.png")).unwrap()
    };
    let shipped = sample("shipped", &[]);
    assert_eq!(sample("cached", &["--model", "me/digits"]), shipped);
    assert_eq!(sample("pinned", &["--model", &format!("me/digits@{COMMIT}")]), shipped);
    assert_eq!(sample("folder", &["--model", &format!("hub/models--me--digits/snapshots/{COMMIT}")]), shipped);
}
