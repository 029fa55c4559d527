//! Shapes, encoders, predictions.

use advdmd_sdk::{Backbone, BackboneSpec, Conditioning, Error, Request, Tuning};
use tch::{Kind, Tensor};

use super::{BATCH, Bench, apart, finite, images};
use crate::report::{Verdict, advice_on, described, fail, ok};
use crate::samples::Random;
use crate::subject::Subject;

/// Sums in another order.
const ROUNDING: f64 = 1e-5;

pub(super) fn spec(spec: &BackboneSpec) -> Verdict {
    let BackboneSpec { latent_shape, image_shape, depth, feature_channels, feature_grid, .. } = spec;
    let positive = latent_shape.iter().chain(image_shape).chain(feature_grid).chain([feature_channels]);
    if positive.clone().any(|&size| size < 1) || *depth == 0 || image_shape[0] != 3 {
        let advice = "fill the spec from the model that was loaded";
        return fail("sizes of at least 1, images of 3 channels, a depth of at least 1", format!("{spec:?}"), advice);
    }
    ok(format!(
        "latents {latent_shape:?}, images {image_shape:?}, {depth} blocks of {feature_channels} x {feature_grid:?}"
    ))
}

pub(super) fn encode_text(backbone: &dyn Backbone, spec: &BackboneSpec) -> Verdict {
    let null = spec.null_prompt.as_str();
    let prompts = ["two 7s", null, "a red 7 and a blue 3", null];
    let all = backbone.encode_text(&prompts)?;
    let alone = backbone.encode_text(&prompts[..1])?;
    let parts = |conditioning: &Conditioning| {
        let Conditioning { context, pooled, mask } = conditioning;
        [Some(context), pooled.as_ref(), mask.as_ref()].map(|tensor| tensor.map(Tensor::shallow_clone))
    };
    let ranks = [3, 2, 2];
    for (((name, rank), all), alone) in
        ["context", "pooled", "mask"].iter().zip(ranks).zip(parts(&all)).zip(parts(&alone))
    {
        let (Some(all), Some(alone)) = (&all, &alone) else {
            if all.is_some() == alone.is_some() {
                continue;
            }
            let advice = "an architecture has a `pooled` and a `mask`, or has not, whatever the prompts";
            return fail(format!("`{name}` for every batch of prompts, or for none"), "it comes and goes", advice);
        };
        if all.dim() != rank || all.size()[0] != prompts.len() as i64 || !finite(all) {
            let advice = "one row a prompt: context [B, L, D], pooled [B, P], mask [B, L]";
            return fail(
                format!("a finite `{name}` of {rank} dimensions and 4 rows"),
                format!("{:?}", all.size()),
                advice,
            );
        }
        // Rows are kept one by one and put together again, so their shape may not hang on the other prompts.
        if all.size()[1..] != alone.size()[1..]
            || apart(&all.narrow(0, 0, 1).to_kind(Kind::Float), &alone.to_kind(Kind::Float)) > 1e-4
        {
            return fail(
                format!("the row of a prompt in `{name}` to be the same in any company"),
                format!("{:?} among four, {:?} alone, or other numbers", all.size(), alone.size()),
                "pad to a length of the model, not of the batch's longest prompt; the host caches rows",
            );
        }
    }
    if let Some(mask) = &all.mask
        && mask.kind() != Kind::Bool
    {
        return fail(
            "a Boolean mask",
            format!("{:?}", mask.kind()),
            "compare the token ids, or convert to `Kind::Bool`",
        );
    }
    ok(format!("context {:?}", all.context.size()))
}

pub(super) fn encode_images(backbone: &dyn Backbone, spec: &BackboneSpec) -> Verdict {
    let _no_grad = tch::no_grad_guard();
    let images = images(spec, BATCH);
    let latents = backbone.encode_images(&images)?;
    let expected = [[BATCH].as_slice(), &spec.latent_shape].concat();
    if latents.size() != expected || !finite(&latents) {
        let advice = "give the scaled mean of the posterior, in the shape that `spec` names";
        return fail(format!("finite latents {expected:?}"), format!("{:?}", latents.size()), advice);
    }
    let again = backbone.encode_images(&images)?;
    if apart(&again, &latents) > ROUNDING {
        let advice = "take the posterior's mean, not a sample of it: latents are cached";
        return fail("the same latents of the same images", "others", advice);
    }
    ok(format!("{expected:?}"))
}

