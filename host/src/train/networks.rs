//! Teacher, student and fake-score network over one frozen base.

use advdmd_sdk::{Backbone, BackboneSpec, Denoiser, Tuning};
use tch::Device;

use super::resident::Ledger;
use crate::Result;
use crate::config::RunConfig;
use crate::passes::PassCounter;
use crate::random::{Random, Stream};

/// The networks of a run. All three start as the base.
pub struct Networks {
    /// Encoders, and the owner of the base.
    pub backbone: Box<dyn Backbone>,
    /// Its shapes.
    pub spec: BackboneSpec,
    /// The frozen base.
    pub teacher: Box<dyn Denoiser>,
    /// The model that is trained.
    pub student: Box<dyn Denoiser>,
    /// The score of the student's own distribution.
    pub fake: Box<dyn Denoiser>,
    /// Where they compute.
    pub device: Device,
    /// Their passes.
    pub passes: PassCounter,
}

impl Networks {
    /// Makes the three denoisers of `backbone`.
    ///
    /// # Errors
    /// LoRA targets that match no layer.
    pub(super) fn new(
        backbone: Box<dyn Backbone>,
        config: &RunConfig,
        random: Random,
        device: Device,
        ledger: &mut Ledger,
    ) -> Result<Self> {
        let denoiser = |tuning: &Tuning, key| backbone.denoiser(tuning, random.seed(Stream::Init, key));
        let teacher = denoiser(&Tuning::Frozen, 0)?;
        ledger.book("base");
        let student = denoiser(&config.student.tuning, 0)?;
        ledger.book("student");
        let fake = denoiser(&config.critic.tuning, 1)?;
        ledger.book("fake network");
        let spec = backbone.spec();
        Ok(Self { spec, teacher, student, fake, device, passes: PassCounter::default(), backbone })
    }

    /// Whether backward passes reach the fake-score network's own weights. Off while the student trains *through*
    /// it: gradients then go to the network's input alone.
    pub fn train_fake(&self, on: bool) {
        for (_, parameter) in self.fake.parameters() {
            let _ = parameter.set_requires_grad(on);
        }
    }
}
