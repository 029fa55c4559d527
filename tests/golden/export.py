"""Proves that what `advdmd export` writes is what diffusers, PEFT and ComfyUI load, and that it samples as the student does.

    export.py run --advdmd target/debug/advdmd [--json export.json]
    export.py check --base PIPELINE --export FOLDER --prompts P.json --noise IN.safetensors --latents OUT.safetensors
                    [--images DIR]

`run` trains a student on each tiny pipeline of sd3/ (`export.toml`), exports it to every format and checks each one; the
numbers that this gave lie in export.json. `check` checks one export of any model: `--noise` holds the initial latents and
`--latents` what

    advdmd sample --run RUN --sampler ode-euler --sigmas S0,..,0 --prompts P.json --latents IN.safetensors \
        --save-latents OUT.safetensors --out DIR

made of them. For diffusers, PEFT and merged models, the very Python of the export's README is run, but for the device, the
type and the arguments that name prompts and noise. ComfyUI's file is applied as ComfyUI does it, `W += alpha / rank B A` on
the weights under the original release's names, which diffusers' own conversion then brings back.

Needs torch 2.11, diffusers 0.42, transformers 5 and peft.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import numpy
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from diffusers.utils import logging
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sd3_single_file import original

HERE = Path(__file__).resolve().parent
FORMATS = ("diffusers", "peft", "comfy", "merged")
# Latents of about 1, float32 sums in another order over a few steps.
TOLERANCE = 1e-4


def readme(folder: Path, index: dict) -> StableDiffusion3Pipeline:
    """The pipeline that the README's Python makes, and its call as `pipe.call`."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S).group(1)

    def replace(old: str, new: str) -> None:
        nonlocal code
        assert old in code, f"{old!r} is not in the README's Python:\n{code}"
        code = code.replace(old, new)

    replace('"PATH/TO/THIS/FOLDER"', repr(str(folder)))
    replace("torch.bfloat16", "torch.float32")
    replace('.to("cuda")', "")
    load, call = code.split("image = ")
    call = re.fullmatch(r'pipe\(\n    "a prompt", (.*)\n\)\.images\[0\]\n', call).group(1)
    space: dict = {}
    exec(load, space)
    arguments = eval(f"dict({call})")
    # Those of the latents that are given.
    assert [arguments.pop("height"), arguments.pop("width")] == index["image"]
    pipe = space["pipe"]
    pipe.call = lambda **more: pipe(**arguments, **more).images
    if index["format"] != "merged" and index["tuning"]["type"] == "lora":
        check_adapter(pipe, index)
    return pipe


def check_adapter(pipe: StableDiffusion3Pipeline, index: dict) -> None:
    """diffusers has taken rank and alpha from the file; PEFT's layers were merged by then."""
    for config in getattr(pipe.transformer, "peft_config", {}).values():
        expected = (index["tuning"]["rank"], index["tuning"]["alpha"])
        assert (config.r, config.lora_alpha) == expected, (config.r, config.lora_alpha, expected)
        layers = [module for module in pipe.transformer.modules() if hasattr(module, "lora_A")]
        assert 2 * len(layers) == index["matched"], (len(layers), index["matched"])
        scale = index["tuning"]["alpha"] / index["tuning"]["rank"]
        assert {tuple(layer.scaling.values()) for layer in layers} == {(scale,)}


def comfy(base: Path, folder: Path, index: dict) -> StableDiffusion3Pipeline:
    """The base with ComfyUI's LoRA applied to the weights of the original layers."""
    pipe = StableDiffusion3Pipeline.from_pretrained(base, torch_dtype=torch.float32)
    weights, lora = original(pipe.transformer), load_file(folder / "comfyui_lora.safetensors")
    used = set()
    for name in weights:
        layer = "diffusion_model." + name.removesuffix(".weight")
        if not name.endswith(".weight") or f"{layer}.lora_B.weight" not in lora:
            continue
        used |= {f"{layer}.{end}" for end in ("lora_A.weight", "lora_B.weight", "alpha")}
        a, b = (lora[f"{layer}.lora_{factor}.weight"].float() for factor in "AB")
        weights[name] += lora[f"{layer}.alpha"].item() / a.shape[0] * (b @ a)
    assert used and used == set(lora), f"not loaded: {sorted(set(lora) - used)[:3]}"
    pipe.transformer.load_state_dict(convert_sd3_transformer_checkpoint_to_diffusers(weights))
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    sigmas = index["sigmas"][:-1]
    pipe.call = lambda **more: pipe(sigmas=sigmas, num_inference_steps=len(sigmas), guidance_scale=1.0, **more).images
    return pipe


