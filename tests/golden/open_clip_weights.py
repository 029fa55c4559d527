"""Golden data of `advdmd convert clip`: tiny open_clip models with random weights, as files that torch.save and safetensors
write, with the same tensors as transformers' CLIPModel names and lays them out; and pickles that would run something.

    python tests/golden/open_clip_weights.py make                          # writes tests/golden/open_clip
    python tests/golden/open_clip_weights.py check --advdmd target/debug/advdmd

`check` converts them with the built program, loads the folders in transformers and compares features with open_clip's. Needs
torch, open_clip_torch, transformers, safetensors.
"""

import argparse
import collections
import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import open_clip
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

FOLDER = Path(__file__).parent / "open_clip"

# As ViT-B with quick_gelu, and as ViT-H with a head width of its own and GELU.
MODELS = {
    "vit-b": dict(embed=6, vision=(16, 2, 4, 16, 4), text=(8, 2, 2, 64, 12), quick_gelu=True),
    "vit-h": dict(embed=10, vision=(20, 2, 3, 12, 10), text=(12, 1, 3, 40, 9), quick_gelu=False),
}


def build(name, vocabulary=None):
    """The open_clip model and its [vision, text] heads. Weights are made large enough that every one of them shows."""
    wanted = MODELS[name]
    torch.manual_seed(len(name) + wanted["embed"])
    width, layers, patch, side, head = wanted["vision"]
    text_width, text_layers, heads, tokens, context = wanted["text"]
    vision = CLIPVisionCfg(width=width, layers=layers, patch_size=patch, image_size=side, head_width=head)
    text = CLIPTextCfg(
        width=text_width, layers=text_layers, heads=heads, vocab_size=vocabulary or tokens, context_length=context
    )
    model = CLIP(wanted["embed"], vision, text, quick_gelu=wanted["quick_gelu"]).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
    return model, [width // head, heads]


def transformers_of(model, name, heads):
    """The same model in transformers."""
    wanted = MODELS[name]
    width, layers, patch, side, _ = wanted["vision"]
    text_width, text_layers, _, _, context = wanted["text"]
    tokens = model.vocab_size
    act = "quick_gelu" if wanted["quick_gelu"] else "gelu"
    config = CLIPConfig(
        projection_dim=wanted["embed"],
        text_config=dict(
            vocab_size=tokens, hidden_size=text_width, intermediate_size=4 * text_width, num_hidden_layers=text_layers,
            num_attention_heads=heads[1], max_position_embeddings=context, hidden_act=act, bos_token_id=tokens - 2,
            eos_token_id=tokens - 1,
        ),
        vision_config=dict(
            hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads[0],
            image_size=side, patch_size=patch, hidden_act=act,
        ),
    )
    converted = CLIPModel(config).eval()
    vision, text, visual = converted.vision_model, converted.text_model, model.visual
    pairs = [
        (converted.logit_scale, model.logit_scale),
        (converted.visual_projection.weight, visual.proj.T),
        (converted.text_projection.weight, model.text_projection.T),
        (vision.embeddings.class_embedding, visual.class_embedding),
        (vision.embeddings.patch_embedding.weight, visual.conv1.weight),
        (vision.embeddings.position_embedding.weight, visual.positional_embedding),
        (text.embeddings.token_embedding.weight, model.token_embedding.weight),
        (text.embeddings.position_embedding.weight, model.positional_embedding),
    ]
    modules = [
        (vision.pre_layrnorm, visual.ln_pre),
        (vision.post_layernorm, visual.ln_post),
        (text.final_layer_norm, model.ln_final),
    ]
    for ours, theirs in [(vision, visual.transformer), (text, model.transformer)]:
        assert len(ours.encoder.layers) == len(theirs.resblocks)
        for layer, block in zip(ours.encoder.layers, theirs.resblocks):
            attention = layer.self_attn
            projections = [attention.q_proj, attention.k_proj, attention.v_proj]
            pairs += zip([each.weight for each in projections], block.attn.in_proj_weight.chunk(3))
            pairs += zip([each.bias for each in projections], block.attn.in_proj_bias.chunk(3))
            modules += [
                (attention.out_proj, block.attn.out_proj),
                (layer.layer_norm1, block.ln_1),
                (layer.layer_norm2, block.ln_2),
                (layer.mlp.fc1, block.mlp.c_fc),
                (layer.mlp.fc2, block.mlp.c_proj),
            ]
    for ours, theirs in modules:
        pairs += [(ours.weight, theirs.weight), (ours.bias, theirs.bias)]
    assert len(pairs) == len(converted.state_dict())
    for ours, theirs in pairs:
        assert ours.shape == theirs.shape
        ours.data = theirs.detach().clone()
    return converted


def inputs(model):
    """Pixels and token ids: a start, words, the end, zeros behind it."""
    generator = torch.Generator().manual_seed(5)
    side = model.visual.image_size[0]
    pixels = torch.randn(3, 3, side, side, generator=generator)
    tokens, context = model.vocab_size, model.context_length
    ids = torch.zeros(3, context, dtype=torch.long)
    for row, words in enumerate([1, 3, context - 2]):
        ids[row, 0] = tokens - 2
        ids[row, 1 : 1 + words] = torch.randint(1, tokens - 2, (words,), generator=generator)
        ids[row, 1 + words] = tokens - 1
    return pixels, ids


class Calls:
    """Pickled as a call."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def archive(data, more=(), compression=zipfile.ZIP_STORED):
    """A zip archive as torch.save lays it out."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", compression) as file:
        for name, content in [("data.pkl", data), ("byteorder", b"little"), ("version", b"3\n"), *more]:
            file.writestr(zipfile.ZipInfo(f"archive/{name}"), content, compression)
    return written.getvalue()


