//! Digit scenes: grammar, scenes, the shipped checker, scores and the Fréchet distance.

use std::collections::HashSet;

use advdmd::digits::train::{TrainOptions, train_checker};
use advdmd::digits::{
    CELLS, Caption, CellReading, Checker, CheckerReport, Colour, Digit, FeatureStatistics, Glyphs, Object, Reading,
    Request, SCENE_FEATURES, SCENE_SIDE, Scene, ScoreRow, Split, Task, TaskScores, TaskWeights, Verdict,
    evaluation_prompts, frechet_distance, glyph_accuracy, judge, real_scenes, render_batch, sample_batch,
    sample_images,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

fn glyphs() -> &'static Glyphs {
    Glyphs::embedded().unwrap()
}

fn digit(value: u8) -> Digit {
    Digit::new(value).unwrap()
}

fn captions() -> Vec<Caption> {
    Task::ALL.into_iter().flat_map(Caption::all).collect()
}

/// What a perfect checker reads of a scene.
fn perfect(scene: &Scene) -> Reading {
    let cell = |object: Option<Object>| CellReading {
        object: object.map(|object| (object.digit, object.colour)),
        confidence: 1.0,
    };
    Reading { cells: scene.cells.map(cell) }
}

/// A scene that breaks its caption in one point: a digit, a colour or the relation.
fn spoil(caption: Caption, scene: &Scene) -> Scene {
    let mut spoiled = *scene;
    let cells: Vec<usize> = scene.objects().map(|(cell, _)| cell).collect();
    match caption.task() {
        Task::Position => spoiled.cells.swap(cells[0], cells[1]),
        Task::Colours | Task::Attribute => {
            let object = spoiled.cells[cells[0]].as_mut().unwrap();
            object.colour = Colour::ALL[(object.colour as usize + 1) % 6];
        }
        Task::Single | Task::Two | Task::Counting => {
            let object = spoiled.cells[cells[0]].as_mut().unwrap();
            object.digit = digit((object.digit.value() + 1) % 10);
            if spoiled.cells.iter().flatten().filter(|other| other.digit == digit_of(&spoiled, cells[0])).count() > 1 {
                spoiled.cells[cells[0]] = None;
            } else {
                let object = spoiled.cells[cells[0]].as_mut().unwrap();
                object.glyph = glyphs().indices(Split::Train, object.digit)[0];
            }
        }
    }
    spoiled
}

fn digit_of(scene: &Scene, cell: usize) -> Digit {
    scene.cells[cell].unwrap().digit
}

#[test]
fn the_table_has_every_digit_in_both_splits() {
    let table = glyphs();
    assert_eq!(table.len(), 1797);
    assert_eq!(table.iter(Split::HeldOut).count(), 179);
    assert_eq!(table.iter(Split::Train).count(), 1618);
    assert!(table.iter(Split::HeldOut).all(|(index, _)| index % 10 == 9));
    let first = table.get(0).unwrap();
    assert_eq!(first.digit, digit(0));
    assert_eq!(first.alpha[..8], [0.0, 0.0, 5.0 / 16.0, 13.0 / 16.0, 9.0 / 16.0, 1.0 / 16.0, 0.0, 0.0]);
    assert!(table.get(1797).is_none());
}

#[test]
fn a_damaged_table_is_refused_with_its_row() {
    use std::io::Write;
    let pack = |text: &str| {
        let mut file = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        file.write_all(text.as_bytes()).unwrap();
        file.finish().unwrap()
    };
    let line = |intensity: &str, label: &str| format!("{}{intensity},{label}\n", "0,".repeat(63));
    let error = |text: &str| Glyphs::parse(&pack(text)).unwrap_err().to_string();
    assert_eq!(error("1,2,3\n"), "digit table: row 0: has 3 numbers, expected 65");
    assert_eq!(error(&line("17", "3")), "digit table: row 0: intensity 17 is outside 0..=16");
    assert_eq!(error(&line("NaN", "3")), "digit table: row 0: intensity NaN is outside 0..=16");
    assert_eq!(error(&(line("3", "3") + &line("3", "10"))), "digit table: row 1: label 10 is not a digit");
    assert_eq!(error(&line("3", "3")), "digit table: no glyph of digit 0 in the Train split");
    assert!(Glyphs::parse(b"not gzip").unwrap_err().to_string().contains("cannot be decompressed"));
}

