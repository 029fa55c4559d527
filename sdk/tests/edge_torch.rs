//! Tensors behind the edge: autograd runs through, nothing leaks, and libtorch's mode stays the host's.

use advdmd_sdk::abi::{loop_backbone, loop_reward};
use advdmd_sdk::{
    Backbone, BackboneSpec, Conditioning, DType, Denoiser, DiscriminatorLoss, EncoderSource, Error, Learner, Needs,
    OriginalModule, Prediction, Request, Result, Reward, RewardBatch, SaveOptions, Sources, TensorView, Tuning,
};
use tch::{Device, Kind, Tensor};

const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

/// A linear head that tells real from fake; it leaves gradients switched off after every call.
struct Head(Tensor);

impl Reward for Head {
    fn needs(&self) -> Needs {
        Needs { latents: true, ..Needs::default() }
    }

    fn score(&mut self, batch: &RewardBatch<'_>) -> Result<Vec<f32>> {
        std::mem::forget(tch::no_grad_guard());
        let scores = batch.latents()?.torch()?.f_matmul(&self.0)?.f_reshape(-1)?;
        Ok(Vec::try_from(scores)?)
    }

    fn score_differentiable(&mut self, batch: &RewardBatch<'_>) -> Result<Option<Tensor>> {
        Ok(Some(batch.latents()?.torch()?.matmul(&self.0).reshape(-1)))
    }

    fn learner(&mut self) -> Option<&mut dyn Learner> {
        Some(self)
    }
}

impl Learner for Head {
    fn parameters(&self) -> Vec<(String, Tensor)> {
        vec![("head.weight".to_owned(), self.0.shallow_clone())]
    }

    fn discriminator_loss(&mut self, real: &RewardBatch<'_>, fake: &RewardBatch<'_>) -> Result<DiscriminatorLoss> {
        let logits = |batch: &RewardBatch<'_>| Ok::<_, Error>(batch.latents()?.torch()?.f_matmul(&self.0)?.reshape(-1));
        let (real, fake) = (logits(real)?, logits(fake)?);
        let loss = ((-&real).softplus() + fake.softplus()).mean(Kind::Float);
        Ok(DiscriminatorLoss { loss, real: real.sigmoid().detach(), fake: fake.sigmoid().detach() })
    }

    fn generator_loss(&mut self, fake: &RewardBatch<'_>) -> Result<Tensor> {
        Ok((-fake.latents()?.torch()?.f_matmul(&self.0)?).reshape(-1).softplus())
    }
}

fn head() -> (Tensor, Box<dyn Reward>) {
    let weight = Tensor::from_slice(&[0.5f32, -1.0, 2.0]).reshape([3, 1]).set_requires_grad(true);
    (weight.shallow_clone(), loop_reward(Box::new(Head(weight))).unwrap())
}

fn batch(latents: &Tensor) -> RewardBatch<'static> {
    let prompts = vec![""; latents.size()[0] as usize];
    RewardBatch { prompts, latents: Some(TensorView::from_torch(latents).unwrap()), ..RewardBatch::default() }
}

#[test]
fn gradients_flow_through_a_differentiable_score() {
    let (weight, mut reward) = head();
    let latents = Tensor::ones([2, 3], F32).set_requires_grad(true);
    let score = reward.score_differentiable(&batch(&latents)).unwrap().unwrap();
    score.sum(Kind::Float).backward();
    assert_eq!(latents.grad(), weight.detach().reshape([1, 3]).expand([2, 3], false));
    assert_eq!(weight.grad(), Tensor::full([3, 1], 2.0, F32), "the plugin's parameter has a gradient too");
}

#[test]
fn a_learner_trains_through_the_edge() {
    let (weight, mut reward) = head();
    let (real, fake) = (Tensor::ones([4, 3], F32), Tensor::zeros([4, 3], F32) - 1.0);
    let learner = reward.learner().expect("the override has a slot");
    let parameters = learner.parameters();
    assert_eq!(parameters[0].0, "head.weight");
    assert_eq!(parameters[0].1.data_ptr(), weight.data_ptr(), "a handle to the storage in use");
    let mut losses = Vec::new();
    for _ in 0..3 {
        let mut step = learner.discriminator_loss(&batch(&real), &batch(&fake)).unwrap();
        assert!(!step.real.requires_grad() && step.real.size() == [4] && step.fake.size() == [4]);
        losses.push(step.loss.double_value(&[]));
        step.loss.backward();
        let mut parameter = parameters[0].1.shallow_clone();
        tch::no_grad(|| {
            parameter -= parameter.grad() * 0.1;
            parameter.zero_grad();
        });
        step.loss = Tensor::new();
    }
    assert!(losses[0] > losses[1] && losses[1] > losses[2], "{losses:?}");
    let fake = fake.set_requires_grad(true);
    let loss = learner.generator_loss(&batch(&fake)).unwrap();
    assert_eq!(loss.size(), [4]);
    loss.sum(Kind::Float).backward();
    assert!(fake.grad().abs().sum(Kind::Float).double_value(&[]) > 0.0);
}

