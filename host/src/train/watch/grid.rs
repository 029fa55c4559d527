//! Sample grids alone, for data whose images nothing judges: what is not measured is not said.

use std::path::Path;

use tch::{Device, Tensor};

use super::hacking::{Seen, Watch};
use super::{Models, Setting};
use crate::eval::Subject;
use crate::report::{self, SampleRow, samples_of, write_samples};
use crate::train::run::{After, Observer};
use crate::train::trainer::Trainer;
use crate::{Result, interrupt};

/// Teacher and student on the same prompts and noise.
pub(super) struct Grid {
    models: Models,
    watch: Watch,
    /// The teacher never changes, so it is sampled once.
    teacher: Option<Tensor>,
    /// The update whose grid is there.
    shown: Option<u64>,
}

impl Grid {
    /// For a run in `out`; a resumed one may have the grid of its checkpoint already.
    ///
    /// # Errors
    /// A log that cannot be written.
    pub fn new(trainer: &Trainer, models: Models, mut watch: Watch, out: &Path) -> Result<Self> {
        let update = trainer.state.update;
        let seen = watch.seen().into_iter().filter(|&seen| seen <= update).max();
        watch.resume(seen)?;
        // The text beside a grid is written last. A log of the watch that is still there is this run's.
        let there = samples_of(out, update).with_extension("json").exists();
        Ok(Self { models, watch, teacher: None, shown: (there && seen == Some(update)).then_some(update) })
    }

    /// Images `[P, 3, H, W]` of all prompts of the grid by one setting; `None` after Ctrl-C.
    fn images(&self, trainer: &Trainer, setting: &Setting) -> Result<Option<Tensor>> {
        let stop = interrupt::flag()?;
        let ids: Vec<usize> = trainer.shown.iter().map(|(_, id)| *id).collect();
        let size = trainer.config.batch.micro_batch;
        let mut images = Vec::new();
        for (index, ids) in ids.chunks(size).enumerate() {
            if stop.is_raised() {
                return Ok(None);
            }
            let made =
                self.models.with(trainer, setting, |pipeline| pipeline.images_of(&trainer.table, ids, index * size))?;
            images.push(made.f_to_device(Device::Cpu)?);
        }
        Ok(Some(Tensor::f_cat(&images, 0)?))
    }

    /// The grid of this update: the guided teacher at its own steps, then the student, whose images at all its steps are
    /// given; `None` after Ctrl-C.
    fn samples(&mut self, trainer: &Trainer, out: &Path) -> Result<Option<Tensor>> {
        let teacher = self.models.teacher(self.models.teacher_steps, true);
        let mut rows: Vec<(String, Subject, Tensor)> = Vec::new();
        let mut student_images = None;
        let of_teacher = match self.teacher.take() {
            Some(images) => Some(images),
            None => self.images(trainer, &teacher)?,
        };
        let Some(images) = of_teacher else { return Ok(None) };
        self.teacher = Some(images.shallow_clone());
        rows.push((teacher.title(), Subject::Teacher, images));
        for student in self.models.students() {
            let Some(images) = self.images(trainer, &student)? else { return Ok(None) };
            student_images.get_or_insert_with(|| images.shallow_clone());
            rows.push((student.title(), Subject::Student, images));
        }
        let prompts: Vec<&str> = trainer.shown.iter().map(|(prompt, _)| prompt.as_str()).collect();
        let row = |(label, subject, images)| SampleRow { label, subject, images, verdicts: None };
        let rows: Vec<SampleRow<'_>> =
            rows.iter().map(|(label, subject, images)| row((label, *subject, images))).collect();
        write_samples(out, trainer.state.update, &prompts, &rows)?;
        Ok(student_images)
    }
}

impl Observer for Grid {
    fn look(&mut self, trainer: &mut Trainer, out: &Path, _last: bool) -> Result<After> {
        let update = trainer.state.update;
        let mut after = self.watch.standing(trainer);
        if self.shown != Some(update) && !trainer.shown.is_empty() {
            let Some(images) = self.samples(trainer, out)? else { return Ok(After::GoOn) };
            let shown = trainer.shown.clone();
            let prompts: Vec<&str> = shown.iter().map(|(prompt, _)| prompt.as_str()).collect();
            let teacher = self.teacher.as_ref().filter(|_| self.watch.seen().is_empty());
            let seen = Seen { prompts: &prompts, images: &images, teacher, judged: None };
            after = self.watch.look(trainer, out, seen)?;
        }
        self.shown = Some(update);
        report::write(out)?;
        Ok(after)
    }
}
