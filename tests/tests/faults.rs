//! What a faulty reward costs a run: a clear message, and never what was trained.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use advdmd_tests::{CONFIG, Installation, PLUGINS, Runs, assert_same_numbers, contents, faulty, numbers, plugin, text};
use rustix::process::{Pid, Signal, kill_process};

/// A way to fail, and what has to come of it.
struct Fault {
    /// In the words of the table in the documents.
    what: &'static str,
    how: &'static str,
    /// Keys of the host.
    keys: &'static str,
    /// What the message says beside reward and plugin.
    says: &'static str,
}

const IN_THE_RUN: [Fault; 7] = [
    Fault { what: "panics", how: "panic", keys: "", says: "panicked: attempt to divide by zero" },
    Fault { what: "says that it failed", how: "failed", keys: "", says: "the model says no" },
    Fault { what: "gives too few scores", how: "short", keys: "", says: "gave 1 scores for 8 samples" },
    Fault { what: "gives NaN", how: "nan", keys: "", says: "scored sample 7 (" },
    Fault { what: "gives an infinity", how: "infinite", keys: "", says: "with inf" },
    Fault {
        what: "gives whole numbers on the device",
        how: "whole-numbers",
        keys: "on_device = true",
        says: "gave scores of type Int64",
    },
    Fault {
        what: "does not return",
        how: "blocks",
        keys: "time_limit = 1",
        says: "longer than its `time_limit` of 1 s",
    },
];

const ISOLATED: [Fault; 10] = [
    Fault { what: "panics", how: "panic", keys: "", says: "panicked: attempt to divide by zero" },
    Fault { what: "says that it failed", how: "failed", keys: "", says: "the model says no" },
    Fault { what: "gives too few scores", how: "short", keys: "", says: "gave 1 scores for 8 samples" },
    Fault { what: "gives NaN", how: "nan", keys: "", says: "scored sample 7 (" },
    Fault { what: "gives an infinity", how: "infinite", keys: "", says: "with inf" },
    Fault {
        what: "does not return",
        how: "blocks",
        keys: "time_limit = 1",
        says: "longer than its `time_limit` of 1 s",
    },
    Fault {
        what: "reads memory that is not its own",
        how: "segfault",
        keys: "",
        says: "was ended by signal 11 (SIGSEGV",
    },
    Fault { what: "aborts", how: "abort", keys: "", says: "was ended by signal 6 (SIGABRT" },
    Fault { what: "ends the process", how: "exit", keys: "", says: "ended with exit code 3" },
    Fault { what: "is killed, as for lack of memory", how: "killed", keys: "", says: "was ended by signal 9 (SIGKILL" },
];

/// An installation with the faulty plugin, whose reward scores beside the adversarial one.
fn runs() -> Runs {
    let libraries: Vec<PathBuf> = PLUGINS.iter().map(|stem| plugin(stem)).chain([faulty()]).collect();
    Runs(Installation::new(&libraries))
}

fn configure(runs: &Runs, keys: &str) {
    let rewards = format!(
        "\n[[reward]]\ntype = \"adversarial\"\nweight = 1.0\n\n[[reward]]\ntype = \"faulty-run\"\nname = \"mine\"\nweight = 0.5\n{keys}\n"
    );
    runs.0.write("run.toml", format!("{CONFIG}{rewards}"));
}

/// Whether the run said what went wrong: reward, plugin and cause.
fn assert_says(fault: &Fault, output: &Output) {
    let said = text(output);
    assert_eq!(output.status.code(), Some(1), "{}: {said}", fault.how);
    for part in ["error: reward `mine` at step 3", "libadvdmd_faulty.so", fault.says] {
        assert!(said.contains(part), "{}: {part:?} is not in {said}", fault.how);
    }
}