#[test]
fn the_gradient_mode_stays_the_hosts() {
    let (weight, mut reward) = head();
    let latents = Tensor::ones([1, 3], F32);
    let recording = || (&weight * 2.0).requires_grad();
    reward.score(&batch(&latents)).unwrap();
    assert!(recording(), "the plugin switched gradients off and did not put them back");
    tch::no_grad(|| {
        reward.score(&batch(&latents)).unwrap();
        assert!(!recording());
    });
    assert!(recording());
}

#[test]
fn an_error_of_libtorch_is_one_line_and_its_panic_too() {
    let (_, mut reward) = head();
    let wrong = Tensor::ones([2, 5], F32);
    let error = reward.score(&batch(&wrong)).unwrap_err();
    assert!(matches!(error, Error::Failed(_)) && error.to_string().lines().count() == 1, "{error}");
    let error = reward.score_differentiable(&batch(&wrong)).unwrap_err();
    assert!(matches!(error, Error::Panic(_)), "{error}");
    let missing = RewardBatch { prompts: vec![""], ..RewardBatch::default() };
    assert!(matches!(reward.score(&missing), Err(Error::Invalid(_))));
}

/// A backbone whose every method can be told from the default and from the others.
struct Toy;

struct ToyDenoiser(Tensor);

impl Backbone for Toy {
    fn spec(&self) -> BackboneSpec {
        BackboneSpec {
            latent_shape: [1, 2, 2],
            image_shape: [3, 4, 4],
            depth: 2,
            feature_channels: 5,
            feature_grid: [1, 1],
            null_prompt: " ".to_owned(),
        }
    }

    fn encode_text(&self, prompts: &[&str]) -> Result<Conditioning> {
        if let Some(prompt) = prompts.iter().find(|prompt| prompt.contains('?')) {
            return Err(Error::invalid(format!("{prompt:?}: no questions")));
        }
        let lengths: Vec<f32> = prompts.iter().map(|prompt| prompt.len() as f32).collect();
        let context = Tensor::from_slice(&lengths).reshape([-1, 1, 1]);
        let mask = context.gt(3.0).reshape([-1, 1]);
        Ok(Conditioning { context, pooled: None, mask: Some(mask) })
    }

    fn encode_images(&self, images: &Tensor) -> Result<Tensor> {
        Ok(images.f_mean_dim([1i64].as_slice(), true, Kind::Float)?)
    }

    fn decode_latents(&self, latents: &Tensor) -> Result<Tensor> {
        Ok(latents.f_repeat([1, 3, 1, 1])?)
    }

    fn save(&self, folder: &std::path::Path, parameters: &[(String, Tensor)], options: &SaveOptions) -> Result<()> {
        let names: Vec<_> = parameters.iter().map(|(name, tensor)| format!("{name} {:?}", tensor.size())).collect();
        let SaveOptions { dtype, tuning, sigmas, lossy } = options;
        let place = folder.display();
        Err(Error::failed(format!("{place}: {} as {dtype:?}, {tuning:?}, {sigmas:?}, {lossy}", names.join(", "))))
    }

    fn original_modules(&self) -> Vec<OriginalModule> {
        vec![OriginalModule { module: "to_k".to_owned(), original: "qkv".to_owned(), part: 1, parts: 3 }]
    }

    fn sources(&self) -> Result<Option<Sources>> {
        let source = |file: &str, settings| EncoderSource { files: vec![file.into()], settings };
        Ok(Some(Sources {
            network: vec!["/m/n".into(), "/m/\u{fc}".into()],
            text: source("/m/t", serde_json::json!({ "tokens": 7 })),
            images: source("/m/i", serde_json::Value::Null),
        }))
    }

    fn release_encoders(&self) -> Result<()> {
        Err(Error::failed("released"))
    }

    fn denoiser(&self, tuning: &Tuning, seed: u64) -> Result<Box<dyn Denoiser>> {
        let scale = match tuning {
            Tuning::Frozen => 1.0,
            Tuning::Lora { alpha, .. } => *alpha,
            Tuning::Full => return Err(Error::unsupported(format!("seed {seed}"))),
        };
        Ok(Box::new(ToyDenoiser(Tensor::full([1], scale, F32).set_requires_grad(true))))
    }
}

impl Denoiser for ToyDenoiser {
    fn predict(
        &self,
        x: &Tensor,
        sigma: &Tensor,
        conditioning: &Conditioning,
        request: Request<'_>,
    ) -> Result<Prediction> {
        assert!(conditioning.mask.is_some() && conditioning.pooled.is_none());
        let velocity = x * &self.0 + sigma.reshape([-1, 1, 1, 1]) + conditioning.context.reshape([-1, 1, 1, 1]);
        let features = request.taps.iter().map(|&tap| x * tap as f64).collect();
        Ok(Prediction { velocity: request.velocity.then_some(velocity), features })
    }

    fn parameters(&self) -> Vec<(String, Tensor)> {
        vec![("scale".to_owned(), self.0.shallow_clone())]
    }
}

