//! Scores and sample grids on the digit scenes, whose checker judges each image.

use std::path::Path;

use tch::Tensor;

use super::{Models, SEED, Setting};
use crate::digits::{Verdict, judge};
use crate::eval::{DigitSuite, Entry, Subject};
use crate::jsonl::{self, Log};
use crate::report::{self, SampleRow, write_samples};
use crate::train::run::Observer;
use crate::train::trainer::Trainer;
use crate::{Result, files, interrupt};

/// Evaluates teacher and student on the digit scenes and keeps the report up to date.
pub(super) struct Scores {
    suite: DigitSuite,
    log: Log,
    models: Models,
    grid: usize,
    /// The update whose evaluation is the last in the log; the teacher's rows came with the first.
    evaluated: Option<u64>,
}

impl Scores {
    /// For a run in `out`, continuing its `eval.jsonl` from where the trainer stands.
    ///
    /// # Errors
    /// A log that cannot be written.
    pub fn new(trainer: &Trainer, models: Models, out: &Path) -> Result<Self> {
        let config = &trainer.config;
        let path = out.join("eval.jsonl");
        let evaluated = newest_evaluation(&path, &models.steps, trainer.state.update)?;
        if evaluated.is_none() {
            files::remove(&path)?;
        }
        Ok(Self {
            suite: DigitSuite::new(config.eval.prompts_per_task, SEED, tch::Device::Cpu)?,
            log: Log::open::<Entry>(&path, evaluated.unwrap_or(0))?,
            models,
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

    fn evaluate(&mut self, trainer: &Trainer, setting: &Setting) -> Result<()> {
        let scores = self.suite.evaluate(trainer.config.batch.micro_batch, |prompts, first| {
            self.models.images(trainer, setting, prompts, first)
        })?;
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
        })
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

impl Observer for Scores {
    fn look(&mut self, trainer: &Trainer, out: &Path, _last: bool) -> Result<()> {
        let update = trainer.state.update;
        if self.evaluated != Some(update) {
            let first = self.evaluated.is_none();
            if first {
                self.log.append(&Entry::real(self.suite.evaluate_real()?))?;
            }
            let stop = interrupt::flag()?;
            for setting in self.settings(first) {
                if stop.is_raised() {
                    return Ok(());
                }
                self.evaluate(trainer, &setting)?;
            }
            self.evaluated = Some(update);
            self.samples(trainer, out)?;
        }
        report::write(out).map(|_| ())
    }
}

/// The newest update up to `now` whose evaluation was not broken off: the student's rows come last.
fn newest_evaluation(log: &Path, steps: &[usize], now: u64) -> Result<Option<u64>> {
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
    Ok(entries.iter().map(|entry| entry.update).filter(|update| *update <= now && done(update)).max())
}