/// Runs into a fault in the third batch, mends it, goes on, and compares with a run that nothing happened to.
fn assert_nothing_is_lost(faults: &[Fault], isolation: &str) {
    let runs = runs();
    for on_device in [false, true] {
        configure(&runs, &format!("how = \"well\"\non_device = {on_device}"));
        runs.done(&format!("undisturbed-{on_device}"), &[]);
    }
    for (index, fault) in faults.iter().enumerate() {
        let out = format!("out-{index}");
        let until = format!("mended-{index}");
        // Two batches of the plan's probe, one of the evaluation, one update.
        let keys = format!("how = \"{}\"\nafter = 6\nuntil = \"{until}\"\n{isolation}\n{}", fault.how, fault.keys);
        configure(&runs, &keys);
        let output = runs.train(&out, &[]);
        assert_says(fault, &output);
        assert!(text(&output).contains("`--resume` goes on from there"), "{}", text(&output));
        let saved = runs.newest(&out).index.state.update;
        assert!((1..4).contains(&saved), "{}: saved at {saved}", fault.how);
        runs.0.write(&until, "");
        let output = runs.train(&out, &["--resume"]);
        assert!(output.status.success(), "{}: {}", fault.how, text(&output));
        let undisturbed = format!("undisturbed-{}", fault.keys.contains("on_device"));
        assert_eq!(contents(&runs.newest(&out)), contents(&runs.newest(&undisturbed)), "{}", fault.how);
        assert_same_numbers(&runs.path(&out), &runs.path(&undisturbed));
    }
}

#[test]
fn faults_in_the_run_lose_nothing() {
    assert_nothing_is_lost(&IN_THE_RUN, "");
}

#[test]
fn faults_in_another_process_lose_nothing() {
    // A process that ends may be started anew so often; here it is not, so that the fault shows.
    let runs = runs();
    configure(&runs, "how = \"well\"\nisolation = \"process\"\nrestarts = 0");
    runs.done("isolated", &[]);
    configure(&runs, "how = \"well\"");
    runs.done("in-the-run", &[]);
    assert_eq!(contents(&runs.newest("isolated")), contents(&runs.newest("in-the-run")));
    assert_nothing_is_lost(&ISOLATED, "isolation = \"process\"\nrestarts = 0");
}

#[test]
fn a_process_is_started_anew() {
    let runs = runs();
    configure(&runs, "how = \"well\"");
    let undisturbed = runs.done("undisturbed", &[]);
    for how in ["segfault", "killed", "blocks"] {
        let keys = format!(
            "how = \"{how}\"\nafter = 2\nuntil = \"{how}.mended\"\nonce = true\nisolation = \"process\"\ntime_limit = 1\nrestarts = 1"
        );
        configure(&runs, &keys);
        let output = runs.train(how, &[]);
        assert!(output.status.success(), "{}", text(&output));
        assert!(text(&output).contains("started anew, 0 more times at most"), "{}", text(&output));
        assert_eq!(contents(&runs.newest(how)), contents(&undisturbed), "{how}");
    }
}

