//! Runs on images of one's own, with the real program: the pictures are digit scenes in files, which the small backbone
//! knows the words of.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use advdmd::digits::{Glyphs, Split, sample_images};
use advdmd::png::write_png;
use advdmd::train::checkpoint::{self, Checkpoint};
use advdmd_tests::{CONFIG, Installation, PLUGINS, TINY};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rustix::process::{Pid, Signal, kill_process};

const DATA: &str = "type = \"digits\"\ntask_weights = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]";

/// A folder `scenes` with twelve images of four captions, the last of them broken, and a configuration that trains on it
/// with a cache in `cache`.
fn installed() -> Installation {
    let advdmd = Installation::with(&PLUGINS);
    let folder = advdmd.folder().join("scenes");
    fs::create_dir(&folder).unwrap();
    let mut rng = StdRng::seed_from_u64(3);
    let mut lines = String::new();
    for (index, caption) in ["a red 7", "two 3s", "a 4", "a blue 1 and a green 2"].iter().cycle().take(12).enumerate() {
        let parsed = caption.parse().unwrap();
        let image = sample_images(&[parsed], Glyphs::embedded().unwrap(), Split::Train, &mut rng).unwrap();
        // Some larger, and not square.
        let side = 16 + 5 * (index as i64 % 3);
        let image = image.upsample_bilinear2d([side, side + 2], false, None, None).squeeze_dim(0);
        write_png(&folder.join(format!("{index}.png")), &image).unwrap();
        lines += &format!("{{\"file_name\": \"{index}.png\", \"text\": \"{caption}\"}}\n");
    }
    fs::write(folder.join("11.png"), "no image").unwrap();
    fs::write(folder.join("metadata.jsonl"), lines).unwrap();
    assert!(CONFIG.contains(DATA));
    let images = "type = \"images\"\npath = \"scenes\"\nrandom_crops = 2\ncache = \"cache\"";
    advdmd.write("run.toml", CONFIG.replace(DATA, images).replace("grid = 0", "grid = 3\nteacher_steps = 5"));
    advdmd
}

fn command(advdmd: &Installation, what: &[&str], more: &[&str]) -> Command {
    let mut command = advdmd.command(what);
    command.args(["--set", TINY[0], "--set", TINY[1]]).args(more).stderr(Stdio::piped());
    command
}

fn train(advdmd: &Installation, out: &str, more: &[&str]) -> (Output, String) {
    let output = command(advdmd, &["train", "run.toml", "--out", out], more).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, text)
}

fn done(advdmd: &Installation, out: &str, more: &[&str]) -> String {
    let (output, text) = train(advdmd, out, more);
    assert!(output.status.success(), "{text}");
    text
}

/// The tensors of a run's newest checkpoint by the hashes of their files.
fn tensors(advdmd: &Installation, out: &str) -> BTreeMap<String, String> {
    let newest = checkpoint::latest(&advdmd.folder().join(out)).unwrap().unwrap();
    let files = Checkpoint::open(&newest).unwrap().index.files;
    files.into_iter().map(|(name, digest)| (name, digest.sha256)).collect()
}

