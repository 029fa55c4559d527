"""Small but real tokenizers for the pipelines of sd3.py: a byte-level BPE as CLIP's and a Unigram model as T5's."""

import base64
import json
import math
from collections import Counter
from pathlib import Path

from transformers import CLIPTokenizer, T5Tokenizer

CORPUS = """
a photo of a red fox and the blue cat sitting on the green bench near a small river at night in the city
two cats and three dogs playing with a yellow ball under the old tree while the sun is setting behind the mountains
an oil painting of the woman with a white hat reading the newspaper in the morning light by the window of the train
there's a sign that says hello world and don't stop, it's written in big black letters on the wall of the station
the quick brown fox jumps over the lazy dog, we're going to the market because they'll have fresh bread and I've time
highly detailed, sharp focus, cinematic lighting, dramatic shadows, 4k, trending, masterpiece, best quality, portrait
""".split()

# The rules of a SentencePiece normaliser, as its trainer compiled them (normalization_rule_tsv): white space of all
# kinds to a space; zero-width characters and the byte order mark to nothing; full-width letters to narrow ones; U+FB01,
# the ellipsis, a circled 1, one half, the trade mark sign and a decomposed e-acute to what they stand for.
CHARSMAP = base64.b64decode("AAQAAAAgAAAJCQAACgUAAAEAAIDMDAIADRkAAIEFAAB7AACAoC0AAAAAAIAJAACAgGACAAMAAICiDQAANQAAgISAAgCDTQAAoA0AAAcAAICBEQAAgAgCAL19AACAVQAAUAAAgItFAAC/QQAAkawCAA0AAIAPAACAEQAAgI1dAAATAACArMgCABUAAIAXAACAGQAAgBsAAIAdAACAHwAAgCEAAIAjAACAJQAAgCcAAIApAACAKwAAgC0AAIAvAACAMQAAgLxEAwC9wAAAMwAAgDgAAIA6AACApuUAADwAAIC7RAIAPgAAgEAAAIBCAACAqOEAAEQAAIBGAACASAAAgEoAAIChbQEATAAAgKN9AQCifQEApZUBAKRpAQCnlQEAppUBAKm1AQCotQEAq7UBAKq1AQCtlQEArJUBAK+VAQCulQEAsfUBALD1AQCz9QEAsvUBALWdAQC0nQEAt4EBALaNAQC5hQEAuIUBAE4AAIC6hQEAUwAAgFUAAIBXAACAWQAAgFsAAIBdAACAXwAAgGEAAIBjAACAZQAAgGcAAIBpAACAawAAgG0AAIBvAACAcQAAgHMAAIBllAIAdQAAgHcAAIB5AACAcwAAAHAAAABxAAAAdgAAAHcAAAB0AAAAf/kBAHoAAAB7AAAAeAAAAHkAAAB+AAAAfwAAAHwAAAB9AAAAgfECAIMAAACD8QIAgvkCAIUVAwCE6QIAh2kDAIZ1AwCJWQMAiFEDAIupAwCKUQMAjbkDAIyxAwCPqQMAjrEDAJHZAwCQ0QMAk+kDAJLRAwCV+QMAlPEDAJfpAwCW8QMAmd0DAJjdAwCYAAAAmq0DAJ4AAACfAAAAnAAAAJ0AAACiAAAAowAAAKAAAAChAAAApgAAAKcAAACkAAAApQAAAKoAAACrAAAAqAAAAKkAAACuAAAArwAAAKwAAACtAAAAsgAAALMAAACwAAAAsQAAALYAAAC3AAAAtAAAALUAAAC6AAAAuwAAALgAAAC5AAAAvgAAAL8AAAC8AAAAvQAAAMIAAADDAAAAwAAAAMEAAADGAAAAxwAAAMQAAADFAAAAygAAAMsAAADCiAEAyQAAAM4AAADPAAAAzAAAAM0AAADSAAAA0wAAANAAAADRAAAA1gAAANcAAADUAAAA1QAAANoAAADbAAAA2AAAANkAAADeAAAA3wAAANwAAADdAAAA4gAAAOMAAADgAAAA4QAAAOYAAADnAAAA5AAAAO+sAQDqAAAA6wAAAOKEAQDj/AEA7gAAAO8AAADsAAAA7QAAAPIAAADzAAAA8AAAAPEAAAD2AAAA9wAAAPQAAAD1AAAA+gAAAPsAAAD4AAAA+QAAAP4AAAD/AAAA/AAAAP0AAAAAIAAuLi4AMQAxLzIAQQBCAEMARABFAEYARwBIAEkASgBLAEwATQBOAE8AUABRAFIAUwBUAFRNAFUAVgBXAFgAWQBaAGEAYgBjAGQAZQBmAGZpAGcAaABpAGoAawBsAG0AbgBvAHAAcQByAHMAdAB1AHYAdwB4AHkAegDDqQA=")

BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def byte_characters() -> list[str]:
    """GPT-2's printable character for each byte, in the order of CLIP's vocabulary."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(256 - len(plain))]


def learn_merges(count: int) -> list[tuple[str, str]]:
    """Byte-pair merges of the corpus, most frequent pair first."""
    words = Counter(tuple(word[:-1]) + (word[-1] + "</w>",) for word in (w.strip(",").lower() for w in CORPUS))
    merges = []
    for _ in range(count):
        pairs = Counter()
        for word, times in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += times
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        merged = Counter()
        for word, times in words.items():
            out = []
            for part in word:
                if out and (out[-1], part) == best:
                    out[-1] += part
                else:
                    out.append(part)
            merged[tuple(out)] += times
        words = merged
    return merges


def clip_tokenizer(pad: str, count: int = 150) -> CLIPTokenizer:
    characters, merges = byte_characters(), learn_merges(count)
    pieces = [*characters, *(c + "</w>" for c in characters), *(a + b for a, b in merges), BOS, EOS]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=77)


def as_released(folder: Path, tokenizer: CLIPTokenizer) -> None:
    """The folder as the released models hold it: without tokenizer.json, and with transformers 4's configuration."""
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    merges = ["#version: 0.2", *(" ".join(pair) for pair in tokenizer._merges)]
    for path in folder.iterdir():
        path.unlink()
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(merges) + "\n")

    pad = tokenizer.pad_token

    def token(content: str, normalized: bool) -> dict:
        return dict(content=content, lstrip=False, normalized=normalized, rstrip=False, single_word=False)

    added = {vocab[BOS]: token(BOS, True), vocab[EOS]: token(EOS, pad == EOS)}
    if pad != EOS:
        added = {vocab[pad]: token(pad, False), **added}
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(index): {**entry, "special": True} for index, entry in added.items()},
        "bos_token": BOS, "clean_up_tokenization_spaces": True, "do_lower_case": True, "eos_token": EOS,
        "errors": "replace", "model_max_length": 77, "pad_token": pad, "tokenizer_class": "CLIPTokenizer",
        "unk_token": EOS,
    }
    special = {"bos_token": token(BOS, True), "eos_token": token(EOS, pad == EOS), "pad_token": pad,
               "unk_token": token(EOS, True)}
    for name, value in {"tokenizer_config": config, "special_tokens_map": special}.items():
        (folder / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n")


def t5_tokenizer(extra_ids: int = 10) -> T5Tokenizer:
    text = ["▁" + word for word in CORPUS]
    counts = Counter()
    for word in text:
        for start in range(len(word)):
            for end in range(start + 1, min(len(word), start + 9) + 1):
                counts[word[start:end]] += 1
    letters = [chr(c) for c in range(0x21, 0x7F)] + list("éüßñäöå")
    frequent = sorted((piece for piece in counts if len(piece) > 1 and counts[piece] > 1),
                      key=lambda piece: (-counts[piece] * len(piece), piece))[:300]
    total = sum(counts.values())
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    for piece in dict.fromkeys(["▁", *letters, *frequent]):
        # Distinct scores, so that no two segmentations tie.
        score = math.log((counts[piece] + 0.1) / total) - 1e-3 * len(pieces)
        pieces.append((piece, round(score, 6)))
    pieces += [(f"<extra_id_{i}>", 0.0) for i in range(extra_ids - 1, -1, -1)]
    return T5Tokenizer(vocab=pieces, extra_ids=extra_ids, _spm_precompiled_charsmap=CHARSMAP, model_max_length=512)
