//! `advdmd score` with a real plugin: `colour` of `tests/faulty` scores the mean of one colour and the prompt's letters.

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use advdmd::png::write_png;
use advdmd_nn::Weights;
use advdmd_tests::{Installation, PLUGINS, faulty, plugin, repository};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value as Json, json};
use tch::{Device, Kind, Tensor};

/// The program with its plugins and three images of two sizes: red 51/255, 102/255 and 153/255; `2.png` before `10.png`.
fn installed() -> Installation {
    let advdmd = Installation::new(&[faulty(), plugin(PLUGINS[1])]);
    fs::create_dir(advdmd.folder().join("images")).unwrap();
    for (name, red, [height, width]) in [("2.png", 0.2, [4, 6]), ("10.png", 0.4, [5, 3]), ("30.png", 0.6, [4, 6])] {
        let image = Tensor::zeros([3, height, width], (Kind::Float, Device::Cpu));
        let _ = image.get(0).fill_(red);
        write_png(&advdmd.folder().join("images").join(name), &image).unwrap();
    }
    advdmd.write("images/prompts.json", json!(["a", "bb", "ccc"]).to_string());
    advdmd
}

const RED: &str = "type=colour,channel=0";

fn run(advdmd: &Installation, more: &[&str]) -> (i32, String, String) {
    let output = advdmd.run(&[&["score", "--quiet"], more].concat());
    let Output { status, stdout, stderr } = output;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (status.code().unwrap(), text(&stdout), text(&stderr))
}

/// The JSON of a run on the three images.
fn scored(advdmd: &Installation, more: &[&str]) -> Json {
    let (code, out, err) = run(advdmd, &[&["--images", "images", "--json", "-"], more].concat());
    assert_eq!(code, 0, "{err}");
    serde_json::from_str(&out).unwrap()
}

/// The scores of a reward, rounded to four places.
fn scores(json: &Json, reward: &str) -> Vec<f64> {
    let images = json["images"].as_array().unwrap();
    images.iter().map(|image| (image["scores"][reward].as_f64().unwrap() * 1e4).round() / 1e4).collect()
}

const PROMPTS: [&str; 2] = ["--prompts", "images/prompts.json"];

#[test]
fn images_of_several_sizes_keep_their_order_at_any_batch() {
    let advdmd = installed();
    let letters = "type=colour,channel=1,name=letters,per_letter=0.5,weight=3";
    let whole = scored(&advdmd, &[&["--reward", RED, "--reward", letters], &PROMPTS[..]].concat());
    assert_eq!(scores(&whole, "colour"), [0.2, 0.4, 0.6]);
    assert_eq!(scores(&whole, "letters"), [0.5, 1.0, 1.5]);
    let files: Vec<_> =
        whole["images"].as_array().unwrap().iter().map(|image| image["file"].as_str().unwrap()).collect();
    assert_eq!(files, ["images/2.png", "images/10.png", "images/30.png"]);
    assert_eq!(whole["images"][1]["size"], json!([3, 5]));
    assert_eq!(whole["rewards"][1]["config"], json!({ "type": "colour", "channel": 1, "per_letter": 0.5 }));
    assert_eq!(whole["rewards"][0]["sha256"].as_str().unwrap().len(), 64);
    let summary = &whole["rewards"][1]["summary"];
    assert_eq!((&summary["mean"], &summary["min"], &summary["max"]), (&json!(1.0), &json!(0.5), &json!(1.5)));
    assert!((summary["std"].as_f64().unwrap() - (0.5_f64 / 3.0).sqrt()).abs() < 1e-12);
    let one = scored(&advdmd, &[&["--reward", RED, "--reward", letters, "--batch", "1"], &PROMPTS[..]].concat());
    assert_eq!(whole, one);
}

#[test]
fn tables_are_for_people() {
    let advdmd = installed();
    let (code, out, err) =
        run(&advdmd, &[&["--reward", RED, "--images", "images", "--json", "s.json"], &PROMPTS[..]].concat());
    assert_eq!((code, err.as_str()), (0, ""));
    let lines: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["image", "colour", "prompt"]);
    assert_eq!(lines[2], ["images/10.png", "0.40000", "bb"]);
    assert_eq!(lines[5], ["reward", "images", "mean", "std", "min", "max"]);
    assert_eq!(lines[6], ["colour", "3", "0.40000", "0.16330", "0.20000", "0.60000"]);
    let written: Json = serde_json::from_slice(&fs::read(advdmd.folder().join("s.json")).unwrap()).unwrap();
    assert_eq!(scores(&written, "colour"), [0.2, 0.4, 0.6]);
}

