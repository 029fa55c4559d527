"""The networks of the Python reference: diffusers' SD3 transformer with taps and early exit, LoRA, discriminator heads."""

import math
from collections import Counter

import torch
from diffusers import SD3Transformer2DModel
from torch import nn
from torch.nn import functional as F

# The eight attention projections: Flow-GRPO's SD3 recipe, and the default of the program's backbones.
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


class Denoiser(SD3Transformer2DModel):
    """diffusers' network, module for module; its forward also gives features and stops after the deepest tap."""

    role = ""
    passes = None

    def named(self, role: str, passes: Counter) -> "Denoiser":
        """Counts the samples that pass through under the name of a role."""
        self.role, self.passes = role, passes
        return self

    def predict(self, x, sigma, context, pooled, taps=(), velocity=True):
        """The velocity (or `None`) at `x` `[B, C, H, W]`, `sigma` `[B]`, and the feature maps `[B, dim, h, w]` of `taps`."""
        batch, _, height, width = x.shape
        patch = self.config.patch_size
        h, w = height // patch, width // patch
        self.passes[f"{self.role}/forward"] += batch
        image = self.pos_embed(x).contiguous()
        temb = self.time_text_embed(sigma * 1000.0, pooled)
        text = self.context_embedder(context)
        features = []
        depth = len(self.transformer_blocks) if velocity else taps[-1] + 1
        for index, block in enumerate(self.transformer_blocks[:depth]):
            text, image = block(hidden_states=image, encoder_hidden_states=text, temb=temb)
            if index in taps:
                features.append(image.transpose(1, 2).unflatten(2, (h, w)))
        if features and features[-1].requires_grad:
            features[-1].register_hook(self._count_backward)
        if not velocity:
            return None, features
        out = self.proj_out(self.norm_out(image, temb))
        out = out.view(batch, h, w, patch, patch, -1).permute(0, 5, 1, 3, 2, 4)
        out = out.reshape(batch, -1, height, width)
        if out.requires_grad:
            out.register_hook(self._count_backward)
        return out, features

    def _count_backward(self, gradient):
        """A loss reads the velocity or the features, never both."""
        self.passes[f"{self.role}/backward"] += gradient.shape[0]


class LoraLinear(nn.Module):
    """`x W^T + b + scale x A^T B^T` over a frozen linear layer."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), alpha / rank
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / rank)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x):
        return self.base(x) + F.linear(F.linear(x, self.a) * self.scale, self.b)


def tuned(teacher: Denoiser, tuning: dict) -> Denoiser:
    """A trainable network that starts as the teacher: a full copy, or adapters over the teacher's own storage."""
    model = Denoiser.from_config(teacher.config)
    if tuning["type"] == "full":
        model.load_state_dict(teacher.state_dict())
        return model.requires_grad_(True)
    model.load_state_dict(teacher.state_dict(), assign=True)
    model.requires_grad_(False)
    for block in model.transformer_blocks:
        for target in LORA_TARGETS:
            parent, _, leaf = target.rpartition(".")
            parent = block.attn.get_submodule(parent)
            if getattr(parent, leaf, None) is not None:
                setattr(parent, leaf, LoraLinear(getattr(parent, leaf), tuning["rank"], tuning["alpha"]))
    return model


class Heads(nn.Module):
    """The discriminator: for each tapped block layer norm, convolution, group norm, modulation by the noise level, leaky
    rectifier, 1x1 convolution; a logit at each place."""

    def __init__(self, count: int, channels: int, width: int, kernel: int, stride: int, groups: int, waves: int):
        super().__init__()
        self.channels = channels
        self.conv = nn.ModuleList(nn.Conv2d(channels, width, kernel, stride, 1) for _ in range(count))
        self.norm = nn.ModuleList(nn.GroupNorm(groups, width) for _ in range(count))
        self.sigma = nn.ModuleList(nn.Linear(waves, 2 * width) for _ in range(count))
        self.out = nn.ModuleList(nn.Conv2d(width, 1, 1) for _ in range(count))
        for layer in self.sigma:
            nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
        self.register_buffer("frequencies", math.pi * torch.arange(1, waves + 1)[None])

    def forward(self, features, sigma):
        """Logits `[B, heads x places]` of feature maps `[B, C, h, w]` at noise levels `sigma` `[B]`."""
        waves = torch.cos(sigma[:, None] * self.frequencies)
        logits = []
        for x, conv, norm, modulation, out in zip(features, self.conv, self.norm, self.sigma, self.out):
            x = F.layer_norm(x.permute(0, 2, 3, 1), (self.channels,), eps=1e-6).permute(0, 3, 1, 2)
            scale, shift = modulation(waves)[:, :, None, None].chunk(2, 1)
            x = torch.addcmul(shift, norm(conv(x)), 1 + scale)
            logits.append(out(F.leaky_relu(x, 0.2)).flatten(1))
        return torch.cat(logits, 1)
