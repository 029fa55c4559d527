//! Runs that are stopped, killed, starved of disk, damaged and changed: none is lost, none goes on as another.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use advdmd::train::checkpoint::{self, Checkpoint};
use advdmd_tests::{CONFIG, Installation, PLUGINS, Runs, TINY, assert_same_numbers, contents, numbers, text};
use rustix::process::{Pid, Signal, kill_process};

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

fn numbers_so_far(run: &Path) -> usize {
    fs::read_to_string(run.join("metrics.jsonl")).map_or(0, |text| text.lines().count())
}

/// Waits until the run has done `updates` updates.
fn wait_for(run: &Path, updates: usize, child: &mut Child) {
    for _ in 0..3000 {
        if numbers_so_far(run) >= updates || child.try_wait().unwrap().is_some() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("no {updates} updates within a minute");
}

/// 20 updates in one go, and 10 plus 10: the same tensors, moments, averages, counters and metrics, bit for bit. And a
/// start without the checkpoint is not the same.
#[test]
fn resumed_equals_uninterrupted_and_differs_from_a_cold_start() {
    let bench = Runs::new();
    let whole = bench.done("whole", &["--set", "schedule.updates=20"]);
    let half = bench.done("halves", &["--set", "schedule.updates=10"]);
    let resumed = bench.done("halves", &["--set", "schedule.updates=20", "--resume"]);
    assert_eq!(contents(&whole), contents(&resumed));
    assert_same_numbers(&bench.path("whole"), &bench.path("halves"));
    assert_eq!(whole.index.state.update, 20);
    let cold = bench.done("cold", &["--set", "schedule.updates=10"]);
    assert_eq!(contents(&half), contents(&cold), "the same run twice");
    assert_ne!(contents(&cold).0["student.safetensors"], contents(&resumed).0["student.safetensors"]);
    for part in [
        "student.optimizer",
        "student.ema",
        "fake",
        "fake.optimizer",
        "reward.adversarial",
        "reward.adversarial.optimizer",
    ] {
        assert!(whole.index.files.contains_key(&format!("{part}.safetensors")), "{part}");
    }
}

/// Killed at random moments, `ADVDMD_KILLS` times (6 unless told): every resume finds a whole checkpoint, and the end is that of
/// a run that nobody disturbed.
#[test]
fn a_killed_run_always_resumes_and_ends_as_the_undisturbed_one() {
    let kills: u32 = std::env::var("ADVDMD_KILLS").map_or(6, |kills| kills.parse().unwrap());
    let bench = Runs::new();
    let long = [
        "--set",
        "critic.warmup=3",
        "--set",
        "schedule.updates=100000",
        "--set",
        "checkpoint.every=1",
        "--set",
        "eval.every=3",
    ];
    // A fixed rule for the moments: a failure can be repeated, as far as a race can.
    let mut moment = 0x9E37_79B9_u32;
    let mut resumed = 0;
    for _ in 0..kills {
        let lines = numbers_so_far(&bench.path("killed"));
        let mut child = bench.command("killed", &[&long[..], &["--resume"]].concat()).spawn().unwrap();
        wait_for(&bench.path("killed"), lines + 1, &mut child);
        moment ^= moment << 13;
        moment ^= moment >> 17;
        moment ^= moment << 5;
        std::thread::sleep(Duration::from_millis(u64::from(moment % 400)));
        signal(&child, Signal::KILL);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), None, "killed before its end: {}", text(&output));
        if let Some(newest) = checkpoint::latest(&bench.path("killed")).unwrap() {
            Checkpoint::open(&newest).unwrap().verify().unwrap();
            resumed += 1;
        }
    }
    assert!(resumed > kills / 2, "{resumed} of {kills} kills came after a checkpoint");
    let reached = bench.newest("killed").index.state.update;
    let updates = format!("schedule.updates={}", reached + 2);
    let short = [&long[..2], &["--set", &updates], &long[4..]].concat();
    let killed = bench.done("killed", &[&short[..], &["--resume"]].concat());
    let undisturbed = bench.done("undisturbed", &short);
    assert_eq!(contents(&killed), contents(&undisturbed));
    assert_same_numbers(&bench.path("killed"), &bench.path("undisturbed"));
    let evaluations = |run: &str| {
        let text = fs::read_to_string(bench.path(run).join("eval.jsonl")).unwrap();
        let row = |line: &str| {
            let mut row: serde_json::Value = serde_json::from_str(line).unwrap();
            row["scores"]["seconds"].take();
            row.to_string()
        };
        text.lines().map(row).collect::<Vec<_>>()
    };
    assert!(evaluations("killed") == evaluations("undisturbed"), "every evaluation once, with the same scores");
}