def hostile():
    """Files that would run something, or are of another format."""
    weights = collections.OrderedDict([("a", 1.5)])
    touch = "touch /tmp/advdmd-was-here"
    linear = torch.jit.trace(torch.nn.Linear(1, 1), torch.zeros(1, 1))
    script, legacy, objects = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.jit.save(linear, script)
    torch.save({"a": torch.zeros(2)}, legacy, _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(1, 1), objects)
    big = torch.zeros(8)
    compressed, doubled = io.BytesIO(), io.BytesIO()
    torch.save({"visual.conv1.weight": big}, compressed)
    with zipfile.ZipFile(compressed) as file:
        members = [(i.filename.split("/", 1)[1], file.read(i)) for i in file.infolist()]
    data = dict(members)["data.pkl"]
    torch.save({"visual.conv1.weight": big.double()}, doubled)
    return {
        "system.pt": archive(pickle.dumps(Calls(os.system, touch), 2)),
        "eval.pt": archive(pickle.dumps({"state_dict": weights, "hyper": Calls(eval, "1 + 1")}, 4)),
        "nested.pt": archive(pickle.dumps({"state_dict": {"a": [({"b": Calls(os.system, touch)},)]}}, 2)),
        "old-protocol.pt": archive(pickle.dumps(Calls(os.system, touch), 0)),
        "module.pt": objects.getvalue(),
        "script.pt": script.getvalue(),
        "legacy.pt": legacy.getvalue(),
        "double.pt": doubled.getvalue(),
        "compressed.pt": archive(data, [m for m in members if m[0].startswith("data/")], zipfile.ZIP_DEFLATED),
        "no-tensors.pt": archive(pickle.dumps({"epoch": 3, "name": "x"}, 2)),
    }


