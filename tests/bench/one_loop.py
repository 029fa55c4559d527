"""The program's algorithm in PyTorch: one rollout feeds critic, rewards and student; one student forward feeds every loss."""

import json
import random
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from networks import Denoiser, Heads, tuned

DIMS = (1, 2, 3)


class Problem:
    """What both loops of the reference need: settings, data, networks, optimisers."""

    def __init__(self, folder: Path):
        self.settings = json.loads((folder / "settings.json").read_text())
        for name, value in self.settings.items():
            setattr(self, name, value)
        data = load_file(folder / "data.safetensors")
        self.context, self.pooled, self.real = data["context"], data["pooled"], data["real"]
        self.shape = tuple(self.real.shape[2:])
        self.batch = self.groups * self.group_size
        self.actions = [step for step in range(self.steps) if self.transitions[step][2] > 0]

        self.passes = Counter()
        self.teacher = Denoiser.from_pretrained(folder / "model").requires_grad_(False).named("teacher", self.passes)
        self.student = tuned(self.teacher, self.student_tuning).named("student", self.passes)
        self.fake = tuned(self.teacher, self.fake_tuning).named("fake", self.passes)
        self.heads = Heads(len(self.taps), **self.heads)
        self.student_parameters, self.fake_parameters, self.head_parameters = (
            [p for p in model.parameters() if p.requires_grad] for model in (self.student, self.fake, self.heads)
        )
        self.student_optimizer, self.fake_optimizer, self.head_optimizer = (
            torch.optim.AdamW(parameters, fused=True, **self.optimizers[name])
            for name, parameters in (
                ("student", self.student_parameters), ("fake", self.fake_parameters), ("heads", self.head_parameters)
            )
        )
        self.average = [p.detach().clone() for p in self.student_parameters]
        self.losses = {}

    def note(self, **losses):
        """Keeps losses on the device; they are read once, after the update."""
        for name, loss in losses.items():
            self.losses.setdefault(name, []).append(loss.detach())

    def read(self) -> dict:
        names = list(self.losses)
        means = torch.stack([torch.stack(self.losses[name]).mean() for name in names]).tolist()
        self.losses.clear()
        return dict(zip(names, means))

    def prompts(self):
        """Ids of an update's prompts, the samples of a group side by side."""
        return torch.randint(len(self.real), (self.groups,)).repeat_interleave(self.group_size)

    def embed(self, ids):
        return self.context[ids], self.pooled[ids]

    def noise(self):
        return torch.randn(self.batch, *self.shape)

    def sigma(self, step: int):
        return torch.full((self.batch,), self.sigmas[step])

    def uniform_sigma(self):
        low, high = self.sigma_range
        return low + (high - low) * torch.rand(self.batch)

    def real_latents(self, ids):
        return self.real[ids, torch.randint(self.real.shape[1], ids.shape)]

    @torch.no_grad()
    def guided(self, x, sigma, text):
        """The teacher's velocity with classifier-free guidance, in one batch of [cond, uncond]."""
        context, pooled = (torch.cat([t, null.expand_as(t)]) for t, null in zip(text, (self.context[-1], self.pooled[-1])))
        cond, uncond = self.teacher.predict(x.repeat(2, 1, 1, 1), sigma.repeat(2), context, pooled)[0].chunk(2)
        return torch.lerp(uncond, cond, self.guidance_scale)

    def train_critic(self, on: bool):
        """Whether backward passes reach the weights of fake network and heads."""
        for parameter in self.fake_parameters + self.head_parameters:
            parameter.requires_grad_(on)

    def step_critic(self):
        for optimizer, parameters in ((self.fake_optimizer, self.fake_parameters), (self.head_optimizer, self.head_parameters)):
            torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm, foreach=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def step_student(self):
        norm = torch.nn.utils.clip_grad_norm_(self.student_parameters, self.clip_norm, foreach=True)
        self.note(student_grad_norm=norm)
        self.student_optimizer.step()
        self.student_optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(self.average, self.student_parameters, 1 - self.ema_decay)

    @torch.no_grad()
    def rollout(self, text):
        """States `x_0 ..= x_K`, predicted clean latents, log-probabilities of the stochastic steps."""
        states, cleans, log_probs = [self.noise()], [], []
        for step, (a, b, c) in enumerate(self.transitions):
            x = states[-1]
            v, _ = self.student.predict(x, self.sigma(step), *text)
            cleans.append(x - self.sigmas[step] * v)
            mean = a * x + b * v
            states.append(mean + c * self.noise() if c > 0 else mean)
            log_probs.append(self.log_prob(states[-1], mean))
        return states, cleans, log_probs

    @staticmethod
    def log_prob(following, mean):
        """Flow-GRPO's convention for coefficient-preserving sampling."""
        return -(following - mean).square().mean(DIMS)

    @torch.no_grad()
    def advantages(self, states, text):
        """Advantage `[B]` of each stochastic step: the discriminator's score of its result, normalised in each group."""
        scores = []
        for step in self.actions:
            sigma = self.sigma(step + 1)
            _, features = self.fake.predict(states[step + 1], sigma, *text, taps=self.taps, velocity=False)
            scores.append(self.heads(features, sigma).sigmoid().mean(1))
        scores = torch.stack(scores, 1).double().view(self.groups, self.group_size, -1)
        std = scores.std(1, correction=0, keepdim=True)
        values = (scores - scores.mean(1, keepdim=True)) / std.clamp(min=self.std_floor)
        values = values.masked_fill(scores.amax(1, keepdim=True) == scores.amin(1, keepdim=True), 0)
        values = values / values.std((0, 1), correction=0, keepdim=True).clamp(min=1)
        return dict(zip(self.actions, values.float().view(self.batch, -1).unbind(1)))

    def policy_loss(self, states, log_probs, advantage, step, v):
        """The clipped policy loss of one step, a scalar."""
        a, b, _ = self.transitions[step]
        new = self.log_prob(states[step + 1], a * states[step] + b * v)
        ratio = (new - log_probs[step]).exp()
        low, high = self.clip_range
        advantage = advantage.clamp(-self.advantage_clip, self.advantage_clip)
        return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage).mean()

    def matching_loss(self, x0, x_s, sigma, fake, teacher):
        """DMD2's distribution-matching loss in flow form, a scalar."""
        with torch.no_grad():
            s = sigma.view(-1, 1, 1, 1)
            x0_fake, x0_teacher = x_s - s * fake, x_s - s * teacher
            normalizer = (x0 - x0_teacher).abs().mean(DIMS, keepdim=True)
            gradient = (x0_fake - x0_teacher) / (normalizer + 1e-6)
            target = x0 - gradient
        return 0.5 * F.mse_loss(x0, target)


