"""Times the program on a CUDA device: the digits demo for some minutes, then a transformer of SD3's shape in bf16.

    python gpu.py --advdmd target/release/advdmd --out runs/gpu

Needs Python's torch 2.11.0 with CUDA, for the libraries and for the measured rate of matrix products that the update's rate is
compared with. Prints step time, peak memory and the share of that rate, and writes them to OUT/gpu.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import time
from pathlib import Path

import torch

HERE = Path(__file__).parent
# Numbers of wide.toml and of the digit scenes' embeddings.
WIDTH, DEPTH, IMAGE_TOKENS, STEPS = 1536, 24, 256, 4


def matrix_rate(size: int = 8192, repeats: int = 50) -> float:
    """Measured bf16 matrix products, in operations a second."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(repeats):
        a @ b
    torch.cuda.synchronize()
    return 2 * size**3 * repeats / (time.perf_counter() - begun)


def forward_operations(text_tokens: int) -> float:
    """Operations of one sample's forward pass: 24 d^2 a token and block for the linear layers, 4 T^2 d for attention."""
    tokens = IMAGE_TOKENS + text_tokens
    return DEPTH * (24 * WIDTH**2 * tokens + 4 * tokens**2 * WIDTH)


def run(advdmd: Path, config: Path, out: Path, *more: str) -> list[dict]:
    """Trains, and gives the records of its updates."""
    torch_lib = Path(torch.__file__).parent / "lib"
    path = os.pathsep.join(filter(None, [str(torch_lib), os.environ.get("LD_LIBRARY_PATH")]))
    environment = os.environ | {"ADVDMD_TORCH_LIB": str(torch_lib), "LD_LIBRARY_PATH": path}
    command = [advdmd, "train", config, "--out", out, "--device", "cuda", *more]
    subprocess.run([str(part) for part in command], env=environment, check=True)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def summary(records: list[dict]) -> dict:
    """Median seconds and peak bytes of the updates behind the first three."""
    later = records[3:]
    seconds = [b["seconds"] - a["seconds"] for a, b in zip(records[2:], later)]
    peak = max(record["values"]["memory/peak"] for record in later)
    return {"updates": len(records), "seconds": statistics.median(seconds), "peak_bytes": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--advdmd", type=Path, required=True, help="the program, its plugins beside it")
    parser.add_argument("--digits", type=Path, default=HERE / "../../../examples/digits.toml", help="the demo's configuration")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and of gpu.json")
    parser.add_argument("--minutes", type=float, default=2.0, help="of the digits demo")
    parser.add_argument("--text-tokens", type=int, default=8, help="tokens of an embedded caption")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    limit = f"schedule.max_minutes={arguments.minutes}"
    digits = summary(run(arguments.advdmd, arguments.digits, arguments.out / "digits", "--set", limit))
    records = run(arguments.advdmd, HERE / "wide.toml", arguments.out / "wide")
    wide = summary(records)

    def passes(way: str) -> float:
        name = [f"passes/{role}/{way}" for role in ("student", "teacher", "fake")]
        return sum(records[-1]["values"][key] - records[-2]["values"][key] for key in name)

    # A low-rank network's backward pass computes gradients of activations, not of the frozen weights: one forward's worth.
    # Passes that stop at the deepest tap are counted whole, so that the share is a little too high, never too low.
    operations = forward_operations(arguments.text_tokens) * (passes("forward") + passes("backward"))
    rate = matrix_rate()
    wide |= {"operations": operations, "share_of_matrix_rate": operations / wide["seconds"] / rate}
    result = {"device": torch.cuda.get_device_name(), "matrix_rate": rate, "digits": digits, "wide": wide}
    (arguments.out / "gpu.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