#[test]
fn ctrl_c_and_sigterm_save_and_say_how_to_go_on() {
    for (name, signal_number) in [("int", Signal::INT), ("term", Signal::TERM)] {
        let bench = Runs::new();
        let mut child = bench.command(name, &["--set", "schedule.updates=100000", "--set", "checkpoint.every=100000"]);
        let mut child = child.spawn().unwrap();
        wait_for(&bench.path(name), 3, &mut child);
        signal(&child, signal_number);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        let saved = bench.newest(name).index.state.update;
        assert!(saved >= 3, "saved at {saved}");
        assert!(text(&output).contains("--resume` goes on"), "{}", text(&output));
        assert_eq!(numbers(&bench.path(name)).len() as u64, saved);
    }
}

/// Stopped while it evaluates, before the first update or after the last: the resumed run evaluates anew, and no row stands
/// twice.
#[test]
fn an_evaluation_that_was_stopped_is_made_again_and_not_twice() {
    let bench = Runs::new();
    let sets = ["--set", "schedule.updates=2", "--set", "eval.every=1"];
    let mut child = bench.command("run", &sets).stderr(Stdio::null()).spawn().unwrap();
    let rows = bench.path("run/eval.jsonl");
    while fs::read_to_string(&rows).map_or(0, |text| text.lines().count()) < 2 {
        std::thread::sleep(Duration::from_millis(5));
    }
    signal(&child, Signal::TERM);
    assert!(child.wait().unwrap().success());
    bench.done("run", &[&sets[..], &["--resume"]].concat());
    let labels = || {
        let text = fs::read_to_string(&rows).unwrap();
        let row = |line: &str| {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            format!("{} {} {} {}", row["update"], row["label"], row["steps"], row["guidance_scale"])
        };
        text.lines().map(row).collect::<Vec<_>>()
    };
    let found = labels();
    let once: std::collections::BTreeSet<_> = found.iter().collect();
    assert_eq!(once.len(), found.len(), "{found:#?}");
    assert!(found.iter().any(|row| row.starts_with("2 \"student\"")), "{found:#?}");
    bench.done("run", &[&sets[..], &["--resume"]].concat());
    assert_eq!(labels(), found, "a finished run that is resumed has nothing to add");
}

/// A stop in the warm-up is saved too, and the resumed warm-up is the undisturbed one.
#[test]
fn a_stop_while_warming_up_loses_nothing() {
    let bench = Runs::new();
    let long = ["--set", "critic.warmup=100000"];
    let mut child = bench.command("stopped", &long).stderr(Stdio::null()).spawn().unwrap();
    let log = bench.path("stopped/log.jsonl");
    while !fs::read_to_string(&log).is_ok_and(|text| text.contains("warming up")) {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(300));
    signal(&child, Signal::TERM);
    assert!(child.wait().unwrap().success());
    let warmed_up = bench.newest("stopped").index.state.warmed_up;
    assert!(warmed_up > 0 && warmed_up < 100_000);
    let total = format!("critic.warmup={}", warmed_up + 4);
    let rest = ["--set", total.as_str(), "--set", "schedule.updates=2"];
    // The warm-up's length is part of the configuration, so another one is drift, said and allowed here.
    let resumed = bench.done("stopped", &[&rest[..], &["--resume", "--allow-drift"]].concat());
    assert_eq!(contents(&resumed), contents(&bench.done("whole", &rest)));
}

/// A disk that takes no more (a limit on file sizes, which a test may set): the checkpoint before stays whole, and the run
/// ends, or goes on and tries again, as configured.
#[test]
fn a_full_disk_costs_no_checkpoint() {
    let bench = Runs::new();
    let two = bench.done("run", &["--set", "schedule.updates=2"]);
    let before = contents(&two);
    let starved = |more: &str| {
        let mut sets: Vec<String> = TINY.iter().map(|set| format!("--set '{set}'")).collect();
        sets.push("--set schedule.updates=6 --set checkpoint.every=2".to_owned());
        // 16 KiB: enough for the logs, too little for any part of a checkpoint.
        let script = format!(
            "trap '' XFSZ; ulimit -f 32; exec ./advdmd train run.toml --out run --resume {} {more}",
            sets.join(" ")
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script]).current_dir(bench.0.folder()).env("OMP_NUM_THREADS", "1").output().unwrap()
    };
    let stopped = starved("");
    assert_eq!(stopped.status.code(), Some(1), "{}", text(&stopped));
    assert!(text(&stopped).contains("File too large") && text(&stopped).contains("safetensors"), "{}", text(&stopped));
    assert_eq!(contents(&bench.newest("run")), before);
    let went_on = starved("--set 'checkpoint.on_error=\"continue\"'");
    assert!(text(&went_on).contains("not saved at update 4, going on"), "{}", text(&went_on));
    assert_eq!(went_on.status.code(), Some(1), "the last checkpoint of a run must be written");
    assert_eq!(contents(&bench.newest("run")), before);
    let rest = ["--set", "schedule.updates=6"];
    let resumed = bench.done("run", &[&rest[..], &["--resume"]].concat());
    assert_eq!(contents(&resumed), contents(&bench.done("whole", &rest)));
}