#[test]
fn every_caption_survives_its_text() {
    let all = captions();
    assert_eq!(Task::ALL.map(|task| Caption::all(task).len()), [10, 90, 30, 60, 360, 2700]);
    let texts: HashSet<String> = all.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), 3250);
    for caption in all {
        assert_eq!(caption.to_string().parse::<Caption>().unwrap(), caption);
        let json = serde_json::to_string(&caption).unwrap();
        assert_eq!(serde_json::from_str::<Caption>(&json).unwrap(), caption);
    }
    let texts =
        ["a 7", "a 7 and a 3", "three 7s", "a red 7", "a 7 left of a 3", "a 7 above a 3", "a red 7 and a blue 3"];
    for text in texts {
        assert_eq!(text.parse::<Caption>().unwrap().to_string(), text);
    }
    for task in Task::ALL {
        assert_eq!(task.name().parse::<Task>().unwrap(), task);
    }
}

#[test]
fn a_bad_caption_names_its_word_and_the_nearest() {
    let error = |text: &str| text.parse::<Caption>().unwrap_err().to_string();
    assert_eq!(
        error("a redd 7"),
        "caption \"a redd 7\": word 2 is \"redd\", expected a colour or a digit; did you mean \"red\"?"
    );
    assert_eq!(
        error("a sevn"),
        "caption \"a sevn\": word 2 is \"sevn\", expected a colour or a digit; did you mean \"7\"?"
    );
    assert!(error("three 7").ends_with("did you mean \"7s\"?"));
    assert!(error("a 7 abov a 3").ends_with("did you mean \"above\"?"));
    assert!(error("a 7 left a 3").contains("word 4 is \"a\", expected \"of\""));
    assert!(error("a red 7 and a 3").contains("word 6 is \"3\", expected a colour"));
    assert!(error("a 7 and a 3 and").contains("word 6 is \"and\", expected the end"));
    assert!(error("a red").contains("ends after 2 words, expected a digit next"));
    assert!(error("").contains("ends after 0 words"));
    assert!(error("a 7 and a 7").contains("must differ"));
    assert!(error("a red 7 and a red 3").contains("the colour red is in both"));
    assert!("colors".parse::<Task>().unwrap_err().to_string().ends_with("did you mean \"colours\"?"));
    assert!(Caption::new(Request::Two(digit(1), digit(1))).is_err());
    assert!(Digit::new(10).is_err());
}

#[test]
fn the_evaluation_list_is_fixed_and_balanced() {
    let list: Vec<String> = evaluation_prompts(2, 1).iter().map(ToString::to_string).collect();
    // Pinned: results are comparable only while the list stays as it is.
    let pinned = [
        "a 4",
        "a 8",
        "a 9 and a 5",
        "a 9 and a 2",
        "three 3s",
        "three 0s",
        "a blue 1",
        "a green 7",
        "a 5 right of a 8",
        "a 2 above a 5",
        "a cyan 6 and a purple 7",
        "a yellow 0 and a blue 5",
    ];
    assert_eq!(list, pinned);
    assert_ne!(evaluation_prompts(30, 1), evaluation_prompts(30, 2));
    let (long, short) = (evaluation_prompts(60, 7), evaluation_prompts(25, 7));
    for task in Task::ALL {
        let of = |list: &[Caption]| list.iter().copied().filter(|caption| caption.task() == task).collect::<Vec<_>>();
        assert_eq!(of(&long)[..25], of(&short));
        assert_eq!(of(&long).len(), 60);
        let distinct: HashSet<Caption> = of(&long).into_iter().collect();
        assert_eq!(distinct.len(), Caption::all(task).len().min(60));
    }
}

