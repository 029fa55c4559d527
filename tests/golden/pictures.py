"""Golden data of how scores read image files: small files of many kinds, and the pixels that Pillow gives,
`ImageOps.exif_transpose(Image.open(FILE)).convert("RGB")`, in pictures/expected.safetensors: uint8 [H, W, 3] by file name.

    python tests/golden/pictures.py          # writes tests/golden/pictures; needs pillow, numpy, safetensors
"""

import struct
import warnings
import zlib
from pathlib import Path

import numpy
from PIL import Image, ImageOps
from safetensors.numpy import save_file

FOLDER = Path(__file__).with_suffix("")
WIDTH, HEIGHT = 21, 13


def png(pixels, depth, colour, *chunks):
    """A PNG file of rows of samples, for the kinds that Pillow does not write."""
    pixels = numpy.asarray(pixels, numpy.uint16 if depth == 16 else numpy.uint8)
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in pixels)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *(chunk(*each) for each in chunks), chunk(b"IDAT", zlib.compress(rows, 9)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def gif(size, palette, frame, indices, transparent=None):
    """A GIF file of one frame `x, y, width, height`, packed without compression."""
    codes, bits = [], 3
    for at, index in enumerate(indices):
        codes += [8, index] if at % 6 == 0 else [index]
    packed = sum(code << (4 * at) for at, code in enumerate(codes + [9]))
    data = packed.to_bytes((len(codes) + 2) // 2, "little")
    blocks = b"".join(bytes([len(data[at : at + 255])]) + data[at : at + 255] for at in range(0, len(data), 255))
    control = struct.pack("<BHB", transparent is not None, 0, transparent or 0)
    return (
        b"GIF89a" + struct.pack("<HHBBB", *size, 0xF2, 4, 0) + bytes(sum(palette, ())) + b"\x21\xf9\x04" + control
        + b"\0\x2c" + struct.pack("<HHHHB", *frame, 0) + bytes([bits]) + blocks + b"\0\x3b"
    )


def make():
    FOLDER.mkdir(exist_ok=True)
    generator = numpy.random.default_rng(0)
    noise = lambda *channels: generator.integers(0, 256, (HEIGHT, WIDTH, *channels), numpy.uint8)
    deep = lambda *channels: generator.integers(0, 1 << 16, (HEIGHT, WIDTH, *channels), numpy.uint16)
    y, x = numpy.mgrid[0:HEIGHT, 0:WIDTH]
    smooth = numpy.stack([12 * x, 19 * y, 127 + 8 * x - 9 * y], -1).clip(0, 255).astype(numpy.uint8)
    files = {}

    def save(name, image, **options):
        image.save(FOLDER / name, **options)

    save("rgb.png", Image.fromarray(noise(3)))
    save("grey.png", Image.fromarray(noise()))
    save("grey-alpha.png", Image.fromarray(noise(2), "LA"))
    save("rgba.png", Image.fromarray(noise(4)))
    save("palette.png", Image.fromarray(noise(3)).quantize(32))
    save("palette-transparent.png", Image.fromarray(noise(3)).quantize(16), transparency=bytes(range(0, 256, 16)))
    save("one-bit.png", Image.fromarray(noise() > 127))
    save("wide.png", Image.fromarray(noise(3)[:2]))
    save("tall.png", Image.fromarray(noise(3)[:, :1]))
    (FOLDER / "rgb-16.png").write_bytes(png(deep(3), 16, 2))
    (FOLDER / "rgba-16.png").write_bytes(png(deep(4), 16, 6))
    (FOLDER / "grey-alpha-16.png").write_bytes(png(deep(2), 16, 4))
    (FOLDER / "grey-16.png").write_bytes(png(deep(), 16, 0))
    keyed = noise(3)
    (FOLDER / "colour-key.png").write_bytes(png(keyed, 8, 2, (b"tRNS", struct.pack(">HHH", *keyed[3, 4]))))
    turned = Image.Exif()
    for orientation in range(1, 9):
        turned[0x0112] = orientation
        save(f"exif-{orientation}.png", Image.fromarray(noise(3)), exif=turned)
    turned[0x0112] = 6
    save("exif.jpg", Image.fromarray(smooth), quality=95, subsampling=0, exif=turned)
    save("exif.webp", Image.fromarray(noise(3)), lossless=True, exif=turned)
    save("rgb.webp", Image.fromarray(noise(3)), lossless=True)
    save("rgba.webp", Image.fromarray(noise(4)), lossless=True, exact=True)
    save("lossy.webp", Image.fromarray(smooth), quality=90)
    save("444.jpg", Image.fromarray(smooth), quality=95, subsampling=0)
    save("420.jpg", Image.fromarray(smooth), quality=90)
    save("noise-420.jpg", Image.fromarray(noise(3)), quality=75)
    save("progressive.jpg", Image.fromarray(smooth), quality=85, progressive=True)
    save("grey.jpg", Image.fromarray(smooth[..., 0]), quality=90)
    save("cmyk.jpg", Image.fromarray(smooth).convert("CMYK"), quality=95)
    frames = [Image.fromarray(noise(3)).quantize(16) for _ in range(3)]
    save("animated.gif", frames[0], save_all=True, append_images=frames[1:], duration=50, loop=0)
    frames = [Image.fromarray(noise(3)) for _ in range(2)]
    save("animated.webp", frames[0], save_all=True, append_images=frames[1:], lossless=True)
    save("interlaced.gif", Image.fromarray(noise()), interlace=True)
    palette = [(10, 20, 30), (200, 0, 0), (0, 200, 0), (0, 0, 200), (255, 255, 0), (1, 2, 3), (4, 5, 6), (7, 8, 9)]
    (FOLDER / "transparent.gif").write_bytes(gif((3, 2), palette, (0, 0, 3, 2), [1, 2, 3, 4, 2, 0], transparent=2))
    (FOLDER / "part.gif").write_bytes(gif((5, 3), palette, (1, 1, 3, 1), [1, 2, 3]))
    (FOLDER / "part-transparent.gif").write_bytes(gif((5, 3), palette, (1, 1, 3, 1), [1, 2, 3], transparent=2))
    expected = {}
    for path in sorted(FOLDER.iterdir()):
        if path.suffix != ".safetensors":
            image = ImageOps.exif_transpose(Image.open(path))
            expected[path.name] = numpy.ascontiguousarray(numpy.array(image.convert("RGB")))
            if image.mode == "I;16":
                # Pillow would clip it at 255.
                assert (expected[path.name] == numpy.minimum(numpy.array(image), 255)[..., None]).all()
                expected[path.name] = numpy.repeat((numpy.array(image) >> 8).astype(numpy.uint8)[..., None], 3, -1)
    save_file(expected, FOLDER / "expected.safetensors")
    print(f"{len(expected)} files, {sum(path.stat().st_size for path in FOLDER.iterdir())} bytes")


warnings.filterwarnings("ignore")
make()
