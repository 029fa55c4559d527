//! Runs on several rewards, some of them elsewhere: a fault of one costs a message, never a number.

use std::fs;
use std::time::{Duration, Instant};

use advdmd::hacking::Look;
use advdmd::metrics;
use advdmd_tests::{Runs, Script, assert_same_numbers, contents, faulty, repository, text};
use rustix::process::{Pid, Signal, kill_process};

/// Six updates with the adversarial reward and one of a server at `url`.
fn hybrid(url: &str, more: &str) -> String {
    let remote = format!(
        "{{ type = \"remote\", endpoints = [\"{url}\"], weight = 0.5, timeout = 20.0, startup_timeout = 20.0, \
         backoff = 0.1{more} }}"
    );
    format!("reward=[{{ type = \"adversarial\", weight = 1.0 }}, {remote}]")
}

const LENGTH: [&str; 4] = ["--set", "schedule.updates=6", "--set", "checkpoint.every=6"];

fn options<'a>(reward: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&LENGTH[..], &["--set", reward], more].concat()
}

/// The port of a server that is gone, for another one.
fn restarted(port: &str) -> Script {
    Script::faulty(&["--port", port])
}

/// A server that answers late, and one that dies and comes back within the retries, change nothing: not a bit.
#[test]
fn slow_and_restarted_servers_change_nothing() {
    let runs = Runs::new();
    let mut server = Script::faulty(&[]);
    let reward = hybrid(&server.url, "");
    let undisturbed = runs.done("undisturbed", &options(&reward, &[]));
    server.fault("slow 150");
    let slow = runs.done("slow", &options(&reward, &[]));
    assert_eq!(contents(&slow).0, contents(&undisturbed).0);
    assert_same_numbers(&runs.path("slow"), &runs.path("undisturbed"));

    server.fault("die 4");
    let port = server.port();
    let mut child = runs.command("restarted", &options(&reward, &[])).spawn().unwrap();
    while server.is_alive() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before the server did");
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(server);
    let _server = restarted(&port);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(contents(&runs.newest("restarted")).0, contents(&undisturbed).0);
    assert_same_numbers(&runs.path("restarted"), &runs.path("undisturbed"));
}

/// A server that is gone for good, or answers what is no score: the run saves where it stands, in the middle of an update,
/// says which endpoint, and goes on from there to the very end of an undisturbed run.
#[test]
fn a_broken_server_ends_the_run_and_nothing_is_lost() {
    let runs = Runs::new();
    let server = Script::faulty(&[]);
    let reward = hybrid(&server.url, ", retries = 0");
    let undisturbed = runs.done("undisturbed", &options(&reward, &[]));
    for (fault, says) in [("garbage", "JSON"), ("length", "scores"), ("nan", "NaN"), ("status 500", "500")] {
        let out = fault.split(' ').next().unwrap();
        // Health, the probe of the plan and two updates go well; some request after that does not.
        let mut command = runs.command(out, &options(&reward, &[]));
        server.fault("slow 100");
        let mut child = command.spawn().unwrap();
        let log = runs.path(out).join("metrics.jsonl");
        while fs::read_to_string(&log).map_or(0, |text| text.lines().count()) < 2 {
            assert!(child.try_wait().unwrap().is_none(), "the run ended before it was disturbed");
            std::thread::sleep(Duration::from_millis(10));
        }
        server.fault(fault);
        let output = child.wait_with_output().unwrap();
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        for part in ["reward `remote`", server.url.as_str(), says, "`--resume` goes on from there"] {
            assert!(said.contains(part), "{part:?} in {said}");
        }
        let broken_off = runs.newest(out);
        let state = &broken_off.index.state;
        assert!((2..6).contains(&state.update), "{state:?}");
        let critic = state.unfinished.as_ref().expect("the critic's part of the update is kept");
        assert!(critic.contains_key("critic/denoise_loss"), "{critic:?}");
        server.fault("ok");
        let resumed = runs.done(out, &options(&reward, &["--resume"]));
        assert_eq!(contents(&resumed), contents(&undisturbed), "{fault}");
        assert_same_numbers(&runs.path(out), &runs.path("undisturbed"));
    }
}

/// What several rewards put into the log.
#[test]
fn the_log_tells_what_each_reward_gives() {
    let runs = Runs::new();
    let server = Script::faulty(&[]);
    let constant = format!(
        ", {{ type = \"remote\", name = \"constant\", endpoints = [\"{}\"], weight = 1.0, clamp_min = 5.0 }}]",
        server.url
    );
    let reward = hybrid(&server.url, ", discount = 0.5").trim_end_matches(']').to_owned() + &constant;
    let output = runs.train("run", &options(&reward, &[]));
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    let warning = "reward `constant` gives every sample of a prompt the same score: it teaches nothing";
    assert_eq!(said.matches(warning).count(), 1, "{said}");
    let records = metrics::read(&runs.path("run").join("metrics.jsonl")).unwrap();
    for record in &records {
        let value = |name: &str| *record.values.get(name).unwrap_or_else(|| panic!("{name} in {:?}", record.values));
        let shares = ["adversarial", "remote", "constant"].map(|name| value(&format!("reward/{name}/advantage_share")));
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-4, "{shares:?}");
        assert_eq!(shares[2], 0.0);
        assert_eq!(value("reward/constant/dead_groups"), 1.0);
        assert_eq!(value("correlation/adversarial/constant"), 0.0);
        assert!(value("correlation/adversarial/remote").abs() <= 1.0);
        assert!(value("rollout/diversity") > 0.0);
    }
}