#[test]
fn drawn_captions_follow_the_task_weights_and_cover_the_grammar() {
    let mut rng = rng(3);
    for task in Task::ALL {
        let drawn: HashSet<Caption> = (0..40_000).map(|_| Caption::sample(task, &mut rng)).collect();
        assert_eq!(drawn, Caption::all(task).into_iter().collect());
    }
    let weights = TaskWeights::new([0.0, 1.0, 0.0, 0.0, 3.0, 0.0]).unwrap();
    let drawn: Vec<Task> = (0..4000).map(|_| weights.sample(&mut rng)).collect();
    let share = drawn.iter().filter(|task| **task == Task::Position).count() as f64 / 4000.0;
    assert!((share - 0.75).abs() < 0.03, "{share}");
    assert!(drawn.iter().all(|task| matches!(task, Task::Two | Task::Position)));
    assert!(TaskWeights::new([0.0; 6]).is_err());
    assert!(TaskWeights::new([1.0, -1.0, 1.0, 1.0, 1.0, 1.0]).is_err());
    assert!(TaskWeights::new([f64::NAN; 6]).is_err());
}

#[test]
fn every_scene_fulfils_its_caption_and_spoiled_ones_do_not() {
    let mut rng = rng(4);
    for caption in captions() {
        let scene = Scene::sample(&caption, glyphs(), Split::Train, &mut rng);
        let wanted = match caption.request() {
            Request::Counting(count, _) => count.number(),
            Request::Single(_) | Request::Colours(..) => 1,
            _ => 2,
        };
        assert_eq!(scene.objects().count(), wanted, "{caption}");
        for (_, object) in scene.objects() {
            assert_eq!(glyphs().get(object.glyph).unwrap().digit, object.digit);
            assert_eq!(Split::of(object.glyph), Split::Train);
        }
        let verdict = judge(&caption, &perfect(&scene));
        assert!(verdict.correct && verdict.reason.is_empty(), "{caption}: {verdict:?}");
        let verdict = judge(&caption, &perfect(&spoil(caption, &scene)));
        assert!(!verdict.correct && verdict.reason.starts_with("expected"), "{caption}: {verdict:?}");
    }
}

#[test]
fn judging_follows_geneval() {
    let reading = |cells: [Option<(u8, Colour)>; CELLS]| Reading {
        cells: cells.map(|object| CellReading {
            object: object.map(|(value, colour)| (digit(value), colour)),
            confidence: 1.0,
        }),
    };
    let verdict = |text: &str, reading: &Reading| judge(&text.parse().unwrap(), reading);
    let (red, blue) = (Colour::Red, Colour::Blue);
    // 7 | 3
    // . | 7
    let shown = reading([Some((7, red)), Some((3, blue)), None, Some((7, blue))]);
    for text in ["a 7", "a 3 and a 7", "two 7s", "a blue 7", "a 7 left of a 3", "a 7 below a 3", "a red 7 and a blue 3"]
    {
        assert!(verdict(text, &shown).correct, "{text}");
    }
    for (text, reason) in [
        ("a 5", "expected 5 >=1, found 0"),
        ("a 7 and a 5", "expected 5 >=1, found 0"),
        ("three 7s", "expected 7 ==3, found 2"),
        ("two 3s", "expected 3 ==2, found 1"),
        ("a red 3", "expected red 3 >=1, found 0 red and blue"),
        ("a 7 right of a 3", "expected 7 right of 3, found otherwise"),
        ("a 3 below a 7", "expected 3 below 7, found otherwise"),
        ("a 5 below a 8", "expected 5 >=1, found 0; expected 8 >=1, found 0"),
        ("a green 7 and a red 5", "expected green 7 >=1, found 0 green and red, blue; expected 5 >=1, found 0"),
    ] {
        assert_eq!(verdict(text, &shown), Verdict { correct: false, reason: reason.into() }, "{text}");
    }
}