#[test]
fn what_is_left_behind_is_put_right() {
    let runs = runs();
    for on_device in [false, true] {
        configure(&runs, &format!("how = \"well\"\non_device = {on_device}"));
        let undisturbed = runs.done(&format!("undisturbed-{on_device}"), &[]);
        configure(&runs, &format!("how = \"no-grad\"\non_device = {on_device}"));
        let out = format!("no-grad-{on_device}");
        assert_eq!(contents(&runs.done(&out, &[])), contents(&undisturbed));
    }
    // What a plugin prints in its process is not taken for an answer.
    configure(&runs, "how = \"prints\"\nisolation = \"process\"");
    let output = runs.train("prints", &[]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(contents(&runs.newest("prints")), contents(&runs.newest("undisturbed-false")));
    assert!(text(&output).contains("reward `mine` says: a warning of some library"), "{}", text(&output));
}

/// The groups of a run that were skipped because of `mine`.
fn skipped(run: &Path) -> f64 {
    numbers(run).iter().filter_map(|(_, values)| values.get("reward/mine/skipped_groups")).sum()
}

#[test]
fn groups_that_cannot_be_scored_are_skipped() {
    let runs = runs();
    let more = ["--set", "schedule.updates=6", "--set", "batch.groups=4"];
    let mut before: Option<(f64, PathBuf)> = None;
    for (how, keys) in [
        ("failed", ""),
        ("nan", ""),
        ("panic", ""),
        ("nan", "on_device = true"),
        ("short", "isolation = \"process\""),
        ("segfault", "isolation = \"process\"\nrestarts = 100"),
    ] {
        configure(&runs, &format!("how = \"{how}\"\nat = \"two\"\non_error = \"skip_group\"\n{keys}"));
        let out = format!("{how}-{}", keys.len());
        let output = runs.train(&out, &more);
        assert!(output.status.success(), "{how}: {}", text(&output));
        let dropped = text(&output).matches("is dropped: reward `mine` at step 3").count();
        let path = runs.path(&out);
        let count = skipped(&path);
        assert!(count > 0.0 && count < 24.0, "{how}: {count} groups were skipped");
        assert!(dropped as f64 >= count, "{how}: {}", text(&output));
        // However it fails, the same groups are left out, and the rest is the same run.
        match &before {
            None => before = Some((count, path)),
            Some((first, other)) => {
                assert_eq!(count, *first, "{how}");
                assert_same_numbers(&path, other);
            }
        }
    }
}

#[test]
fn where_no_group_is_left_the_run_ends() {
    let runs = runs();
    configure(&runs, "how = \"failed\"\nuntil = \"mended\"\nafter = 6\non_error = \"skip_group\"");
    let output = runs.train("out", &[]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("the model says no"), "{}", text(&output));
    assert!(text(&output).contains("`--resume` goes on from there"), "{}", text(&output));
}

#[test]
fn a_run_takes_its_processes_along() {
    let runs = runs();
    configure(&runs, "how = \"blocks\"\nafter = 6\nuntil = \"mended\"\nisolation = \"process\"");
    // By Ctrl-C, which saves; by kill -9, which does not ask.
    for (signal, out) in [(Signal::INT, "stopped"), (Signal::KILL, "killed")] {
        let mut child = runs.command(out, &[]).spawn().unwrap();
        let begun = Instant::now();
        let host = loop {
            let reached = runs.path(out).join("metrics.jsonl").exists();
            match children(child.id()).first() {
                Some(&host) if reached => break host,
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
            assert!(begun.elapsed() < Duration::from_mins(2), "it does not start");
        };
        std::thread::sleep(Duration::from_secs(1));
        kill_process(Pid::from_child(&child), signal).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.success(), signal == Signal::INT, "{status}");
        std::thread::sleep(Duration::from_millis(200));
        let name = std::fs::read_to_string(format!("/proc/{host}/comm")).unwrap_or_default();
        assert!(!name.contains("advdmd"), "process {host} is left");
    }
    configure(&runs, "how = \"blocks\"\nafter = 6\nuntil = \"mended\"\nisolation = \"process\"");
    runs.0.write("mended", "");
    let resumed = runs.done("stopped", &["--resume"]);
    configure(&runs, "how = \"well\"");
    assert_eq!(contents(&resumed), contents(&runs.done("undisturbed", &[])));
}

#[test]
fn a_process_that_leaves_others_behind_takes_them_along() {
    let runs = runs();
    configure(&runs, "how = \"orphan\"\nafter = 6\nuntil = \"mended\"\nisolation = \"process\"\nrestarts = 0");
    let begun = Instant::now();
    let output = runs.train("out", &[]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("was ended by signal 6 (SIGABRT"), "{}", text(&output));
    assert!(begun.elapsed() < Duration::from_mins(2));
    let sleeping = |entry: std::fs::DirEntry| {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).replace('\0', " ").contains("sleep 986")
    };
    assert!(!std::fs::read_dir("/proc").unwrap().flatten().any(sleeping), "it is left behind");
}

/// The processes that a process has started.
fn children(parent: u32) -> Vec<u32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

