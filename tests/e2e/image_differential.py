"""Goal: libs/image gives Pillow's bytes for any picture: decoded, resized, and prepared for the towers.

Method: seeded random files of every format, mode and encoding (image_samples.py) go through Pillow and the original's
processor steps here, and through libs/image in image_dump; both sides give SHA-256 sums, which must be equal. Prints the
seed of each picture that differs.

    image_differential.py <image_dump> [--count N] [--seed FIRST]

Needs Pillow 10.2 to 12: version 13 does the vertical pass of a resize first where that is cheaper, and so gives other
bytes than those that the models were trained on.
"""

import argparse
import array
import collections
import hashlib
import io
import os
import random
import struct
import subprocess
import sys
import tempfile

import PIL
from PIL import Image

import image_samples

STAGES = ("decode", "resize", "clip pad", "clip crop", "siglip pad", "siglip stretch")
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
SIGLIP = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def f32(value):
    """Rounds to single precision: one operation on such values in double, then this, is that operation in single."""
    return struct.unpack("f", struct.pack("f", value))[0]


def tables(mean, std):
    return [[f32(f32(f32(f32(value * (1 / 255)) - f32(m)) / f32(s))) for value in range(256)]
            for m, s in zip(mean, std)]


TABLES = {CLIP: tables(*CLIP), SIGLIP: tables(*SIGLIP)}


def normalized(image, processor):
    """[3, height, width] f32 as bytes."""
    pixels = image.tobytes()
    return b"".join(array.array("f", map(table.__getitem__, pixels[channel::3])).tobytes()
                    for channel, table in enumerate(TABLES[processor]))


def pad(image, processor):
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), tuple(int(mean * 255) for mean in processor[0]))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def crop(image, size):
    shortest = min(image.size)
    resized = image.resize(tuple(int(size * edge / shortest) for edge in image.size), Image.BICUBIC)
    left, top = (resized.width - size) // 2, (resized.height - size) // 2
    return resized.crop((left, top, left + size, top + size))


def expected(file, width, height, size):
    image = Image.open(io.BytesIO(file)).convert("RGB")
    outputs = [
        image.tobytes(),
        image.resize((width, height), Image.BICUBIC).tobytes(),
        normalized(pad(image, CLIP).resize((size, size), Image.BICUBIC), CLIP),
        normalized(crop(image, size), CLIP),
        normalized(pad(image, SIGLIP).resize((size, size), Image.BICUBIC), SIGLIP),
        normalized(image.resize((size, size), Image.BICUBIC), SIGLIP),
    ]
    return [hashlib.sha256(output).hexdigest() for output in outputs]


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
            file, what = image_samples.random_file(rng)
            path = os.path.join(folder, str(seed))
            with open(path, "wb") as out:
                out.write(file)
            sizes = rng.randint(1, 400), rng.randint(1, 400), rng.choice([336, 384, *4 * [rng.randint(1, 120)]])
            cases.append((seed, what, path, sizes, expected(file, *sizes)))
        lines = "".join(f"{path} {' '.join(map(str, sizes))}\n" for _, _, path, sizes, _ in cases)
        result = subprocess.run([arguments.image_dump], input=lines, capture_output=True, text=True, check=True)

    found = [line.split() for line in result.stdout.splitlines()]
    if len(found) != len(cases):
        sys.exit(f"{len(cases)} pictures, {len(found)} answers")
    differing = 0
    kinds = collections.Counter()
    for (seed, what, _, sizes, want), got in zip(cases, found):
        kinds[what.split(" ")[what.startswith("own")]] += 1
        if got != want:
            differing += 1
            stages = [name for name, a, b in zip(STAGES, want, got) if a != b]
            print(f"seed {seed}: {what}, sizes {sizes}: {', '.join(stages) if len(got) == len(STAGES) else got[0]}")
    print(f"{len(cases) - differing} of {len(cases)} pictures agree with Pillow {PIL.__version__}: "
          + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())))
    return min(differing, 1)


if __name__ == "__main__":
    sys.exit(main())
