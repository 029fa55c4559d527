//! Stable Diffusion 3 from the command line, on tiny random pipelines in diffusers' layout (`tests/golden/sd3.py`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;

use advdmd::metrics;
use advdmd::train::checkpoint::{self, Checkpoint};
use advdmd_tests::{Installation, PLUGINS, is_effort};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn golden(name: &str) -> String {
    repository().join("tests/golden/sd3").join(name).display().to_string()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn every_stage_agrees_with_diffusers() {
    let advdmd = Installation::with(&PLUGINS);
    for model in ["sd3-tiny", "sd35-tiny"] {
        let [folder, prompts, reference] =
            ["", ".prompts.json", ".safetensors"].map(|end| golden(&format!("{model}{end}")));
        let check = |more: &[&str]| {
            let mut args = vec!["check", "backbone", "--backbone", "sd3", "--model", &folder, "--golden", &reference];
            args.extend(more);
            advdmd.run(&args)
        };
        // Measured: at most 6e-6, at latents of about 10.
        let output = check(&["--prompts", &prompts, "--tolerance", "2e-5", "--json", "parity.json"]);
        assert!(output.status.success(), "{}", text(&output));
        let compared = std::fs::read_to_string(advdmd.folder().join("parity.json")).unwrap();
        let compared: Vec<serde_json::Value> = serde_json::from_str(&compared).unwrap();
        let keys: Vec<&str> = compared.iter().map(|one| one["key"].as_str().unwrap()).collect();
        for key in ["prompt_embeds", "pooled", "velocity_0", "latents_ode4_cfg3.5", "image_ode4_cfg3.5", "encode_mean"]
        {
            assert!(keys.contains(&key), "{key} is not among {keys:?}");
        }
        // A bar that nothing passes; half precision, which is further away than that; prompts in another order.
        assert_eq!(check(&["--prompts", &prompts, "--tolerance", "1e-9"]).status.code(), Some(1));
        let half = check(&["--prompts", &prompts, "--dtype", "bf16"]);
        assert!(half.status.code() == Some(1) && text(&half).contains("DIFFERS"), "{}", text(&half));
        let mut list: Vec<String> = serde_json::from_str(&std::fs::read_to_string(&prompts).unwrap()).unwrap();
        list.reverse();
        advdmd.write("reversed.json", serde_json::to_string(&list).unwrap());
        assert_eq!(check(&["--prompts", "reversed.json"]).status.code(), Some(1));
        let none = check(&[]);
        assert!(none.status.code() == Some(2) && text(&none).contains("--prompts"), "{}", text(&none));
    }
}

/// A run of the recipe on the tiny model and the shipped photographs.
const CONFIG: &str = r#"
recipe = "sd35-medium-4step"

[compute]
device = "cpu"
dtype = "f32"
threads = 1

[backbone]
type = "sd3"
model = "MODEL"
height = 32
width = 48

[data]
type = "images"
path = "PHOTOS"

[batch]
group_size = 4
micro_batch = 4

[critic]
warmup = 4

[objective.grpo]
warmup = 2
accuracy_gate = [0.0, 1.0]

[schedule]
updates = 6

[eval]
every = 3
grid = 3

[checkpoint]
every = 3
keep_last = 5
"#;

fn installed() -> Installation {
    let advdmd = Installation::with(&PLUGINS);
    let photos = repository().join("examples/photos").display().to_string();
    advdmd.write("run.toml", CONFIG.replace("MODEL", &golden("sd35-tiny")).replace("PHOTOS", &photos));
    advdmd
}

fn train(advdmd: &Installation, out: &str, more: &[&str]) {
    let mut args = vec!["train", "run.toml", "--out", out];
    args.extend(more);
    let output = advdmd.run(&args);
    assert!(output.status.success(), "{}", text(&output));
}

fn newest(advdmd: &Installation, out: &str) -> BTreeMap<String, String> {
    let newest = Checkpoint::open(&checkpoint::latest(&advdmd.folder().join(out)).unwrap().unwrap()).unwrap();
    newest.verify().unwrap();
    newest.index.files.iter().map(|(name, digest)| (name.clone(), digest.sha256.clone())).collect()
}

#[test]
fn the_recipe_trains_on_photographs_and_resumes_exactly() {
    let advdmd = installed();
    train(&advdmd, "whole", &[]);
    let records = metrics::read(&advdmd.folder().join("whole/metrics.jsonl")).unwrap();
    assert_eq!(records.len(), 6);
    for record in &records {
        for (name, value) in record.values.iter().filter(|(name, _)| !is_effort(name)) {
            assert!(value.is_finite(), "{name} of update {} is {value}", record.update);
        }
        assert!(record.values["dmd/loss"] > 0.0 && record.values["critic/denoise_loss"] > 0.0);
    }
    assert!(records[5].values.contains_key("grpo/loss"), "the policy gradient was never on");
    for update in ["000000", "000003", "000006"] {
        let png = std::fs::read(advdmd.folder().join(format!("whole/samples/update-{update}.png"))).unwrap();
        assert!(png.starts_with(b"\x89PNG"), "{update}");
    }
    // The cache is full by now, so that the second run reads what the first one encoded.
    train(&advdmd, "parts", &["--set", "schedule.updates=3"]);
    train(&advdmd, "parts", &["--resume"]);
    assert_eq!(newest(&advdmd, "parts"), newest(&advdmd, "whole"));
    // Gradients are the same with activations kept.
    train(&advdmd, "kept", &["--set", "backbone.activation_checkpointing=false"]);
    assert_eq!(newest(&advdmd, "kept"), newest(&advdmd, "whole"));
    // Another seed is another student.
    train(&advdmd, "other", &["--set", "seed=1"]);
    assert_ne!(newest(&advdmd, "other"), newest(&advdmd, "whole"));
}

/// Two updates on a copy of the tiny model, in the folder `model`.
fn installed_with_model() -> Installation {
    let advdmd = installed();
    copy_folder(Path::new(&golden("sd35-tiny")), &advdmd.folder().join("model"));
    advdmd
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
        if path.is_dir() {
            copy_folder(&path, &to.join(name));
        } else {
            std::fs::copy(path, to.join(name)).unwrap();
        }
    }
}