/// The rewards' own rules, told with the key.
#[test]
fn what_does_not_fit_is_told_before_the_run() {
    let runs = Runs::new();
    let clip = repository().join("tests/golden/clip/clip-wide");
    let adversarial = "{ type = \"adversarial\", weight = 1.0 }";
    let cases = [
        (
            vec!["reward=[{ type = \"adversarial\", weight = 1.0, discount = 0.5 }]".to_owned()],
            "`reward.0.discount`: reward `adversarial` scores every step on its own",
        ),
        (
            vec!["objective.reward_backprop.weight=1e-3".to_owned()],
            "no reward of a weight above 0 gives gradients to the final image",
        ),
        (
            vec![
                "objective.reward_backprop.weight=1e-3".to_owned(),
                "objective.reward_backprop.rewards=[\"hsp\"]".to_owned(),
            ],
            "there is no reward called `hsp`",
        ),
        (
            vec![format!("held_out=[{adversarial}]"), format!("reward=[{adversarial}]")],
            "two rewards are called `adversarial`",
        ),
        (
            vec!["held_out=[{ type = \"adversarial\", name = \"other\" }]".to_owned()],
            "`held_out.0`: reward `other` learns, compares the samples of a prompt, or reads more than prompts and images",
        ),
        (
            vec![format!(
                "reward=[{{ type = \"clipscore\", model = \"{}\", weight = 1.0, name = \"a/b\" }}]",
                clip.display()
            )],
            "a reward cannot be called `a/b`",
        ),
    ];
    for (sets, says) in cases {
        let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set.as_str()]).collect();
        let output = runs.train("run", &sets);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(text(&output).contains(says), "{says:?} in {}", text(&output));
        assert!(!runs.path("run").join("metrics.jsonl").exists());
    }
}

/// Gradients of a reward of images, through the decoder and nothing else, raise it.
#[test]
fn a_reward_as_a_loss_rises() {
    let runs = Runs::new();
    let clip = repository().join("tests/golden/clip/clip-wide");
    let reward = format!("reward=[{{ type = \"clipscore\", model = \"{}\", weight = 1.0 }}]", clip.display());
    let sets = [
        "objective.dmd.weight=0.0",
        "objective.gan.weight=0.0",
        "objective.grpo.weight=0.0",
        "objective.reward_backprop.weight=1.0",
        "student.optimizer.lr=1e-3",
        "student.optimizer.warmup=1",
        "student.optimizer.clip_norm=100.0",
        "schedule.updates=40",
    ];
    let options: Vec<&str> = sets.iter().chain([&reward.as_str()]).flat_map(|set| ["--set", set]).collect();
    let output = runs.train("run", &options);
    assert!(output.status.success(), "{}", text(&output));
    let records = metrics::read(&runs.path("run").join("metrics.jsonl")).unwrap();
    let mean = |records: &[metrics::Record]| {
        records.iter().map(|record| record.values["reward_backprop/clipscore/mean"]).sum::<f64>() / records.len() as f64
    };
    let (early, late) = (mean(&records[..5]), mean(&records[35..]));
    assert!(late > early + 0.02, "{early} to {late}");
    let last = &records[39].values;
    assert!((last["reward_backprop/loss"] - (3.0 - last["reward_backprop/clipscore/mean"])).abs() < 1e-5, "{last:?}");
}

/// Held-out rewards are written down at each evaluation, and a run that goes on has them all once.
#[test]
fn held_out_rewards_are_measured() {
    let runs = Runs::new();
    let server = Script::faulty(&[]);
    let held = format!("held_out=[{{ type = \"remote\", name = \"brightness\", endpoints = [\"{}\"] }}]", server.url);
    let options = ["--set", &held, "--set", "eval.every=2"];
    runs.done("run", &[&options[..], &["--set", "schedule.updates=2"]].concat());
    runs.done("run", &[&options[..], &["--set", "schedule.updates=4", "--resume"]].concat());
    let looks: Vec<Look> = advdmd::jsonl::read(&runs.path("run").join("watch.jsonl")).unwrap();
    assert_eq!(looks.iter().map(|look| look.update).collect::<Vec<_>>(), [0, 2, 4]);
    for (index, look) in looks.iter().enumerate() {
        // Two prompts of each of the six tasks.
        assert_eq!(look.held_out["brightness"].len(), 12);
        assert_eq!(look.held_out["scenes read right"].len(), 12);
        assert!(look.held_out["brightness"].iter().all(|score| (0.0..=1.0).contains(score)));
        assert_eq!((look.teacher.is_some(), look.diversity.is_some()), (index == 0, index > 0));
        assert!(look.trained.is_empty(), "the adversarial reward has no fixed scale to be watched on");
    }
    let report = fs::read_to_string(runs.path("run").join("report.html")).unwrap();
    for part in ["Reward watch", "brightness, held out", "Power at the patch frequency"] {
        assert!(report.contains(part), "{part:?}");
    }
}