#[test]
fn a_scene_is_alpha_times_colour_in_its_cell() {
    let mut scene = Scene::default();
    scene.cells[1] = Some(Object { digit: digit(0), colour: Colour::Purple, glyph: 0 });
    scene.cells[2] = Some(Object { digit: digit(1), colour: Colour::Blue, glyph: 1 });
    let image = scene.render(glyphs()).unwrap();
    let at = |channel: usize, row: usize, column: usize| image[(channel * SCENE_SIDE + row) * SCENE_SIDE + column];
    // Row 0 of glyph 0: 0 0 5 13 9 1 0 0; row 1: 0 0 13 15 10 15 5 0. Cell 1 begins at column 8.
    for (channel, intensity) in [0.85, 0.2, 0.95].into_iter().enumerate() {
        assert_eq!(at(channel, 0, 8 + 3), 13.0 / 16.0 * intensity);
        assert_eq!(at(channel, 1, 8 + 6), 5.0 / 16.0 * intensity);
    }
    // Row 0 of glyph 1: 0 0 0 12 13 5 0 0. Cell 2 begins at row 8.
    for (channel, intensity) in [0.2, 0.35, 1.0].into_iter().enumerate() {
        assert_eq!(at(channel, 8, 4), 13.0 / 16.0 * intensity);
    }
    let dark = |rows: std::ops::Range<usize>, columns: std::ops::Range<usize>| {
        rows.into_iter().all(|row| columns.clone().all(|column| (0..3).all(|channel| at(channel, row, column) == 0.0)))
    };
    assert!(dark(0..8, 0..8) && dark(8..16, 8..16));
    let batch = render_batch(&[Scene::default(), scene], glyphs()).unwrap();
    assert_eq!(batch.size(), [2, 3, 16, 16]);
    assert_eq!(Vec::<f32>::try_from(batch.get(1).flatten(0, 2)).unwrap(), image);
    assert_eq!(batch.get(0).abs().max().double_value(&[]), 0.0);

    scene.cells[0] = Some(Object { digit: digit(0), colour: Colour::Red, glyph: 1797 });
    assert!(scene.render(glyphs()).unwrap_err().to_string().contains("a row of the table of 1797"));
}

#[test]
fn a_seed_gives_the_same_batch() {
    let batch = |seed| sample_batch(&TaskWeights::default(), 32, glyphs(), Split::Train, &mut rng(seed)).unwrap();
    let ((captions_a, images_a), (captions_b, images_b), (captions_c, _)) = (batch(1), batch(1), batch(2));
    assert_eq!(captions_a, captions_b);
    assert!(images_a.equal(&images_b));
    assert_ne!(captions_a, captions_c);
    // Any generator will do, also behind a reference to the trait.
    let generator: &mut dyn rand::RngCore = &mut rng(1);
    let (captions_d, _) = sample_batch(&TaskWeights::default(), 32, glyphs(), Split::Train, generator).unwrap();
    assert_eq!(captions_a, captions_d);
}

#[test]
fn the_shipped_checker_reads_real_digits_and_scenes() {
    let checker = Checker::embedded(Device::Cpu).unwrap();
    assert!(glyph_accuracy(&checker, Split::Train).unwrap() >= 0.995);
    assert!(glyph_accuracy(&checker, Split::HeldOut).unwrap() >= 0.985);
    let train = real_scenes(&checker, Split::Train, 300, 11).unwrap();
    let held_out = real_scenes(&checker, Split::HeldOut, 300, 11).unwrap();
    for task in Task::ALL {
        assert!(train.task(task).unwrap() >= 0.995, "{train:?}");
        assert!(held_out.task(task).unwrap() >= 0.99, "{held_out:?}");
    }
}

#[test]
fn the_shipped_report_is_about_the_shipped_checker() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/data/checker.json");
    let report: CheckerReport = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let checker = Checker::embedded(Device::Cpu).unwrap();
    // The command names nothing but the seed, so that the other options have to be the defaults.
    assert_eq!(report.options, TrainOptions { seed: report.options.seed, ..TrainOptions::default() });
    assert!(report.command.ends_with(&format!("--seed {}", report.options.seed)));
    assert_eq!(report.train_accuracy, glyph_accuracy(&checker, Split::Train).unwrap());
    assert_eq!(report.held_out_accuracy, glyph_accuracy(&checker, Split::HeldOut).unwrap());
    assert!(report.held_out_degraded > 0.95 && report.blank_rejected > 0.99 && report.spoiled_rejected > 0.9);
}

