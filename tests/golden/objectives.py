"""Reference values for the host's objectives, from the published formulas in float64 with torch's own gradients.

Run from anywhere with torch; writes objectives.safetensors beside itself. Inputs are float32 numbers, which is what the
host computes with; results are float64.
"""

import math
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
SHAPE = (6, 3, 4, 4)
DIMS = (1, 2, 3)

generator = torch.Generator().manual_seed(0)
golden = {}


def draw(name, *shape):
    """A float32 input, saved under its name and returned as float64."""
    golden[name] = torch.randn(*shape, generator=generator)
    return golden[name].double()


def given(name, values):
    golden[name] = values.float().contiguous()
    return golden[name].double()


def save(**results):
    golden.update({name.replace("__", "."): value.detach().double().contiguous() for name, value in results.items()})


def gradient(loss, leaf):
    return torch.autograd.grad(loss.sum(), leaf, retain_graph=True)[0]


def denoise():
    velocity, x0, noise = (draw(f"denoise.{name}", *SHAPE) for name in ("velocity", "x0", "noise"))
    velocity.requires_grad_()
    loss = ((velocity - (noise - x0)) ** 2).mean(dim=DIMS)
    save(denoise__loss=loss, denoise__gradient=gradient(loss, velocity))


def dmd():
    """DMD2's compute_distribution_matching_loss with x0 in flow form, FastGen's epsilon, per sample."""
    x0, noise = draw("dmd.x0", *SHAPE), draw("dmd.noise", *SHAPE)
    sigma = given("dmd.sigma", torch.tensor([0.02, 0.2, 0.4, 0.6, 0.8, 0.98]))
    s = sigma.view(-1, 1, 1, 1)
    x_s = given("dmd.x_s", (1 - s) * x0 + s * noise)
    fake, teacher = draw("dmd.fake_velocity", *SHAPE), draw("dmd.teacher_velocity", *SHAPE)
    x0.requires_grad_()
    with torch.no_grad():
        pred_fake, pred_real = x_s - s * fake, x_s - s * teacher
        p_real = x0 - pred_real
        p_fake = x0 - pred_fake
        normalizer = p_real.abs().mean(dim=DIMS, keepdim=True)
        grad = (p_real - p_fake) / (normalizer + 1e-6)
        gap = (pred_fake - pred_real).abs().mean(dim=DIMS)
    loss = 0.5 * ((x0 - (x0 - grad).detach()) ** 2).mean(dim=DIMS)
    save(
        dmd__loss=loss, dmd__gradient=gradient(loss, x0), dmd__normalizer=normalizer.view(-1), dmd__gap=gap,
    )


def log_prob():
    """Flow-GRPO's sde_step_with_logprob, both conventions."""
    mean = draw("log_prob.mean", *SHAPE)
    std = 0.37
    following = given("log_prob.next", mean + std * torch.randn(*SHAPE, generator=generator).double())
    mean.requires_grad_()
    squared = (following.detach() - mean) ** 2
    gaussian = (-squared / (2 * std**2) - math.log(std) - math.log(math.sqrt(2 * math.pi))).mean(dim=DIMS)
    cps = (-squared).mean(dim=DIMS)
    save(
        log_prob__gaussian=gaussian, log_prob__gaussian_gradient=gradient(gaussian, mean),
        log_prob__squared_error=cps, log_prob__squared_error_gradient=gradient(cps, mean),
    )


def policy():
    """Flow-GRPO's train_sd3.py with separate lower and upper clip."""
    old = draw("policy.log_prob_old", 12)
    new = given("policy.log_prob", old + 0.3 * torch.randn(12, generator=generator).double())
    advantage = draw("policy.advantage", 12) * 2
    golden["policy.advantage"] = advantage.float()
    new.requires_grad_()
    low, high, advantage_clip = 0.1, 0.2, 1.5
    clamped = torch.clamp(advantage, -advantage_clip, advantage_clip)
    ratio = torch.exp(new - old)
    unclipped_loss = -clamped * ratio
    clipped_loss = -clamped * torch.clamp(ratio, 1 - low, 1 + high)
    loss = torch.maximum(unclipped_loss, clipped_loss)
    outside = ((ratio < 1 - low) | (ratio > 1 + high)).double().mean()
    save(
        policy__loss=loss, policy__gradient=gradient(loss, new), policy__ratio=ratio, policy__clip_fraction=outside,
    )


