"""One side of the transformer benchmark, in Python: `transformer.py FOLDER forward|forward-backward`.

Reads lines and answers each with a line of JSON: the seconds of one pass of diffusers' transformer and its loss. Sleeps
meanwhile, so that the other side has the machine to itself.
"""

import json
import sys
import time
from pathlib import Path

MODES = ("forward", "forward-backward")
TARGETS = [f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")]
TARGETS += [f"attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")]


def main(folder: Path, mode: str) -> None:
    try:
        import torch
        from diffusers import SD3Transformer2DModel
        from peft import LoraConfig
        from safetensors.torch import load_file
    except ImportError as error:
        sys.exit(f"missing module {error.name}: pip install torch diffusers transformers safetensors peft")
    torch.set_num_threads(int((folder / "threads").read_text()) or torch.get_num_threads())
    model = SD3Transformer2DModel.from_pretrained(folder / "transformer").requires_grad_(False)
    inputs = load_file(folder / "inputs.safetensors")
    if mode == "forward-backward":
        model.add_adapter(LoraConfig(r=32, lora_alpha=64, init_lora_weights="gaussian", target_modules=TARGETS))

    def predict():
        return model(inputs["x"], inputs["context"], inputs["pooled"], inputs["sigma"] * 1000.0, return_dict=False)[0]

    def run() -> float:
        if mode == "forward":
            with torch.no_grad():
                return predict().square().mean().item()
        model.zero_grad(set_to_none=False)
        loss = predict().square().mean()
        loss.backward()
        return loss.item()

    print(json.dumps({"ready": f"torch {torch.__version__}"}), flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        loss = run()
        seconds = time.perf_counter() - begun
        print(json.dumps({"seconds": seconds, "passes": {}, "values": {"pass/loss": loss}}), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[2] not in MODES:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2])
