"""Goal: a malformed picture costs its sender an error, and nobody else anything.

Method: pictures made here byte by byte (no image library), sent as data URIs to one server; each error is asserted on
status, code and param; a good request follows every test. The decoder's own tables are in tests/unit/image.
"""

import json
import random
import struct
import time
import unittest
import zlib

import conclave_process as conclave
from conclave_process import bytes_data_uri, image_part

URL = "messages[0].content[0].image_url.url"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *, depth: int = 8, colour: int = 2, pixels: bytes | None = None) -> bytes:
    """A PNG with a correct header and checksums; black unless `pixels` holds the filtered rows."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 1)
    if pixels is None:
        pixels = (b"\x00" + bytes((width * channels * depth + 7) // 8)) * height
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (PNG_SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b""))


class BadImagesTest(conclave.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = conclave.Server()
        cls.addClassCleanup(cls.server.kill)

    def tearDown(self):
        self.assertIsNone(self.server.process.poll(), self.server.log())
        self.assert_good(self.server)

    def send(self, content: bytes, kind: str = "png") -> conclave.Response:
        return self.server.chat({"model": "demo", "max_tokens": 1, "messages": [{"role": "user", "content": [
            image_part(bytes_data_uri(content, kind)), {"type": "text", "text": "What do you see?"}]}]})

    def peak_memory_kb(self) -> int:
        with open(f"/proc/{self.server.process.pid}/status", encoding="ascii") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

    def test_not_a_picture(self):
        for content in (b"hello world, this is text", b"<html></html>", json.dumps({"key": "value"}).encode(),
                        b"8BPS\x00\x01" + bytes(64), b"RIFF\x10\x00\x00\x00WAVEfmt " + bytes(64), b"%PDF-1.4\n" + bytes(64),
                        b"II*\x00" + bytes(64), random.Random(7).randbytes(1024)):
            with self.subTest(content=content[:12]):
                self.assert_error(self.send(content), 415, "image_format_unsupported", URL)

    def test_the_type_is_what_the_bytes_say(self):
        self.assertEqual(self.send((conclave.SAMPLES / "three.jpg").read_bytes(), "png").status, 200)

    def test_header_bombs_cost_no_memory(self):
        # Both kinds of request leave their own working memory behind; the pictures must add nothing to it.
        self.assert_good(self.server)
        before = self.peak_memory_kb()
        for width, height in ((65535, 65535), (2**31 - 1, 2**31 - 1), (2**16 + 1, 2**16 + 1), (8192, 8192), (9000, 90)):
            with self.subTest(width=width, height=height):
                bomb = PNG_SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
                bomb += chunk(b"IDAT", zlib.compress(bytes(100_000))) + chunk(b"IEND", b"")
                self.assert_error(self.send(bomb), 400, None, URL)
        self.assertLess(self.peak_memory_kb() - before, 32 << 10)

    def test_sizes_at_the_edges(self):
        self.assert_error(self.send(png(0, 5, pixels=b"")), 400, "image_bad_dimensions", URL)
        self.assertEqual(self.send(png(1, 1)).status, 200)
        self.assertEqual(self.send(png(2, 2)).status, 200)
        self.assert_error(self.send(png(1, 8192)), 400, "image_aspect_ratio", URL)
        self.assert_error(self.send(png(8192, 1)), 400, "image_aspect_ratio", URL)

    def test_files_cut_short(self):
        for name in ("one.png", "three.jpg"):
            content = (conclave.SAMPLES / name).read_bytes()
            for length in sorted({1, 2, 3, 7, 8, 11, 20, 33, 50, *range(100, len(content), len(content) // 20)}):
                with self.subTest(name=name, length=length):
                    response = self.send(content[:length])
                    # Too short to tell what it is: then it is of no known format.
                    self.assertIn(response.status, (400, 415) if length < 8 else (400,), response)
                    self.assert_error(response, response.status, None, URL)

    def test_flipped_bits_are_decoded_or_refused(self):
        seed = 2026
        dice = random.Random(seed)
        small = png(8, 8)
        for name, content in (("png", small), ("jpg", (conclave.SAMPLES / "three.jpg").read_bytes())):
            for _ in range(60):
                bit = dice.randrange(len(content) * 8)
                flipped = bytearray(content)
                flipped[bit // 8] ^= 1 << bit % 8
                response = self.send(bytes(flipped))
                with self.subTest(name=name, bit=bit, seed=seed):
                    if response.status != 200:
                        self.assertIn(response.status, (400, 415), response)
                        self.assert_error(response, response.status, None, URL)

    def test_broken_png_structure(self):
        good = png(4, 4)
        header = good[8:33]
        rows = [
            ("bad signature", b"\x89PNX" + good[4:]),
            ("IHDR not first", PNG_SIGNATURE + chunk(b"IDAT", b"") + header),
            ("bad IHDR checksum", good[:29] + b"\x00\x00\x00\x00" + good[33:]),
            ("illegal depth and colour", png(4, 4, depth=3, colour=2)),
            ("palette missing", png(4, 4, colour=3)),
            ("no pixels", PNG_SIGNATURE + header + chunk(b"IEND", b"")),
            ("not deflate", PNG_SIGNATURE + header + chunk(b"IDAT", b"not deflate") + chunk(b"IEND", b"")),
            ("too few rows", png(4, 4, pixels=bytes(13))),
        ]
        for name, content in rows:
            with self.subTest(name=name):
                response = self.send(content)
                self.assertIn(response.status, (400, 415), response)
                self.assert_error(response, response.status, None, URL)

    def test_broken_jpeg_structure(self):
        for name, content in [("SOI EOI", b"\xff\xd8\xff\xd9"), ("SOI alone", b"\xff\xd8\xff"),
                              ("segment past the end", b"\xff\xd8\xff\xe0\xff\xff" + bytes(10)),
                              ("length zero", b"\xff\xd8\xff\xe0\x00\x00" + bytes(100))]:
            with self.subTest(name=name):
                self.assert_error(self.send(content, "jpeg"), 400, None, URL)

    def test_a_file_riding_along(self):
        content = (conclave.SAMPLES / "one.png").read_bytes()
        self.assertEqual(self.send(content + b"PK\x03\x04" + bytes(1000)).status, 200)
        self.assert_error(self.send(content + bytes(100_000)), 400, "image_trailing_data", URL)

    def test_a_text_bomb_in_a_picture_is_not_inflated(self):
        bomb = chunk(b"zTXt", b"a\x00\x00" + zlib.compress(bytes(200 << 20)))
        good = png(8, 8)
        before = self.peak_memory_kb()
        began = time.monotonic()
        self.assertEqual(self.send(good[:33] + bomb + good[33:]).status, 200)
        self.assertLess(time.monotonic() - began, 10)
        self.assertLess(self.peak_memory_kb() - before, 64 << 10)


if __name__ == "__main__":
    unittest.main(verbosity=2)