#[test]
fn what_cannot_be_isolated_is_refused() {
    let runs = runs();
    let cases = [
        ("[[reward]]\ntype = \"adversarial\"\nweight = 1.0\nisolation = \"process\"", "reward `adversarial` learns"),
        ("[[reward]]\ntype = \"adversarial\"\nweight = 1.0\nrestarts = 2", "only a reward in a process of its own"),
        ("[[reward]]\ntype = \"faulty-run\"\nhow = \"well\"\nweight = 1.0\ntime_limit = 0", "time_limit"),
        ("[[reward]]\ntype = \"faulty-run\"\nhow = \"well\"\nweight = 1.0\nisolation = \"container\"", "isolation"),
    ];
    for (reward, says) in cases {
        runs.0.write("run.toml", format!("{CONFIG}\n{reward}\n"));
        let output = runs.train("out", &[]);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(text(&output).contains(says), "{says:?} is not in {}", text(&output));
    }
    // A refusal of the plugin reads as it does without a process between.
    let refusal = |isolation: &str| {
        let reward =
            format!("[[reward]]\ntype = \"faulty-construction\"\nhow = \"refused\"\nweight = 1.0\n{isolation}");
        runs.0.write("run.toml", format!("{CONFIG}\n{reward}\n"));
        let output = runs.train("out", &[]);
        (output.status.code(), text(&output))
    };
    assert_eq!(refusal("isolation = \"process\""), refusal(""));
    let output = runs.0.run(&["plugin-host"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("plugin-host is not for people"), "{}", text(&output));
}

#[test]
fn rewards_score_files_from_a_process_as_well() {
    let runs = runs();
    let image = advdmd_tests::repository().join("examples/photos");
    let scores = |reward: &str| {
        let output =
            runs.0.run(&["score", "--reward", reward, "--images", &image.display().to_string(), "--prompt", "a photo"]);
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned(), text(&output))
    };
    let (code, here, said) = scores("type=faulty-run,how=well");
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(scores("type=faulty-run,how=well,isolation=process").1, here);
    let (code, _, said) = scores("type=faulty-run,how=segfault,isolation=process,restarts=0");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("SIGSEGV"), "{said}");
}

/// The table of the documents: a row for each fault of the tests above.
fn table() -> String {
    let mut table = String::from("| A reward that | in the run | in a process of its own |\n| --- | --- | --- |\n");
    let whole = |fault: &Fault| format!("error: `{}`", fault.says.replace('`', "").trim_end_matches(" ("));
    let of = |faults: &[Fault], how: &str| faults.iter().find(|fault| fault.how == how).map(whole);
    for fault in IN_THE_RUN.iter().chain(&ISOLATED[6..]) {
        let here = of(&IN_THE_RUN, fault.how)
            .unwrap_or_else(|| "the end of the program; `--resume` from its newest checkpoint".to_owned());
        let apart = of(&ISOLATED, fault.how).unwrap_or_else(|| "no fault: scores come as numbers".to_owned());
        writeln!(table, "| {} | {here} | {apart} |", fault.what).unwrap();
    }
    table
}

#[test]
fn the_table_in_the_documents_is_this_one() {
    let path = advdmd_tests::repository().join("docs/src/isolation.md");
    let document = std::fs::read_to_string(path).unwrap();
    assert!(document.contains(&table()), "docs/src/isolation.md should hold:\n{}", table());
}

#[test]
fn a_crash_in_the_run_costs_what_came_after_the_newest_checkpoint() {
    let runs = runs();
    configure(&runs, "how = \"well\"");
    let undisturbed = runs.done("undisturbed", &[]);
    for how in ["segfault", "abort", "exit", "killed"] {
        // Behind the checkpoint of update 2.
        configure(&runs, &format!("how = \"{how}\"\nafter = 8\nuntil = \"{how}.mended\""));
        let output = runs.train(how, &[]);
        assert!(!output.status.success(), "{how}: {}", text(&output));
        assert_eq!(runs.newest(how).index.state.update, 2, "{how}: {}", text(&output));
        runs.0.write(format!("{how}.mended"), "");
        let resumed = runs.done(how, &["--resume"]);
        assert_eq!(contents(&resumed), contents(&undisturbed), "{how}");
    }
}

#[test]
fn a_locked_run_gives_its_processes_the_same_lock() {
    let runs = runs();
    configure(&runs, "how = \"well\"\nisolation = \"process\"");
    let output = runs.0.run(&["plugins", "pin", "run.toml"]);
    assert!(output.status.success(), "{}", text(&output));
    let output = runs.train("out", &["--locked"]);
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn a_check_outlives_the_plugin() {
    let runs = runs();
    let library = runs.path("plugins/libadvdmd_faulty.so").display().to_string();
    let check = |more: &[&str]| {
        let args = ["check", "reward", "type=faulty-run,how=segfault", "--plugin-path", &library];
        let output = runs.0.run(&[&args[..], more].concat());
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        text(&output)
    };
    let said = check(&[]);
    assert!(said.contains("brought the checks down: the process was ended by signal 11 (SIGSEGV"), "{said}");
    assert!(check(&["-v"]).contains("reward `faulty-run`: answers"));
}
