"""Random pictures as files, for image_differential.py: what Pillow writes, and what only a writer of our own can.

Every function takes a random generator and returns the bytes of a file and words that say what it is. The writers of our
own cover the corners of the formats that Pillow reads but never writes: interlaced and 16-bit PNG, GIF frames that are
not of the screen's size, BMP headers, depths and masks.
"""

import io
import struct
import zlib

from PIL import Image, ImageFile, ImageFilter

# Pillow gives the encoder one buffer, and too small a one for noise at the best quality.
ImageFile.MAXBLOCK = 1 << 22

# Long edge to short edge, as the decoder limits it.
ASPECT_RATIO_MAX = 100


def random_size(rng):
    """Mostly ordinary, sometimes a single pixel, a line, or as narrow as it may be."""
    kind = rng.random()
    if kind < 0.05:
        return 1, 1
    if kind < 0.2:
        short = rng.randint(1, 4)
        size = [short, rng.randint(short, short * ASPECT_RATIO_MAX)]
        rng.shuffle(size)
        return tuple(size)
    width = rng.randint(1, 300)
    return width, rng.randint(max(1, width // 10), min(300, width * 10))


def random_picture(rng, mode):
    """A picture with smooth parts, edges and noise."""
    width, height = random_size(rng)
    picture = Image.frombytes("RGB", (width, height), rng.randbytes(3 * width * height))
    if rng.random() < 0.7:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.random() * 4))
    if mode == "I;16":
        return Image.frombytes("I;16", (width, height), rng.randbytes(2 * width * height))
    if mode == "P":
        return picture.quantize(rng.choice([2, 3, 4, 16, 17, 255, 256]))
    if mode == "RGBA":
        picture.putalpha(Image.frombytes("L", (width, height), rng.randbytes(width * height)))
        return picture
    return picture.convert(mode)


def saved(picture, kind, options):
    out = io.BytesIO()
    picture.save(out, kind, **options)
    shown = {key: value for key, value in options.items() if key not in ("exif", "append_images", "icc_profile")}
    return out.getvalue(), f"{kind} {picture.mode} {picture.size} {shown}"


def orientation(rng):
    exif = Image.Exif()
    exif[0x0112] = rng.randint(1, 8)
    return exif.tobytes()


def jpeg(rng):
    picture = random_picture(rng, rng.choice(["RGB", "RGB", "L", "CMYK"]))
    options = {"quality": rng.randint(1, 100), "progressive": rng.random() < 0.5, "optimize": rng.random() < 0.5}
    if picture.mode == "RGB":
        options.update(rng.choice([{"subsampling": rng.randint(0, 2)}, {"keep_rgb": True}]))
    if rng.random() < 0.3:
        options["restart_marker_blocks"] = rng.randint(1, 20)
    if rng.random() < 0.3:
        options["exif"] = orientation(rng)
    if rng.random() < 0.1:
        options["icc_profile"] = rng.randbytes(rng.randint(1, 70_000))
    return saved(picture, "JPEG", options)