def plain(base: Path, index: dict) -> StableDiffusion3Pipeline:
    """The base alone, over the student's sigmas: what a LoRA that was not loaded would give."""
    pipe = StableDiffusion3Pipeline.from_pretrained(base, torch_dtype=torch.float32)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    sigmas = index["sigmas"][:-1]
    pipe.call = lambda **more: pipe(sigmas=sigmas, num_inference_steps=len(sigmas), guidance_scale=1.0, **more).images
    return pipe


def check(base: Path, folder: Path, prompts: list[str], noise: Path, latents: Path, images: Path | None) -> dict:
    """Largest differences from the student's latents (and images, in 0..1), and how far the base is from them."""
    index = json.loads((folder / "export.json").read_text())
    start, expected = (load_file(path)["latents"].float() for path in (noise, latents))
    pipe = comfy(base, folder, index) if index["format"] == "comfy" else readme(folder, index)
    height, width = (side * pipe.vae_scale_factor for side in start.shape[-2:])

    def final(pipe: StableDiffusion3Pipeline) -> torch.Tensor:
        pipe.set_progress_bar_config(disable=True)
        # The pipeline writes into what it is given.
        size = {"height": height, "width": width, "latents": start.clone()}
        return pipe.call(prompt=prompts, output_type="latent", **size)

    found = final(pipe)
    result = {
        "format": index["format"],
        "stored": index["dtype"],
        "scheduler": {key: pipe.scheduler.config[key] for key in ("shift", "shift_terminal")},
        "sigmas": [round(float(sigma), 6) for sigma in pipe.scheduler.sigmas],
        "latents": float((found - expected).abs().max()),
        "latents_of_the_base": float((final(plain(base, index)) - expected).abs().max()),
        "largest_latent": float(expected.abs().max()),
    }
    if images is not None:
        with torch.no_grad():
            decoded = pipe.vae.decode(found / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor).sample
        decoded = pipe.image_processor.postprocess(decoded, output_type="np")
        pictures = [numpy.asarray(Image.open(path)) / 255.0 for path in sorted(images.glob("*.png"))]
        result["images"] = float(numpy.abs(decoded - numpy.stack(pictures)).max())
    assert numpy.allclose(result["sigmas"], index["sigmas"], atol=1e-5), (result["sigmas"], index["sigmas"])
    return result


def judge(result: dict) -> None:
    print(json.dumps(result))
    tolerance = TOLERANCE if result["stored"] == "f32" else 2e-2
    assert result["latents"] < tolerance * max(1.0, result["largest_latent"]), "the export does not sample as the student"
    assert result["latents_of_the_base"] > 20 * result["latents"], "the student can not be told from its base"
    # Half a step of 8 bits, and the latents' own difference.
    assert result.get("images", 0.0) < 0.6 / 255 + 10 * result["latents"], "decoded images differ"


