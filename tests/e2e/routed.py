"""What answers say of their gates: the arrays of return_routed_experts and conclave.return_gate_probabilities."""

import ast
import base64
import collections
import struct


def npy(text: str) -> tuple[tuple[int, ...], str, list]:
    """Shape, dtype and values, row by row, of a NumPy file in base64."""
    content = base64.b64decode(text)
    start = 10 + int.from_bytes(content[8:10], "little")
    header = ast.literal_eval(content[10:start].decode())
    if header["descr"] not in ("<i2", "<f4") or header["fortran_order"]:
        raise AssertionError(f"neither 16-bit integers nor floats, row by row: {header}")
    values = [value for value, in struct.iter_unpack(header["descr"].replace("i2", "h").replace("f4", "f"), content[start:])]
    return header["shape"], header["descr"], values


def rows(choice: dict) -> collections.Counter:
    """(index of the MoE layer, expert, rank) -> rows; -1 stands where a kept KV block was used and nothing was computed."""
    (_, num_layers, top_k), _, values = npy(choice["routed_experts"])
    return collections.Counter((index // top_k % num_layers, expert, index % top_k)
                               for index, expert in enumerate(values) if expert >= 0)


def image_rows(choice: dict) -> collections.Counter:
    """The same, of the rows of pictures alone."""
    (_, num_layers, top_k), _, values = npy(choice["routed_experts"])
    spans = [range(first, first + count) for first, count in choice["conclave"]["image_rows"]]
    return collections.Counter((index // top_k % num_layers, expert, index % top_k)
                               for index, expert in enumerate(values)
                               if expert >= 0 and any(index // (num_layers * top_k) in span for span in spans))
