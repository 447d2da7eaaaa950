#!/usr/bin/env python3
"""Compares libs/text with `tokenizers`, `tiktoken` and `sentencepiece` on random strings, id by id:

    ninja -C build/dev tokenizer_dump
    .venv/bin/python tests/e2e/tokenizer_differential.py build/dev/tests/unit/text/tokenizer_dump [--count 3000] [--seed 1]

--count strings are shared out over the tokenizers: those of tests/golden/data, and models that the peers train here on
random text. Characters are those of the Unicode version that Python knows (14 in Python 3.11), which all peers and
libs/text have too: later ones belong to other classes in each of them. Prints every string that differs; the exit code
says whether there was one.
"""

import argparse
import base64
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import unicodedata

try:
    import sentencepiece
    import tiktoken
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "golden" / "data" / "tokenizers"
NFC = normalizers.NFC()
QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
RANGES = [(0x20, 0x7E), (0x20, 0x7E), (0x61, 0x7A), (0x30, 0x39), (0x9, 0xD), (0x80, 0x24F), (0x300, 0x36F),
          (0x370, 0x5FF), (0x600, 0x6FF), (0x900, 0xDFF), (0x1100, 0x11FF), (0x1E00, 0x206F), (0x2070, 0x2BFF),
          (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xE0FF), (0xF900, 0xFFEF),
          (0x1D100, 0x1D7FF), (0x1F300, 0x1FAFF), (0x20000, 0x2A6DF), (0x2F800, 0x2FA1D)]
WORDS = ["the", "image", "Hello", "world", "I'm", "don't", "WE'LL", "def f():\n    return x", "1234", "3.14", "https://x.y/z?a=b",
         "<image>", "</s>", "<s>", "<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra_0|>", "<|end_of_turn|>",
         "<0x0A>", "\u2581", "\u2581the", "中文", "日本語", "한국어", "русский", "ﷺ", "é", "e\u0301", "👩‍💻", "🇩🇪"]
SPACES = [" ", " ", " ", "  ", "   ", "\n", "\n\n", "\t", "\t\t", "\r\n", " " * 7, " " * 40, "\u00a0", "\u3000"]


def random_text(rng):
    parts = []
    for _ in range(rng.choice([0, 1, 1, 2, 3, 5, 8, 13, 30])):
        kind = rng.random()
        if kind < 0.35:
            parts.append(rng.choice(WORDS))
        elif kind < 0.65:
            parts.append(rng.choice(SPACES))
        elif kind < 0.72:
            parts.append(rng.choice("ab \n1.") * rng.randint(1, 120))
        else:
            first, last = rng.choice(RANGES)
            letters = [chr(rng.randint(first, last)) for _ in range(rng.randint(1, 8))]
            parts.append("".join(c for c in letters if unicodedata.category(c) not in ("Cn", "Cs")))
    return "".join(parts)


def ours(program, folder, file, texts):
    lines = "".join(text.encode().hex() + "\n" for text in texts)
    done = subprocess.run([program, str(folder), file], input=lines.encode(), stdout=subprocess.PIPE, check=True)
    for line in done.stdout.decode().split("\n")[:-1]:
        live, plain, decoded = line.split("|")
        yield [int(i) for i in live.split()], [int(i) for i in plain.split()], bytes.fromhex(decoded).decode()


class Comparison:
    def __init__(self, program, rng, count):
        self.program, self.rng, self.count = program, rng, count
        self.num_strings = self.num_differences = self.num_excused = 0

    def run(self, name, folder, file, live=None, plain=None, decode=None):
        """`live`, `plain`: text -> ids of the peer; `decode`: ids -> text."""
        texts = [random_text(self.rng) for _ in range(self.count)]
        before = self.num_differences
        results = list(ours(self.program, folder, file, texts))
        assert len(results) == len(texts)
        for text, (found_live, found_plain, found_text) in zip(texts, results):
            if live:
                self.expect(name, "live", text, found_live, live(text))
            if plain:
                self.expect(name, "plain", text, found_plain, plain(text))
            if decode:
                self.expect(name, "decoded", text, found_text, decode(found_live))
        self.num_strings += len(texts)
        print(f"{name}: {len(texts)} strings, {self.num_differences - before} differences", flush=True)

    def expect(self, name, what, text, found, expected):
        if found != expected:
            is_excused = name.startswith("tokenizers") and NFC.normalize_str(text) != unicodedata.normalize("NFC", text)
            self.num_excused += is_excused
            self.num_differences += not is_excused
            print(f"{name} {what}{', excused' if is_excused else ''}: {text!r}\n  found    {found}\n  expected {expected}")


