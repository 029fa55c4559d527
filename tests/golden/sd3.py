"""Reference values for backbone-sd3: tiny random pipelines of the SD3 family in diffusers' folder layout, and what
diffusers and transformers compute with them.

Run from anywhere with torch 2.11, diffusers 0.42 and transformers 5. Without arguments it writes sd3/ beside itself:

    <name>/                 the pipeline's folder (random weights of healthy variance)
    <name>.safetensors      parity tensors, float32
    <name>.prompts.json     the prompts that they belong to
    <name>.tokens.json      token ids of awkward prompts by each tokenizer

`sd3-tiny` is of SD3-medium's kind, its CLIP tokenizers stored as the released ones; `sd35-tiny` of SD3.5-medium's, its
tokenizers stored as transformers 5 writes them. Others: `sd3.py sd35-tiny --out DIR --seed 7 --size 6x10 --no-t5
--prompts FILE.json --set vae.layers_per_block=2 --set transformer.num_layers=4`. The tests run on them with
`SD3_GOLDEN=DIR cargo test -p backbone-sd3 match_`.
"""

import argparse
import copy
import json
import shutil
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer,
)

import sd3_tokenizers as tokenizers

HERE = Path(__file__).resolve().parent / "sd3"

PROMPTS = [
    'A "red fox" & 2 BLUE cats at 14:35... wow!!! (it\'s 100% real?)',
    "",
    "ÜBER café — 東京の夜 🦊🌃 <|endoftext|> don't",
    "the quick brown fox jumps over the lazy dog, " * 30,
]

# Whatever makes tokenizers disagree.
AWKWARD = [
    *PROMPTS, " ", "  two  spaces ", "tab\tand\nnew line\r\n end", "UPPER Case ÀÉÎ İ ẞ ΑΣ", "e\u0301 versus \u00e9",
    "n\u0303o\u0308 a\u030a\u0323 combining", "क्षि देवनागरी", "ﬁ ﬀ ligatures ½ ① ™ …", "ＦＵＬＬ　ｗｉｄｔｈ",
    "東京タワー、赤い狐。", "안녕하세요 한글", "مرحبا بالعالم", "שלום", "Привет, мир", "👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽",
    "zero\u200bwidth\u200djoiner\ufeff", "no\u00a0break\u2003em\u3000wide",
    "<|startoftext|>inside<|endoftext|>and after", "<|ENDOFTEXT|> <|EndOfText|>", "</s> <pad> <unk> <extra_id_3>",
    "!", "!!!", "wow! so! much!x", "12345 3.14 1e-5 ٣٤", "'s 't 're 've 'm 'll 'd I'D we'Ll", "it’s “curly” quotes",
    "a_b-c/d\\e|f~g`h^i", "{[(<>)]}", "\x00\x01\x7f controls \x85", "\ud7ff\ue000 \U0010ffff",
    "x" * 300, "!?" * 90, "東" * 120,
    "▁ the metaspace itself ▁x", "a</w> b</w>",
]

VARIANTS = {
    "sd3-tiny": {
        "transformer": dict(
            sample_size=8, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=16,
            num_attention_heads=2, caption_projection_dim=32, pos_embed_max_size=12,
        ),
        "vae": dict(block_out_channels=[16, 16, 32, 32], layers_per_block=1, norm_num_groups=8),
        # The released encoder's configuration has the legacy end-of-text id 2, too.
        "text_encoder": dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
                             projection_dim=32, hidden_act="quick_gelu", eos_token_id=2, bos_token_id=0),
        "text_encoder_2": dict(hidden_size=24, intermediate_size=64, num_hidden_layers=2, num_attention_heads=3,
                               projection_dim=16, hidden_act="gelu"),
        "text_encoder_3": dict(d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4),
        "released_tokenizers": True, "dtype": "float16", "size": "8x8",
    },
    "sd35-tiny": {
        "transformer": dict(
            sample_size=12, patch_size=2, in_channels=16, out_channels=16, num_layers=3, attention_head_dim=16,
            num_attention_heads=2, caption_projection_dim=32, pos_embed_max_size=16, dual_attention_layers=[0, 1],
            qk_norm="rms_norm",
        ),
        "vae": dict(block_out_channels=[16, 24, 32], layers_per_block=2, norm_num_groups=8),
        "text_encoder": dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2,
                             projection_dim=24, hidden_act="quick_gelu"),
        "text_encoder_2": dict(hidden_size=20, intermediate_size=48, num_hidden_layers=3, num_attention_heads=5,
                               projection_dim=28, hidden_act="gelu", eos_token_id=2),
        # The heads together are wider than the model, which the architecture allows.
        "text_encoder_3": dict(d_model=48, d_kv=20, d_ff=80, num_layers=2, num_heads=3),
        "released_tokenizers": False, "dtype": "bfloat16", "size": "12x8",
    },
}

