#!/usr/bin/env python3
"""Compares libs/image with Pillow on random pictures, by hand:

    ninja -C build image_dump
    python3 tests/e2e/image_differential.py build/tests/unit/image/image_dump [--count 300] [--seed 1]

Needs Pillow 10.2 to 12: version 13 does the vertical pass of a resize first where that is cheaper, and so gives
other bytes than those that the models were trained on. Every picture is written in a random mode and encoding, decoded
and resized by both, and compared byte by byte (as SHA-256). Prints the seed of each picture that differs; the exit code
says whether there was one.
"""

import argparse
import hashlib
import io
import os
import random
import subprocess
import sys
import tempfile

import PIL
from PIL import Image, ImageFile, ImageFilter

# Pillow gives the encoder one buffer, and too small a one for noise at the best quality.
ImageFile.MAXBLOCK = 1 << 22

CLIP_PAD = (122, 116, 104)


def random_picture(rng):
    """A picture with smooth parts, edges and noise, in a random mode."""
    width, height = rng.randint(1, 300), rng.randint(1, 300)
    if max(width, height) > 100 * min(width, height):
        width = height
    noise = Image.frombytes("RGB", (width, height), rng.randbytes(3 * width * height))
    if rng.random() < 0.7:
        noise = noise.filter(ImageFilter.GaussianBlur(rng.random() * 4))
    mode = rng.choice(["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16"])
    if mode == "I;16":
        return Image.frombytes("I;16", (width, height), rng.randbytes(2 * width * height))
    if mode == "P":
        return noise.quantize(rng.choice([2, 3, 4, 16, 17, 256]))
    return noise.convert(mode)


def encode(picture, rng):
    """The bytes of a file, and what it is."""
    out = io.BytesIO()
    if picture.mode == "CMYK" or (picture.mode in ("RGB", "L") and rng.random() < 0.6):
        options = {
            "quality": rng.randint(1, 100),
            "progressive": rng.random() < 0.5,
            "optimize": rng.random() < 0.5,
        }
        if picture.mode == "RGB":
            options.update(rng.choice([{"subsampling": rng.randint(0, 2)}, {"keep_rgb": True}]))
        if rng.random() < 0.3:
            options["restart_marker_blocks"] = rng.randint(1, 20)
        picture.save(out, "JPEG", **options)
        return out.getvalue(), f"JPEG {picture.mode} {options}"
    options = {"compress_level": rng.randint(0, 9)}
    if picture.mode == "P":
        if rng.random() < 0.5:
            options["transparency"] = 0
        options["bits"] = max(len(picture.getcolors() or [0]) - 1, 1).bit_length()
    picture.save(out, "PNG", **options)
    return out.getvalue(), f"PNG {picture.mode} {options}"


def pad(image):
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), CLIP_PAD)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def crop(image, size):
    shortest = min(image.size)
    resized = image.resize(tuple(int(size * edge / shortest) for edge in image.size), Image.BICUBIC)
    left, top = (resized.width - size) // 2, (resized.height - size) // 2
    return resized.crop((left, top, left + size, top + size))


def expected(file, width, height, size):
    image = Image.open(io.BytesIO(file)).convert("RGB")
    pictures = [
        image,
        image.resize((width, height), Image.BICUBIC),
        pad(image).resize((size, size), Image.BICUBIC),
        crop(image, size),
        image.resize((size, size), Image.BICUBIC),
    ]
    return [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("image_dump")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if not (10, 2) <= tuple(map(int, PIL.__version__.split(".")[:2])) < (13, 0):
        sys.exit(f"Pillow {PIL.__version__} resizes differently; expected 10.2 to 12")

    cases = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seed, arguments.seed + arguments.count):
            rng = random.Random(seed)
            file, what = encode(random_picture(rng), rng)
            path = os.path.join(folder, str(seed))
            with open(path, "wb") as out:
                out.write(file)
            sizes = rng.randint(1, 400), rng.randint(1, 400), rng.randint(1, 120)
            cases.append((seed, what, path, sizes, expected(file, *sizes)))
        lines = "".join(f"{path} {' '.join(map(str, sizes))}\n" for _, _, path, sizes, _ in cases)
        result = subprocess.run([arguments.image_dump], input=lines, capture_output=True, text=True, check=True)

    found = [line.split() for line in result.stdout.splitlines()]
    if len(found) != len(cases):
        sys.exit(f"{len(cases)} pictures, {len(found)} answers")
    differing = 0
    for (seed, what, _, sizes, want), got in zip(cases, found):
        if got != want:
            differing += 1
            stages = [name for name, a, b in zip(("decode", "resize", "pad", "crop", "stretch"), want, got) if a != b]
            print(f"seed {seed}: {what}, sizes {sizes}: {', '.join(stages) if len(got) == 5 else got[0]}")
    print(f"{len(cases) - differing} of {len(cases)} pictures agree with Pillow")
    return min(differing, 1)


if __name__ == "__main__":
    sys.exit(main())