pub(super) fn decode_latents(backbone: &dyn Backbone, spec: &BackboneSpec) -> Verdict {
    let [c, h, w] = spec.latent_shape;
    let latents = Random::new(6).normals(&[BATCH, c, h, w]).set_requires_grad(true);
    let images = backbone.decode_latents(&latents)?;
    let expected = [[BATCH].as_slice(), &spec.image_shape].concat();
    if images.size() != expected || !finite(&images) {
        return fail(format!("finite images {expected:?}"), format!("{:?}", images.size()), "see `spec`");
    }
    let far = tch::no_grad(|| backbone.decode_latents(&(&latents * 20.0)))?;
    let (least, most) = (far.min().double_value(&[]), far.max().double_value(&[]));
    let within = least >= 0.0 && most <= 1.0;
    if !within {
        let advice = "scale to 0..1 and clamp: rewards and files take that range";
        return fail("pixels in 0..1 of any latents", format!("{least} to {most}"), advice);
    }
    let advice = "keep the graph through the decoder: differentiable rewards reach the student through it";
    if !images.requires_grad() {
        return fail("images with gradients to the latents", "images without", advice);
    }
    images.sum(Kind::Float).f_backward()?;
    if !latents.grad().defined() || latents.grad().abs().max().double_value(&[]) == 0.0 {
        return fail("a gradient to the latents that is not 0", "none", advice);
    }
    if !finite(&latents.grad()) {
        return fail("a finite gradient to the latents", "NaN or infinity", "guard roots, norms and divisions at 0");
    }
    ok(format!("{expected:?}, pixels {least:.2} to {most:.2}"))
}

pub(super) fn velocity(backbone: &dyn Backbone, bench: Option<&Bench>) -> Verdict {
    let Some(bench) = bench else {
        let advice = "mend `encode_text` first";
        return fail("embedded prompts", "none", advice);
    };
    let teacher = backbone.denoiser(&Tuning::Frozen, 0)?;
    let velocity = tch::no_grad(|| bench.velocity(&*teacher))?;
    if velocity.size() != bench.x.size() || velocity.kind() != Kind::Float || !finite(&velocity) {
        return fail(
            format!("a finite float32 velocity {:?}", bench.x.size()),
            format!("{:?} {:?}", velocity.kind(), velocity.size()),
            "give noise - x0 in the latents' shape, converted to float32 in the end",
        );
    }
    let alone = Bench {
        x: bench.x.narrow(0, 1, 1),
        sigma: bench.sigma.narrow(0, 1, 1),
        conditioning: bench.conditioning.map(|tensor| tensor.narrow(0, 1, 1)),
        spec: bench.spec.clone(),
    };
    let found = tch::no_grad(|| alone.velocity(&*teacher))?;
    let of_both = velocity.narrow(0, 1, 1);
    let close = (&found - &of_both).abs().max().double_value(&[]) <= 1e-5;
    if apart(&found, &of_both) > 1e-3 && !close {
        let advice = "let no statistics mix the samples of a batch";
        return fail(
            "a sample's velocity to be the same alone",
            format!("{:.0e} apart", apart(&found, &of_both)),
            advice,
        );
    }
    ok(format!("{:?}, spread {:.2}", velocity.size(), velocity.std(false).double_value(&[])))
}