#[test]
fn a_folder_in_use_is_refused() {
    let bench = Runs::new();
    let mut first = bench.command("run", &["--set", "schedule.updates=100000"]).stderr(Stdio::null()).spawn().unwrap();
    wait_for(&bench.path("run"), 1, &mut first);
    let second = bench.train("run", &["--resume"]);
    signal(&first, Signal::KILL);
    let holder = first.id();
    first.wait().unwrap();
    assert_eq!(second.status.code(), Some(2));
    assert!(text(&second).contains(&format!("in use by another advdmd (process {holder})")), "{}", text(&second));
}

#[test]
fn another_configuration_is_refused_key_by_key() {
    let bench = Runs::new();
    bench.done("run", &["--set", "schedule.updates=2"]);
    let more = ["--set", "schedule.updates=4", "--resume", "--set", "student.optimizer.lr=1e-4", "--set", "seed=7"];
    let refused = bench.train("run", &more);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused).contains("student.optimizer.lr was 0.00003, is 0.0001"), "{}", text(&refused));
    assert!(text(&refused).contains("seed was 0, is 7"), "{}", text(&refused));
    assert!(!text(&refused).contains("schedule"), "a longer run is no other run: {}", text(&refused));
    let allowed = bench.train("run", &[&more[..], &["--allow-drift"]].concat());
    assert!(allowed.status.success() && text(&allowed).contains("going on although seed"), "{}", text(&allowed));
}

#[test]
fn other_prompts_in_the_same_file_are_refused() {
    let bench = Runs::new();
    let prompts = ["--set", "data.prompts=\"captions.txt\""];
    bench.0.write("captions.txt", "a red 7\na 3\n");
    bench.done("run", &[&prompts[..], &["--set", "schedule.updates=1"]].concat());
    bench.0.write("captions.txt", "a red 7\na 4\n");
    let refused = bench.train("run", &[&prompts[..], &["--set", "schedule.updates=2", "--resume"]].concat());
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused).contains("captions.txt (data.prompts) has changed"), "{}", text(&refused));
}

/// The teacher's file and a plugin's are part of what a run is: one changed byte of either is refused by name.
#[test]
fn another_teacher_or_plugin_is_refused_by_name() {
    let installed = Installation::with(&PLUGINS);
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../plugins/backbone-digits/teacher/model");
    let model = installed.folder().join("model");
    fs::create_dir(&model).unwrap();
    for file in fs::read_dir(shipped).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), model.join(file.file_name())).unwrap();
    }
    installed.write("run.toml", CONFIG);
    let train = |more: &[&str]| {
        let args =
            ["train", "run.toml", "--out", "run", "--set", "backbone.model=\"model\"", "--set", "batch.groups=1"];
        installed.run(&[&args[..], &["--set", "eval.prompts_per_task=1"], more].concat())
    };
    let first = train(&["--set", "schedule.updates=1"]);
    assert!(first.status.success(), "{}", text(&first));
    let resume = ["--set", "schedule.updates=2", "--resume"];

    let weights = model.join("diffusion_pytorch_model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, &bytes).unwrap();
    let other_teacher = train(&resume);
    assert_eq!(other_teacher.status.code(), Some(2));
    let expected = format!("{} (backbone.model) has changed", weights.display());
    assert!(text(&other_teacher).contains(&expected), "{}", text(&other_teacher));
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, &bytes).unwrap();

    let plugin = installed.folder().join("plugins/libreward_adversarial.so");
    let mut library = fs::read(&plugin).unwrap();
    // Behind everything that the loader reads.
    library.push(0);
    fs::write(&plugin, &library).unwrap();
    let other_plugin = train(&resume);
    assert_eq!(other_plugin.status.code(), Some(2));
    let said = text(&other_plugin);
    assert!(
        said.contains("the plugin of reward `adversarial` was ") && said.contains("libreward_adversarial.so"),
        "{said}"
    );
    library.pop();
    fs::write(&plugin, &library).unwrap();
    let same = train(&resume);
    assert!(same.status.success(), "{}", text(&same));
}