#[test]
fn the_shipped_checker_sees_what_is_wrong() {
    let checker = Checker::embedded(Device::Cpu).unwrap();
    let captions = evaluation_prompts(100, 5);
    let mut rng = rng(6);
    let spoiled: Vec<Scene> = captions
        .iter()
        .map(|caption| spoil(*caption, &Scene::sample(caption, glyphs(), Split::Train, &mut rng)))
        .collect();
    let images = render_batch(&spoiled, glyphs()).unwrap();
    let rows = ScoreRow::judge_all(&captions, &checker.read(&images).unwrap()).unwrap();
    let passed: Vec<&ScoreRow> = rows.iter().filter(|row| row.verdict.correct).collect();
    assert!(passed.len() <= 2, "{passed:?}");

    // Images of other captions, black ones, noise: next to nothing is correct by chance.
    let score = |images: &Tensor| {
        let rows = ScoreRow::judge_all(&captions, &checker.read(images).unwrap()).unwrap();
        TaskScores::new(&rows, 0).overall.unwrap()
    };
    let real = sample_images(&captions, glyphs(), Split::Train, &mut rng).unwrap();
    assert!(score(&real) >= 0.99);
    assert!(score(&real.roll([1], [0])) < 0.3);
    assert_eq!(score(&real.zeros_like()), 0.0);
    // Neither slight noise nor values that overshoot change what is read.
    let noise = noise(real.size().as_slice(), 8);
    assert!(score(&(&real * 1.1 - 0.02 + &noise * 0.05)) >= 0.98);
    // Two digits laid over one another, as a student that averages its modes draws them, are none.
    let pairs: Vec<(Digit, Digit)> =
        Digit::ALL.into_iter().flat_map(|a| Digit::ALL.map(|b| (a, b))).filter(|(a, b)| a != b).collect();
    let drawn = |digit: Digit, rng: &mut ChaCha8Rng| {
        let caption = Caption::new(Request::Colours(Colour::Red, digit)).unwrap();
        let objects: Vec<Object> =
            Scene::sample(&caption, glyphs(), Split::HeldOut, rng).objects().map(|(_, object)| object).collect();
        Scene { cells: [objects.first().copied(), None, None, None] }
    };
    let first: Vec<Scene> = pairs.iter().map(|(a, _)| drawn(*a, &mut rng)).collect();
    let second: Vec<Scene> = pairs.iter().map(|(_, b)| drawn(*b, &mut rng)).collect();
    let mixed = (render_batch(&first, glyphs()).unwrap() + render_batch(&second, glyphs()).unwrap()) * 0.5;
    let read = checker.read(&mixed).unwrap().iter().filter(|reading| reading.objects().count() > 0).count();
    assert!(read < 20, "{read} of 90 overlays read as digits");
}

/// Uniform in -1..1, from the counter generator.
fn noise(size: &[i64], seed: u64) -> Tensor {
    use rand::RngCore;
    let mut rng = rng(seed);
    let count = size.iter().product::<i64>();
    let values: Vec<f32> =
        (0..count).map(|_| (f64::from(rng.next_u32()) / f64::from(u32::MAX) * 2.0 - 1.0) as f32).collect();
    Tensor::from_slice(&values).view(size)
}

#[test]
fn bad_images_and_weights_are_errors() {
    let checker = Checker::embedded(Device::Cpu).unwrap();
    let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
    assert!(checker.read(&zeros(&[2, 3, 16, 8])).unwrap_err().to_string().contains("expected [B, 3, 16, 16]"));
    assert!(checker.features(&zeros(&[3, 16, 16])).is_err());
    assert!(checker.classify(&zeros(&[1, 1, 8, 8])).is_err());
    let broken = zeros(&[1, 3, 16, 16]) / 0.0;
    assert!(checker.read(&broken).unwrap_err().to_string().contains("NaN or infinity"));
    assert_eq!(checker.read(&zeros(&[0, 3, 16, 16])).unwrap(), []);
    assert_eq!(checker.features(&zeros(&[0, 3, 16, 16])).unwrap().size(), [0, SCENE_FEATURES]);
    // Half precision and double are read too.
    assert_eq!(checker.read(&zeros(&[1, 3, 16, 16]).to_kind(Kind::Double)).unwrap()[0].objects().count(), 0);
    assert!(Checker::from_bytes(b"not safetensors", Device::Cpu).is_err());
    let captions = evaluation_prompts(1, 0);
    assert!(ScoreRow::judge_all(&captions, &[]).unwrap_err().to_string().contains("one for each of 6 captions"));
}

