"""One side of the benchmark of `hps`, in Python: `hps.py FOLDER hps`.

Reads lines and answers each with a line of JSON: the seconds in which open_clip and torchvision score the images of the
folder, as HPSv2's own script does, and the mean score. Sleeps meanwhile, so that the other side has the machine to itself.
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "golden"))


def main(folder: Path) -> None:
    try:
        import torch
        from safetensors.torch import load_file
        from torchvision import transforms
        from transformers import CLIPConfig, CLIPTokenizer

        from clip import MEAN, STD, to_open_clip
    except ImportError as error:
        sys.exit(f"missing module {error.name}: pip install torch torchvision transformers open_clip_torch safetensors")
    threads = json.loads((folder / "pass.json").read_text())["threads"]
    torch.set_num_threads(threads or torch.get_num_threads())
    model = to_open_clip(CLIPConfig.from_pretrained(folder), load_file(folder / "model.safetensors"))
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    images = load_file(folder / "inputs.safetensors")["images"]
    transform = transforms.Compose([
        transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC, antialias=True),
        transforms.CenterCrop(224), transforms.Normalize(MEAN, STD),
    ])

    @torch.no_grad()
    def run(update: int) -> float:
        prompts = [f"a photo of {update * len(images) + i} red foxes near the river" for i in range(len(images))]
        tokens = tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        image = model.encode_image(transform(images), normalize=True)
        return (image * model.encode_text(tokens, normalize=True)).sum(-1).mean().item()

    print(json.dumps({"ready": f"torch {torch.__version__}"}), flush=True)
    for update, _ in enumerate(sys.stdin):
        begun = time.perf_counter()
        score = run(update)
        seconds = time.perf_counter() - begun
        print(json.dumps({"seconds": seconds, "passes": {}, "values": {"score": score}}), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[2] != "hps":
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