def png(rng):
    picture = random_picture(rng, rng.choice(["RGB", "L", "1", "P", "RGBA", "LA", "I;16"]))
    options = {"compress_level": rng.randint(0, 9)}
    if picture.mode == "P":
        if rng.random() < 0.5:
            options["transparency"] = 0
        options["bits"] = max(len(picture.getcolors() or [0]) - 1, 1).bit_length()
    return saved(picture, "PNG", options)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def own_png(rng):
    """Every colour type and depth, interlaced or not, with the chunks that must not change a pixel."""
    colour, depth = rng.choice([(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 1), (3, 2), (3, 4), (3, 8),
                                (4, 8), (4, 16), (6, 8), (6, 16)])
    width, height = random_size(rng)
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    interlaced = rng.random() < 0.5
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = b""
    for left, top, step_x, step_y in passes if interlaced else [(0, 0, 1, 1)]:
        columns = len(range(left, width, step_x))
        if columns:
            for _ in range(top, height, step_y):
                rows += bytes([rng.randint(0, 4)]) + rng.randbytes((columns * samples * depth + 7) // 8)
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))
    if rng.random() < 0.3:
        file += chunk(b"gAMA", struct.pack(">I", rng.choice([45455, 100000, 22000])))
    if colour == 3:
        entries = rng.choice([1 << depth, rng.randint(1, 1 << depth)])
        file += chunk(b"PLTE", rng.randbytes(3 * entries))
        if rng.random() < 0.5:
            file += chunk(b"tRNS", rng.randbytes(rng.randint(1, entries)))
    elif colour in (0, 2) and rng.random() < 0.5:
        most = (1 << depth) - 1
        file += chunk(b"tRNS", b"".join(struct.pack(">H", rng.randint(0, most)) for _ in range(samples)))
    if rng.random() < 0.2:
        file += chunk(b"bKGD", b"\0" if colour == 3 else b"\0\0" * (1 if colour in (0, 4) else 3))
    data = zlib.compress(rows)
    cut = rng.randint(0, len(data))
    file += chunk(b"IDAT", data[:cut]) + chunk(b"IDAT", data[cut:]) + chunk(b"IEND", b"")
    return file, f"own PNG colour {colour} depth {depth} {width} x {height} interlaced {interlaced}"


def webp(rng):
    picture = random_picture(rng, rng.choice(["RGB", "RGBA", "L"]))
    options = {"lossless": rng.random() < 0.4, "quality": rng.randint(0, 100), "method": rng.randint(0, 4)}
    if rng.random() < 0.5:
        options["exact"] = True
    if rng.random() < 0.2:
        options["exif"] = orientation(rng)
    return saved(picture, "WEBP", options)


def gif(rng):
    picture = random_picture(rng, rng.choice(["P", "P", "L", "1", "RGB"]))
    options = {"interlace": int(rng.random() < 0.5), "optimize": rng.random() < 0.5}
    if picture.mode == "P" and rng.random() < 0.5:
        options["transparency"] = rng.randint(0, 255)
    if rng.random() < 0.3:
        options.update(save_all=True, disposal=rng.randint(0, 3), append_images=[
            random_picture(rng, "P").resize(picture.size) for _ in range(rng.randint(1, 3))])
    if rng.random() < 0.3:
        options["comment"] = b"c" * rng.randint(1, 600)
    return saved(picture, "GIF", options)


def parts(content):
    """`content` in sub-blocks, with the empty one at the end."""
    return b"".join(bytes([len(content[i:i + 255])]) + content[i:i + 255] for i in range(0, len(content), 255)) + b"\0"


