"""One side of the benchmark, in Python: `reference.py FOLDER one-loop|two-loops`.

Reads lines `update` and answers each with a line of JSON: the seconds of one update, the samples that passed through each
network in it, and its losses. Sleeps meanwhile, so that the other side has the machine to itself.
"""

import json
import sys
import time
from pathlib import Path

MODES = ("one-loop", "two-loops")


def main(folder: str, mode: str) -> None:
    try:
        import torch
        from one_loop import OneLoop
        from two_loops import TwoLoops
    except ImportError as error:
        sys.exit(f"missing module {error.name}: pip install torch diffusers transformers safetensors")
    torch.manual_seed(0)
    loop = {"one-loop": OneLoop, "two-loops": TwoLoops}[mode](Path(folder))
    torch.set_num_threads(loop.threads)
    print(json.dumps({"ready": f"torch {torch.__version__}"}), flush=True)
    for _ in sys.stdin:
        loop.passes.clear()
        begun = time.perf_counter()
        loop.update()
        losses = loop.read()
        seconds = time.perf_counter() - begun
        print(json.dumps({"seconds": seconds, "passes": dict(loop.passes), "values": losses}), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[2] not in MODES:
        sys.exit(__doc__)
    main(*sys.argv[1:])