/// The newest checkpoint is damaged: refused with the file, or set aside for the one before.
#[test]
fn a_damaged_checkpoint_is_refused_or_set_aside() {
    let bench = Runs::new();
    bench.done("run", &["--set", "schedule.updates=4", "--set", "checkpoint.every=2"]);
    let newest = bench.newest("run").path;
    let file = newest.join("student.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    let more = ["--set", "schedule.updates=6", "--set", "checkpoint.every=2", "--resume"];
    let refused = bench.train("run", &more);
    assert_eq!(refused.status.code(), Some(2));
    for part in ["update-000004/student.safetensors", "SHA-256", "`--allow-drift`", "update 2"] {
        assert!(text(&refused).contains(part), "{part} in {}", text(&refused));
    }
    let resumed = bench.done("run", &[&more[..], &["--allow-drift"]].concat());
    assert!(bench.path("run/checkpoints/update-000004.damaged").exists());
    let whole = bench.done("whole", &["--set", "schedule.updates=6", "--set", "checkpoint.every=2"]);
    assert_eq!(contents(&resumed), contents(&whole), "nothing of the damaged one was used");
}

/// A LoRA run saves the low-rank parts, their moments and averages: four floats for each trained one, and no base.
#[test]
fn a_lora_checkpoint_holds_no_frozen_weight() {
    let bench = Runs::new();
    let lora = "{ type = \"lora\", rank = 2, alpha = 4.0 }";
    let tuning = [format!("student.tuning={lora}"), format!("critic.tuning={lora}")];
    // The shipped teacher this time: 2.3 million weights, so that a forgotten base would show.
    let args =
        ["train", "run.toml", "--out", "lora", "--set", "schedule.updates=1", "--set", "eval.prompts_per_task=1"];
    let output = bench.0.run(&[&args[..], &["--set", &tuning[0], "--set", &tuning[1]]].concat());
    assert!(output.status.success(), "{}", text(&output));
    let newest = bench.newest("lora");
    let bytes = |part: &str| newest.index.files[&format!("{part}.safetensors")].bytes;
    let base = 2_300_000 * 4;
    for part in ["student", "student.optimizer", "student.ema", "fake", "fake.optimizer"] {
        println!("{part}: {} bytes, base {base}", bytes(part));
        assert!(bytes(part) < base / 20, "{part}: {} bytes", bytes(part));
        let weights = newest.read(part, tch::Device::Cpu).unwrap();
        assert!(weights.iter().all(|(name, _)| name.contains(".lora_") || name == "updates"), "{part}");
    }
}

/// Pretraining keeps what it has in the same way: nothing is overwritten, nothing goes on as something else.
#[test]
fn a_pretraining_is_not_overwritten_and_not_changed() {
    let installed = Installation::with(&PLUGINS);
    installed.write("pretrain.toml", include_str!("../../plugins/backbone-digits/teacher/pretrain.toml"));
    let pretrain = |more: &[&str]| {
        let short = ["--set", "steps=4", "--set", "batch_size=2", "--set", "checkpoint.every=2", "--threads", "1"];
        let size = ["--set", TINY[1]];
        installed.run(&[&["pretrain", "pretrain.toml", "--out", "teacher"][..], &short, &size, more].concat())
    };
    let first = pretrain(&[]);
    assert!(first.status.success(), "{}", text(&first));
    let model = fs::read(installed.folder().join("teacher/model/diffusion_pytorch_model.safetensors")).unwrap();
    let again = pretrain(&[]);
    assert_eq!(again.status.code(), Some(2));
    assert!(text(&again).contains("holds a run already") && text(&again).contains("--resume"), "{}", text(&again));
    let changed = pretrain(&["--resume", "--set", "optimizer.lr=0.5"]);
    assert_eq!(changed.status.code(), Some(2));
    assert!(text(&changed).contains("optimizer.lr was"), "{}", text(&changed));
    let resumed = pretrain(&["--resume"]);
    assert!(resumed.status.success(), "{}", text(&resumed));
    let after = fs::read(installed.folder().join("teacher/model/diffusion_pytorch_model.safetensors")).unwrap();
    assert!(model == after, "a finished pretraining that is resumed is what it was");
}