/// NaN that stays on the device is found only when the student's loss is: the run is saved all the same.
#[test]
fn a_score_that_is_not_finite_on_the_device_loses_nothing() {
    let runs = Runs::new();
    let paths = format!("plugins.paths=[\"{}\"]", faulty().display());
    let reward = |after: usize| {
        format!(
            "reward=[{{ type = \"adversarial\", weight = 1.0 }}, {{ type = \"faulty-score\", how = \"nan-on-device\", \
             after = {after}, weight = 1.0 }}]"
        )
    };
    let (never, later) = (reward(1000), reward(9));
    let undisturbed = runs.done("undisturbed", &options(&never, &["--set", &paths]));
    let output = runs.train("run", &options(&later, &["--set", &paths]));
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in ["reward `faulty-score` at step", "with NaN", "`--resume` goes on from there"] {
        assert!(said.contains(part), "{part:?} in {said}");
    }
    let state = runs.newest("run").index.state.clone();
    assert!(state.update > 0 && state.unfinished.is_some(), "{state:?}");
    let resumed = runs.done("run", &options(&never, &["--set", &paths, "--resume", "--allow-drift"]));
    assert_eq!(contents(&resumed), contents(&undisturbed));
    assert_same_numbers(&runs.path("run"), &runs.path("undisturbed"));
}

/// A stop in the middle of a request to a server that does not answer: at once, and nothing is lost.
#[test]
fn a_stop_does_not_wait_for_a_server() {
    let runs = Runs::new();
    let server = Script::faulty(&[]);
    let reward = hybrid(&server.url, "");
    let undisturbed = runs.done("undisturbed", &options(&reward, &[]));
    server.fault("slow 100");
    let mut child = runs.command("run", &options(&reward, &[])).spawn().unwrap();
    let log = runs.path("run").join("metrics.jsonl");
    while fs::read_to_string(&log).map_or(0, |text| text.lines().count()) < 2 {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before it was disturbed");
        std::thread::sleep(Duration::from_millis(10));
    }
    server.fault("hang");
    let asked = server.count();
    while server.count() == asked {
        std::thread::sleep(Duration::from_millis(10));
    }
    let begun = Instant::now();
    kill_process(Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(), Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}: {}", begun.elapsed(), text(&output));
    assert!(output.status.success(), "{}", text(&output));
    assert!(runs.newest("run").index.state.unfinished.is_some());
    // Where a server is decides no result: the run goes on with another one.
    let elsewhere = Script::faulty(&[]);
    let moved = hybrid(&elsewhere.url, "");
    assert_eq!(contents(&runs.done("run", &options(&moved, &["--resume"]))), contents(&undisturbed));
    assert_same_numbers(&runs.path("run"), &runs.path("undisturbed"));
}

/// What the watch saw decides: it ends the run where it was asked to, and every resume until it is told otherwise.
#[test]
fn a_gamed_reward_ends_a_run_that_asks_for_it() {
    let runs = Runs::new();
    let server = Script::faulty(&[]);
    let reward = hybrid(&server.url, "");
    let watched = |updates: &'static str, more: &[&'static str]| -> Vec<String> {
        let sets = ["eval.every=2", "watch.patience=1", updates];
        let sets = sets.iter().chain(more).flat_map(|set| ["--set".to_owned(), (*set).to_owned()]);
        sets.chain(["--set".to_owned(), reward.clone(), "--resume".to_owned()]).collect()
    };
    let train = |options: Vec<String>| runs.train("run", &options.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(train(watched("schedule.updates=2", &[])).status.success());
    // As if the student had been honest at first: a far better held-out score, and a lower reward.
    let path = runs.path("run").join("watch.jsonl");
    let mut looks: Vec<Look> = advdmd::jsonl::read(&path).unwrap();
    for score in looks[0].held_out.get_mut("scenes read right").unwrap() {
        *score = 1.0;
    }
    for score in looks[0].trained.get_mut("remote").unwrap() {
        *score -= 5.0;
    }
    let lines: Vec<String> = looks.iter().map(|look| serde_json::to_string(look).unwrap() + "\n").collect();
    fs::write(&path, lines.concat()).unwrap();
    let stop = "watch.on_hacking=\"stop\"";
    for _ in 0..2 {
        let output = train(watched("schedule.updates=6", &[stop]));
        assert!(output.status.success(), "{}", text(&output));
        assert!(text(&output).contains("stopping, as watch.on_hacking asks"), "{}", text(&output));
        assert_eq!(runs.newest("run").index.state.update, 2, "not one update more");
    }
    let output = train(watched("schedule.updates=6", &[]));
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert_eq!(runs.newest("run").index.state.update, 6);
    let report = fs::read_to_string(runs.path("run").join("report.html")).unwrap();
    assert!(report.contains("is probably being gamed"), "the report has the alarm");
}
