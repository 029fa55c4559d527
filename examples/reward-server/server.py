#!/usr/bin/env python3
"""A reward server for AdvDMD: fill in `score`, run this file, and name its address in a configuration.

    python3 server.py --port 8000

    [[reward]]
    type = "remote"
    endpoints = ["http://127.0.0.1:8000/score"]

It needs Python 3.8 and nothing else. The protocol is in openapi.yaml.
"""

import argparse
import base64
import binascii
import hmac
import io
import json
import math
import os
import struct
import sys
import threading
import traceback
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

# What the scorer is called, and which release of it this is. All endpoints of one reward must say the same.
NAME = "colourfulness"
RELEASE = "1"


def score(images, prompts, metadata):
    """One finite number for each image; higher is better. Called by one thread at a time.

    images: PNG files, as bytes: `pixels` below opens one, `PIL.Image.open(io.BytesIO(image))` too.
    prompts: as many strings.
    metadata: the table `metadata` of the reward's configuration; {} if it has none.

    Load models outside of this function, at the top of the file. Raise `ScoreError` for what cannot be scored: the run
    stops with its text. After any other exception the request is tried again.

    The function here is an example: the colourfulness of Hasler and Suesstrunk (2003), about 0 for grey and 100 for
    very colourful images.
    """
    return [colourfulness(image) for image in images]


def colourfulness(image):
    _, _, rgb = pixels(image)
    red, green, blue = rgb[0::3], rgb[1::3], rgb[2::3]
    spread, middle = 0.0, 0.0
    for opponent in (
        [r - g for r, g in zip(red, green)],
        [(r + g) / 2 - b for r, g, b in zip(red, green, blue)],
    ):
        mean = sum(opponent) / len(opponent)
        spread += sum((value - mean) ** 2 for value in opponent) / len(opponent)
        middle += mean**2
    return math.sqrt(spread) + 0.3 * math.sqrt(middle)


# ---------------------------------------------------------------------------------------------------------------------
# From here on nothing needs to be changed.

VERSION = 1
MAX_BODY = 512 << 20
# Pixels of an image; more is refused before it is decompressed.
MAX_PIXELS = 1 << 26

try:
    from PIL import Image
except ImportError:
    Image = None


class ScoreError(Exception):
    """A request that cannot be scored. `status` 422 stops the run; 503 lets it be tried again."""

    def __init__(self, message, status=422):
        super().__init__(message)
        self.status = status


def pixels(image):
    """Width, height and 8-bit RGB bytes, row by row, of a PNG file: with Pillow if it is there, else by `read_png`."""
    if Image is None:
        return read_png(image)
    try:
        with Image.open(io.BytesIO(image), formats=["PNG"]) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ScoreError(f"an image of {opened.width}x{opened.height} is too large")
            return opened.width, opened.height, opened.convert("RGB").tobytes()
    except (OSError, SyntaxError, ValueError) as error:
        raise ScoreError(f"not a whole PNG file: {error}") from error


def read_png(image):
    """What `pixels` gives, for PNG files as AdvDMD sends them: 8-bit RGB, not interlaced."""
    try:
        width, height, data = _chunks(image)
        stride = 3 * width
        unzip = zlib.decompressobj()
        lines = unzip.decompress(data, height * (stride + 1))
        if len(lines) != height * (stride + 1):
            raise ScoreError("not a whole PNG file: it ends early")
    except (struct.error, zlib.error) as error:
        raise ScoreError(f"not a whole PNG file: {error}") from error
    out, above = bytearray(), bytearray(stride)
    for start in range(0, len(lines), stride + 1):
        above = _unfilter(lines[start], bytearray(lines[start + 1 : start + 1 + stride]), above)
        out += above
    return width, height, bytes(out)


def _chunks(image):
    if image[:8] != b"\x89PNG\r\n\x1a\n":
        raise ScoreError("not a PNG file")
    at, size, data = 8, None, []
    while True:
        length, kind = struct.unpack_from(">I4s", image, at)
        body = image[at + 8 : at + 8 + length]
        (checksum,) = struct.unpack_from(">I", image, at + 8 + length)
        if zlib.crc32(kind + body) != checksum:
            raise ScoreError("a damaged PNG file")
        at += 12 + length
        if kind == b"IHDR":
            *size, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", body)
            if (depth, colour, interlace) != (8, 2, 0):
                raise ScoreError("a PNG file that is not 8-bit RGB without interlacing; install Pillow to read it")
            if not 0 < size[0] * size[1] <= MAX_PIXELS:
                raise ScoreError(f"an image of {size[0]}x{size[1]}")
        elif kind == b"IDAT":
            data.append(body)
        elif kind == b"IEND":
            if size is None:
                raise ScoreError("a PNG file without a header")
            return size[0], size[1], b"".join(data)


