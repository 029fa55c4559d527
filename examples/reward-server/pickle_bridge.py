#!/usr/bin/env python3
"""Lets AdvDMD use a reward server that speaks pickle, such as those of flow_grpo (GenEval, DeQA, UnifiedReward).

    python3 pickle_bridge.py --to http://127.0.0.1:18085 --port 8000 --metadata evaluation_metadata.jsonl

Such a server takes the POST of a pickle {"images": [JPEG, ...], "prompts": [...], "meta_datas": [...], "only_strict": bool}
and answers a pickle {"scores": [...], ...} or {"outputs": [...]}. Run this file beside it, and name this file's address in
the configuration.

What you trust when you use one:

- The old server runs whatever code a pickle that is sent to it contains. Whoever can reach its port owns its machine: let it
  listen on 127.0.0.1 or behind a firewall only. This file cannot change that.
- This file reads the answer with a reader that knows lists, dicts, texts, numbers and numpy's arrays of numbers, and
  refuses every other class before anything of it runs. It does not import numpy. A server that means harm can still answer
  wrong scores, or fill this process's memory; it cannot run code here, nor in AdvDMD.
"""

import argparse
import io
import json
import pickle
import socket
import struct
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import server
from server import ScoreError

MAX_REPLY = 64 << 20


class Dtype:
    """Stands in for numpy.dtype: the type of an array's numbers."""

    # Of what `struct` calls them.
    CODES = {"f2": "e", "f4": "f", "f8": "d", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "b1": "?",
             "u1": "B", "u2": "H", "u4": "I", "u8": "Q"}

    def __init__(self, name="", *_):
        self.name, self.order = name, "<"

    def __setstate__(self, state):
        self.order = {"<": "<", ">": ">", "|": "<", "=": "<"}[state[1]]

    def numbers(self, data):
        if self.name not in self.CODES or not isinstance(data, (bytes, bytearray)):
            raise pickle.UnpicklingError(f"numpy data of type {self.name!r}; expected numbers")
        code = self.CODES[self.name]
        return list(struct.unpack(f"{self.order}{len(data) // struct.calcsize('<' + code)}{code}", data))


class Array:
    """Stands in for numpy.ndarray of one dimension, and for the functions that make one."""

    def __init__(self, *_):
        self.numbers = None

    def __setstate__(self, state):
        _, shape, dtype, _, data = state
        self.fill(data, dtype, shape)

    def fill(self, data, dtype, shape):
        if len(shape) > 1:
            raise pickle.UnpicklingError(f"a numpy array of shape {tuple(shape)}; expected one dimension")
        self.numbers = dtype.numbers(data)
        return self


class Buffer(Array):
    """An array of pickle protocol 5."""

    def __init__(self, data, dtype, shape, _order):
        super().__init__()
        self.fill(data, dtype, shape)


class Scalar:
    """Stands in for numpy's numbers."""

    def __init__(self, dtype, data):
        (self.number,) = dtype.numbers(data)


class Reader(pickle._Unpickler):
    """Reads plain values and numpy's numbers, and knows no other class.

    It is the reader of the standard library that is written in Python: the one in C can be brought to errors inside of
    itself by damaged pickles.
    """

    dispatch = dict(pickle._Unpickler.dispatch)
    KNOWN = {("numpy", "dtype"): Dtype, ("numpy", "ndarray"): Array}
    for package in ("numpy.core", "numpy._core"):
        KNOWN[package + ".multiarray", "_reconstruct"] = Array
        KNOWN[package + ".multiarray", "scalar"] = Scalar
        KNOWN[package + ".numeric", "_frombuffer"] = Buffer

    def find_class(self, module, name):
        try:
            return self.KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is not read") from None

    def load_bytearray(self):
        (size,) = struct.unpack("<Q", self.read(8))
        if size > MAX_REPLY:
            # The standard library takes the memory before it looks whether so much follows.
            raise pickle.UnpicklingError(f"it announces {size} bytes")
        self.append(bytearray(self.read(size)))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray

    def persistent_load(self, _):
        raise pickle.UnpicklingError("it holds a reference to something outside of it")


def read(reply):
    """The values of a pickle, or `ScoreError` with what is wrong with it."""
    try:
        return Reader(io.BytesIO(reply)).load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ScoreError(f"the old server's reply is no pickle of plain values: {error}") from error


