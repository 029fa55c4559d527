//! What a run shows of itself: evaluations, sample grids and the report.

mod grid;
mod hacking;
mod scores;

use std::path::Path;

use advdmd_sdk::{Denoiser, Sampler};
use serde_json::{Map, Value as Json};
use tch::Tensor;

use super::run::Observer;
use super::trainer::Trainer;
use crate::Result;
use crate::config::{Component, Data};
use crate::eval::Subject;
use crate::pipeline::Pipeline;
use crate::random::Random;
use crate::registry::Registry;
use crate::sampling::Trajectory;

/// Seed of prompts and noise in evaluations: the same for every run, so that runs compare.
const SEED: u64 = 1;

/// What looks at a run in `out`: scores and grids on digit scenes, grids alone on other data, where nothing can judge
/// an image; and the watch for reward hacking on either.
///
/// # Errors
/// A sampler or a held-out reward that cannot be made, or a log that cannot be written.
pub fn of(trainer: &Trainer, registry: &Registry, out: &Path) -> Result<Box<dyn Observer>> {
    let models = Models::new(trainer, registry)?;
    let watch = hacking::Watch::new(trainer, out)?;
    Ok(match trainer.config.data {
        Data::Digits { .. } => Box::new(scores::Scores::new(trainer, models, watch, out)?),
        Data::Images { .. } | Data::Webdataset { .. } => Box::new(grid::Grid::new(trainer, models, watch, out)?),
    })
}

/// A model as the evaluation runs it.
struct Setting {
    label: &'static str,
    subject: Subject,
    steps: usize,
    guidance_scale: f64,
}

impl Setting {
    /// For people: "teacher, guided, 40 steps".
    fn title(&self) -> String {
        format!("{}, {} {}", self.label, self.steps, if self.steps == 1 { "step" } else { "steps" })
    }
}

/// The models that are shown, and how they are sampled.
struct Models {
    student: Box<dyn Sampler>,
    student_type: String,
    teacher: Box<dyn Sampler>,
    guidance_scale: f64,
    /// Steps of the teacher's own sampling, the ceiling of the comparison.
    teacher_steps: usize,
    /// Steps of the student: K and half of them.
    steps: Vec<usize>,
}

impl Models {
    fn new(trainer: &Trainer, registry: &Registry) -> Result<Self> {
        let config = &trainer.config;
        let steps = config.sampler.steps;
        Ok(Self {
            student: registry.sampler(&config.sampler.component)?,
            student_type: config.sampler.component.r#type.clone(),
            teacher: registry.sampler(&euler(&config.data, &config.sampler.component))?,
            guidance_scale: config.objective.dmd.guidance_scale,
            teacher_steps: config.eval.teacher_steps,
            steps: if steps > 1 { vec![steps, steps.div_ceil(2)] } else { vec![steps] },
        })
    }

    fn teacher(&self, steps: usize, guided: bool) -> Setting {
        let (label, guidance_scale) = if guided { ("teacher, guided", self.guidance_scale) } else { ("teacher", 1.0) };
        Setting { label, subject: Subject::Teacher, steps, guidance_scale }
    }

    fn students(&self) -> impl Iterator<Item = Setting> {
        let student = |&steps| Setting { label: "student", subject: Subject::Student, steps, guidance_scale: 1.0 };
        self.steps.iter().map(student)
    }

    /// What `make` makes with the pipeline of one setting.
    fn with<T>(&self, trainer: &Trainer, setting: &Setting, make: impl Fn(&Pipeline<'_>) -> Result<T>) -> Result<T> {
        let networks = &trainer.networks;
        let (sampler, denoiser): (&dyn Sampler, &dyn Denoiser) = match setting.subject {
            Subject::Student => (self.student.as_ref(), networks.student.as_ref()),
            _ => (self.teacher.as_ref(), networks.teacher.as_ref()),
        };
        let own = setting.subject == Subject::Student && setting.steps == trainer.config.sampler.steps;
        let sigmas = trainer.config.sampler.sigmas.as_deref().filter(|_| own);
        make(&Pipeline {
            backbone: networks.backbone.as_ref(),
            denoiser,
            trajectory: &Trajectory::new(sampler, setting.steps, sigmas)?,
            guidance_scale: setting.guidance_scale,
            random: Random::new(SEED),
            device: networks.device,
        })
    }

    /// Images of `prompts` by one setting, which are samples `first..` of the seed.
    fn images(&self, trainer: &Trainer, setting: &Setting, prompts: &[&str], first: usize) -> Result<Tensor> {
        self.with(trainer, setting, |pipeline| pipeline.images(prompts, first))
    }
}

/// The teacher's sampler: Euler, over evenly spaced sigmas on digit scenes, at which it was found to do best at few steps,
/// and else over sigmas that are shifted as the student's are.
fn euler(data: &Data, student: &Component) -> Component {
    let shift = match data {
        Data::Digits { .. } => Some(Json::from(1.0)),
        _ => student.options.get("shift").cloned(),
    };
    let options = shift.map(|shift| ("shift".to_owned(), shift));
    Component { r#type: "ode-euler".to_owned(), options: Map::from_iter(options) }
}