pub(super) fn deterministic(subject: &Subject<'_>, backbone: &dyn Backbone, bench: &Bench) -> Verdict {
    let _no_grad = tch::no_grad_guard();
    let teacher = backbone.denoiser(&Tuning::Frozen, 0)?;
    let first = bench.velocity(&*teacher)?;
    let again = bench.velocity(&*teacher)?;
    let fresh = subject.backbone_of(&subject.config)?;
    let fresh = bench.velocity(&*fresh.denoiser(&Tuning::Frozen, 1)?)?;
    for (what, found, tolerance) in
        [("a second call", again, 0.0), ("a new instance of the same seed", fresh, ROUNDING)]
    {
        if apart(&found, &first) > tolerance {
            let advice =
                "no dropout, and weights drawn from `BackboneInit::seed`: a replayed pass must repeat the rollout";
            let found = format!("{:.0e} apart", apart(&found, &first));
            return fail(format!("the same velocity from {what}"), found, advice);
        }
    }
    ok("twice, and by a new instance of the same seed")
}

pub(super) fn taps(backbone: &dyn Backbone, bench: &Bench) -> Verdict {
    let _no_grad = tch::no_grad_guard();
    let spec = &bench.spec;
    let teacher = backbone.denoiser(&Tuning::Frozen, 0)?;
    let all: Vec<usize> = (0..spec.depth).collect();
    let with = bench.predict(&*teacher, Request { velocity: true, taps: &all })?;
    let [h, w] = spec.feature_grid;
    let expected = vec![BATCH, spec.feature_channels, h, w];
    let sizes: Vec<_> = with.features.iter().map(Tensor::size).collect();
    if sizes != vec![expected.clone(); spec.depth] {
        let advice = "give the image tokens after each tapped block, in the shape that `spec` names";
        return fail(format!("{} features {expected:?}", spec.depth), format!("{sizes:?}"), advice);
    }
    let advice = "stop after the deepest tap, and compute until there what the whole pass computes";
    for &tap in &all {
        let alone = bench.predict(&*teacher, Request { velocity: false, taps: &[tap] })?;
        if alone.velocity.is_some() || alone.features.len() != 1 {
            let found = format!("a velocity: {}, features: {}", alone.velocity.is_some(), alone.features.len());
            return fail("one feature and no velocity, as asked for", found, advice);
        }
        let distance = apart(&alone.features[0].to_kind(Kind::Float), &with.features[tap].to_kind(Kind::Float));
        if distance > ROUNDING {
            return fail(
                format!("the features of block {tap} alone (early exit) as beside the velocity"),
                format!("{distance:.0e} apart"),
                advice,
            );
        }
    }
    let (Some(tapped), plain) = (with.velocity, bench.velocity(&*teacher)?) else {
        return fail("a velocity beside the taps", "none", advice);
    };
    if apart(&tapped, &plain) > ROUNDING {
        return fail(
            "the velocity to be the same with and without taps",
            format!("{:.0e} apart", apart(&tapped, &plain)),
            advice,
        );
    }
    ok(format!("{} of {expected:?}, alike with and without early exit", spec.depth))
}

pub(super) fn refuses(backbone: &dyn Backbone, bench: &Bench) -> Verdict {
    let teacher = backbone.denoiser(&Tuning::Frozen, 0)?;
    let unknown = Tuning::Lora { rank: 2, alpha: 2.0, targets: vec!["no_such_layer_of_conformance".to_owned()] };
    let [c, h, w] = bench.spec.image_shape;
    let wrong = Tensor::zeros([c, h, w], (Kind::Float, tch::Device::Cpu));
    let beyond = Request { velocity: false, taps: &[bench.spec.depth] };
    let cases = [
        ("a tap beyond the depth", bench.predict(&*teacher, beyond).map(drop)),
        ("a LoRA target that is no layer", backbone.denoiser(&unknown, 0).map(drop)),
        ("an image without a batch", backbone.encode_images(&wrong).map(drop)),
    ];
    for (case, found) in cases {
        match found {
            Err(error @ Error::Panic(_)) => {
                return fail(format!("an error for {case}"), described(&error), advice_on(&error));
            }
            Err(error) if error.to_string().trim().is_empty() => {
                return fail(
                    format!("an error with a text for {case}"),
                    "one without",
                    "say what was expected and found",
                );
            }
            Err(_) => {}
            Ok(()) => {
                return fail(
                    format!("an error for {case}"),
                    "an answer",
                    "check arguments, and name what does not fit",
                );
            }
        }
    }
    ok("a tap beyond the depth, an unknown LoRA target, an image without a batch")
}
