"""Times SD3.5-medium's real shape, with random weights in bf16, on a CUDA device, beside diffusers on the same device.

    python sd35.py --advdmd target/release/advdmd --speed target/release/deps/speed-… --out runs/sd35

`--advdmd` is the program with its plugins beside it; `--speed` the benchmark (`cargo bench --package advdmd-tests --bench speed
--no-run` prints its path; its plugins are looked for where the program's are). Needs Python's torch 2.11.0 with CUDA,
diffusers, transformers and peft. Measures a forward pass and a forward and backward pass of a LoRA (rank 32) in turns with
diffusers, then whole updates at 512x512 with a group of 32; prints seconds and peak memory, and writes them to OUT/sd35.json.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

HERE = Path(__file__).parent
TINY = HERE / "../../golden/sd3/sd35-tiny"

# The config.json files of SD3.5-medium.
TRANSFORMER = dict(
    sample_size=128, patch_size=2, in_channels=16, num_layers=24, attention_head_dim=64, num_attention_heads=24,
    joint_attention_dim=4096, caption_projection_dim=1536, pooled_projection_dim=2048, out_channels=16,
    pos_embed_max_size=384, dual_attention_layers=tuple(range(13)), qk_norm="rms_norm",
)
VAE = dict(
    in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16, norm_num_groups=32, sample_size=1024,
    scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False,
)
# Widths of the two pooled embeddings. The encoders themselves are tiny: they run once, before the first update.
POOLED = {"text_encoder": 768, "text_encoder_2": 1280}


def write_model(folder: Path) -> None:
    torch.manual_seed(0)
    with torch.device("cuda"):
        transformer = SD3Transformer2DModel(**TRANSFORMER).to(torch.bfloat16)
        vae = AutoencoderKL(**VAE).to(torch.bfloat16)
    transformer.save_pretrained(folder / "transformer")
    vae.save_pretrained(folder / "vae")
    for part, width in POOLED.items():
        config = CLIPTextConfig.from_pretrained(TINY / part)
        config.projection_dim = width
        CLIPTextModelWithProjection(config).save_pretrained(folder / part)
    for part in ("tokenizer", "tokenizer_2", "scheduler"):
        shutil.copytree(TINY / part, folder / part, dirs_exist_ok=True)
    index = json.loads((TINY / "model_index.json").read_text())
    index |= {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))


def write_inputs(folder: Path, batch: int, checkpointing: bool) -> None:
    shape = {"x": (batch, 16, 64, 64), "context": (batch, 333, 4096), "pooled": (batch, 2048)}
    inputs = {name: torch.randn(size) for name, size in shape.items()} | {"sigma": torch.full((batch,), 0.75)}
    save_file(inputs, folder / "inputs.safetensors")
    settings = {"device": "cuda", "dtype": "bf16", "threads": 0, "activation_checkpointing": checkpointing}
    (folder / "pass.json").write_text(json.dumps(settings))


class Side:
    """A worker that runs one pass for each line that it reads."""

    def __init__(self, command: list, environment: dict):
        command = [str(part) for part in command]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        if not self.process.stdout.readline():
            sys.exit(f"{command[0]} ended before it was ready")

    def run(self) -> dict:
        self.process.stdin.write("pass\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def passes(speed: Path, folder: Path, environment: dict, mode: str, pairs: int) -> dict:
    ours = Side([speed, "--worker", folder, "--pass", mode], environment)
    theirs = Side([sys.executable, "-B", HERE.parent / "transformer.py", folder, mode], environment)
    samples = [(ours.run(), theirs.run()) for _ in range(pairs + 3)][3:]
    ours.close(), theirs.close()

    def median(side: int, read) -> float:
        return statistics.median(read(pair[side]) for pair in samples)

    return {
        "ratio": statistics.median(a["seconds"] / b["seconds"] for a, b in samples),
        "seconds": [median(side, lambda sample: sample["seconds"]) for side in (0, 1)],
        "peak_bytes": [median(side, lambda sample: sample["values"]["memory/peak"]) for side in (0, 1)],
        "loss": [median(side, lambda sample: sample["values"]["pass/loss"]) for side in (0, 1)],
    }


def updates(advdmd: Path, model: Path, out: Path, environment: dict, more: list[str]) -> dict:
    photos = HERE / "../../../examples/photos"
    command = [advdmd, "train", HERE / "sd35.toml", "--out", out, "--set", f"backbone.model={json.dumps(str(model))}"]
    command += ["--set", f"data.path={json.dumps(str(photos.resolve()))}", *more]
    subprocess.run([str(part) for part in command], env=environment, check=True)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    phases = {name: value for name, value in records[-1]["values"].items() if name.startswith("time/")}
    seconds = [b["seconds"] - a["seconds"] for a, b in zip(records[1:], records[2:])]
    peak = max(record["values"]["memory/peak"] for record in records)
    return {"seconds": statistics.median(seconds), "peak_bytes": peak, "phases": phases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--advdmd", type=Path, required=True)
    parser.add_argument("--speed", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=8, help="of the single passes")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--set", action="append", default=[], help="for the updates, such as batch.micro_batch=16")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    model = out / "model"
    model.mkdir(parents=True, exist_ok=True)
    torch_lib = Path(torch.__file__).parent / "lib"
    path = os.pathsep.join(filter(None, [str(torch_lib), os.environ.get("LD_LIBRARY_PATH")]))
    environment = os.environ | {"ADVDMD_TORCH_LIB": str(torch_lib), "LD_LIBRARY_PATH": path, "ADVDMD_CACHE": str(out / "cache")}
    write_model(model)
    torch.cuda.empty_cache()

    result = {"device": torch.cuda.get_device_name()}
    for checkpointing in (False, True):
        write_inputs(model, arguments.batch, checkpointing)
        for mode in ("forward", "forward-backward") if not checkpointing else ("forward-backward",):
            name = mode + (", checkpointed" if checkpointing else "")
            result[name] = passes(arguments.speed, model, environment, mode, arguments.pairs)
            print(json.dumps({name: result[name]}), flush=True)
    more = [part for setting in arguments.set for part in ("--set", setting)]
    result["update"] = updates(arguments.advdmd, model, out / "run", environment, more)
    (out / "sd35.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
