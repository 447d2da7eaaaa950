"""Goal: a broken model folder ends the start with exit code 4, within a second of work, in one line that names the file
and what is wrong with it; never a crash and never a server.

Method: copies of the demo model with one thing broken each, given to `conclave serve`; time is the process's own
processor time, because the machine may be busy.
"""

import json
import os
import pathlib
import resource
import shutil
import struct
import subprocess
import tempfile
import unittest

import conclave_process as conclave

PROCESSOR_SECONDS_MAX = 1.0


class Folder:
    """A copy of the demo model that a case may break."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        path.mkdir()
        for file in conclave.MODEL.iterdir():
            if file.is_file():
                shutil.copyfile(file, path / file.name)

    def __truediv__(self, name: str) -> pathlib.Path:
        return self.path / name

    def change_config(self, **values):
        """Sets keys of config.json; `moe__top_k_experts` reaches into objects, None removes, NULL writes null."""
        config = json.loads((self / "config.json").read_text())
        for key, value in values.items():
            *outer, last = key.split("__")
            target = config
            for name in outer:
                target = target[name]
            if value is None:
                del target[last]
            else:
                target[last] = None if value is NULL else value
        (self / "config.json").write_text(json.dumps(config))

    def change_header(self, change):
        """Rewrites the header of model.safetensors; `change` gets the parsed header and may return bytes instead."""
        content = (self / "model.safetensors").read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8:8 + length])
        replaced = change(header)
        text = replaced if isinstance(replaced, bytes) else json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        (self / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length:])

    def cut(self, name: str, length: int):
        content = (self / name).read_bytes()
        (self / name).write_bytes(content[:length])


NULL = object()
WEIGHT = "model.layers.1.mlp.up_proj.weight"


def config(**values):
    return lambda folder: folder.change_config(**values)


def header(change):
    return lambda folder: folder.change_header(change)


def tensor(**values):
    """Sets fields of one tensor's entry."""
    return header(lambda entries: entries[WEIGHT].update(values))


