"""Distillation and reinforcement learning as people run them today: DMD2's loop, then Flow-GRPO's, each with its own
samples. The networks, the losses and the number of samples per update are those of the one loop."""

import random

import torch
from torch.nn import functional as F

from one_loop import Problem, noised


class TwoLoops(Problem):
    """One generator update of DMD2 and one update of Flow-GRPO."""

    def update(self):
        for number in range(self.critic_updates):
            self.dmd2(generator=number == 0)
        self.flow_grpo()

    def dmd2(self, generator: bool):
        """`train_sd.py`: every iteration draws samples; one in `critic_updates` trains the generator on them, and each
        trains fake network and discriminator on the same samples, detached."""
        ids = self.prompts()
        text = self.embed(ids)
        with torch.set_grad_enabled(generator):
            x0 = self.simulate(text)
        if generator:
            self.train_critic(False)
            self.generator_loss(x0, text).backward()
            self.step_student()
            self.train_critic(True)
        x0 = x0.detach()
        sigma, noise = self.uniform_sigma(), self.noise()
        v, _ = self.fake.predict(noised(x0, noise, sigma), sigma, *text)
        denoise = F.mse_loss(v, noise - x0)
        # `compute_guidance_clean_cls_loss`: two more passes, whose gradients reach the backbone as well as the heads.
        on_real = self.classify(self.real_latents(ids), text)
        on_fake = self.classify(x0, text)
        loss = F.softplus(on_fake).mean() + F.softplus(-on_real).mean()
        (denoise + self.discriminator_weight * loss).backward()
        self.note(denoise=denoise, discriminator=loss)
        self.step_critic()

    def simulate(self, text):
        """Backward simulation to a step drawn at random; gradients, if any, through that step alone."""
        last = random.randrange(self.steps)
        x = self.noise()
        with torch.no_grad():
            for step in range(last):
                v, _ = self.student.predict(x, self.sigma(step), *text)
                x = noised(x - self.sigmas[step] * v, self.noise(), self.sigma(step + 1))
        v, _ = self.student.predict(x, self.sigma(last), *text)
        return x - self.sigmas[last] * v

    def generator_loss(self, x0, text):
        sigma = self.uniform_sigma()
        with torch.no_grad():
            x_s = noised(x0, self.noise(), sigma)
            teacher = self.guided(x_s, sigma, text)
            fake, _ = self.fake.predict(x_s, sigma, *text)
        dmd = self.matching_loss(x0, x_s, sigma, fake, teacher)
        gan = F.softplus(-self.classify(x0, text)).mean()
        self.note(dmd=dmd, gan=gan)
        return self.dmd_weight * dmd + self.gan_weight * gan

    def classify(self, x0, text):
        """`compute_cls_logits`: noised anew, through the network up to the deepest tap, to logits."""
        sigma = self.uniform_sigma()
        x_s = noised(x0, self.noise(), sigma)
        _, features = self.fake.predict(x_s, sigma, *text, taps=self.taps, velocity=False)
        return self.heads(features, sigma)

    def flow_grpo(self):
        """`train_sd3.py`: a rollout of its own, the same reward as the one loop's, then a replay step by step."""
        text = self.embed(self.prompts())
        states, _, log_probs = self.rollout(text)
        advantages = self.advantages(states, text)
        count = min(self.steps_per_update or self.steps, len(self.actions))
        for step in sorted(random.sample(self.actions, count)):
            v, _ = self.student.predict(states[step], self.sigma(step), *text)
            policy = self.policy_loss(states, log_probs, advantages[step], step, v)
            (policy / count).backward()
            self.note(grpo=policy)
        self.step_student()
