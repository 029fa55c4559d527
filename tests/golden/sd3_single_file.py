"""Writes the transformer of a diffusers pipeline as an original single-file checkpoint, and proves it with diffusers.

    python sd3_single_file.py PIPELINE OUT.safetensors [--prefix]

The conversion is the reverse of diffusers' `convert_sd3_transformer_checkpoint_to_diffusers`, which is then run on what was
written and has to give the pipeline's own weights back, bit for bit. `--prefix` names the tensors as whole checkpoints do
(`model.diffusion_model.`), beside a tensor of an autoencoder that a reader has to leave alone.

    for name in sd3-tiny sd35-tiny; do python sd3_single_file.py sd3/$name sd3_original/$name.safetensors; done
"""

import argparse
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from safetensors.torch import load_file, save_file

PREFIX = "model.diffusion_model."


def swapped(tensor: torch.Tensor) -> torch.Tensor:
    """Scale and shift of a modulation, exchanged."""
    return torch.cat(tensor.chunk(2, dim=0)[::-1])


def original(model: SD3Transformer2DModel) -> dict[str, torch.Tensor]:
    ours, theirs = dict(model.state_dict()), {}
    theirs["pos_embed"] = ours.pop("pos_embed.pos_embed")

    def move(source: str, target: str, change=lambda tensor: tensor) -> None:
        for leaf in ("weight", "bias"):
            if f"{source}.{leaf}" in ours:
                theirs[f"{target}.{leaf}"] = change(ours.pop(f"{source}.{leaf}"))

    def fuse(sources: list[str], target: str) -> None:
        for leaf in ("weight", "bias"):
            theirs[f"{target}.{leaf}"] = torch.cat([ours.pop(f"{source}.{leaf}") for source in sources])

    move("pos_embed.proj", "x_embedder.proj")
    for ours_name, theirs_name in (("timestep_embedder", "t_embedder"), ("text_embedder", "y_embedder")):
        move(f"time_text_embed.{ours_name}.linear_1", f"{theirs_name}.mlp.0")
        move(f"time_text_embed.{ours_name}.linear_2", f"{theirs_name}.mlp.2")
    move("context_embedder", "context_embedder")
    move("proj_out", "final_layer.linear")
    move("norm_out.linear", "final_layer.adaLN_modulation.1", swapped)
    depth = model.config.num_layers
    for index in range(depth):
        block, last = f"transformer_blocks.{index}", index == depth - 1
        image, text = f"joint_blocks.{index}.x_block", f"joint_blocks.{index}.context_block"
        for attention in ("attn", "attn2") if index in model.config.dual_attention_layers else ("attn",):
            fuse([f"{block}.{attention}.to_{x}" for x in "qkv"], f"{image}.{attention}.qkv")
            move(f"{block}.{attention}.to_out.0", f"{image}.{attention}.proj")
            move(f"{block}.{attention}.norm_q", f"{image}.{attention}.ln_q")
            move(f"{block}.{attention}.norm_k", f"{image}.{attention}.ln_k")
        fuse([f"{block}.attn.add_{x}_proj" for x in "qkv"], f"{text}.attn.qkv")
        move(f"{block}.attn.to_add_out", f"{text}.attn.proj")
        move(f"{block}.attn.norm_added_q", f"{text}.attn.ln_q")
        move(f"{block}.attn.norm_added_k", f"{text}.attn.ln_k")
        move(f"{block}.norm1.linear", f"{image}.adaLN_modulation.1")
        move(f"{block}.norm1_context.linear", f"{text}.adaLN_modulation.1", swapped if last else lambda x: x)
        for ours_name, theirs_name in (("ff", image), ("ff_context", text)):
            move(f"{block}.{ours_name}.net.0.proj", f"{theirs_name}.mlp.fc1")
            move(f"{block}.{ours_name}.net.2", f"{theirs_name}.mlp.fc2")
    assert not ours, f"not converted: {sorted(ours)}"
    return {name: tensor.clone().contiguous() for name, tensor in theirs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prefix", action="store_true")
    arguments = parser.parse_args()
    model = SD3Transformer2DModel.from_pretrained(arguments.pipeline / "transformer")
    checkpoint = original(model)
    if arguments.prefix:
        checkpoint = {PREFIX + name: tensor for name, tensor in checkpoint.items()}
        checkpoint["first_stage_model.encoder.conv_in.weight"] = torch.zeros(4, 3, 3, 3)
    save_file(checkpoint, arguments.out)

    loaded = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(arguments.out).items()}
    loaded = {name: tensor for name, tensor in loaded.items() if not name.startswith("first_stage_model.")}
    back = convert_sd3_transformer_checkpoint_to_diffusers(loaded)
    # diffusers takes the width from the depth, which the released models have in common; it is used for nothing but halving.
    expected = model.state_dict()
    assert back.keys() == expected.keys(), back.keys() ^ expected.keys()
    different = [name for name in expected if not torch.equal(back[name], expected[name])]
    assert not different, different
    print(f"{arguments.out}: {len(checkpoint)} tensors, diffusers converts them back bit for bit")


if __name__ == "__main__":
    main()