def write(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def remove(*names: str):
    return lambda folder: [(folder / name).unlink() for name in names]


def poison(folder: Folder):
    """One weight becomes NaN."""
    content = bytearray((folder / "model.safetensors").read_bytes())
    length = struct.unpack("<Q", content[:8])[0]
    begin = 8 + length + json.loads(content[8:8 + length])[WEIGHT]["data_offsets"][0]
    content[begin:begin + 2] = b"\xc0\x7f"  # bf16
    (folder / "model.safetensors").write_bytes(bytes(content))


def pipe_for_weights(folder: Folder):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


def link_out(folder: Folder):
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/etc/hostname")


def only_a_pickle(folder: Folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\nq\x00X\x04\x00\x00\x00trueq\x01\x85q\x02Rq\x03.")


def overlap(entries):
    names = [name for name in entries if name != "__metadata__"]
    entries[names[0]]["data_offsets"] = entries[names[1]]["data_offsets"]


# What is broken, how, the file or key that the line must name, the reasons that fit (empty: any).
CASES = [
    ("config missing", remove("config.json"), "config.json", {"model_file_missing"}),
    ("config empty", write("config.json", b""), "config.json", set()),
    ("config cut", lambda folder: folder.cut("config.json", 100), "config.json", set()),
    ("config an array", write("config.json", b"[]"), "config.json", set()),
    ("config with a comment", write("config.json", b"{// a\n}"), "config.json", set()),
    ("config with a key twice", write("config.json", b'{"model_type":"a","model_type":"b"}'), "config.json", set()),
    ("config deep", write("config.json", b'{"a":' * 100_000), "config.json", set()),
    ("unknown family", config(model_type="moe_llava_unknown", architectures=["Unknown"]), "config.json", set()),
    ("hidden_size missing", config(hidden_size=None), "hidden_size", {"config_key"}),
    ("hidden_size a string", config(hidden_size="128"), "hidden_size", {"config_key"}),
    ("hidden_size null", config(hidden_size=NULL), "hidden_size", {"config_key"}),
    ("hidden_size negative", config(hidden_size=-1), "hidden_size", {"config_range"}),
    ("hidden_size huge", config(hidden_size=10**9), "hidden_size", {"config_range"}),
    ("no layers", config(num_hidden_layers=0), "num_hidden_layers", {"config_range"}),
    ("a million layers", config(num_hidden_layers=10**6), "num_hidden_layers", {"config_range"}),
    ("heads do not divide", config(num_attention_heads=3), "num_attention_heads", {"config_range"}),
    ("kv heads do not divide", config(num_key_value_heads=3), "num_key_value_heads", {"config_range"}),
    ("vocab 0", config(vocab_size=0), "vocab_size", {"config_range"}),
    ("theta 0", config(rope_theta=0), "rope_theta", {"config_range"}),
    ("eps negative", config(norm_eps=-1e-5), "norm_eps", {"config_range"}),
    ("no experts", config(moe__num_experts=[0, 0]), "num_experts", {"config_moe"}),
    ("a million experts", config(moe__num_experts=[10**6, 4]), "num_experts", {"config_moe"}),
    ("experts of too many layers", config(moe__num_experts=[4, 4, 4]), "num_experts", {"config_moe"}),
    ("top_k 0", config(moe__top_k_experts=0), "top_k", {"config_moe"}),
    ("top_k above the experts", config(moe__top_k_experts=9), "top_k", {"config_moe"}),
    ("MoE layer out of range", config(moe__moe_layers_idx=[0, 99]), "moe_layers_idx", {"config_moe"}),
    ("MoE layer twice", config(moe__moe_layers_idx=[0, 0]), "moe_layers_idx", {"config_moe"}),
    ("patch does not divide", config(vision_config__patch_size=7), "patch_size", {"config_vision"}),
    ("image of no pixels", config(vision_config__image_size=0), "image_size", {"config_vision"}),
    ("select_layer out of range", config(mm_vision_select_layer=-9), "select_layer", {"config_vision"}),
    ("unknown projector", config(image_projector_type="magic"), "projector", {"config_vision"}),
    ("context shorter than an image", config(max_position_embeddings=20), "max_position", {"config_range"}),
    ("weights missing", remove("model.safetensors"), "model.safetensors", {"model_file_missing"}),
    ("weights empty", write("model.safetensors", b""), "model.safetensors", {"safetensors_truncated"}),
    ("weights of 7 bytes", write("model.safetensors", bytes(7)), "model.safetensors", {"safetensors_truncated"}),
    ("header longer than the file", write("model.safetensors", struct.pack("<Q", 5000) + b"{}"), "model.safetensors",
     {"safetensors_header_length", "safetensors_truncated"}),
    ("header of 2^63", write("model.safetensors", struct.pack("<Q", 2**63) + b"{}"), "model.safetensors",
     {"safetensors_header_length"}),
    ("header no JSON", header(lambda _: b"not json"), "model.safetensors", {"safetensors_header_json"}),
    ("header an array", header(lambda _: b"[]"), "model.safetensors", {"safetensors_header_json"}),
    ("header deep", header(lambda _: b'{"a":' * 10_000), "model.safetensors", {"safetensors_header_json"}),
    ("dtype unknown", tensor(dtype="F99"), WEIGHT, {"tensor_dtype"}),
    ("dtype a number", tensor(dtype=4), WEIGHT, {"tensor_dtype", "safetensors_header_json"}),
    ("shape negative", tensor(shape=[-1, 128]), WEIGHT, {"tensor_shape"}),
    ("shape overflows", tensor(shape=[2**40, 2**40]), WEIGHT, {"tensor_shape"}),
    ("shape of 65 axes", tensor(shape=[1] * 65), WEIGHT, {"tensor_shape"}),
    ("shape transposed", header(lambda entries: entries[WEIGHT]["shape"].reverse()), WEIGHT, {"tensor_shape_mismatch"}),
    ("offsets backwards", tensor(data_offsets=[100, 50]), WEIGHT, {"tensor_offsets"}),
    ("offsets past the end", tensor(data_offsets=[2**40, 2**40 + 81920]), WEIGHT, {"tensor_offsets"}),
    ("offsets overlap", header(overlap), "model.safetensors", {"tensor_offsets"}),
    ("tensor missing", header(lambda entries: entries.pop(WEIGHT) and None), "model.safetensors",
     {"tensor_missing", "tensor_offsets"}),
    ("file cut", lambda folder: folder.cut("model.safetensors", 1_000_000), "model.safetensors",
     {"tensor_offsets", "safetensors_truncated"}),
    ("a weight is NaN", poison, WEIGHT, {"tensor_nonfinite"}),
    ("weights are a pipe", pipe_for_weights, "model.safetensors", {"not_a_regular_file"}),
    ("config links out of the folder", link_out, "config.json", {"model_path_escape"}),
    ("only a pickle", only_a_pickle, "pytorch_model.bin", {"pickle_refused"}),
    ("tokenizer missing", remove("arcade100k.tiktoken"), "arcade100k.tiktoken", set()),
    ("tokenizer cut in a line", lambda folder: folder.cut("arcade100k.tiktoken", 1001), "arcade100k.tiktoken",
     {"tokenizer_invalid"}),
    ("tokenizer no base64", write("arcade100k.tiktoken", b"!!! 0\n"), "arcade100k.tiktoken", {"tokenizer_invalid"}),
    ("tokenizer with an id twice", write("arcade100k.tiktoken", b"YQ== 0\nYg== 0\n"), "arcade100k.tiktoken",
     {"tokenizer_invalid"}),
    ("tokenizer with a negative id", write("arcade100k.tiktoken", b"YQ== -1\n"), "arcade100k.tiktoken",
     {"tokenizer_invalid"}),
]


class BadModelsTest(conclave.TestCase):
    def serve(self, folder) -> tuple[subprocess.CompletedProcess, float]:
        """Runs `conclave serve` to its end; its processor seconds."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = conclave.run("serve", "--model", str(folder), "--listen", "127.0.0.1:0", "--admin-listen",
                              "127.0.0.1:0", timeout=20)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return result, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def check(self, folder, names: str, reasons: set[str]):
        result, seconds = self.serve(folder)
        self.assertEqual(result.returncode, 4, result)
        self.assertEqual(result.stdout, "")
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        self.assertEqual(len(errors), 1, result.stderr)
        self.assertEqual(result.stderr.splitlines()[-1], errors[0], result.stderr)
        self.assertRegex(errors[0], r"^error: [a-z_]+: ")
        self.assertIn(names, errors[0])
        if reasons:
            self.assertIn(errors[0].split(": ")[1], reasons, errors[0])
        self.assertLess(seconds, PROCESSOR_SECONDS_MAX)

    def test_broken_folders(self):
        for name, break_it, names, reasons in CASES:
            with self.subTest(name), tempfile.TemporaryDirectory() as parent:
                folder = Folder(pathlib.Path(parent, "model"))
                break_it(folder)
                self.check(folder.path, names, reasons)

    def test_no_folder_at_all(self):
        with tempfile.TemporaryDirectory() as parent:
            self.check(pathlib.Path(parent, "nowhere"), "nowhere", set())
            self.check(pathlib.Path(parent), "config.json", {"model_file_missing"})
        self.check(conclave.MODEL / "config.json", "config.json", set())

    def test_keys_that_ask_for_code_are_ignored(self):
        with tempfile.TemporaryDirectory() as parent:
            folder = Folder(pathlib.Path(parent, "model"))
            folder.change_config(auto_map={"AutoModel": "evil.Model"}, trust_remote_code=True)
            with conclave.Server("--served-model-name", "demo", model=folder.path) as server:
                self.assert_good(server)


if __name__ == "__main__":
    unittest.main(verbosity=2)
