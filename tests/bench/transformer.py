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
    settings = json.loads((folder / "pass.json").read_text())
    torch.set_num_threads(settings["threads"] or torch.get_num_threads())
    device = settings["device"]
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[settings["dtype"]]
    model = SD3Transformer2DModel.from_pretrained(folder / "transformer", torch_dtype=dtype).requires_grad_(False).to(device)
    inputs = {name: tensor.to(device, dtype) for name, tensor in load_file(folder / "inputs.safetensors").items()}
    sigma = load_file(folder / "inputs.safetensors")["sigma"].to(device)
    if settings["activation_checkpointing"]:
        model.enable_gradient_checkpointing()
        model.train()
    if mode == "forward-backward":
        # Its own weights stay in float32, as ours.
        model.add_adapter(LoraConfig(r=32, lora_alpha=64, init_lora_weights="gaussian", target_modules=TARGETS))

        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    def predict():
        return model(inputs["x"], inputs["context"], inputs["pooled"], sigma * 1000.0, return_dict=False)[0].float()

    def run() -> float:
        if mode == "forward":
            with torch.no_grad():
                return predict().square().mean().item()
        model.zero_grad(set_to_none=False)
        with autocast:
            velocity = predict()
        loss = velocity.square().mean()
        loss.backward()
        return loss.item()

    autocast = torch.autocast(device.split(":")[0], dtype, enabled=dtype != torch.float32)
    print(json.dumps({"ready": f"torch {torch.__version__}"}), flush=True)
    for _ in sys.stdin:
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        begun = time.perf_counter()
        loss = run()
        seconds = time.perf_counter() - begun
        values = {"pass/loss": loss, "memory/peak": 0 if device == "cpu" else torch.cuda.max_memory_allocated()}
        print(json.dumps({"seconds": seconds, "passes": {}, "values": values}), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[2] not in MODES:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2])