def deltas(diffusers: Path, comfy_file: Path, base: Path) -> float:
    """Largest difference of the rows of a fused layer's update from the updates of its parts, which are read from the export
    for diffusers under names that are converted here, not there."""
    with safe_open(diffusers / "pytorch_lora_weights.safetensors", "pt") as file:
        config = json.loads(file.metadata()["lora_adapter_metadata"])
        parts = {name: file.get_tensor(name) for name in file.keys()}
    scale = config["transformer.lora_alpha"] / config["transformer.r"]
    pipe = StableDiffusion3Pipeline.from_pretrained(base, torch_dtype=torch.float32)
    # As if the updates were the weights of a model, which the independent conversion fuses and renames.
    for name, parameter in pipe.transformer.named_parameters():
        key = "transformer." + name.removesuffix(".weight")
        a, b = (parts.get(f"{key}.lora_{factor}.weight") for factor in "AB")
        parameter.data = torch.zeros_like(parameter) if a is None or not name.endswith(".weight") else scale * b @ a
    lora, largest = load_file(comfy_file), 0.0
    for name, expected in original(pipe.transformer).items():
        layer = "diffusion_model." + name.removesuffix(".weight")
        found = torch.zeros_like(expected)
        if name.endswith(".weight") and f"{layer}.alpha" in lora:
            a, b = (lora[f"{layer}.lora_{factor}.weight"] for factor in "AB")
            found = lora[f"{layer}.alpha"].item() / a.shape[0] * (b @ a)
        elif name == "pos_embed":
            continue
        largest = max(largest, float((found - expected).abs().max()))
    return largest


def run(program: Path) -> list[dict]:
    """The whole proof on the tiny pipelines."""
    prompts, results = ["A red fox in the snow", "two BLUE cats"], []
    for name in ("sd3-tiny", "sd35-tiny"):
        base = HERE / "sd3" / name
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)

            def advdmd(*arguments: str) -> None:
                done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True)
                assert done.returncode == 0, f"{arguments}\n{done.stderr}"

            config = (HERE / "export.toml").read_text().replace("MODEL", str(base))
            photos = HERE.parent.parent / "examples" / "photos"
            (folder / "run.toml").write_text(config.replace("PHOTOS", str(photos)))
            advdmd("train", "run.toml", "--out", "run", "--quiet")
            (folder / "prompts.json").write_text(json.dumps(prompts))
            pipe = StableDiffusion3Pipeline.from_pretrained(base)
            size = [side // pipe.vae_scale_factor for side in (32, 48)]
            noise = torch.randn(2, pipe.transformer.config.in_channels, *size, generator=torch.Generator().manual_seed(7))
            save_file({"latents": noise}, folder / "noise.safetensors")
            walk = "--sampler ode-euler --sigmas 1,0.9,0.75,0.5,0 --prompts prompts.json --latents noise.safetensors"
            advdmd("sample", "--run", "run", *walk.split(), "--save-latents", "x.safetensors", "--out", "images")
            for format, dtype in [(format, "f32") for format in FORMATS] + [("diffusers", "bf16"), ("comfy", "f16")]:
                out = f"{format}-{dtype}"
                advdmd("export", "--run", "run", "--format", format, "--dtype", dtype, "--out", out)
                files = [folder / name for name in ("noise.safetensors", "x.safetensors", "images")]
                result = {"model": name, **check(base, folder / out, prompts, *files)}
                judge(result)
                results.append(result)
            fused = deltas(folder / "diffusers-f32", folder / "comfy-f32" / "comfyui_lora.safetensors", base)
            assert fused < 1e-6, fused
            results.append({"model": name, "updates of fused layers": fused})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    whole = commands.add_parser("run")
    whole.add_argument("--advdmd", type=Path, required=True)
    whole.add_argument("--json", type=Path)
    one = commands.add_parser("check")
    for option in ("base", "export", "prompts", "noise", "latents"):
        one.add_argument(f"--{option}", type=Path, required=True)
    one.add_argument("--images", type=Path)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    if arguments.command == "run":
        results = run(arguments.advdmd.resolve())
        if arguments.json is not None:
            arguments.json.write_text("[\n" + ",\n".join("  " + json.dumps(result) for result in results) + "\n]\n")
    else:
        prompts = json.loads(arguments.prompts.read_text())
        folder = arguments.export.resolve()
        judge(check(arguments.base, folder, prompts, arguments.noise, arguments.latents, arguments.images))
    print("all hold", file=sys.stderr)


if __name__ == "__main__":
    main()
