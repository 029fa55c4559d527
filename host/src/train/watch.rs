//! What a run shows of itself: evaluations, sample grids and the report.

use std::path::Path;

use advdmd_sdk::{Denoiser, Sampler};
use serde_json::json;
use tch::Tensor;

use super::run::Observer;
use super::trainer::Trainer;
use crate::config::Component;
use crate::digits::{Verdict, judge};
use crate::eval::{DigitSuite, Entry, Subject};
use crate::jsonl::{self, Log};
use crate::pipeline::Pipeline;
use crate::random::Random;
use crate::registry::Registry;
use crate::report::{self, SampleRow, write_samples};
use crate::sampling::Trajectory;
use crate::{Result, files, interrupt};

/// Steps of the teacher's own sampling, the ceiling of the comparison.
pub const TEACHER_STEPS: usize = 40;
/// Seed of prompts and noise in evaluations: the same for every run, so that runs compare.
const SEED: u64 = 1;

/// Evaluates teacher and student on the digit scenes and keeps the report up to date.
pub struct Watch {
    suite: DigitSuite,
    log: Log,
    student: Box<dyn Sampler>,
    student_type: String,
    teacher: Box<dyn Sampler>,
    grid: usize,
    guidance_scale: f64,
    steps: Vec<usize>,
    /// The update whose evaluation is the last in the log; the teacher's rows came with the first.
    evaluated: Option<u64>,
}

/// A model as the evaluation runs it.
struct Setting {
    label: &'static str,
    subject: Subject,
    steps: usize,
    guidance_scale: f64,
}

impl Watch {
    /// For a run in `out`, continuing its `eval.jsonl` from where the trainer stands.
    ///
    /// # Errors
    /// A sampler that cannot be made, or a log that cannot be written.
    pub fn new(trainer: &Trainer, registry: &Registry, out: &Path) -> Result<Self> {
        let config = &trainer.config;
        let steps = config.sampler.steps;
        let steps = if steps > 1 { vec![steps, steps.div_ceil(2)] } else { vec![steps] };
        let path = out.join("eval.jsonl");
        let evaluated = newest_evaluation(&path, &steps, trainer.state.update)?;
        if evaluated.is_none() {
            files::remove(&path)?;
        }
        Ok(Self {
            suite: DigitSuite::new(config.eval.prompts_per_task, SEED, tch::Device::Cpu)?,
            log: Log::open::<Entry>(&path, evaluated.unwrap_or(0))?,
            student: registry.sampler(&config.sampler.component)?,
            student_type: config.sampler.component.r#type.clone(),
            teacher: registry.sampler(&euler())?,
            grid: config.eval.grid,
            guidance_scale: config.objective.dmd.guidance_scale,
            steps,
            evaluated,
        })
    }

    fn settings(&self, with_teacher: bool) -> Vec<Setting> {
        let mut settings = Vec::new();
        if with_teacher {
            for steps in [TEACHER_STEPS].into_iter().chain(self.steps.iter().copied()) {
                for (label, guidance_scale) in [("teacher, guided", self.guidance_scale), ("teacher", 1.0)] {
                    settings.push(Setting { label, subject: Subject::Teacher, steps, guidance_scale });
                }
            }
        }
        let student = |&steps| Setting { label: "student", subject: Subject::Student, steps, guidance_scale: 1.0 };
        settings.extend(self.steps.iter().map(student));
        settings
    }

    /// Images of `prompts` by one setting.
    fn images(&self, trainer: &Trainer, setting: &Setting, prompts: &[&str], first: usize) -> Result<Tensor> {
        let networks = &trainer.networks;
        let (sampler, denoiser): (&dyn Sampler, &dyn Denoiser) = match setting.subject {
            Subject::Student => (self.student.as_ref(), networks.student.as_ref()),
            _ => (self.teacher.as_ref(), networks.teacher.as_ref()),
        };
        let own = setting.subject == Subject::Student && setting.steps == trainer.config.sampler.steps;
        let sigmas = trainer.config.sampler.sigmas.as_deref().filter(|_| own);
        let pipeline = Pipeline {
            backbone: networks.backbone.as_ref(),
            denoiser,
            trajectory: &Trajectory::new(sampler, setting.steps, sigmas)?,
            guidance_scale: setting.guidance_scale,
            random: Random::new(SEED),
            device: networks.device,
        };
        pipeline.images(prompts, first)
    }

    fn evaluate(&mut self, trainer: &Trainer, setting: &Setting) -> Result<()> {
        let scores = self.suite.evaluate(trainer.config.batch.micro_batch, |prompts, first| {
            self.images(trainer, setting, prompts, first)
        })?;
        let student = setting.subject == Subject::Student;
        let guided = if setting.guidance_scale == 1.0 { 1 } else { 2 };
        let sampler = if student { self.student_type.clone() } else { "ode-euler".to_owned() };
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
            let images = self.images(trainer, setting, &prompts, 0)?;
            let verdicts = self.verdicts(&prompts, &images)?;
            rows.push((format!("{}, {} steps", setting.label, setting.steps), setting.subject, images, verdicts));
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

impl Observer for Watch {
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

/// The teacher's sampler: Euler over evenly spaced sigmas, at which it was found to do best at few steps.
fn euler() -> Component {
    let options = json!({ "shift": 1.0 });
    Component { r#type: "ode-euler".to_owned(), options: options.as_object().cloned().unwrap_or_default() }
}