VAE = dict(
    latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False,
)


def randomize(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Normal weights of variance 1 / fan-in, biases and gains away from 0 and 1: every path matters."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            value = torch.randn(parameter.shape, generator=generator)
            if "Norm" in type(part).__name__ and parameter.dim() == 1:
                value = value * 0.2 + (1 if name == "weight" else 0)
            elif parameter.dim() == 1:
                value = value * 0.2
            elif not isinstance(part, torch.nn.Embedding):
                value = value * parameter[0].numel() ** -0.5
            parameter.data.copy_(value)
    for name, parameter in module.named_parameters():
        # T5 does not divide its scores by the root of the head's width; the weights have to.
        if name.endswith("SelfAttention.q.weight"):
            parameter.data.mul_(module.config.d_kv**-0.5)


def build(config: dict, seed: int, t5: bool) -> StableDiffusion3Pipeline:
    generator = torch.Generator().manual_seed(seed)
    tokens = {"tokenizer": tokenizers.clip_tokenizer(tokenizers.EOS), "tokenizer_2": tokenizers.clip_tokenizer("!")}
    encoders = {}
    for name, tokenizer in zip(("text_encoder", "text_encoder_2"), tokens.values()):
        ids = dict(vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id,
                   eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
        encoders[name] = CLIPTextModelWithProjection(CLIPTextConfig(**{**ids, **config[name]}))
    tokens["tokenizer_3"], encoders["text_encoder_3"] = None, None
    if t5:
        tokens["tokenizer_3"] = tokenizers.t5_tokenizer()
        # The released table has a few rows that no token uses.
        sizes = dict(vocab_size=len(tokens["tokenizer_3"]) + 5, feed_forward_proj="gated-gelu",
                     tie_word_embeddings=False)
        encoders["text_encoder_3"] = T5EncoderModel(T5Config(**{**sizes, **config["text_encoder_3"]}))
    widths = dict(joint_attention_dim=config["text_encoder_3"]["d_model"],
                  pooled_projection_dim=sum(encoders[k].config.projection_dim for k in config if k in (
                      "text_encoder", "text_encoder_2")))
    blocks = len(config["vae"]["block_out_channels"])
    ends = dict(down_block_types=["DownEncoderBlock2D"] * blocks, up_block_types=["UpDecoderBlock2D"] * blocks)
    models = {
        "transformer": SD3Transformer2DModel(**{**widths, **config["transformer"]}),
        "vae": AutoencoderKL(**{**VAE, **ends, **config["vae"]}),
        **encoders,
    }
    for model in models.values():
        if model is not None:
            randomize(model, generator)
            model.to(getattr(torch, config["dtype"])).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **config.get("scheduler", {})})
    return StableDiffusion3Pipeline(scheduler=scheduler, **models, **tokens)


def save(pipeline: StableDiffusion3Pipeline, config: dict, folder: Path, arguments: dict) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    pipeline.save_pretrained(folder, **arguments)
    for name in ("tokenizer", "tokenizer_2"):
        if config["released_tokenizers"]:
            tokenizers.as_released(folder / name, getattr(pipeline, name))