def make():
    FOLDER.mkdir(exist_ok=True)
    for name in MODELS:
        model, heads = build(name)
        if name == "vit-h":
            model = model.half().float()
        converted = transformers_of(model, name, heads)
        assert max(compare(model, converted)) < 1e-5
        state, expected = model.state_dict(), converted.state_dict()
        if name == "vit-b":
            torch.save(state, FOLDER / f"{name}.pt")
            save_file({key: value.contiguous() for key, value in state.items()}, FOLDER / f"{name}.safetensors")
        else:
            # As a training run leaves it: halves, names of a wrapped model, parameters, a mask, tensors that lie across
            # a storage or share one, things beside the weights.
            halves = {f"module.{key}": value.half() for key, value in state.items()}
            halves["module.attn_mask"] = model.attn_mask
            halves["module.logit_scale"] = torch.nn.Parameter(halves["module.logit_scale"])
            for key in ["module.visual.proj", "module.text_projection"]:
                halves[key] = halves[key].T.contiguous().T
            pair = torch.cat([halves["module.ln_final.weight"], halves["module.ln_final.bias"]])
            half = len(pair) // 2
            halves["module.ln_final.weight"], halves["module.ln_final.bias"] = pair[:half], pair[half:]
            more = {"epoch": 7, "name": "run", "device": torch.device("cpu"), "shape": torch.Size([1, 2])}
            torch.save({"state_dict": collections.OrderedDict(halves), **more}, FOLDER / f"{name}.pt")
            expected = {key: value.half() for key, value in expected.items()}
        save_file({k: v.clone().contiguous() for k, v in expected.items()}, FOLDER / f"{name}.expected.safetensors")
    for name, content in hostile().items():
        (FOLDER / name).write_bytes(content)
    print(f"{sum(file.stat().st_size for file in FOLDER.iterdir())} bytes in {FOLDER}")


def convert(advdmd, source, out, heads, *more):
    command = [advdmd, "convert", "clip", source, out, "--vision-heads", heads[0], "--text-heads", heads[1], *more]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)


def load(folder):
    """A converted folder in transformers, which must find each tensor and no other."""
    converted, info = CLIPModel.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    return converted


def compare(model, converted):
    """Largest differences of image and text features and of the logits, open_clip against transformers."""
    pixels, ids = inputs(model)
    with torch.no_grad():
        ours = converted.eval()(input_ids=ids, pixel_values=pixels)
        image, text = model.encode_image(pixels, normalize=True), model.encode_text(ids, normalize=True)
        logits = model.logit_scale.exp() * image @ text.T
    differences = [ours.image_embeds - image, ours.text_embeds - text, ours.logits_per_image - logits]
    return [difference.abs().max().item() for difference in differences]


def check(advdmd):
    worst = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        for name in MODELS:
            model, heads = build(name)
            if name == "vit-h":
                model = model.half().float()
            quick = ["--quick-gelu"] if MODELS[name]["quick_gelu"] else []
            for suffix in ["pt", "safetensors"]:
                source = FOLDER / f"{name}.{suffix}"
                if not source.exists():
                    continue
                out = scratch / f"{name}-{suffix}"
                convert(advdmd, source, out, heads, "--dtype", "f32", *quick)
                found = compare(model, load(out))
                worst = max(worst, *found)
                print(f"{source.name}: images {found[0]:.1e}, texts {found[1]:.1e}, logits {found[2]:.1e}")
        # The tokenizer of CLIP needs a model with CLIP's vocabulary.
        model, heads = build("vit-b", vocabulary=49408)
        torch.save(model.state_dict(), scratch / "words.pt")
        merges = Path(open_clip.tokenizer.default_bpe())
        convert(advdmd, scratch / "words.pt", scratch / "words", heads, "--quick-gelu", "--tokenizer", merges)
        tokenizer = CLIPTokenizer.from_pretrained(scratch / "words", model_max_length=77)
        texts = ["a photo of a cat", "An ASTRONAUT, riding  a horse; 4k!!", "naïve café — 東京 🙂", "", "it's 1234567"]
        expected = open_clip.tokenize(texts)
        for text, ids in zip(texts, expected):
            found = tokenizer(text)["input_ids"]
            assert ids[: len(found)].tolist() == found and not ids[len(found) :].any(), (text, found, ids)
        print(f"tokenizer: {len(texts)} texts alike")
    if worst > 1e-5:
        sys.exit(f"features differ by {worst:.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "check"])
    parser.add_argument("--advdmd", default="target/debug/advdmd")
    arguments = parser.parse_args()
    make() if arguments.what == "make" else check(arguments.advdmd)
