"""advdmd-nn's MMDiT against diffusers' at the digit scenes' size: `mmdit_speed.py PROGRAM [BATCH [PAIRS]]`.

PROGRAM is the built example `mmdit_speed`. The two take turns, so that what else the machine does weighs on both.
"""

import statistics
import subprocess
import sys
import time

import torch
from diffusers import SD3Transformer2DModel


def main(program: str, batch: int = 128, pairs: int = 7) -> None:
    torch.set_num_threads(2)
    model = SD3Transformer2DModel(
        sample_size=16, patch_size=4, in_channels=3, out_channels=3, num_layers=4, attention_head_dim=32,
        num_attention_heads=4, joint_attention_dim=35, caption_projection_dim=128, pooled_projection_dim=216,
        pos_embed_max_size=4, qk_norm="rms_norm",
    )
    inputs = dict(
        hidden_states=torch.randn(batch, 3, 16, 16), timestep=torch.rand(batch) * 1000,
        encoder_hidden_states=torch.randn(batch, 8, 35), pooled_projections=torch.randn(batch, 216),
    )

    def theirs(what: str, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            if what == "forward":
                with torch.no_grad():
                    model(**inputs)
            else:
                model.zero_grad()
                model(**inputs).sample.square().mean().backward()
        return (time.perf_counter() - start) * 1000 / count

    with subprocess.Popen([program, str(batch)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def ours(what: str, count: int) -> float:
            process.stdin.write(f"{what} {count}\n")
            process.stdin.flush()
            return float(process.stdout.readline())

        for what in ("forward", "train"):
            ours(what, 3), theirs(what, 3)  # warm both up
            times = [(ours(what, 5), theirs(what, 5)) for _ in range(pairs)]
            ratio = statistics.median(a / b for a, b in times)
            a, b = (statistics.median(side) for side in zip(*times))
            print(f"{what}: {a:.1f} ms against {b:.1f} ms, median ratio of {pairs} pairs {ratio:.3f}", flush=True)
        process.stdin.close()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
