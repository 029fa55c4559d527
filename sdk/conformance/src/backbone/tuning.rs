//! What is trained of a base, and what is shared.

use advdmd_sdk::{Backbone, Denoiser, Error, Result, Tuning};
use tch::{Kind, Tensor};

use super::{Bench, LORA, apart};
use crate::memory::resident;
use crate::report::{Examiner, Verdict, fail, ok, skip};
use crate::samples::Random;

/// Rounding between a base and a base with an update of 0.
const ROUNDING: f64 = 1e-5;
/// Bytes that copies of the base would take together, so that they show in the size of the process.
const SHOWS: usize = 96 << 20;

pub(super) fn examine(backbone: &dyn Backbone, bench: &Bench, examiner: &mut Examiner) {
    examiner.check("frozen", || frozen(backbone, bench));
    examiner.check("lora_shares", || lora_shares(backbone));
    examiner.check("lora_init", || lora_init(backbone, bench));
    examiner.check("lora_gradients", || match offered(backbone, &LORA)? {
        Some(lora) => gradients(&*lora, bench, true),
        None => skip("it has no LoRA"),
    });
    examiner.check("full", || full(backbone, bench));
}

/// A denoiser, or `None` where the backbone says that it has no such tuning.
fn offered(backbone: &dyn Backbone, tuning: &Tuning) -> Result<Option<Box<dyn Denoiser>>> {
    match backbone.denoiser(tuning, 1) {
        Err(Error::Unsupported(_)) => Ok(None),
        other => other.map(Some),
    }
}

fn frozen(backbone: &dyn Backbone, bench: &Bench) -> Verdict {
    let teacher = backbone.denoiser(&Tuning::Frozen, 0)?;
    let parameters = teacher.parameters();
    if !parameters.is_empty() || bench.velocity(&*teacher)?.requires_grad() {
        return fail(
            "no trainable tensor in a frozen denoiser",
            if parameters.is_empty() {
                "a velocity with gradients to some weight".to_owned()
            } else {
                format!("{} parameters", parameters.len())
            },
            "load the base without `requires_grad`, and give no `parameters` for `Tuning::Frozen`",
        );
    }
    let moved = Bench { x: bench.x.copy().set_requires_grad(true), ..bench.fresh() };
    let velocity = moved.velocity(&*teacher)?;
    let advice = "compute without `no_grad`: losses of the student pass through the teacher to its input";
    if !velocity.requires_grad() {
        return fail("gradients through the frozen network to `x`", "none", advice);
    }
    velocity.square().sum(Kind::Float).f_backward()?;
    if !moved.x.grad().defined() {
        return fail("gradients through the frozen network to `x`", "none", advice);
    }
    ok("no parameters; gradients pass through to x")
}

fn bytes(parameters: &[(String, Tensor)]) -> usize {
    parameters.iter().map(|(_, tensor)| tensor.numel() * tensor.kind().elt_size_in_bytes()).sum()
}

fn lora_shares(backbone: &dyn Backbone) -> Verdict {
    let (Some(full), Some(lora)) = (offered(backbone, &Tuning::Full)?, offered(backbone, &LORA)?) else {
        return skip("it offers no LoRA, or no full copy to tell the size of the base from");
    };
    let (base, factors) = (bytes(&full.parameters()), bytes(&lora.parameters()));
    drop(full);
    let count = SHOWS.div_ceil(base.max(1)).clamp(4, 1000);
    let Some(before) = resident() else { return skip("this system does not tell the size of a process") };
    let mut held = Vec::with_capacity(2 * count);
    for _ in 0..count {
        held.push(backbone.denoiser(&Tuning::Frozen, 0)?);
        held.push(backbone.denoiser(&LORA, 1)?);
    }
    let each = resident().unwrap_or(0).saturating_sub(before) as f64 / count as f64;
    drop(held);
    let [each, base, factors] = [each, base as f64, factors as f64].map(|bytes| bytes / 1024.0);
    if each > 2.0 * factors + 0.5 * base {
        return fail(
            format!("a frozen and a LoRA denoiser to cost about the LoRA's own {factors:.0} KB together"),
            format!("{each:.0} KB, where the base has {base:.0} KB"),
            "let all denoisers hold the same tensors of the base (`shallow_clone`, `Arc`), not copies",
        );
    }
    ok(format!("{each:.0} KB for a frozen and a LoRA denoiser together, the base has {base:.0} KB ({count} made)"))
}

