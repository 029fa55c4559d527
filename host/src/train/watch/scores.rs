//! Scores and sample grids on the digit scenes, whose checker judges each image.

use std::path::Path;

use tch::Tensor;

use super::hacking::{Seen, Watch};
use super::{Models, SEED, Setting};
use crate::digits::{Verdict, judge};
use crate::eval::{DigitSuite, Entry, Subject};
use crate::jsonl::{self, Log};
use crate::report::{self, SampleRow, write_samples};
use crate::train::run::{After, Observer};
use crate::train::trainer::Trainer;
use crate::{Result, files, interrupt};

/// Evaluates teacher and student on the digit scenes and keeps the report up to date.
pub(super) struct Scores {
    suite: DigitSuite,
    log: Log,
    models: Models,
    watch: Watch,
    grid: usize,
    /// The update whose evaluation is the last in the log; the teacher's rows came with the first.
    evaluated: Option<u64>,
}

impl Scores {
    /// For a run in `out`, continuing its `eval.jsonl` from where the trainer stands.
    ///
    /// # Errors
    /// A log that cannot be written.
    pub fn new(trainer: &Trainer, models: Models, mut watch: Watch, out: &Path) -> Result<Self> {
        let config = &trainer.config;
        let path = out.join("eval.jsonl");
        let evaluated = newest_evaluation(&path, &models.steps, &watch.seen(), trainer.state.update)?;
        watch.resume(evaluated)?;
        if evaluated.is_none() {
            files::remove(&path)?;
        }
        Ok(Self {
            suite: DigitSuite::new(config.eval.prompts_per_task, SEED, tch::Device::Cpu)?,
            log: Log::open::<Entry>(&path, evaluated.unwrap_or(0))?,
            models,
            watch,
            grid: config.eval.grid,
            evaluated,
        })
    }

    fn settings(&self, with_teacher: bool) -> Vec<Setting> {
        let mut settings = Vec::new();
        if with_teacher {
            for steps in [self.models.teacher_steps].into_iter().chain(self.models.steps.iter().copied()) {
                settings.extend([true, false].map(|guided| self.models.teacher(steps, guided)));
            }
        }
        settings.extend(self.models.students());
        settings
    }

    /// Scores one setting, and writes that down. Returns its verdicts and its images, on the CPU.
    fn evaluate(&mut self, trainer: &Trainer, setting: &Setting) -> Result<(String, Tensor)> {
        let mut images = Vec::new();
        let scores = self.suite.evaluate(trainer.config.batch.micro_batch, |prompts, first| {
            let made = self.models.images(trainer, setting, prompts, first)?.f_to_device(tch::Device::Cpu)?;
            images.push(made.shallow_clone());
            Ok(made)
        })?;
        let verdicts = scores.verdicts.clone();
        let student = setting.subject == Subject::Student;
        let guided = if setting.guidance_scale == 1.0 { 1 } else { 2 };
        let sampler = if student { self.models.student_type.clone() } else { "ode-euler".to_owned() };
        self.log.append(&Entry {
            update: trainer.state.update,
            label: setting.label.to_owned(),
            subject: setting.subject,
            sampler,
            steps: setting.steps,
            guidance_scale: setting.guidance_scale,
            evaluations: setting.steps * guided,
            scores,
        })?;
        Ok((verdicts, Tensor::f_cat(&images, 0)?))
    }

    /// A grid of the same prompts and noise for teacher and student.
    fn samples(&self, trainer: &Trainer, out: &Path) -> Result<()> {
        let all = self.suite.prompts();
        let count = self.grid.min(all.len());
        if count == 0 {
            return Ok(());
        }
        // Evenly over the list, which is sorted by task.
        let prompts: Vec<&str> = (0..count).map(|index| all[index * all.len() / count].as_str()).collect();
        let settings = self.settings(true);
        let shown =
            settings.iter().filter(|setting| setting.subject == Subject::Student || setting.guidance_scale != 1.0);
        let mut rows = Vec::new();
        for setting in shown {
            let images = self.models.images(trainer, setting, &prompts, 0)?;
            let verdicts = self.verdicts(&prompts, &images)?;
            rows.push((setting.title(), setting.subject, images, verdicts));
        }
        let row = |(label, subject, images, verdicts)| SampleRow { label, subject, images, verdicts: Some(verdicts) };
        let rows: Vec<SampleRow<'_>> = rows.iter().map(|(l, s, i, v)| row((l, *s, i, v.as_slice()))).collect();
        write_samples(out, trainer.state.update, &prompts, &rows)?;
        Ok(())
    }

    fn verdicts(&self, prompts: &[&str], images: &Tensor) -> Result<Vec<Verdict>> {
        let readings = self.suite.read(images)?;
        let verdict = |(prompt, reading): (&&str, _)| Ok(judge(&prompt.parse()?, reading));
        prompts.iter().zip(&readings).map(verdict).collect()
    }
}

/// The suite as a held-out reward: 1 for a scene that shows what its prompt asks for, else 0.
const READ_RIGHT: &str = "scenes read right";

impl Observer for Scores {
    fn look(&mut self, trainer: &mut Trainer, out: &Path, _last: bool) -> Result<After> {
        let update = trainer.state.update;
        let mut after = self.watch.standing(trainer);
        if self.evaluated != Some(update) {
            let first = self.evaluated.is_none();
            if first {
                self.log.append(&Entry::real(self.suite.evaluate_real()?))?;
            }
            let stop = interrupt::flag()?;
            // The first of each: the teacher with guidance and all its steps, the student with all of its.
            let (mut teacher, mut student) = (None, None);
            for setting in self.settings(first) {
                if stop.is_raised() {
                    return Ok(After::GoOn);
                }
                let made = self.evaluate(trainer, &setting)?;
                let place = if setting.subject == Subject::Student { &mut student } else { &mut teacher };
                place.get_or_insert(made);
            }
            if let Some((verdicts, images)) = student {
                let prompts: Vec<&str> = self.suite.prompts().iter().map(String::as_str).collect();
                let judged = verdicts.bytes().map(|verdict| f32::from(verdict == b'1')).collect();
                let teacher = teacher.as_ref().map(|(_, images)| images);
                let seen = Seen { prompts: &prompts, images: &images, teacher, judged: Some((READ_RIGHT, judged)) };
                after = self.watch.look(trainer, out, seen)?;
            }
            self.evaluated = Some(update);
            self.samples(trainer, out)?;
        }
        report::write(out)?;
        Ok(after)
    }
}

/// The newest update up to `now` whose evaluation was not broken off: the student's rows come last, then the watch's, which
/// are of the updates `seen`.
fn newest_evaluation(log: &Path, steps: &[usize], seen: &[u64], now: u64) -> Result<Option<u64>> {
    if !log.exists() {
        return Ok(None);
    }
    let entries: Vec<Entry> = jsonl::read(log)?;
    let done = |update: &u64| {
        let of_student = |entry: &&Entry| entry.update == *update && entry.subject == Subject::Student;
        // What a later one follows was whole, whatever steps it had.
        entries.iter().any(|entry| entry.update > *update)
            || steps.iter().all(|&steps| entries.iter().filter(of_student).any(|entry| entry.steps == steps))
    };
    Ok(entries
        .iter()
        .map(|entry| entry.update)
        .filter(|update| *update <= now && seen.contains(update) && done(update))
        .max())
}
