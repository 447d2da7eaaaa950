"""Writes a GGUF with random weights for llama.cpp and ik_llama.cpp: what bench/compare.py asks a peer with.

Neither knows MoE-LLaVA. Architecture `ernie4_5-moe` has the same matrices to multiply: of as many layers the first half
dense and the second half with four experts, of which a token takes two, for MoE in every second layer; root mean square
norms for layer norms, rotation of whole heads, no biases. Phi-2's plain networks of 10240 become gated ones of 6912,
1.25 % more. The cost of a token is the same within that.

    python -m pip install gguf
    python bench/peer_model.py --like stablelm-1.6b-4e OUT.gguf      # 5.8 GB
    python bench/peer_model.py --like stablelm-1.6b-4e --type q8_0 OUT.gguf
"""

import argparse
import pathlib
import sys
from dataclasses import dataclass

try:
    import gguf
    import numpy as np
except ImportError as missing:
    sys.exit(f"error: {missing}; expected the packages of: python -m pip install gguf")


@dataclass(frozen=True)
class Shape:
    width: int
    layers: int
    heads: int
    inner: int
    vocabulary: int
    experts: int = 4
    top_k: int = 2
    context: int = 4096


SHAPES = {
    "stablelm-1.6b-4e": Shape(width=2048, layers=24, heads=32, inner=5632, vocabulary=100352),
    "phi2-2.7b-4e": Shape(width=2560, layers=32, heads=32, inner=6912, vocabulary=51200),
    "tiny": Shape(width=256, layers=4, heads=4, inner=512, vocabulary=512),
}
TYPES = {"bf16": gguf.GGMLQuantizationType.BF16, "q8_0": gguf.GGMLQuantizationType.Q8_0}


def tensors(shape: Shape):
    """Names and shapes, outputs before inputs, in the order of the file; vectors and gates are f32."""
    width, inner, experts = shape.width, shape.inner, shape.experts
    yield "token_embd.weight", (shape.vocabulary, width)
    yield "output_norm.weight", (width,)
    yield "output.weight", (shape.vocabulary, width)
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        yield block + "attn_norm.weight", (width,)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"{block}{name}.weight", (width, width)
        yield block + "ffn_norm.weight", (width,)
        if layer < shape.layers // 2:
            yield block + "ffn_gate.weight", (inner, width)
            yield block + "ffn_down.weight", (width, inner)
            yield block + "ffn_up.weight", (inner, width)
        else:
            yield block + "ffn_gate_inp.weight", (experts, width)
            yield block + "ffn_gate_exps.weight", (experts, inner, width)
            yield block + "ffn_down_exps.weight", (experts, width, inner)
            yield block + "ffn_up_exps.weight", (experts, inner, width)


class Weights:
    """Random values of a tensor, cut out of one pool: numpy would take minutes for all of them."""

    def __init__(self, seed: int):
        pool = np.random.default_rng(seed).standard_normal(1 << 22, dtype=np.float32) * np.float32(0.02)
        self.values = {"f32": pool, **{name: self._convert(pool, kind) for name, kind in TYPES.items()}}

    @staticmethod
    def _convert(pool, kind):
        return gguf.quants.quantize(pool.reshape(-1, 256), kind).reshape(-1)

    def of(self, shape: tuple[int, ...], kind: str, offset: int):
        count = int(np.prod(shape))
        size = count if kind == "f32" else count // 32 * (64 if kind == "bf16" else 34)
        pool = self.values[kind]
        # Blocks of q8_0 must stay whole.
        start = offset % 97 * 34 * 64
        rows = np.resize(np.concatenate([pool[start:], pool[:start]]), size)
        return rows.reshape(*shape[:-1], -1)


def kind_of(shape: tuple[int, ...], name: str, wanted: str) -> str:
    return "f32" if len(shape) == 1 or "gate_inp" in name else wanted


def add_vocabulary(writer, shape: Shape) -> None:
    """Tokens that stand for nothing; the 256 bytes first, without which a tokenizer does not load."""
    letters = [chr(byte) if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174 else chr(256 + byte) for byte in range(256)]
    tokens = letters + [f"token{i}" for i in range(256, shape.vocabulary)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    writer.add_token_merges(["t o"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


def write(path: pathlib.Path, name: str, kind: str, seed: int) -> None:
    shape = SHAPES[name]
    writer = gguf.GGUFWriter(path, "ernie4_5-moe")
    writer.add_name(f"{name} {kind}, random weights")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_expert_count(shape.experts)
    writer.add_expert_used_count(shape.top_k)
    writer.add_expert_feed_forward_length(shape.inner)
    writer.add_expert_shared_count(0)
    writer.add_leading_dense_block_count(shape.layers // 2)
    writer.add_interleave_moe_layer_step(1)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16 if kind == "bf16" else gguf.LlamaFileType.MOSTLY_Q8_0)
    add_vocabulary(writer, shape)
    weights = Weights(seed)
    for tensor, axes in tensors(shape):
        of_kind = kind_of(axes, tensor, kind)
        values = weights.of((1, axes[-1]), of_kind, 0)
        row_bytes = values.nbytes
        stored = axes if of_kind == "f32" else (*axes[:-1], row_bytes)
        writer.add_tensor_info(tensor, stored, values.dtype, row_bytes * int(np.prod(axes[:-1])),
                               None if of_kind == "f32" else TYPES[of_kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for at, (tensor, axes) in enumerate(tensors(shape)):
        of_kind = kind_of(axes, tensor, kind)
        values = np.ones(axes, np.float32) if len(axes) == 1 else weights.of(axes, of_kind, at)
        writer.write_tensor_data(values)
    writer.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path, help="file to write; must not exist")
    parser.add_argument("--like", choices=sorted(SHAPES), default="stablelm-1.6b-4e")
    parser.add_argument("--type", choices=sorted(TYPES), default="bf16", help="of the matrices")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"{args.out}: exists already")
    write(args.out, args.like, args.type, args.seed)
    print(f"{args.out}: {args.out.stat().st_size / 1e9:.2f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