fn lora_init(backbone: &dyn Backbone, bench: &Bench) -> Verdict {
    let Some(lora) = offered(backbone, &LORA)? else { return skip("it has no LoRA") };
    let _no_grad = tch::no_grad_guard();
    let base = bench.velocity(&*backbone.denoiser(&Tuning::Frozen, 0)?)?;
    let found = bench.velocity(&*lora)?;
    if apart(&found, &base) > ROUNDING {
        return fail(
            format!("a new LoRA to predict what the base predicts (within {ROUNDING:.0e})"),
            format!("{:.0e} apart", apart(&found, &base)),
            "begin with B = 0: the student starts as its teacher",
        );
    }
    ok(if found == base { "the base, bit for bit".to_owned() } else { format!("within {:.0e}", apart(&found, &base)) })
}

/// Moves each parameter a little, so that none of those that are 0 at first keeps a gradient from the others.
fn disturb(parameters: &[(String, Tensor)]) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    let mut random = Random::new(8);
    for (_, parameter) in parameters {
        let noise = random.normals(&parameter.size()) * 0.05;
        let mut handle = parameter.shallow_clone();
        let _ = handle.f_add_(&noise.to_kind(parameter.kind()))?;
    }
    Ok(())
}

/// Gradients reach the declared parameters, each of them if `every`, and nothing else.
fn gradients(denoiser: &dyn Denoiser, bench: &Bench, every: bool) -> Verdict {
    let parameters = denoiser.parameters();
    if parameters.is_empty() {
        return fail("trainable parameters", "none", "name them in `Denoiser::parameters`");
    }
    let mut names: Vec<_> = parameters.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    if names.len() != parameters.len() {
        let found = format!("{} names for {} tensors", names.len(), parameters.len());
        return fail("a name of its own for each parameter", found, "publish each tensor once, under its path");
    }
    let advice = "give handles to the tensors that `predict` computes with (`shallow_clone`), with `requires_grad` set";
    if let Some((name, _)) = parameters.iter().find(|(_, tensor)| !tensor.requires_grad()) {
        return fail("`requires_grad` for every parameter", format!("none for {name}"), advice);
    }
    disturb(&parameters)?;
    let velocity = bench.velocity(denoiser)?;
    // Not a sum of squares alone: its gradient is 0 where the velocity is.
    let weights = Random::new(9).normals(&velocity.size());
    (velocity.square() + velocity * weights).sum(Kind::Float).f_backward()?;
    let reached = |tensor: &Tensor| {
        let gradient = tensor.grad();
        gradient.defined() && gradient.abs().max().double_value(&[]) > 0.0
    };
    let without: Vec<_> =
        parameters.iter().filter(|(_, tensor)| !reached(tensor)).map(|(name, _)| name.as_str()).collect();
    if without.len() == parameters.len() || (every && !without.is_empty()) {
        let (count, all) = (without.len(), parameters.len());
        let some = without[..count.min(3)].join(", ");
        return fail("a gradient for every parameter", format!("none for {count} of {all}: {some}"), advice);
    }
    // Without those that are declared, nothing is left that takes a gradient.
    for (_, tensor) in &parameters {
        let _ = tensor.set_requires_grad(false);
    }
    let left = bench.velocity(denoiser)?.requires_grad();
    for (_, tensor) in &parameters {
        let _ = tensor.set_requires_grad(true);
    }
    if left {
        return fail(
            "gradients for the declared parameters alone",
            "the velocity takes gradients to some other tensor",
            "freeze the base (`set_requires_grad(false)`), or name the tensor in `parameters`",
        );
    }
    let count: usize = parameters.iter().map(|(_, tensor)| tensor.numel()).sum();
    let idle = match without[..] {
        [] => String::new(),
        [name, ..] => format!("; {} of them idle, such as {name}", without.len()),
    };
    ok(format!("{} parameters of {count} numbers{idle}", parameters.len()))
}

/// A full copy trains alone: the base stays as it is.
fn full(backbone: &dyn Backbone, bench: &Bench) -> Verdict {
    let Some(full) = offered(backbone, &Tuning::Full)? else { return skip("it has no full tuning") };
    let teacher = backbone.denoiser(&Tuning::Frozen, 0)?;
    let before = tch::no_grad(|| bench.velocity(&*teacher))?;
    let start = tch::no_grad(|| bench.velocity(&*full))?;
    if apart(&start, &before) > ROUNDING {
        let found = format!("{:.0e} apart", apart(&start, &before));
        return fail("a new full copy to predict what the base predicts", found, "copy every weight of the base");
    }
    // An architecture may hold weights that its own last block does not use.
    let gradients = gradients(&*full, bench, false)?;
    let after = tch::no_grad(|| bench.velocity(&*teacher))?;
    if apart(&after, &before) > 0.0 {
        return fail(
            "the frozen base to stay as it is while a full copy trains",
            format!("a velocity {:.0e} apart", apart(&after, &before)),
            "copy the weights (`copy()`), do not share them: the student's training would move its teacher",
        );
    }
    Ok(gradients)
}