fn briefly(advdmd: &Installation, out: &str, model: &str, more: &[&str]) -> Output {
    let model = format!("backbone.model={}", advdmd.folder().join(model).display());
    let mut args = vec!["train", "run.toml", "--out", out, "--set", &model];
    for set in [
        "schedule.updates=2",
        "backbone.width=32",
        "critic.warmup=0",
        "batch.groups=1",
        "batch.group_size=2",
        "batch.micro_batch=2",
        "eval.every=0",
    ] {
        args.extend(["--set", set]);
    }
    args.extend(more);
    advdmd.run(&args)
}

/// The same, which must end well; how many shelves of embeddings and of latents the cache has then: a new one is an
/// encoder that everything went through again.
fn shelves(advdmd: &Installation, out: &str, model: &str, more: &[&str]) -> [usize; 2] {
    let output = briefly(advdmd, out, model, more);
    assert!(output.status.success(), "{}", text(&output));
    let folder = std::fs::read_dir(advdmd.folder().join("cache/encoded")).unwrap();
    let names: Vec<String> = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    ["text-", "latents-"].map(|kind| names.iter().filter(|name| name.starts_with(kind)).count())
}

/// Another last number in a file of weights.
fn change(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let lowest = bytes.len() - 4;
    bytes[lowest] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

fn assert_refused(output: &Output, why: &[&str]) {
    let text = text(output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    for why in why {
        assert!(text.contains(why), "{why} in {text}");
    }
}

#[test]
fn what_an_encoder_does_not_read_encodes_nothing_again() {
    let advdmd = installed_with_model();
    let model = advdmd.folder().join("model");
    assert_eq!(shelves(&advdmd, "out", "model", &[]), [1, 1]);
    for stray in ["notes.txt", "sd3.5_medium.safetensors", "text_encoder/model.fp16.safetensors", "vae/README.md"] {
        std::fs::write(model.join(stray), "not read").unwrap();
    }
    assert_eq!(shelves(&advdmd, "out", "model", &["--resume", "--set", "schedule.updates=3"]), [1, 1]);
    let run = std::fs::read_to_string(advdmd.folder().join("out/run.json")).unwrap();
    assert!(run.contains("text_encoder_3/model.safetensors") && !run.contains("fp16"), "{run}");
    for (index, (set, expected)) in [
        ("backbone.activation_checkpointing=false", [1, 1]),
        ("backbone.vae_tile=32", [1, 1]),
        ("backbone.t5=false", [2, 1]),
        ("backbone.height=48", [2, 2]),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(shelves(&advdmd, &format!("set-{index}"), "model", &["--set", set]), expected, "{set}");
    }
    std::fs::rename(&model, advdmd.folder().join("moved")).unwrap();
    assert_eq!(shelves(&advdmd, "moved-run", "moved", &[]), [2, 2]);
}

#[test]
fn the_encoders_beside_a_single_file_are_part_of_the_run() {
    let advdmd = installed_with_model();
    let model = advdmd.folder().join("model");
    let weights = model.join("transformer/diffusion_pytorch_model.safetensors");
    std::fs::rename(weights, model.join("x.safetensors")).unwrap();
    assert_eq!(shelves(&advdmd, "out", "model/x.safetensors", &[]), [1, 1]);
    change(&model.join("text_encoder/model.safetensors"));
    let resumed = briefly(&advdmd, "out", "model/x.safetensors", &["--resume"]);
    assert_refused(&resumed, &["text_encoder/model.safetensors (backbone) has changed"]);
    assert_eq!(shelves(&advdmd, "other", "model/x.safetensors", &[]), [2, 1]);
    // The configuration that the file's sizes are read from, and the file itself.
    let config = model.join("transformer/config.json");
    std::fs::write(&config, std::fs::read_to_string(&config).unwrap() + "\n").unwrap();
    change(&model.join("x.safetensors"));
    let resumed = briefly(&advdmd, "other", "model/x.safetensors", &["--resume"]);
    assert_refused(&resumed, &["transformer/config.json (backbone) has", "model/x.safetensors (backbone) has changed"]);
}

#[test]
fn another_autoencoder_behind_a_link_is_another_run() {
    let advdmd = installed_with_model();
    let vae = advdmd.folder().join("model/vae");
    let [first, second] = ["first", "second"].map(|name| advdmd.folder().join(name));
    std::fs::rename(&vae, &first).unwrap();
    copy_folder(&first, &second);
    change(&second.join("diffusion_pytorch_model.safetensors"));
    std::os::unix::fs::symlink("../first", &vae).unwrap();
    assert_eq!(shelves(&advdmd, "out", "model", &[]), [1, 1]);
    std::fs::remove_file(&vae).unwrap();
    std::os::unix::fs::symlink("../second", &vae).unwrap();
    let resumed = briefly(&advdmd, "out", "model", &["--resume"]);
    assert_refused(&resumed, &["vae/diffusion_pytorch_model.safetensors (backbone) has changed"]);
    assert_eq!(shelves(&advdmd, "other", "model", &[]), [1, 2]);
}

#[test]
fn given_latents_of_any_size_are_sampled() {
    let advdmd = Installation::with(&PLUGINS);
    let reference = golden("sd35-tiny.safetensors");
    let weights = advdmd_nn::Weights::load(Path::new(&reference), None, tch::Device::Cpu).unwrap();
    let noise = weights.get("noise").unwrap();
    let rows = noise.size()[0] as usize;
    let latents: advdmd_nn::Weights = [("latents".to_owned(), noise.shallow_clone())].into_iter().collect();
    latents.save(&advdmd.folder().join("noise.safetensors"), &BTreeMap::new()).unwrap();
    let sigmas: Vec<f32> = Vec::try_from(weights.get("sigmas_4").unwrap()).unwrap();
    let sigmas = sigmas.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let (model, prompts) = (golden("sd35-tiny"), golden("sd35-tiny.prompts.json"));
    let list: Vec<String> = serde_json::from_str(&std::fs::read_to_string(&prompts).unwrap()).unwrap();
    assert_eq!(list.len(), rows);
    #[rustfmt::skip]
    let output = advdmd.run(&[
        "sample", "--backbone", "sd3", "--model", &model, "--prompts", &prompts, "--sigmas", &sigmas,
        "--guidance-scale", "3.5", "--latents", "noise.safetensors", "--save-latents", "out.safetensors", "--out", "images",
    ]);
    assert!(output.status.success(), "{}", text(&output));
    let found = advdmd_nn::Weights::load(&advdmd.folder().join("out.safetensors"), None, tch::Device::Cpu).unwrap();
    let error = found.get("latents").unwrap() - weights.get("latents_ode4_cfg3.5").unwrap();
    let error = error.abs().max().double_value(&[]);
    // The whole way through the program, prompts to latents.
    assert!(error < 5e-5, "{error}");
    assert!(advdmd.folder().join("images/00000.png").exists());
}