#[test]
fn backbones_keep_every_method() {
    let backbone = loop_backbone(Box::new(Toy)).unwrap();
    assert_eq!(backbone.spec(), Toy.spec());
    let conditioning = backbone.encode_text(&["four", "\u{e9}"]).unwrap();
    assert_eq!(Vec::<f32>::try_from(conditioning.context.reshape(-1)).unwrap(), [4.0, 2.0]);
    assert_eq!(conditioning.mask.as_ref().unwrap().kind(), Kind::Bool);
    assert!(conditioning.pooled.is_none());
    let error = backbone.encode_text(&["why?"]).unwrap_err();
    assert_eq!(error, Error::invalid("\"why?\": no questions"));
    let images = Tensor::ones([1, 3, 2, 2], F32).set_requires_grad(true);
    let latents = backbone.encode_images(&images).unwrap();
    backbone.decode_latents(&latents).unwrap().sum(Kind::Float).backward();
    assert_eq!(images.grad(), Tensor::ones([1, 3, 2, 2], F32));
    let parameters = [("a.weight".to_owned(), Tensor::zeros([2, 3], F32)), ("b".to_owned(), Tensor::zeros([], F32))];
    let options = SaveOptions { dtype: DType::Bf16, tuning: Tuning::Full, sigmas: Some(vec![1.0, 0.0]), lossy: true };
    let error = backbone.save("/some/folder".as_ref(), &parameters, &options).unwrap_err();
    assert_eq!(error, Error::failed("/some/folder: a.weight [2, 3], b [] as Bf16, Full, Some([1.0, 0.0]), true"));
    assert_eq!(backbone.original_modules(), Toy.original_modules());
    assert_eq!(backbone.sources().unwrap(), Toy.sources().unwrap());
    assert_eq!(backbone.release_encoders(), Err(Error::failed("released")));
    let error = backbone.denoiser(&Tuning::Full, u64::MAX).err();
    assert_eq!(error, Some(Error::unsupported("seed 18446744073709551615")));
}

#[test]
fn gradients_flow_through_a_denoiser_that_outlives_its_backbone() {
    let backbone = loop_backbone(Box::new(Toy)).unwrap();
    let conditioning = backbone.encode_text(&["four", "five5"]).unwrap();
    let tuning = Tuning::Lora { rank: 1, alpha: 0.1 + 0.2, targets: vec![] };
    let denoiser = backbone.denoiser(&tuning, 0).unwrap();
    drop(backbone);
    let x = Tensor::ones([2, 1, 2, 2], F32).set_requires_grad(true);
    let sigma = Tensor::from_slice(&[0.5f32, 0.25]);
    let request = Request { velocity: true, taps: &[0, 2] };
    let prediction = denoiser.predict(&x, &sigma, &conditioning, request).unwrap();
    assert_eq!(prediction.features.len(), 2);
    assert_eq!(prediction.features[1], &x * 2.0);
    prediction.velocity.unwrap().sum(Kind::Float).backward();
    assert_eq!(x.grad(), Tensor::full([2, 1, 2, 2], 0.1 + 0.2, F32));
    assert_eq!(denoiser.parameters()[0].1.grad(), Tensor::full([1], 8.0, F32));
    let request = Request { velocity: false, taps: &[1] };
    let prediction = denoiser.predict(&x, &sigma, &conditioning, request).unwrap();
    assert!(prediction.velocity.is_none() && prediction.features.len() == 1);
}

#[test]
fn no_tensor_handle_leaks() {
    // Arguments of 40 kB and results of 14 kB: a handle leaked in each of a thousand calls would show.
    let (_, mut reward) = head();
    let calls = 1000;
    let before = resident();
    for _ in 0..calls {
        let latents = Tensor::ones([3_400, 3], F32).set_requires_grad(true);
        let loss = reward.learner().unwrap().generator_loss(&batch(&latents)).unwrap();
        assert_eq!(loss.size(), [3_400]);
    }
    let grown = resident().saturating_sub(before) >> 20;
    assert!(grown < 15, "{calls} calls left {grown} MiB");
}

/// Bytes of memory that the process holds.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn a_tensor_call_through_the_edge_is_cheap() {
    let backbone = loop_backbone(Box::new(Toy)).unwrap();
    let conditioning = backbone.encode_text(&["four"]).unwrap();
    let denoiser = backbone.denoiser(&Tuning::Frozen, 0).unwrap();
    let local = Toy.denoiser(&Tuning::Frozen, 0).unwrap();
    let (x, sigma) = (Tensor::ones([1, 1, 2, 2], F32), Tensor::ones([1], F32));
    // The quickest of several rounds: other programs take their share of the rest.
    let each = |denoiser: &dyn Denoiser| {
        let round = |_| {
            let calls = 100;
            let start = std::time::Instant::now();
            for _ in 0..calls {
                denoiser.predict(&x, &sigma, &conditioning, Request::VELOCITY).unwrap();
            }
            start.elapsed() / calls
        };
        (0..50).map(round).min().unwrap()
    };
    let (direct, through) = (each(&*local), each(&*denoiser));
    println!("predict: {direct:?} direct, {through:?} through the edge");
    assert!(through < direct + std::time::Duration::from_micros(100), "{direct:?} {through:?}");
}