def scores_of(reply, key, count):
    """The scores of an old server's reply, under `key`, or else `scores`, or else `outputs`."""
    if not isinstance(reply, dict):
        raise ScoreError(f"the old server answered {type(reply).__name__}, expected a dict")
    names = [key] if key else ["scores", "outputs"]
    found = next((reply[name] for name in names if name in reply), None)
    found = found.numbers if isinstance(found, Array) else found
    if not isinstance(found, (list, tuple)):
        raise ScoreError(f"the old server's reply has no list {' or '.join(names)}; it has {', '.join(map(str, reply))}")
    if len(found) != count:
        raise ScoreError(f"the old server gave {len(found)} scores for {count} images")
    numbers = [value.number if isinstance(value, Scalar) else value for value in found]
    for index, value in enumerate(numbers):
        if not isinstance(value, (int, float)):
            raise ScoreError(f"the old server gave {type(value).__name__} as score {index}")
    return numbers


def jpeg(image, quality):
    with server.Image.open(io.BytesIO(image)) as opened:
        out = io.BytesIO()
        opened.convert("RGB").save(out, format="JPEG", quality=quality)
    return out.getvalue()


class Bridge:
    """The function `score` of this server: asks the old one."""

    def __init__(self, options):
        self.options = options
        # The proxies of the environment are not for servers on this machine.
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self.known = None
        if options.metadata:
            with open(options.metadata, encoding="utf-8") as file:
                entries = [json.loads(line) for line in file if line.strip()]
            self.known = {entry["prompt"]: entry for entry in entries}

    def meta_data(self, prompt):
        if self.known is None:
            return {"prompt": prompt}
        if prompt not in self.known:
            raise ScoreError(f"{self.options.metadata} has no entry for the prompt {prompt!r}")
        return self.known[prompt]

    def score(self, images, prompts, metadata):
        if self.options.images == "jpeg":
            images = [jpeg(image, self.options.quality) for image in images]
        request = {
            "images": images,
            "prompts": prompts,
            "meta_datas": [self.meta_data(prompt) for prompt in prompts],
            "only_strict": bool(metadata.get("only_strict", True)),
        }
        return scores_of(read(self.ask(pickle.dumps(request, protocol=4))), self.options.key, len(images))

    def ask(self, body):
        try:
            with self.opener.open(self.options.to, data=body, timeout=self.options.timeout) as response:
                reply = response.read(MAX_REPLY + 1)
        except urllib.error.HTTPError as error:
            last = error.read(1 << 16).decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise ScoreError(f"the old server answered HTTP {error.code}: {last}", 502) from error
        except (OSError, ValueError) as error:
            raise ScoreError(f"the old server does not answer: {error}", 502) from error
        if len(reply) > MAX_REPLY:
            raise ScoreError(f"the old server's reply is longer than {MAX_REPLY} bytes")
        return reply

    def ready(self):
        """Old servers have no health check: that one listens must do."""
        address = urlsplit(self.options.to)
        port = address.port or (443 if address.scheme == "https" else 80)
        try:
            socket.create_connection((address.hostname, port), timeout=5).close()
        except OSError as error:
            raise ScoreError(f"the old server is not there: {error}", 503) from error


def main():
    parser = argparse.ArgumentParser(description="Serves a reward server of the pickle protocol to AdvDMD.")
    server.add_arguments(parser)
    parser.add_argument("--to", required=True, metavar="URL", help="the old server, such as http://127.0.0.1:18085")
    parser.add_argument("--key", help="where the scores are in its reply; by default `scores`, else `outputs`")
    parser.add_argument("--metadata", metavar="FILE", help="JSON lines with a `prompt` each: what goes as `meta_datas`")
    parser.add_argument("--images", choices=["jpeg", "png"], default="jpeg",
                        help="how images are sent; the published servers take JPEG alone, which needs Pillow here")
    parser.add_argument("--quality", type=int, default=75, help="of JPEG; 75 is what flow_grpo sends")
    parser.add_argument("--timeout", type=float, default=120, help="seconds to wait for its reply")
    parser.add_argument("--name", default="pickle-bridge", help="what the scorer is called: endpoints of one reward must agree")
    options = parser.parse_args()
    if urlsplit(options.to).scheme not in ("http", "https"):
        parser.error(f"--to {options.to}: expected an address such as http://127.0.0.1:18085")
    if options.images == "jpeg" and server.Image is None:
        parser.error("images are sent as JPEG, which needs Pillow (pip install pillow); --images png does without it")
    bridge = Bridge(options)
    server.run(options, bridge.score, options.name, "pickle", bridge.ready)


if __name__ == "__main__":
    main()