#[test]
fn prompts_come_in_many_forms() {
    let advdmd = installed();
    advdmd
        .write("p.json", json!({ "10.png": "bb", "images/2.png": "a", "30.png": "ccc", "none.png": "x" }).to_string());
    advdmd.write("p.txt", "a\nbb\nccc\n");
    let lines = [("30.png", "ccc"), ("2.png", "a"), ("10.png", "bb")]
        .map(|(file_name, text)| json!({ "file_name": file_name, "text": text }).to_string());
    advdmd.write("images/metadata.jsonl", lines.join("\n"));
    let reward = "type=colour,channel=1,per_letter=1";
    for file in ["p.json", "p.txt", "images/metadata.jsonl", "images/prompts.json"] {
        assert_eq!(
            scores(&scored(&advdmd, &["--reward", reward, "--prompts", file]), "colour"),
            [1.0, 2.0, 3.0],
            "{file}"
        );
    }
    assert_eq!(scores(&scored(&advdmd, &["--reward", reward, "--prompt", "four"]), "colour"), [4.0; 3]);
    let (code, out, err) = run(
        &advdmd,
        &["--reward", reward, "--images", "images/30.png", "images/2.png", "--prompts", "p.json", "--json", "-"],
    );
    assert_eq!(code, 0, "{err}");
    assert_eq!(scores(&serde_json::from_str(&out).unwrap(), "colour"), [3.0, 1.0]);
}

#[test]
fn rewards_of_a_file_have_paths_beside_it() {
    let advdmd = installed();
    fs::create_dir(advdmd.folder().join("configs")).unwrap();
    advdmd.write("configs/here", "");
    let config =
        "seed = 1\n[[reward]]\ntype = \"colour\"\nname = \"red\"\nchannel = 0\nfile = \"here\"\nweight = 1.0\n";
    advdmd.write("configs/run.toml", config);
    let found = scored(
        &advdmd,
        &["--config", "configs/run.toml", "--reward", "type=colour,channel=2,name=blue", "--prompt", ""],
    );
    assert_eq!(scores(&found, "red"), [0.2, 0.4, 0.6]);
    assert_eq!(scores(&found, "blue"), [0.0; 3]);
    assert!(Path::new(found["rewards"][1]["config"]["file"].as_str().unwrap()).ends_with("configs/here"));
}