def _unfilter(kind, line, above):
    """Undoes the filter of one line (PNG specification, section 9); three bytes a pixel."""
    if kind == 1:
        for i in range(3, len(line)):
            line[i] = (line[i] + line[i - 3]) & 255
    elif kind == 2:
        for i, up in enumerate(above):
            line[i] = (line[i] + up) & 255
    elif kind == 3:
        for i, up in enumerate(above):
            left = line[i - 3] if i >= 3 else 0
            line[i] = (line[i] + (left + up) // 2) & 255
    elif kind == 4:
        for i, up in enumerate(above):
            left, corner = (line[i - 3], above[i - 3]) if i >= 3 else (0, 0)
            to_left, to_up, to_corner = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
            nearest = left if to_left <= to_up and to_left <= to_corner else up if to_up <= to_corner else corner
            line[i] = (line[i] + nearest) & 255
    elif kind != 0:
        raise ScoreError("a damaged PNG file")
    return line


def parse(body):
    """Images, prompts and metadata of a request, or `ScoreError` with status 400."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ScoreError(f"the request is not JSON: {error}", 400) from error
    if not isinstance(request, dict) or request.get("version") != VERSION:
        raise ScoreError(f"expected an object with version {VERSION} of the protocol", 400)
    samples, metadata = request.get("samples"), request.get("metadata", {})
    if not isinstance(samples, list) or not isinstance(metadata, dict):
        raise ScoreError("expected a list `samples`, and an object `metadata` or none", 400)
    images, prompts = [], []
    for index, sample in enumerate(samples):
        if not isinstance(sample, dict) or not isinstance(sample.get("prompt"), str):
            raise ScoreError(f"sample {index}: expected an object with a text `prompt`", 400)
        try:
            images.append(base64.b64decode(sample["image"], validate=True))
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise ScoreError(f"sample {index}: expected an `image` in base64", 400) from error
        prompts.append(sample["prompt"])
    return images, prompts, metadata


def checked(scores, count):
    """The scores as floats. Another number of them or one that is not finite is a fault of the scorer."""
    scores = list(scores)
    if len(scores) != count:
        raise ScoreError(f"the scorer gave {len(scores)} scores for {count} images")
    for index, value in enumerate(scores):
        try:
            scores[index] = float(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise ScoreError(f"the scorer gave {type(value).__name__} as score {index}") from error
        if not math.isfinite(scores[index]):
            raise ScoreError(f"the scorer gave {scores[index]} as score {index}")
    return scores


class Handler(BaseHTTPRequestHandler):
    """Answers /score and /health."""

    protocol_version = "HTTP/1.1"
    server_version = "advdmd-reward-server"
    # Of silence on a connection, in seconds.
    timeout = 60

    def do_GET(self):
        self.answer("/health", self.health)

    def do_POST(self):
        self.answer("/score", self.score)

    def answer(self, path, function):
        self.close_connection = True
        length = self.headers.get("Content-Length", "0")
        self.left = min(int(length), MAX_BODY) if length.isdigit() else 0
        try:
            if urlsplit(self.path).path != path:
                raise ScoreError("POST /score and GET /health are all there is", 404)
            token = self.server.token
            given = self.headers.get("Authorization", "")
            if token and not hmac.compare_digest(given.encode("latin-1"), f"Bearer {token}".encode()):
                raise ScoreError("another token is expected", 401)
            status, reply = 200, function()
        except ScoreError as error:
            status, reply = error.status, {"error": str(error)}
        except Exception as error:  # of the scorer: it must not end the server
            traceback.print_exc()
            status, reply = 500, {"error": f"{type(error).__name__}: {error}"}
        # A client that is still sending would not see the reply.
        while self.left and self.read(1 << 16):
            pass
        body = json.dumps(reply, allow_nan=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def read(self, size):
        data = self.rfile.read(min(size, self.left))
        self.left = self.left - len(data) if data else 0
        return data

    def health(self):
        self.server.ready()
        return {"version": VERSION, "name": self.server.scorer, "release": self.server.release}

    def score(self):
        length = self.headers.get("Content-Length", "")
        if not length.isdigit():
            raise ScoreError("expected a Content-Length", 411)
        if int(length) > MAX_BODY:
            raise ScoreError(f"more than {MAX_BODY} bytes: set a smaller `batch_size`", 413)
        body = self.read(self.left)
        if len(body) < int(length):
            raise ScoreError("the request ends early", 400)
        images, prompts, metadata = parse(body)
        with self.server.lock:
            scores = self.server.score(images, prompts, metadata)
        return {"version": VERSION, "scores": checked(scores, len(images))}

    def log_request(self, code="-", size="-"):
        if code != 200:
            super().log_request(code, size)


class Server(ThreadingHTTPServer):
    """Serves `score` under a name. `ready` raises `ScoreError` with status 503 while the scorer cannot work yet."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address, score, name, release, token=None, ready=lambda: None):
        super().__init__(address, Handler)
        self.score, self.scorer, self.release, self.token, self.ready = score, name, release, token, ready
        self.lock = threading.Lock()

    def handle_error(self, request, client_address):
        # A client that went away is no reason for a traceback.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def add_arguments(parser):
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for every network")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one, which is printed")
    parser.add_argument("--token-env", metavar="NAME", help="environment variable with the token that clients must send")


def run(options, score, name, release, ready=lambda: None):
    """Serves until Ctrl-C."""
    token = None
    if options.token_env:
        token = os.environ.get(options.token_env, "").strip()
        if not token:
            sys.exit(f"environment variable {options.token_env} is empty or not set")
    with Server((options.host, options.port), score, name, release, token, ready) as server:
        host, port = server.server_address[:2]
        print(f"{name} {release} listens on http://{host}:{port}/score", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description="Serves the function `score` of this file to AdvDMD.")
    add_arguments(arguments)
    run(arguments.parse_args(), score, NAME, RELEASE)