def noised(x0, noise, sigma):
    return torch.lerp(x0, noise, sigma.view(-1, 1, 1, 1))


class OneLoop(Problem):
    """The program's update."""

    def update(self):
        ids = self.prompts()
        text = self.embed(ids)
        states, cleans, log_probs = self.rollout(text)
        self.train_critic(True)
        cleans = torch.stack(cleans)
        for _ in range(self.critic_updates):
            self.critic(ids, text, cleans)
        self.train_critic(False)
        advantages = self.advantages(states, text)
        chosen = sorted(random.sample(range(self.steps), self.steps_per_update or self.steps))
        actions = sum(step in advantages for step in chosen)
        for step in chosen:
            self.accumulate(text, states, log_probs, advantages.get(step), step, 1 / len(chosen), 1 / max(actions, 1))
        self.step_student()

    def critic(self, ids, text, cleans):
        """One joint update of fake network and heads, from one forward of the fake network."""
        steps = torch.randint(self.steps, (self.batch,))
        following = torch.tensor(self.sigmas)[steps + 1]
        on_schedule = (torch.rand(self.batch) < self.on_schedule) & (following > 0)
        sigma = torch.where(on_schedule, following, self.uniform_sigma())
        x0, noise = cleans[steps, torch.arange(self.batch)], self.noise()
        v, fake = self.fake.predict(noised(x0, noise, sigma), sigma, *text, taps=self.taps)
        denoise = F.mse_loss(v, noise - x0)
        denoise.backward()
        with torch.no_grad():
            x_real = noised(self.real_latents(ids), noise, sigma)
            _, real = self.fake.predict(x_real, sigma, *text, taps=self.taps, velocity=False)
        both = [torch.cat([r, f.detach()]) for r, f in zip(real, fake)]
        on_real, on_fake = self.heads(both, sigma.repeat(2)).chunk(2)
        loss = F.softplus(on_fake).mean() + F.softplus(-on_real).mean()
        loss.backward()
        self.note(denoise=denoise, discriminator=loss)
        self.step_critic()

    def accumulate(self, text, states, log_probs, advantage, step, share, action_share):
        """The gradients of all losses at one step: one forward and one backward of the student."""
        x = states[step]
        v, _ = self.student.predict(x, self.sigma(step), *text)
        x0 = x - self.sigmas[step] * v
        sigma = self.uniform_sigma()
        x_s = noised(x0, self.noise(), sigma)
        teacher = self.guided(x_s, sigma, text)
        fake, features = self.fake.predict(x_s, sigma, *text, taps=self.taps)
        dmd = self.matching_loss(x0, x_s, sigma, fake, teacher)
        gan = F.softplus(-self.heads(features, sigma)).mean()
        loss = share * (self.dmd_weight * dmd + self.gan_weight * gan)
        if advantage is not None:
            policy = self.policy_loss(states, log_probs, advantage, step, v)
            loss = loss + action_share * self.grpo_weight * policy
            self.note(grpo=policy)
        loss.backward()
        self.note(dmd=dmd, gan=gan)