#[test]
fn stored_scores_are_a_check() {
    let advdmd = installed();
    let args = |more: &[&'static str]| [&["--reward", RED, "--images", "images"], &PROMPTS[..], more].concat();
    assert_eq!(run(&advdmd, &args(&["--json", "golden.json"])).0, 0);
    let (code, out, err) = run(&advdmd, &args(&["--golden", "golden.json"]));
    assert!(code == 0 && out.contains("largest difference") && out.contains("0.00e0"), "{out}{err}");
    advdmd.write("golden.json", json!({ "scores": { "colour": [0.2, 0.41, 0.6] } }).to_string());
    let (code, out, err) = run(&advdmd, &args(&["--golden", "golden.json"]));
    assert!(code == 1 && out.contains("1.00e-2") && out.contains("images/10.png  DIFFERS"), "{out}{err}");
    assert!(err.contains("1 of 1 rewards differ from the stored scores by more than 0.0001"), "{err}");
    assert_eq!(run(&advdmd, &args(&["--golden", "golden.json", "--tolerance", "0.02"])).0, 0);
    for golden in [
        json!({ "scores": { "colour": [0.2, 0.4] } }),
        json!({ "scores": { "colour": [0.2, 0.4, 0.6] }, "prompts": ["a", "bb", "c"] }),
        json!({ "scores": { "hps": [0.2, 0.4, 0.6] } }),
    ] {
        advdmd.write("golden.json", golden.to_string());
        let (code, _, err) = run(&advdmd, &args(&["--golden", "golden.json"]));
        assert!(code == 1 && err.contains("golden.json: "), "{err}");
    }
}

#[test]
fn what_was_not_compared_is_told() {
    let advdmd = installed();
    let args = |more: &[&'static str]| [&["--reward", RED, "--prompt", ""], more].concat();
    assert_eq!(run(&advdmd, &args(&["--images", "images", "--json", "golden.json"])).0, 0);
    // Another order, and one image fewer.
    let (code, out, err) =
        run(&advdmd, &args(&["--images", "images/30.png", "images/2.png", "--golden", "golden.json"]));
    assert!(code == 0 && out.contains("0.00e0"), "{out}{err}");
    assert!(err.contains("1 images are stored and were not scored") && err.contains("images/10.png"), "{err}");
    let other = ["--images", "images", "--golden", "golden.json", "--reward", "type=colour,channel=1,name=green"];
    let (code, out, err) = run(&advdmd, &args(&other));
    assert!(code == 1 && out.contains("0.00e0") && err.contains("no stored scores of `green`"), "{out}{err}");
    let (code, _, err) =
        run(&advdmd, &["--reward", RED, "--prompt", "another", "--images", "images", "--golden", "golden.json"]);
    assert!(code == 1 && err.contains("golden.json: prompt 1 is \"\", that of images/2.png is \"another\""), "{err}");
}

#[test]
fn stored_scores_are_not_overwritten() {
    let advdmd = installed();
    let stored = json!({ "scores": { "colour": [0.0, 0.0, 0.0] } }).to_string();
    advdmd.write("golden.json", &stored);
    std::os::unix::fs::symlink("golden.json", advdmd.folder().join("link.json")).unwrap();
    for written in ["golden.json", "images/../golden.json", "link.json"] {
        let args =
            ["--reward", RED, "--prompt", "", "--images", "images", "--golden", "golden.json", "--json", written];
        let (code, out, err) = run(&advdmd, &args);
        assert!(code == 2 && out.is_empty() && err.contains("would overwrite --golden golden.json"), "{out}{err}");
        assert_eq!(fs::read_to_string(advdmd.folder().join("golden.json")).unwrap(), stored);
    }
}

#[test]
fn images_that_no_one_can_read_are_refused_by_name() {
    let advdmd = installed();
    let args = ["--reward", RED, "--prompt", "", "--images", "images"];
    // A GIF of 65535 x 65535, as its header says.
    advdmd.write(
        "images/large.gif",
        b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0;",
    );
    let (code, _, err) = run(&advdmd, &args);
    assert!(code == 1 && err.contains("large.gif: is 65535x65535 pixels, more than 178956970"), "{err}");
    let (code, out, err) = run(&advdmd, &[&args[..], &["--skip-broken"]].concat());
    assert!(code == 0 && out.contains("1 images were left out"), "{out}{err}");
    let pipe = advdmd.folder().join("images/pipe.png");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for images in ["images", "images/pipe.png"] {
        let (code, _, err) = run(&advdmd, &["--reward", RED, "--prompt", "", "--images", images, "--skip-broken"]);
        assert!(code == 2 && err.contains("images/pipe.png is a pipe, a socket or a device"), "{err}");
    }
}

#[test]
fn broken_images_stop_or_are_counted() {
    let advdmd = installed();
    advdmd.write("images/20.png", "no image");
    let whole = fs::read(advdmd.folder().join("images/10.png")).unwrap();
    // Its header is whole.
    advdmd.write("images/10.png", &whole[..whole.len() - 20]);
    let args = ["--reward", RED, "--images", "images", "--prompt", "", "--json", "s.json"];
    let (code, _, err) = run(&advdmd, &args);
    assert!(code == 1 && err.contains("images/20.png: not a JPEG, PNG, WebP or GIF image"), "{err}");
    assert!(err.contains("--skip-broken") && !advdmd.folder().join("s.json").exists(), "{err}");
    let (code, out, err) = run(&advdmd, &[&args[..], &["--skip-broken"]].concat());
    assert!(code == 0 && out.contains("2 images were left out"), "{out}{err}");
    assert!(err.contains("left out images/10.png: ") && err.contains("left out images/20.png: "), "{err}");
    let found: Json = serde_json::from_slice(&fs::read(advdmd.folder().join("s.json")).unwrap()).unwrap();
    assert_eq!(scores(&found, "colour"), [0.2, 0.6]);
    assert_eq!(found["skipped"].as_array().unwrap().len(), 2);
}

#[test]
fn what_is_wrong_is_named_before_anything_is_written() {
    let advdmd = installed();
    advdmd.write("two.json", json!(["a", "b"]).to_string());
    advdmd.write("one.json", json!({ "2.png": "a" }).to_string());
    let cases: [(&[&str], i32, &[&str]); 12] = [
        (&["--reward", "type=nothing", "--prompt", ""], 2, &["no reward named `nothing`", "colour"]),
        (&["--reward", "type=colour", "--prompt", ""], 2, &["reward `colour`", "channel"]),
        (&["--reward", "type=colour,channel=0,chanel=1", "--prompt", ""], 2, &["unknown field `chanel`"]),
        (&["--reward", "type=colour,channel=3", "--prompt", ""], 2, &["channel: expected 0, 1 or 2, found 3"]),
        (&["--reward", "colour", "--prompt", ""], 2, &["expected key=value, found \"colour\""]),
        (&["--reward", RED, "--reward", RED, "--prompt", ""], 2, &["two rewards are called `colour`"]),
        (
            &["--reward", "type=colour,channel=0,latents=true", "--prompt", ""],
            2,
            &["reads latents, which images in files do not have"],
        ),
        (
            &["--reward", "type=colour,channel=0,features=true", "--prompt", ""],
            2,
            &["reads features of a diffusion network"],
        ),
        (
            &["--reward", "type=adversarial", "--prompt", ""],
            1,
            &["reward `adversarial`", "it scores nothing but a run"],
        ),
        (&["--reward", RED, "--prompts", "two.json"], 1, &["two.json: holds 2 prompts for 3 images"]),
        (
            &["--reward", RED, "--prompts", "one.json"],
            1,
            &["names no prompt for 2 of 3 images, the first images/10.png"],
        ),
        (
            &["--reward", "type=faulty-score,how=one-for-all", "--prompt", ""],
            1,
            &["reward `faulty-score` (provided by", "gave 1 scores for 2 images"],
        ),
    ];
    for (args, expected, parts) in cases {
        let (code, out, err) = run(&advdmd, &[&["--images", "images", "--json", "s.json"], args].concat());
        assert_eq!((code, out.as_str()), (expected, ""), "{args:?}: {err}");
        for part in parts {
            assert!(err.contains(part), "{part:?} in {err}");
        }
        assert!(!advdmd.folder().join("s.json").exists());
    }
    let (code, _, err) =
        run(&advdmd, &["--images", "images", "--reward", "type=colour,channel=0,nan_at=0.4", "--prompt", "x"]);
    assert!(code == 1 && err.contains("scored images/10.png (\"x\") with NaN"), "{err}");
    for (path, part) in [("plugins", "plugins holds no image"), ("absent", "cannot read absent")] {
        let (_, _, err) = run(&advdmd, &["--images", path, "--reward", RED, "--prompt", ""]);
        assert!(err.contains(part), "{err}");
    }
}

#[test]
fn an_interrupted_run_stops_and_writes_nothing() {
    let advdmd = installed();
    let args = [
        "score",
        "--images",
        "images",
        "--reward",
        "type=colour,channel=0,wait=2",
        "--prompt",
        "",
        "--batch",
        "1",
        "--json",
        "s.json",
    ];
    let child = advdmd.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && err.contains("stopped before all images were scored"), "{err}");
    assert!(!advdmd.folder().join("s.json").exists() && output.stdout.is_empty());
}

/// The rewards on CLIP, of files, against transformers, `open_clip` and torchvision (`tests/golden/clip.py`).
#[test]
fn clip_rewards_of_files_are_the_references() {
    let advdmd = Installation::with(&PLUGINS);
    let golden = repository().join("tests/golden/clip");
    let values = Weights::load(&golden.join("clip-wide.safetensors"), Some(Kind::Float), Device::Cpu).unwrap();
    let told: Json = serde_json::from_slice(&fs::read(golden.join("clip-wide.json")).unwrap()).unwrap();
    fs::create_dir(advdmd.folder().join("images")).unwrap();
    let count = values.get("cosine").unwrap().size()[0];
    for index in 0..count {
        let image = values.get(&format!("image_{index}")).unwrap() / 255.0;
        write_png(&advdmd.folder().join(format!("images/{index}.png")), &image).unwrap();
    }
    advdmd.write("prompts.json", told["prompts"].to_string());
    let model = golden.join("clip-wide");
    let rewards = [
        ("hps", "hps", "", "bicubic_cosine"),
        ("clipscore", "clipscore", "", "bilinear_cosine"),
        ("exact", "clipscore", ",name=exact,preprocess=processor", "cosine"),
        ("pickscore", "pickscore", "", "pickscore"),
    ];
    let mut args = vec!["--prompts".to_owned(), "prompts.json".to_owned(), "--batch".to_owned(), "3".to_owned()];
    for (_, kind, more, _) in rewards {
        args.extend(["--reward".to_owned(), format!("type={kind},model={}{more}", model.display())]);
    }
    let json = scored(&advdmd, &args.iter().map(String::as_str).collect::<Vec<_>>());
    let images = json["images"].as_array().unwrap();
    assert_eq!(images.len() as i64, count);
    for (name, _, _, key) in rewards {
        for (index, image) in images.iter().enumerate() {
            let found = image["scores"][name].as_f64().unwrap();
            let expected = values.get(key).unwrap().double_value(&[index as i64]);
            assert!((found - expected).abs() < 1e-5, "{name} of image {index}: {found}, expected {expected}");
        }
    }
}
