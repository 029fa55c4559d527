"""Reference values for reward-clip: tiny random CLIP models in transformers' folder layout, and what transformers,
open_clip and torchvision compute with them.

Run from anywhere with torch 2.11, torchvision 0.26, transformers 5, open_clip_torch 3.3 and Pillow. Without arguments it
writes clip/ beside itself:

    <name>/                 the folder of a CLIPModel: random weights, tokenizer, image processor
    <name>.safetensors      images (uint8) and what the references make of them
    <name>.json             prompts, and further settings of the image processor

`clip-quick` is of ViT-B/32's kind and stored as OpenAI's models are; `clip-wide` of ViT-H-14's, stored as transformers 5
writes it. Others: `clip.py clip-quick --out DIR --seed 7 --image-size 48 --set text_config.num_hidden_layers=4`. The tests
run on them with `CLIP_GOLDEN=DIR cargo test -p reward-clip match_`.
"""

import argparse
import copy
import json
import shutil
from pathlib import Path

import numpy
import open_clip
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

import sd3_tokenizers as tokenizers

HERE = Path(__file__).resolve().parent / "clip"

PROMPTS = [
    "a photo of a red fox",
    "",
    "ÜBER café — 東京の夜 🦊🌃 <|endoftext|> don't",
    "the quick brown fox jumps over the lazy dog, " * 30,
    "two cats & three dogs!!",
    "a photo of a red fox",
    "portrait",
]

# Rows and columns for a model of 32 pixels; scaled with it. Upright, wide, tall, tiny, as the model wants it, large, odd.
SIZES = [(61, 40), (37, 90), (101, 17), (5, 7), (32, 32), (129, 130), (33, 35)]

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

VARIANTS = {
    "clip-quick": {
        "projection_dim": 24,
        "text_config": dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                            hidden_act="quick_gelu", eos_token_id=2, bos_token_id=0),
        "vision_config": dict(hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=3,
                              hidden_act="quick_gelu", image_size=16, patch_size=4),
        "released": True, "dtype": "bfloat16",
    },
    "clip-wide": {
        "projection_dim": 32,
        "text_config": dict(hidden_size=40, intermediate_size=160, num_hidden_layers=3, num_attention_heads=5,
                            hidden_act="gelu"),
        # 16 is no multiple of 3: the last row and column are in no patch.
        "vision_config": dict(hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
                              hidden_act="gelu", image_size=16, patch_size=3),
        "released": False, "dtype": "float16",
    },
}


def processors(side: int) -> list[dict]:
    """Settings of the image processor beside the usual ones; each must give `side` x `side`."""
    crop, small, large = {"height": side, "width": side}, side * 2 // 3, side + 5
    return [
        {"size": side, "crop_size": side, "resample": 2},
        {"size": {"height": small, "width": large}, "crop_size": crop},
        {"size": {"shortest_edge": small}, "crop_size": crop},
        {"size": {"shortest_edge": large}, "crop_size": crop, "do_normalize": False},
        {"size": crop, "do_center_crop": False, "rescale_factor": 0.01, "image_mean": [0.5, 0.4, 0.3],
         "image_std": [0.5, 0.6, 0.7]},
        {"do_resize": False, "crop_size": crop, "do_rescale": False},
    ]