def normalized(scores, floor, over):
    """Per group and step, over the samples; 0 where all scores of a group are equal. `over`: dimensions of the standard
    deviation, none for a reward in its own units."""
    mean = scores.mean(dim=1, keepdim=True)
    dead = scores.amax(dim=1, keepdim=True) == scores.amin(dim=1, keepdim=True)
    std = scores.std(dim=over, keepdim=True, correction=0).clamp(min=floor) if over else torch.ones_like(mean)
    return torch.where(dead, torch.zeros_like(scores), (scores - mean) / std), dead


def advantage():
    groups, size, steps = 4, 8, 3
    first, second = draw("advantage.first", groups, size, steps), draw("advantage.second", groups, size, steps)
    # A reward on another scale, agreeing with the first at step 2; a group with hardly any spread; dead ones.
    second = 20 + 10 * second
    second[..., 2] = 20 + 10 * first[..., 2] + 0.1 * second[..., 2]
    first[1] = 0.5 + 1e-3 * first[1]
    first[2, :, 0] = 0.1
    second[2, :, 0] = 7.3
    first[3, :, 1] = 0.3
    first, second = given("advantage.first", first), given("advantage.second", second)
    weights, discounts, floor = (1.0, 0.5), (1.0, 0.5), 0.05
    for name, over in (("group", 1), ("global", (0, 1)), ("none", None)):
        parts, own, dead, floors = [], [], [], 0
        for scores, weight, discount in zip((first, second), weights, discounts):
            values, equal = normalized(scores, floor, over)
            spread = discount ** torch.arange(steps - 1, -1, -1).double()
            own.append(values)
            parts.append(weight * spread * values)
            dead.append(equal)
            floors = floors + (weight * (1 if over else floor)) ** 2 * (~equal).any(dim=0, keepdim=True).double()
        total = sum(parts)
        alive = ~(dead[0] & dead[1])
        # Standard deviation over the samples of living groups, step by step.
        std = torch.stack([
            total[alive[:, 0, step]][:, :, step].std(correction=0) for step in range(steps)
        ]).view(1, 1, steps)
        correlation = torch.corrcoef(torch.stack([values.flatten() for values in own]))
        shares = torch.stack([(part * total).sum() / (total * total).sum() for part in parts])
        save(**{
            f"advantage.{name}.values": total / torch.maximum(std, floors.sqrt()),
            f"advantage.{name}.share": shares, f"advantage.{name}.correlation": correlation,
        })
    save(advantage__live=alive.double().mean(dim=(0, 1)), advantage__dead=torch.stack([d.double().mean() for d in dead]))


def flow_grpo():
    """Flow-GRPO's PerPromptStatTracker with global_std: the mean of the prompt, the deviation of all."""
    scores = given("flow_grpo.scores", draw("flow_grpo.scores", 4, 16, 1) + torch.arange(4).view(4, 1, 1) / 4)
    # Its deviation includes what prompts differ in; the loop then brings the sum to at most unit scale.
    values = (scores - scores.mean(dim=1, keepdim=True)) / (scores.std(correction=0) + 1e-4)
    save(flow_grpo__values=values)


def rtdmd():
    """RTDMD's weight_advantages on one step: rewards that agree, so that its renormalisation is ours."""
    groups, size, eps = 4, 16, 1e-4
    first = draw("rtdmd.first", groups, size, 1)
    second = given("rtdmd.second", first + 0.5 * torch.randn(groups, size, 1, generator=generator).double())
    total = 0
    for scores, weight in ((first, 1.0), (second, 0.5)):
        std = scores.std(dim=1, keepdim=True, correction=0)
        total = total + weight * (scores - scores.mean(dim=1, keepdim=True)) / (std + eps)
    save(rtdmd__values=(total - total.mean()) / (total.std(correction=0) + eps))


def main():
    for part in (denoise, dmd, log_prob, policy, advantage, flow_grpo, rtdmd):
        part()
    save_file(golden, HERE / "objectives.safetensors")


if __name__ == "__main__":
    main()
