//! The checks of backbones.

mod model;
mod tuning;

use advdmd_sdk::{Backbone, BackboneSpec, Conditioning, Denoiser, Request, Result, Tuning};
use tch::{Kind, Tensor};

use crate::config;
use crate::memory;
use crate::report::{Examiner, Report};
use crate::samples::Random;
use crate::state::State;
use crate::subject::Subject;

const SPEC: [&str; 1] = ["spec"];
const CHECKS: [&str; 17] = [
    "encode_text",
    "encode_images",
    "decode_latents",
    "velocity",
    "deterministic",
    "taps",
    "refuses",
    "frozen",
    "lora_shares",
    "lora_init",
    "lora_gradients",
    "full",
    "grad_mode",
    "rng_state",
    "default_dtype",
    "threads",
    "memory",
];

/// Runs all checks on a backbone.
pub(crate) fn check(subject: &Subject<'_>) -> Report {
    let mut examiner = Examiner::new(subject.kind, &subject.name);
    let state = State::now();
    let made = config::examine(subject, &mut examiner).then(|| subject.backbone_of(&subject.config).ok()).flatten();
    let Some(backbone) = made else {
        examiner.skip(&SPEC, "it could not be made (above)");
        examiner.skip(&CHECKS, "it could not be made (above)");
        return examiner.finish();
    };
    let backbone = &*backbone;
    let spec = backbone.spec();
    if !examiner.check("spec", || model::spec(&spec)) {
        examiner.skip(&CHECKS, "its shapes are none (`spec`)");
        return examiner.finish();
    }
    examiner.check("encode_text", || model::encode_text(backbone, &spec));
    examiner.check("encode_images", || model::encode_images(backbone, &spec));
    examiner.check("decode_latents", || model::decode_latents(backbone, &spec));
    let bench = Bench::new(backbone, &spec).ok();
    let predicts = examiner.check("velocity", || model::velocity(backbone, bench.as_ref()));
    let Some(bench) = bench.filter(|_| predicts) else {
        examiner.skip(&CHECKS[4..], "it predicts nothing (above)");
        return examiner.finish();
    };
    examiner.check("deterministic", || model::deterministic(subject, backbone, &bench));
    examiner.check("taps", || model::taps(backbone, &bench));
    examiner.check("refuses", || model::refuses(backbone, &bench));
    tuning::examine(backbone, &bench, &mut examiner);
    let teacher = backbone.denoiser(&Tuning::Frozen, 0);
    state.examine(&mut examiner, &mut |_| {
        let fresh = subject.backbone_of(&subject.config)?;
        let conditioning = fresh.encode_text(&PROMPTS)?;
        drop(fresh.decode_latents(&fresh.encode_images(&images(&spec, 1))?)?);
        let student = fresh.denoiser(&LORA, 1)?;
        student.predict(&bench.x, &bench.sigma, &conditioning, Request { velocity: true, taps: &[0] }).map(drop)
    });
    examiner.check("memory", || {
        let teacher = teacher?;
        let lend = |times| {
            let bench = bench.repeated(times);
            let bytes = bench.bytes();
            (bench, bytes)
        };
        memory::examine(lend, |bench| {
            let _no_grad = tch::no_grad_guard();
            bench.fresh().velocity(&*teacher).map(drop)
        })
    });
    examiner.finish()
}

/// The low-rank update that is tried, on the backbone's own choice of layers.
const LORA: Tuning = Tuning::Lora { rank: 2, alpha: 2.0, targets: Vec::new() };

/// Samples of every check.
const BATCH: i64 = 2;

/// A state to predict at.
struct Bench {
    x: Tensor,
    sigma: Tensor,
    conditioning: Conditioning,
    spec: BackboneSpec,
}

impl Bench {
    fn new(backbone: &dyn Backbone, spec: &BackboneSpec) -> Result<Self> {
        let [c, h, w] = spec.latent_shape;
        Ok(Self {
            x: Random::new(3).normals(&[BATCH, c, h, w]),
            sigma: Tensor::from_slice(&[0.9_f32, 0.25]),
            conditioning: backbone.encode_text(&PROMPTS)?,
            spec: spec.clone(),
        })
    }

    fn predict(&self, denoiser: &dyn Denoiser, request: Request<'_>) -> Result<advdmd_sdk::Prediction> {
        denoiser.predict(&self.x, &self.sigma, &self.conditioning, request)
    }

    fn velocity(&self, denoiser: &dyn Denoiser) -> Result<Tensor> {
        let velocity = self.predict(denoiser, Request::VELOCITY)?.velocity;
        velocity.ok_or_else(|| advdmd_sdk::Error::invalid("`predict` gave no velocity, which was asked for"))
    }

    /// Its samples so many times.
    fn repeated(&self, times: usize) -> Self {
        let repeat = |tensor: &Tensor| {
            let mut counts = vec![1; tensor.dim()];
            counts[0] = times as i64;
            tensor.repeat(counts)
        };
        Self {
            x: repeat(&self.x),
            sigma: repeat(&self.sigma),
            conditioning: self.conditioning.map(repeat),
            spec: self.spec.clone(),
        }
    }

    /// The same in tensors of their own.
    fn fresh(&self) -> Self {
        Self {
            x: self.x.copy(),
            sigma: self.sigma.copy(),
            conditioning: self.conditioning.map(Tensor::copy),
            spec: self.spec.clone(),
        }
    }

    /// Bytes of the tensors that are lent in a call.
    fn bytes(&self) -> usize {
        let Conditioning { context, pooled, mask } = &self.conditioning;
        let all = [Some(&self.x), Some(&self.sigma), Some(context), pooled.as_ref(), mask.as_ref()];
        all.into_iter().flatten().map(|tensor| tensor.numel() * tensor.kind().elt_size_in_bytes()).sum()
    }
}

/// Prompts that the shipped backbones take, those of digit scenes too.
const PROMPTS: [&str; 2] = ["a red 7 and a blue 3", "two 7s"];

/// `[count, 3, H, W]` in 0..1.
fn images(spec: &BackboneSpec, count: i64) -> Tensor {
    let [c, h, w] = spec.image_shape;
    Random::new(4).normals(&[count, c, h, w]).sigmoid()
}

/// Largest difference as a share of the largest number.
fn apart(found: &Tensor, expected: &Tensor) -> f64 {
    if found.size() != expected.size() {
        return f64::INFINITY;
    }
    let difference = (found.to_kind(Kind::Double) - expected.to_kind(Kind::Double)).abs().max().double_value(&[]);
    let largest = expected.abs().max().double_value(&[]);
    if difference.is_nan() { f64::INFINITY } else { difference / largest.max(1e-12) }
}

fn finite(tensor: &Tensor) -> bool {
    bool::try_from(tensor.isfinite().all()).unwrap_or(false)
}