#[test]
fn training_is_decided_by_its_seed_and_survives_the_disk() {
    let train = |seed| {
        let options = TrainOptions { seed, steps: 20, batch: 32, ..TrainOptions::default() };
        let mut last = f64::NAN;
        let checker = train_checker(&options, |progress| last = progress.loss).unwrap();
        (checker, last)
    };
    let ((checker, loss), (_, again), (_, other)) = (train(1), train(1), train(2));
    assert!(loss.is_finite());
    assert_eq!(loss, again);
    assert_ne!(loss, other);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checker.safetensors");
    checker.save(&path).unwrap();
    let loaded = Checker::load(&path, Device::Cpu).unwrap();
    let cells = noise(&[5, 3, 8, 8], 1);
    assert!(checker.classify(&cells).unwrap().0.equal(&loaded.classify(&cells).unwrap().0));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    assert!(Checker::load(&folder.path().join("absent"), Device::Cpu).is_err());
    let refused = TrainOptions { learning_rate: f64::NAN, ..TrainOptions::default() };
    assert!(train_checker(&refused, |_| ()).unwrap_err().to_string().contains("learning_rate is NaN"));
}

#[test]
fn the_overall_score_is_the_mean_of_the_task_means() {
    let captions = captions();
    let row = |prompt: usize, task: Task, correct: bool| {
        let caption = *captions.iter().find(|caption| caption.task() == task).unwrap();
        ScoreRow { prompt, caption, verdict: Verdict { correct, reason: String::new() } }
    };
    // 400 single images of which 100 are right, one image for each other task, all right.
    let mut rows: Vec<ScoreRow> = (0..400).map(|i| row(i, Task::Single, i % 4 == 0)).collect();
    assert_eq!(TaskScores::new(&rows, 0).overall, None);
    rows.extend(Task::ALL[1..].iter().map(|task| row(0, *task, true)));
    let scores = TaskScores::new(&rows, 0);
    assert_eq!(scores.task(Task::Single), Some(0.25));
    assert!((scores.overall.unwrap() - 5.25 / 6.0).abs() < 1e-12);
    // sqrt(.25 * .75 / 400) = .02165; a sixth of it reaches the overall score.
    let single = scores.tasks[0];
    assert!((single.standard_error - 0.02165).abs() < 0.002, "{single:?}");
    assert!((scores.overall_standard_error.unwrap() - single.standard_error / 6.0).abs() < 1e-9);
    assert_eq!(scores, TaskScores::new(&rows, 0));
    // The four images of a prompt stand or fall together here: the error is twice that of independent ones.
    let grouped: Vec<ScoreRow> = (0..400).map(|i| row(i / 4, Task::Single, i / 4 % 4 == 0)).collect();
    let error = TaskScores::new(&grouped, 0).tasks[0].standard_error;
    assert!((error - 0.0433).abs() < 0.004, "{error}");
    assert_eq!(TaskScores::new(&[], 0).tasks, []);
    let line = serde_json::to_string(&rows[0]).unwrap();
    assert_eq!(line, r#"{"prompt":0,"caption":"a 0","correct":true,"reason":""}"#);
    assert_eq!(serde_json::from_str::<ScoreRow>(&line).unwrap(), rows[0]);
}

#[test]
fn the_frechet_distance_agrees_with_scipy() {
    // sin(1 + .37 i (j + 1) + p i) (1 + .25 j) + p j, 60 x 5 with p = 0 and 45 x 5 with p = .3; the expected number is
    // |m1 - m2|^2 + trace(S1 + S2 - 2 scipy.linalg.sqrtm(S1 @ S2)) with numpy.cov.
    let features = |rows: u32, p: f64| {
        let value = |i: f64, j: f64| (1.0 + 0.37 * i * (j + 1.0) + p * i).sin() * (1.0 + 0.25 * j) + p * j;
        let values: Vec<f64> = (0..rows).flat_map(|i| (0..5).map(move |j| value(i.into(), j.into()))).collect();
        Tensor::from_slice(&values).view([-1, 5])
    };
    let (a, b) = (features(60, 0.0), features(45, 0.3));
    assert!((frechet_distance(&a, &b).unwrap() - 2.766_795_711_286_316).abs() < 1e-9);
    assert!((frechet_distance(&b, &a).unwrap() - 2.766_795_711_286_316).abs() < 1e-9);
    assert!(frechet_distance(&a, &a).unwrap() < 1e-9);
    // Fewer rows than dimensions: singular covariances, and still a number.
    assert!(frechet_distance(&a.narrow(0, 0, 3), &b.narrow(0, 0, 3)).unwrap().is_finite());
}

#[test]
fn the_frechet_distance_of_gaussians_is_the_formula() {
    let gaussian = |mean: &[f64], covariance: &Tensor| {
        FeatureStatistics::of_gaussian(&Tensor::from_slice(mean), covariance).unwrap()
    };
    let diagonal = |values: &[f64]| Tensor::from_slice(values).diag(0);
    // Commuting covariances: |m1 - m2|^2 + sum (s1 - s2)^2 over the standard deviations.
    let a = gaussian(&[0.0, 1.0, -2.0], &diagonal(&[1.0, 4.0, 0.25]));
    let b = gaussian(&[3.0, 1.0, 2.0], &diagonal(&[9.0, 1.0, 0.25]));
    assert!((a.frechet_distance(&b).unwrap() - (25.0 + 4.0 + 1.0)).abs() < 1e-12);
    // The same pair turned by an orthogonal matrix, and a rank-one covariance against a full one:
    // tr(S) + tr(u u') - 2 sqrt(u' S u).
    let s = Tensor::from_slice(&[2.0, 0.5, 0.5, 1.0]).view([2, 2]);
    let u = Tensor::from_slice(&[1.0, 2.0]).view([2, 1]);
    let rank_one = gaussian(&[0.0, 0.0], &u.matmul(&u.tr()));
    let expected = 3.0 + 5.0 - 2.0 * 8.0f64.sqrt();
    assert!((rank_one.frechet_distance(&gaussian(&[0.0, 0.0], &s)).unwrap() - expected).abs() < 1e-7);
    assert!((gaussian(&[0.0, 0.0], &s).frechet_distance(&rank_one).unwrap() - expected).abs() < 1e-7);

    assert!(a.frechet_distance(&rank_one).is_err());
    assert!(FeatureStatistics::new(&Tensor::from_slice(&[1.0, 2.0]).view([1, 2])).is_err());
    assert!(FeatureStatistics::new(&Tensor::from_slice(&[1.0, f64::NAN]).view([2, 1])).is_err());
    assert!(FeatureStatistics::of_gaussian(&Tensor::from_slice(&[1.0]), &s).is_err());
}

#[test]
fn the_features_tell_good_images_from_bad() {
    let checker = Checker::embedded(Device::Cpu).unwrap();
    let captions = evaluation_prompts(150, 9);
    let images = |seed| sample_images(&captions, glyphs(), Split::Train, &mut rng(seed)).unwrap();
    let real = checker.features(&images(1)).unwrap();
    assert_eq!(real.size(), [900, SCENE_FEATURES]);
    let distance = |images: &Tensor| frechet_distance(&real, &checker.features(images).unwrap()).unwrap();
    let others = images(2);
    let floor = distance(&others);
    let red = others.amax([1i64].as_slice(), true) * Tensor::from_slice(&[1.0f32, 0.1, 0.1]).view([1, 3, 1, 1]);
    let blurred = others.avg_pool2d([3, 3], [1, 1], [1, 1], false, true, None::<i64>);
    for (name, worse) in [("noise", &others + noise(&others.size(), 3) * 0.2), ("one colour", red), ("blur", blurred)] {
        let far = distance(&worse);
        assert!(far > 2.0 * floor, "{name}: {far} against {floor}");
    }
}