fn shards(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(shards(&path));
        } else if path.extension().is_some_and(|extension| extension == "safetensors") {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn a_run_shows_grids_and_no_scores_and_says_what_it_left_out() {
    let advdmd = installed();
    let text = done(&advdmd, "out", &["--set", "eval.every=2"]);
    assert_eq!(text.matches("left out:").count(), 1, "{text}");
    assert!(text.contains("scenes/11.png: not a JPEG, PNG or WebP image"), "{text}");
    let out = advdmd.folder().join("out");
    assert!(!out.join("eval.jsonl").exists());
    let sheets: Vec<bool> = [0, 2, 4].map(|update| out.join(format!("samples/update-{update:06}.png")).exists()).into();
    assert_eq!(sheets, [true; 3]);
    let sheet = fs::read_to_string(out.join("samples/update-000004.json")).unwrap();
    for part in ["teacher, guided, 5 steps", "student, 4 steps", "student, 2 steps", "a red 7", "two 3s", "a 4"] {
        assert!(sheet.contains(part), "{part} in {sheet}");
    }
    let report = fs::read_to_string(out.join("report.html")).unwrap();
    for part in
        ["See for yourself", "11 images, 4 captions", "1 of 12 images were left out", "teacher, guided, 5 steps"]
    {
        assert!(report.contains(part), "{part} in the report");
    }
    for part in ["eval.jsonl is not there", "Overall score"] {
        assert!(!report.contains(part), "{part} in the report");
    }
    for (args, code) in
        [(&["report", "--run", "out"][..], 0), (&["sample", "--run", "out", "--prompt", "a 4", "--out", "p"], 0)]
    {
        let output = advdmd.run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Latents and embeddings from the cache, fresh or old, give the numbers that the encoders give, and so does a resumed run.
#[test]
fn with_a_cache_without_one_and_resumed_the_student_is_the_same() {
    let advdmd = installed();
    let text = done(&advdmd, "first", &[]);
    assert!(text.contains("encoding prompts 5/5") && text.contains("22 encoded"), "{text}");
    let filled = shards(&advdmd.folder().join("cache"));
    assert_eq!(filled.len(), 2, "one of embeddings, one of latents: {filled:?}");
    let text = done(&advdmd, "second", &[]);
    assert!(!text.contains("encoding prompts") && text.contains("0 encoded"), "{text}");
    assert_eq!(shards(&advdmd.folder().join("cache")), filled);
    done(&advdmd, "without", &["--set", "data.cache=none"]);
    done(&advdmd, "resumed", &["--set", "schedule.updates=2"]);
    done(&advdmd, "resumed", &["--resume", "--set", "data.cache=none"]);
    let expected = tensors(&advdmd, "first");
    for run in ["second", "without", "resumed"] {
        assert_eq!(tensors(&advdmd, run), expected, "{run}");
    }
    // Another type of number is another cache.
    let lora = ["student", "critic"].map(|who| format!("{who}.tuning={{ type = \"lora\", rank = 2, alpha = 2.0 }}"));
    let bf16 = ["--dtype", "bf16", "--set", "schedule.updates=1", "--set", &lora[0], "--set", &lora[1]];
    done(&advdmd, "bf16", &bf16);
    assert_eq!(shards(&advdmd.folder().join("cache")).len(), 4);
}

#[test]
fn a_damaged_cache_is_set_aside_and_filled_again() {
    let advdmd = installed();
    done(&advdmd, "first", &[]);
    for shard in shards(&advdmd.folder().join("cache")) {
        let bytes = fs::read(&shard).unwrap();
        fs::write(&shard, &bytes[..bytes.len() - 1]).unwrap();
    }
    let text = done(&advdmd, "second", &[]);
    assert_eq!(text.matches("set aside as").count(), 2, "{text}");
    assert_eq!(tensors(&advdmd, "second"), tensors(&advdmd, "first"));
}

/// Two runs that fill one cache at once: both end as one alone does, and a third finds a whole cache.
#[test]
fn two_runs_fill_one_cache() {
    let advdmd = installed();
    let start = |out: &str| command(&advdmd, &["train", "run.toml", "--out", out], &[]).spawn().unwrap();
    let both = [start("a"), start("b")];
    for run in both {
        let output = run.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let text = done(&advdmd, "c", &[]);
    assert!(text.contains("0 encoded") && !text.contains("set aside"), "{text}");
    assert_eq!(tensors(&advdmd, "a"), tensors(&advdmd, "b"));
    assert_eq!(tensors(&advdmd, "a"), tensors(&advdmd, "c"));
}

/// Another caption or image in the middle of a run is another run.
#[test]
fn changed_data_is_drift() {
    let advdmd = installed();
    done(&advdmd, "out", &["--set", "schedule.updates=2"]);
    let metadata = advdmd.folder().join("scenes/metadata.jsonl");
    let lines = fs::read_to_string(&metadata).unwrap();
    fs::write(&metadata, lines.replacen("a red 7", "a red 8", 1)).unwrap();
    let (output, text) = train(&advdmd, "out", &["--resume"]);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("scenes (data) has changed"), "{text}");
}

#[test]
fn a_plan_says_the_size_of_the_cache_and_writes_nothing() {
    let advdmd = installed();
    let output = command(&advdmd, &["plan", "run.toml"], &[]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("embeddings and latents"), "{text}");
    assert!(!advdmd.folder().join("cache").exists());
}

/// Ctrl-C while the cache is filled: what was done is kept.
#[test]
fn an_interrupted_filling_goes_on() {
    let advdmd = installed();
    // Enough images that there is time to stop.
    let folder = advdmd.folder().join("scenes");
    let mut lines = String::new();
    for index in 0..20_000 {
        let name = format!("copy-{index}.png");
        let mut bytes = fs::read(folder.join(format!("{}.png", index % 11))).unwrap();
        // Behind the end of the image: another content with the same pixels.
        bytes.extend(index.to_string().as_bytes());
        fs::write(folder.join(&name), bytes).unwrap();
        lines += &format!("{{\"file_name\": \"{name}\", \"text\": \"a 4\"}}\n");
    }
    fs::write(folder.join("metadata.jsonl"), lines).unwrap();
    let run = command(&advdmd, &["train", "run.toml", "--out", "out"], &[]).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(2500));
    kill_process(Pid::from_child(&run), Signal::INT).unwrap();
    let output = run.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        return println!("too quick to be stopped");
    }
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("stopped while reading images") && text.contains("goes on from there"), "{text}");
    assert!(!shards(&advdmd.folder().join("cache")).is_empty(), "{text}");
    let again = done(&advdmd, "out", &["--set", "schedule.updates=1"]);
    assert!(!again.contains("set aside"), "{again}");
}