def lzw(pixels, depth):
    """A stream that starts over before its codes could grow: longer than it need be, and simple."""
    clear = 1 << depth
    codes = []
    for i, pixel in enumerate(pixels):
        if i % (clear - 2) == 0:
            codes.append(clear)
        codes.append(pixel)
    codes.append(clear + 1)
    bits = sum(code << i * (depth + 1) for i, code in enumerate(codes))
    return bits.to_bytes((len(codes) * (depth + 1) + 7) // 8, "little")


def own_gif(rng):
    """Frames smaller and larger than the screen, local and global palettes, greys, extensions."""
    width, height = rng.randint(1, 40), rng.randint(1, 40)
    left, top = rng.choice([(0, 0), (rng.randint(0, 20), rng.randint(0, 20))])
    frame_width, frame_height = rng.choice([(width, height), (rng.randint(1, 40), rng.randint(1, 40))])
    depth = rng.randint(2, 8)

    def palette(greys_too):
        size = rng.randint(1, 8)
        greys = b"".join(bytes([i] * 3) for i in range(1 << size))
        return 0x80 | size - 1, greys if greys_too and rng.random() < 0.2 else rng.randbytes(3 << size)

    has_global = rng.random() < 0.8
    flags, colours = palette(greys_too=True) if has_global else (0, b"")
    file = rng.choice([b"GIF87a", b"GIF89a"])
    file += struct.pack("<HHBBB", width, height, flags, rng.randint(0, 255), 0) + colours
    for _ in range(rng.randint(0, 2)):
        file += rng.choice([
            b"!\xf9\x04" + struct.pack("<BHB", rng.randint(0, 31), 10, rng.randint(0, 255)) + b"\0",
            b"!\xfe" + parts(b"x" * rng.randint(1, 700)),
            b"!\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"])
    # Not drawn: greys here over a palette of the screen. Pillow sees that the frame needs no palette, and then gives it
    # the screen's.
    flags, colours = palette(greys_too=not has_global) if rng.random() < 0.5 else (0, b"")
    interlaced = 0x40 if rng.random() < 0.5 else 0
    file += b"," + struct.pack("<HHHHB", left, top, frame_width, frame_height, flags | interlaced) + colours
    pixels = [rng.randrange(1 << depth) for _ in range(frame_width * frame_height)]
    file += bytes([depth]) + parts(lzw(pixels, depth)) + b";"
    return file, f"own GIF {frame_width} x {frame_height} at {left}, {top} of {width} x {height}, depth {depth}"


def bmp(rng):
    return saved(random_picture(rng, rng.choice(["1", "L", "P", "RGB", "RGBA"])), "BMP", {})


MASKS = {
    16: [(0xF800, 0x7E0, 0x1F, 0), (0x7C00, 0x3E0, 0x1F, 0)],
    24: [(0xFF0000, 0xFF00, 0xFF, 0)],
    32: [(0xFF0000, 0xFF00, 0xFF, 0), (0xFF000000, 0xFF0000, 0xFF00, 0), (0xFF000000, 0xFF00, 0xFF, 0),
         (0xFF000000, 0xFF0000, 0xFF00, 0xFF), (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
         (0xFF0000, 0xFF00, 0xFF, 0xFF000000), (0xFF000000, 0xFF00, 0xFF, 0xFF0000), (0, 0, 0, 0)],
}


def own_bmp(rng):
    """Every header, depth, mask layout and size of palette that Pillow takes."""
    width, height = random_size(rng)
    bits = rng.choice([1, 4, 8, 16, 24, 32])
    header_bytes = rng.choice([12, 40, 52, 56, 64, 108, 124])
    if header_bytes == 12:
        header = struct.pack("<HHHH", width, height, 1, bits)
        stated_height, masks, colours, trailer = height, None, 1 << bits, b""
    else:
        stated_height = rng.choice([height, -height])
        masks = rng.choice(MASKS[bits]) if bits >= 16 and header_bytes != 64 and rng.random() < 0.7 else None
        # From 52 bytes on the header has no room for alpha; masks with one then mean something else.
        if masks and header_bytes < 56:
            masks = masks[:3] + (0,) if masks[:3] + (0,) in MASKS[bits] else MASKS[bits][0]
        colours = rng.choice([0, rng.randint(3, 1 << bits)]) if 4 <= bits <= 8 else 0
        header = struct.pack("<iiHHIIiiII", width, stated_height, 1, bits, 3 if masks else 0, 0, 0, 0, colours, 0)
        packed = struct.pack("<IIII", *(masks or (0, 0, 0, 0)))
        trailer = packed[:12] if masks and header_bytes == 40 else b""
        header += packed + bytes(120)
        header = header[:header_bytes - 4]
        colours = colours or 1 << bits
    palette = rng.randbytes((3 if header_bytes == 12 else 4) * colours) if bits <= 8 else b""
    begin = 14 + header_bytes + len(trailer) + len(palette)
    gap = rng.choice([0, 0, 7])
    stated = 0 if gap == 0 and rng.random() < 0.2 else begin + gap
    row_bytes = (width * bits + 31) // 32 * 4
    file = (b"BM" + struct.pack("<IHHI", 0, 0, 0, stated) + struct.pack("<I", header_bytes) + header + trailer + palette
            + bytes(gap) + rng.randbytes(row_bytes * height))
    return file, f"own BMP {bits} bits header {header_bytes} masks {masks} colours {colours} {width} x {stated_height}"


WRITERS = [jpeg, jpeg, png, own_png, webp, gif, own_gif, bmp, own_bmp]


def random_file(rng):
    return rng.choice(WRITERS)(rng)