def ranks_of(file):
    pairs = (line.split() for line in file.read_text().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def compare_tiktoken(comparison, family, file):
    case = json.loads((GOLDEN / family / "tokenizer_case.json").read_text())
    specials = {text: number for text, number in case["special_or_added"].items()}
    peer = tiktoken.Encoding(family, pat_str=QWEN, mergeable_ranks=ranks_of(GOLDEN / family / file), special_tokens=specials)
    def nfc(text):
        return unicodedata.normalize("NFC", text)
    comparison.run(f"tiktoken {family}", GOLDEN / family, file, live=lambda text: peer.encode(nfc(text), allowed_special="all"),
                   plain=lambda text: peer.encode(nfc(text), disallowed_special=()))


def compare_json(comparison, name, folder, file="tokenizer.json"):
    peer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    comparison.run(name, folder, file, live=lambda text: peer.encode(text).ids,
                   decode=lambda ids: peer.decode(ids, skip_special_tokens=True))


def train_byte_level(corpus, folder, kind):
    """A tokenizer.json, and vocab.json with merges.txt and their settings, of one model."""
    peer = Tokenizer(models.BPE(ignore_merges=kind == "whole"))
    if kind == "gpt2":
        peer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    else:
        peer.normalizer = normalizers.NFC()
        peer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN), "isolated"),
                                                      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    peer.decoder = decoders.ByteLevel()
    peer.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=900, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    # As transformers makes it from a slow class: runs of spaces are added tokens that are not special.
    peer.add_special_tokens([AddedToken("<|endoftext|>", normalized=False)])
    if kind == "gpt2":
        peer.add_tokens([AddedToken(" " * n, normalized=True) for n in (8, 4, 3, 2)])
    peer.save(str(folder / "tokenizer.json"))
    peer.model.save(str(folder))
    added = {str(number): {"content": token.content, "special": token.special}
             for number, token in peer.get_added_tokens_decoder().items()}
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "CodeGenTokenizer" if kind == "gpt2" else "Qwen2Tokenizer",
        "eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
        "added_tokens_decoder": added}))


def compare_sentencepiece(comparison, name, folder):
    peer = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    comparison.run(name, folder, "tokenizer.model", plain=lambda text: [peer.bos_id()] + peer.encode(text))


def train_sentencepiece(corpus, folder):
    # Few enough distinct characters that most pieces are merges; the others of a text become bytes.
    lines = ["".join(c for c in text if c.isprintable() and ord(c) < 0x400) for text in corpus]
    (folder / "corpus.txt").write_text("\n".join(lines))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "tokenizer"), model_type="bpe", vocab_size=2500,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, character_coverage=0.98,
        hard_vocab_limit=False, minloglevel=2, num_threads=1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    num_tokenizers = 15
    comparison = Comparison(args.program, rng, -(-args.count // num_tokenizers))
    compare_tiktoken(comparison, "stablelm", "arcade100k.tiktoken")
    compare_tiktoken(comparison, "qwen", "qwen.tiktoken")
    for name in ("json-phi", "json-qwen1.5", "json-llama"):
        compare_json(comparison, f"tokenizers {name}", GOLDEN / name)
    for name in ("llama", "openchat", "minicpm"):
        compare_sentencepiece(comparison, f"sentencepiece {name}", GOLDEN / name)
    corpus = [random_text(rng) for _ in range(2000)]
    with tempfile.TemporaryDirectory() as temporary:
        for kind in ("gpt2", "qwen", "whole"):
            folder = pathlib.Path(temporary) / kind
            folder.mkdir()
            train_byte_level(corpus, folder, kind)
            compare_json(comparison, f"tokenizers trained {kind}", folder)
            if kind != "whole":
                # The slow class normalizes before it looks for added tokens, the peer behind them; on these strings that
                # only shows where a mark follows a control string.
                compare_json(comparison, f"tokenizers trained {kind}, vocab.json", folder, "vocab.json")
        for name in ("a", "b"):
            folder = pathlib.Path(temporary) / name
            folder.mkdir()
            train_sentencepiece([random_text(rng) for _ in range(1500)], folder)
            compare_sentencepiece(comparison, f"sentencepiece trained {name}", folder)
    print(f"seed {args.seed}: {comparison.num_strings} strings, {comparison.num_differences} differences, "
          f"{comparison.num_excused} excused")
    return 1 if comparison.num_differences else 0


if __name__ == "__main__":
    sys.exit(main())