@torch.no_grad()
def parity(folder: Path, variant: str | None, prompts: list[str], size: tuple[int, int], seed: int) -> dict:
    without = {} if (folder / "text_encoder_3").exists() else {"text_encoder_3": None, "tokenizer_3": None}
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, dtype=torch.float32, variant=variant, **without)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed + 1)
    out = {}
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled", "negative_pooled")
    out |= zip(names, pipe.encode_prompt(prompts, None, None, negative_prompt=""))

    batch, channels = len(prompts), pipe.transformer.config.in_channels
    out["noise"] = torch.randn((batch, channels, *size), generator=generator)
    out["sigmas_check"] = torch.tensor([1.0, 0.7143, 0.25])
    half = copy.deepcopy(pipe.transformer).to(torch.bfloat16)
    errors = []
    for index, sigma in enumerate(out["sigmas_check"]):
        def velocity(model: SD3Transformer2DModel) -> torch.Tensor:
            noise, context, pooled = (out[k].to(model.dtype) for k in ("noise", "prompt_embeds", "pooled"))
            return model(hidden_states=noise, timestep=(1000 * sigma).expand(batch), encoder_hidden_states=context,
                         pooled_projections=pooled, return_dict=False)[0].float()

        out[f"velocity_{index}"] = velocity(pipe.transformer)
        error = velocity(half) - out[f"velocity_{index}"]
        errors.append(error.norm() / out[f"velocity_{index}"].norm())
    out["bf16_velocity_error"] = torch.stack(errors)

    scale = pipe.vae_scale_factor
    arguments = dict(
        prompt_embeds=out["prompt_embeds"], negative_prompt_embeds=out["negative_prompt_embeds"],
        pooled_prompt_embeds=out["pooled"], negative_pooled_prompt_embeds=out["negative_pooled"],
        height=size[0] * scale, width=size[1] * scale, num_inference_steps=4, guidance_scale=3.5,
    )
    out["latents_ode4_cfg3.5"] = pipe(**arguments, latents=out["noise"].clone(), output_type="latent").images
    out["image_ode4_cfg3.5"] = pipe(**arguments, latents=out["noise"].clone(), output_type="pt").images
    out["sigmas_4"] = pipe.scheduler.sigmas

    # The first image once more, in tiles of four latent pixels.
    vae = pipe.vae
    vae.enable_tiling()
    vae.tile_latent_min_size, vae.tile_sample_min_size = 4, 4 * scale
    latents = out["latents_ode4_cfg3.5"][:1] / vae.config.scaling_factor + (vae.config.shift_factor or 0)
    out["image_tiled"] = pipe.image_processor.postprocess(vae.decode(latents).sample, output_type="pt")
    out["tile_size"] = torch.tensor([4.0 * scale])
    vae.disable_tiling()

    # Smooth areas and noise.
    coarse = torch.rand((batch, 3, 3, 3), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, [scale * s for s in size], mode="bicubic")
    out["encode_in"] = (smooth + 0.1 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)
    mean = vae.encode(2 * out["encode_in"] - 1).latent_dist.mean
    out["encode_mean"] = (mean - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
    return out


def token_ids(folder: Path, prompts: list[str]) -> dict:
    out = {"prompts": prompts}
    for name, length in (("tokenizer", 77), ("tokenizer_2", 77), ("tokenizer_3", 256)):
        if (folder / name).exists():
            tokenizer = (T5Tokenizer if length == 256 else CLIPTokenizer).from_pretrained(folder / name)
            out[name] = tokenizer(prompts, padding="max_length", max_length=length, truncation=True).input_ids
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", default=list(VARIANTS), help=f"of {', '.join(VARIANTS)}; default all")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="of weights, noise and images")
    parser.add_argument("--prompts", type=Path, help="JSON list of strings, one a sample")
    parser.add_argument("--size", help="rows x columns of the latents, e.g. 6x10")
    parser.add_argument("--no-t5", action="store_true", help="without the third text encoder")
    parser.add_argument("--set", action="append", default=[], metavar="PART.KEY=JSON", help="of a part's configuration")
    parser.add_argument("--dtype", help="type of the stored weights: float32, float16, bfloat16")
    parser.add_argument("--released-tokenizers", type=json.loads, metavar="BOOL", help="CLIP's without tokenizer.json")
    parser.add_argument("--shards", metavar="SIZE", help="size at which weight files are split, e.g. 100KB")
    parser.add_argument("--variant", help="infix of the weight files, e.g. fp16")
    arguments = parser.parse_args()

    prompts = json.loads(arguments.prompts.read_text()) if arguments.prompts else PROMPTS
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.variants:
        config = copy.deepcopy(VARIANTS[name])
        for key in ("size", "dtype", "released_tokenizers"):
            if getattr(arguments, key) is not None:
                config[key] = getattr(arguments, key)
        for setting in arguments.set:
            path, value = setting.split("=", 1)
            part, key = path.split(".")
            config.setdefault(part, {})[key] = json.loads(value)
        folder = arguments.out / name
        files = {"max_shard_size": arguments.shards} if arguments.shards else {}
        files["variant"] = arguments.variant
        save(build(config, arguments.seed, not arguments.no_t5), config, folder, files)
        size = tuple(int(side) for side in config["size"].split("x"))
        tensors = parity(folder, arguments.variant, prompts, size, arguments.seed)
        tensors = {k: v.float().contiguous() for k, v in tensors.items()}
        path = arguments.out / f"{name}.safetensors"
        save_file(tensors, path, metadata={"format": "pt"})
        dump = lambda what, value: (arguments.out / f"{name}.{what}.json").write_text(json.dumps(value) + "\n")
        dump("prompts", prompts)
        dump("tokens", token_ids(folder, list(dict.fromkeys([*AWKWARD, *prompts]))))
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
        for key, value in tensors.items():
            print(f"  {key} {list(value.shape)}: std {value.std():.3g}, {value.min():.3g} .. {value.max():.3g}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    main()
