//! The digit scenes as an evaluation suite: `GenEval`'s six tasks and a Fréchet distance.

use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use tch::{Device, Tensor};

use super::scores::{Protocol, Scores};
use crate::digits::{
    CHECKER_WEIGHTS, Caption, Checker, FeatureStatistics, Glyphs, Reading, SCENE_SIDE, ScoreRow, Split, TaskScores,
    evaluation_prompts, sample_images,
};
use crate::{Error, Result};

/// Rises whenever captions, rules or reference images change.
const VERSION: u32 = 1;

/// Real scenes behind the Fréchet distance, at least.
const REFERENCE_IMAGES: usize = 4096;

/// Fixed prompts, the checker, and the features of real scenes for the same prompts.
#[derive(Debug)]
pub struct DigitSuite {
    captions: Vec<Caption>,
    prompts: Vec<String>,
    checker: Checker,
    reference: FeatureStatistics,
    protocol: Protocol,
}

impl DigitSuite {
    /// The suite with `prompts_per_task` prompts of each of the six tasks; checker and features compute on `device`.
    ///
    /// The reference images are scenes of training glyphs for the same prompts, drawn with the same seed.
    ///
    /// # Errors
    /// No prompts, or libtorch.
    pub fn new(prompts_per_task: usize, seed: u64, device: Device) -> Result<Self> {
        if prompts_per_task == 0 {
            return Err(Error::config("an evaluation needs at least 1 prompt per task, found 0"));
        }
        let captions = evaluation_prompts(prompts_per_task, seed);
        let checker = Checker::embedded(device)?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let rounds = REFERENCE_IMAGES.div_ceil(captions.len());
        let features: Result<Vec<Tensor>> = (0..rounds)
            .map(|_| Ok(checker.features(&sample_images(&captions, Glyphs::embedded()?, Split::Train, &mut rng)?)?))
            .collect();
        let protocol = Protocol {
            suite: "digits".into(),
            version: VERSION,
            prompts_per_task,
            seed,
            reference_images: rounds * captions.len(),
            checker: format!("{:x}", Sha256::digest(CHECKER_WEIGHTS))[..8].to_owned(),
        };
        let reference = FeatureStatistics::new(&Tensor::f_cat(&features?, 0)?)?;
        let prompts = captions.iter().map(ToString::to_string).collect();
        Ok(Self { captions, prompts, checker, reference, protocol })
    }

    /// The prompts, task by task.
    pub fn prompts(&self) -> &[String] {
        &self.prompts
    }

    /// What the checker sees in images `[B, 3, 16, 16]`.
    ///
    /// # Errors
    /// libtorch.
    pub fn read(&self, images: &Tensor) -> Result<Vec<Reading>> {
        Ok(self.checker.read(images)?)
    }

    /// What the scores mean.
    pub fn protocol(&self) -> &Protocol {
        &self.protocol
    }

    /// Judges a generator: `generate(prompts, offset)` gives an image `[3, 16, 16]` in 0..1 for each of up to `batch`
    /// prompts, stacked, on any device; `offset` is the first prompt's place in the list, for noise that does not
    /// depend on the batch.
    ///
    /// # Errors
    /// The generator's; images of another shape, NaN or infinity.
    pub fn evaluate(&self, batch: usize, mut generate: impl FnMut(&[&str], usize) -> Result<Tensor>) -> Result<Scores> {
        let prompts: Vec<&str> = self.prompts.iter().map(String::as_str).collect();
        let (mut images, mut seconds) = (Vec::new(), Duration::ZERO);
        for (index, prompts) in prompts.chunks(batch.max(1)).enumerate() {
            let begun = Instant::now();
            // The copy waits for the device, so that its work counts.
            let made = generate(prompts, index * batch.max(1))?.f_to_device(Device::Cpu)?;
            seconds += begun.elapsed();
            let expected = [prompts.len() as i64, 3, SCENE_SIDE as i64, SCENE_SIDE as i64];
            if made.size() != expected {
                let found = made.size();
                return Err(Error::contract(format!(
                    "the generator's images have shape {found:?}, expected {expected:?}"
                )));
            }
            images.push(made);
        }
        self.judge(&Tensor::f_cat(&images, 0)?, seconds)
    }

    /// A real scene of held-out glyphs for each prompt, `[B, 3, 16, 16]` in 0..1: what a sample grid compares with.
    ///
    /// # Errors
    /// A prompt outside the grammar of captions.
    pub fn real_images(&self, prompts: &[&str]) -> Result<Tensor> {
        let captions = prompts.iter().map(|prompt| prompt.parse()).collect::<Result<Vec<Caption>, _>>()?;
        let mut rng = ChaCha8Rng::seed_from_u64(!self.protocol.seed);
        Ok(sample_images(&captions, Glyphs::embedded()?, Split::HeldOut, &mut rng)?)
    }

    /// Judges real scenes of held-out glyphs: the ceiling of the scores and the floor of the Fréchet distance.
    ///
    /// # Errors
    /// libtorch.
    pub fn evaluate_real(&self) -> Result<Scores> {
        let prompts: Vec<&str> = self.prompts.iter().map(String::as_str).collect();
        self.judge(&self.real_images(&prompts)?, Duration::ZERO)
    }

    fn judge(&self, images: &Tensor, seconds: Duration) -> Result<Scores> {
        let rows = ScoreRow::judge_all(&self.captions, &self.checker.read(images)?)?;
        let features = FeatureStatistics::new(&self.checker.features(images)?)?;
        Ok(Scores {
            protocol: self.protocol.clone(),
            tasks: TaskScores::new(&rows, self.protocol.seed),
            frechet: features.frechet_distance(&self.reference)?,
            images: rows.len(),
            seconds: seconds.as_secs_f64(),
            verdicts: rows.iter().map(|row| if row.verdict.correct { '1' } else { '0' }).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suite() -> DigitSuite {
        DigitSuite::new(30, 0, Device::Cpu).unwrap()
    }

    #[test]
    fn real_scenes_score_high_and_black_images_zero() {
        let suite = suite();
        let real = suite.evaluate_real().unwrap();
        assert!(real.tasks.overall.unwrap() > 0.98, "{real:?}");
        let black = suite.evaluate(64, |prompts, _| {
            Ok(Tensor::zeros([prompts.len() as i64, 3, 16, 16], (tch::Kind::Float, Device::Cpu)))
        });
        let black = black.unwrap();
        assert_eq!(black.tasks.overall, Some(0.0));
        assert!(black.frechet > 10.0 * real.frechet, "{} {}", black.frechet, real.frechet);
        let difference = real.difference(&black).unwrap();
        assert!(difference.is_clear() && difference.mean > 0.98);
    }

    #[test]
    fn the_batch_does_not_change_the_scores() {
        let suite = suite();
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let images = sample_images(&suite.captions, Glyphs::embedded().unwrap(), Split::Train, &mut rng).unwrap();
        let with = |batch| {
            let scores =
                suite.evaluate(batch, |prompts, offset| Ok(images.narrow(0, offset as i64, prompts.len() as i64)));
            Scores { seconds: 0.0, ..scores.unwrap() }
        };
        assert_eq!(with(7), with(1000));
    }

    #[test]
    fn a_generator_that_breaks_its_contract_is_named() {
        let failed = suite().evaluate(64, |_, _| Ok(Tensor::zeros([1, 3, 16, 16], (tch::Kind::Float, Device::Cpu))));
        assert!(failed.unwrap_err().to_string().contains("[64, 3, 16, 16]"));
        assert!(DigitSuite::new(0, 0, Device::Cpu).is_err());
    }
}