def randomize(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Normal weights of variance 1 / fan-in, biases and gains away from 0 and 1: every path matters."""
    for part in model.modules():
        for name, parameter in part.named_parameters(recurse=False):
            value = torch.randn(parameter.shape, generator=generator)
            if "Norm" in type(part).__name__:
                value = value * 0.2 + (1 if name == "weight" else 0)
            elif name == "class_embedding":
                pass
            elif parameter.dim() == 1:
                value = value * 0.2
            elif parameter.dim() > 1 and not isinstance(part, torch.nn.Embedding):
                value = value * parameter[0].numel() ** -0.5
            parameter.data.copy_(value)
    model.logit_scale.data.fill_(4.2)


def save(config: dict, folder: Path, seed: int, arguments: dict) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    released = config["released"]
    tokenizer = tokenizers.clip_tokenizer(tokenizers.EOS if released else "!")
    ids = dict(vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
               pad_token_id=tokenizer.pad_token_id)
    sizes = {**config, "text_config": {**ids, **config["text_config"]}}
    model = CLIPModel(CLIPConfig(**{k: sizes[k] for k in ("projection_dim", "text_config", "vision_config")}))
    randomize(model, torch.Generator().manual_seed(seed))
    model.to(getattr(torch, config["dtype"])).eval()
    tokenizer.save_pretrained(folder)
    if released:
        tokenizers.as_released(folder, tokenizer)
    model.save_pretrained(folder, **arguments)
    side = config["vision_config"]["image_size"]
    crop = {"height": side, "width": side}
    processor = {
        "do_center_crop": True, "do_normalize": True, "do_resize": True, "image_mean": MEAN, "image_std": STD,
        "resample": 3, **({"size": side, "crop_size": side, "feature_extractor_type": "CLIPFeatureExtractor"} if released
                          else {"size": {"shortest_edge": side}, "crop_size": crop, "do_rescale": True,
                                "rescale_factor": 1 / 255, "image_processor_type": "CLIPImageProcessor"}),
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
    if released:
        as_released(folder, config)


def as_released(folder: Path, config: dict) -> None:
    """Keys at their default left out, and buffers among the weights that transformers no longer has."""
    path = folder / "config.json"
    found = json.loads(path.read_text())
    defaults = CLIPConfig().to_dict()
    for part in ("text_config", "vision_config"):
        found[part] = {k: v for k, v in found[part].items() if defaults[part].get(k) != v}
        found[f"{part}_dict"] = None
    path.write_text(json.dumps(found, indent=2) + "\n")
    path = folder / "model.safetensors"
    if path.exists():
        weights = load_file(path)
        for part in ("text_model", "vision_model"):
            positions = len(weights[f"{part}.embeddings.position_embedding.weight"])
            weights[f"{part}.embeddings.position_ids"] = torch.arange(positions).unsqueeze(0)
        save_file(weights, path, metadata={"format": "pt"})


def to_open_clip(config: CLIPConfig, old: dict) -> open_clip.CLIP:
    """The weights of a CLIPModel in open_clip's class."""
    text, vision = config.text_config, config.vision_config
    other = open_clip.CLIP(
        embed_dim=config.projection_dim,
        vision_cfg=dict(layers=vision.num_hidden_layers, width=vision.hidden_size, patch_size=vision.patch_size,
                        head_width=vision.hidden_size // vision.num_attention_heads, image_size=vision.image_size,
                        mlp_ratio=vision.intermediate_size / vision.hidden_size),
        text_cfg=dict(context_length=text.max_position_embeddings, vocab_size=text.vocab_size, width=text.hidden_size,
                      heads=text.num_attention_heads, layers=text.num_hidden_layers,
                      mlp_ratio=text.intermediate_size / text.hidden_size),
        quick_gelu=text.hidden_act == "quick_gelu",
    )
    new = {"logit_scale": old["logit_scale"]}

    def blocks(source: str, target: str, count: int) -> None:
        for index in range(count):
            here, there = f"{source}.encoder.layers.{index}.", f"{target}.resblocks.{index}."
            for kind in ("weight", "bias"):
                rows = [old[f"{here}self_attn.{name}_proj.{kind}"] for name in "qkv"]
                new[f"{there}attn.in_proj_{kind}"] = torch.cat(rows)
                for ours, theirs in (("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"),
                                     ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")):
                    new[f"{there}{theirs}.{kind}"] = old[f"{here}{ours}.{kind}"]

    blocks("text_model", "transformer", text.num_hidden_layers)
    blocks("vision_model", "visual.transformer", vision.num_hidden_layers)
    for theirs, ours in {
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    }.items():
        new[theirs] = old[ours]
    for theirs, ours in {"ln_final": "text_model.final_layer_norm", "visual.ln_pre": "vision_model.pre_layrnorm",
                         "visual.ln_post": "vision_model.post_layernorm"}.items():
        new |= {f"{theirs}.{kind}": old[f"{ours}.{kind}"] for kind in ("weight", "bias")}
    new["text_projection"], new["visual.proj"] = old["text_projection.weight"].T, old["visual_projection.weight"].T
    missing, unexpected = other.load_state_dict(new, strict=False)
    assert not unexpected and set(missing) <= {"attn_mask"}, (missing, unexpected)
    return other.eval()


def picture(size: tuple[int, int], generator: torch.Generator) -> numpy.ndarray:
    """Smooth areas, noise, and an edge from black to white at which a bicubic filter overshoots."""
    rows, columns = size
    coarse = torch.rand((1, 3, 4, 4), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (rows, columns), mode="bicubic")[0]
    image = (smooth + 0.15 * torch.randn((3, rows, columns), generator=generator)).clamp(0, 1)
    image[:, rows // 2 :, columns // 2 :] = (torch.rand(3, generator=generator) > 0.5)[:, None, None].float()
    return image.mul(255).round().byte().permute(1, 2, 0).numpy()


def reference(folder: Path, images: list[numpy.ndarray], prompts: list[str], seed: int) -> dict:
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    tokens = tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    usual = json.loads((folder / "preprocessor_config.json").read_text())
    pictures = [Image.fromarray(image) for image in images]
    side = model.config.vision_config.image_size
    pixels = lambda settings: CLIPImageProcessorPil(**settings)(pictures, return_tensors="pt").pixel_values
    out = {f"image_{i}": torch.from_numpy(image.copy()).permute(2, 0, 1) for i, image in enumerate(images)}
    out["pixel_values"] = pixels(usual)
    for index, settings in enumerate(processors(side)):
        out[f"processor_{index}"] = pixels({**usual, **settings}).float()
    unit = lambda x: x / x.norm(dim=-1, keepdim=True)
    cosine = lambda text, image: (unit(text) * unit(image)).sum(-1)
    features = lambda model, pixels: model.get_image_features(pixels.to(model.dtype)).pooler_output
    text_features = lambda model: model.get_text_features(**tokens).pooler_output
    out["text_features"], out["image_features"] = text_features(model), features(model, out["pixel_values"])
    out["cosine"] = cosine(out["text_features"], out["image_features"])
    whole = model(**tokens, pixel_values=out["pixel_values"])
    assert torch.allclose(whole.logits_per_image.diagonal(), model.logit_scale.exp() * out["cosine"], atol=1e-4)
    # PickScore, as its model card computes it, over 26.
    out["pickscore"] = model.logit_scale.exp() * out["cosine"] / 26

    # HPSv2's preprocessing by torchvision and model by open_clip; flow_grpo's of its CLIPScore.
    other = to_open_clip(model.config, model.state_dict())
    for name, mode in (("bicubic", InterpolationMode.BICUBIC), ("bilinear", InterpolationMode.BILINEAR)):
        transform = transforms.Compose([
            transforms.ToTensor(), transforms.Resize(side, interpolation=mode, antialias=True),
            transforms.CenterCrop(side), transforms.Normalize(MEAN, STD),
        ])
        out[f"{name}_pixels"] = torch.stack([transform(image) for image in pictures])
        with torch.no_grad():
            text, image = other.encode_text(tokens.input_ids), other.encode_image(out[f"{name}_pixels"])
        out[f"{name}_cosine"] = cosine(text, image)
    # open_clip's own transform: Pillow's resize and torchvision's crop.
    transform = open_clip.image_transform(side, is_train=False, mean=MEAN, std=STD)
    out["open_clip_pixels"] = torch.stack([transform(image) for image in pictures])
    with torch.no_grad():
        out["open_clip_cosine"] = cosine(text, other.encode_image(out["open_clip_pixels"]))
    out["open_clip_text_features"] = text

    # Gradients of the sum of the cosines, in float64.
    double = copy.deepcopy(model).double()
    for index, image in enumerate(images):
        leaf = (out[f"image_{index}"].double() / 255).requires_grad_(True)
        value = transforms.functional.resize(leaf, side, InterpolationMode.BICUBIC, antialias=True)
        value = transforms.functional.normalize(transforms.functional.center_crop(value, side), MEAN, STD)
        score = cosine(text_features(double)[index : index + 1], features(double, value[None]))
        out[f"gradient_{index}"] = torch.autograd.grad(score.sum(), leaf)[0].float()

    half = copy.deepcopy(model).bfloat16()
    for name, values in (("text", text_features(half)), ("image", features(half, out["pixel_values"]))):
        values, exact = values.float(), out[f"{name}_features"]
        out[f"bf16_{name}_error"] = (values - exact).norm() / exact.norm()
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", default=list(VARIANTS), help=f"of {', '.join(VARIANTS)}; default all")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="of weights and images")
    parser.add_argument("--prompts", type=Path, help="JSON list of strings, one an image")
    parser.add_argument("--image-size", type=int, help="of the model; the images grow with it")
    parser.add_argument("--set", action="append", default=[], metavar="PART.KEY=JSON", help="of a part's configuration")
    parser.add_argument("--dtype", help="type of the stored weights: float32, float16, bfloat16")
    parser.add_argument("--shards", metavar="SIZE", help="size at which weight files are split, e.g. 100KB")
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.variants:
        config = copy.deepcopy(VARIANTS[name])
        config["dtype"] = arguments.dtype or config["dtype"]
        for setting in arguments.set:
            path, value = setting.split("=", 1)
            part, _, key = path.rpartition(".")
            (config[part] if part else config)[key] = json.loads(value)
        if arguments.image_size:
            config["vision_config"]["image_size"] = arguments.image_size
        side = config["vision_config"]["image_size"]
        prompts = json.loads(arguments.prompts.read_text()) if arguments.prompts else PROMPTS
        folder = arguments.out / name
        save(config, folder, arguments.seed, {"max_shard_size": arguments.shards} if arguments.shards else {})
        generator = torch.Generator().manual_seed(arguments.seed + 1)
        sizes = [tuple(max(1, length * side // 32) for length in SIZES[i % len(SIZES)]) for i in range(len(prompts))]
        images = [picture(size, generator) for size in sizes]
        tensors = reference(folder, images, prompts, arguments.seed)
        tensors = {k: v.contiguous() for k, v in tensors.items()}
        path = arguments.out / f"{name}.safetensors"
        save_file(tensors, path, metadata={"format": "pt"})
        described = {"prompts": prompts, "processors": processors(side)}
        (arguments.out / f"{name}.json").write_text(json.dumps(described) + "\n")
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
        for key in ("cosine", "bicubic_cosine", "bilinear_cosine", "bf16_text_error", "bf16_image_error"):
            print(f"  {key} {[round(value, 4) for value in tensors[key].flatten().tolist()]}")
        for key in ("bicubic", "bilinear"):
            print(f"  {key}_cosine - cosine: {(tensors[f'{key}_cosine'] - tensors['cosine']).abs().max():.2e}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    main()
