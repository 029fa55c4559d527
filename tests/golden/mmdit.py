"""Reference values for advdmd-nn: diffusers' SD3Transformer2DModel and torch's AdamW on tiny random problems.

Run from anywhere with torch 2.11 and diffusers; writes mmdit_*.safetensors and mmdit_adamw.safetensors beside itself.
"""

import json
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent

# The digit scenes' architecture at an eighth of its width; SD3.5-medium's features; SD3's.
VARIANTS = {
    "digits": dict(
        sample_size=16, patch_size=4, in_channels=3, out_channels=3, num_layers=4, attention_head_dim=4,
        num_attention_heads=4, joint_attention_dim=35, caption_projection_dim=16, pooled_projection_dim=24,
        pos_embed_max_size=4, qk_norm="rms_norm",
    ),
    "dual": dict(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=12, caption_projection_dim=32, pooled_projection_dim=10,
        pos_embed_max_size=6, dual_attention_layers=(0,), qk_norm="rms_norm",
    ),
    "plain": dict(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=12, caption_projection_dim=32, pooled_projection_dim=10,
        pos_embed_max_size=7, qk_norm=None,
    ),
}

# Gradients are kept for one weight of each kind of layer; the last block's key projection crosses every block.
GRADIENTS = (
    "pos_embed.proj.weight", "context_embedder.bias", "time_text_embed.timestep_embedder.linear_1.bias",
    "time_text_embed.text_embedder.linear_2.bias", "norm_out.linear.weight", "proj_out.weight",
    "transformer_blocks.0.norm1.linear.bias", "transformer_blocks.0.norm1_context.linear.weight",
    "transformer_blocks.0.attn.to_q.weight", "transformer_blocks.0.attn.add_k_proj.weight",
    "transformer_blocks.0.attn.to_add_out.bias", "transformer_blocks.0.attn.norm_q.weight",
    "transformer_blocks.0.attn.norm_added_k.weight", "transformer_blocks.0.attn2.to_v.weight",
    "transformer_blocks.0.ff.net.0.proj.weight", "transformer_blocks.0.ff_context.net.2.weight",
)


def model_case(name: str, kwargs: dict, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float = 1.0) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * std

    model = SD3Transformer2DModel(**kwargs).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            # Large enough that every path matters; gains of norms away from 1.
            one_dimensional_gain = "norm_" in key.split(".")[-2] and parameter.dim() == 1 and key.endswith("weight")
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 16
            value = 1 + normal(*parameter.shape, std=0.3) if one_dimensional_gain else (
                normal(*parameter.shape, std=fan_in**-0.5))
            # Exact in bfloat16, as which it is stored.
            parameter.copy_(value.bfloat16())

    batch, side = 3, kwargs["sample_size"]
    # A latent that is not square cuts a different centre out of the position table.
    height, width = (side, side) if name == "digits" else (side, side + 2)
    inputs = {
        "latents": normal(batch, kwargs["in_channels"], height, width),
        "timestep": torch.tensor([1000.0, 437.25, 3.5]),
        "context": normal(batch, 5, kwargs["joint_attention_dim"]),
        "pooled": normal(batch, kwargs["pooled_projection_dim"]),
    }
    inputs["latents"].requires_grad_(True)
    tapped = []
    hooks = [b.register_forward_hook(lambda _m, _a, out: tapped.append(out[1])) for b in model.transformer_blocks]
    velocity = model(
        hidden_states=inputs["latents"], timestep=inputs["timestep"], encoder_hidden_states=inputs["context"],
        pooled_projections=inputs["pooled"], return_dict=False,
    )[0]
    for hook in hooks:
        hook.remove()
    direction = normal(*velocity.shape)
    (velocity * direction).sum().backward()

    patch = kwargs["patch_size"]
    grid = (batch, -1, height // patch, width // patch)
    out = {f"weight.{key}": value if key == "pos_embed.pos_embed" else value.bfloat16()
           for key, value in model.state_dict().items()}
    out |= {f"input.{key}": value for key, value in inputs.items()}
    out |= {f"feature.{i}": tokens.transpose(1, 2).reshape(grid) for i, tokens in enumerate(tapped)}
    parameters = dict(model.named_parameters())
    out |= {f"grad.{key}": parameters[key].grad for key in GRADIENTS if key in parameters}
    out |= {"velocity": velocity, "direction": direction, "grad_latents": inputs["latents"].grad}
    write(f"mmdit_{name}", out, {"config": json.dumps(dict(model.config))})


def adamw_case() -> None:
    """Twelve steps of clipping, AdamW and an averaged copy; one parameter has no gradient on every third step."""
    generator = torch.Generator().manual_seed(7)
    shapes = {"a": (5, 7), "b": (3,), "c": (2, 3, 4)}
    parameters = {k: torch.randn(s, generator=generator).requires_grad_(True) for k, s in shapes.items()}
    out = {f"start.{k}": p.detach().clone() for k, p in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1, fused=True)
    averages = {k: p.detach().clone() for k, p in parameters.items()}
    norms = []
    for step in range(12):
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 - step / 24)
        for key, parameter in parameters.items():
            if key == "b" and step % 3 == 2:
                continue
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            out[f"grad.{step}.{key}"] = parameter.grad.clone()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), 4.0, foreach=True))
        optimizer.step()
        decay = min(0.9, (1 + step) / (10 + step))
        for key, average in averages.items():
            average.lerp_(parameters[key].detach(), 1 - decay)
    out["norms"] = torch.stack(norms)
    out |= {f"end.{k}": p.detach() for k, p in parameters.items()}
    out |= {f"average.{k}": a for k, a in averages.items()}
    for key, parameter in parameters.items():
        state = optimizer.state[parameter]
        out |= {f"state.{key}.{k}": state[k] for k in ("exp_avg", "exp_avg_sq", "step")}
    write("mmdit_adamw", out, {})


def write(name: str, tensors: dict, metadata: dict) -> None:
    path = HERE / f"{name}.safetensors"
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt", **metadata})
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB, {len(tensors)} tensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for index, (variant, arguments) in enumerate(VARIANTS.items()):
        model_case(variant, arguments, seed=index)
    adamw_case()
