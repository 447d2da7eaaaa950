// softmax(q·kᵀ·scale)·v for one row at a time over KV blocks of a fixed length.
//
// A block holds kKvBlockTokens consecutive absolute positions of one layer, all KV heads, aligned
// to multiples of kKvBlockTokens whatever the chunking of the prompt or the reuse of a prefix. Rows
// walk the blocks in ascending order with an online softmax, so a row's bits depend on its query
// and on the keys and values up to its position alone. Positions outside [first, last) add exact
// zeros; what stale memory holds there is never multiplied into a result.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "conclave/kernels/context.h"
#include "conclave/tensor/dtype.h"
#include "conclave/tensor/view.h"

namespace conclave::kernels {

inline constexpr int64_t kKvBlockTokens = 32;

// Memory of one block of one layer: for each KV head K then V,
//   K [head_dim][kKvBlockTokens]    transposed: lanes are positions
//   V [kKvBlockTokens][value_stride]  value_stride = head_dim rounded up to 16; the padding stays
//   zero
// in `dtype` (kF32 or kBf16).
struct KvLayout {
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  DType dtype = DType::kF32;

  int64_t value_stride() const { return (head_dim + 15) / 16 * 16; }
  int64_t head_elements() const { return kKvBlockTokens * (head_dim + value_stride()); }
  size_t block_bytes() const {
    return static_cast<size_t>(num_kv_heads * head_elements()) * SizeOf(dtype);
  }
};

// The keys and values that a row may see: positions [first, last) of the sequence, in blocks
// base + block_table[position / kKvBlockTokens] * block_stride. Does not own.
struct KvRange {
  const std::byte* base = nullptr;
  size_t block_stride = 0;  // bytes
  const int32_t* block_table = nullptr;
  int64_t first = 0;
  int64_t last = 0;
};

// Stores the key and value of one position (rotated already), rounding to layout.dtype.
//   key, value  [num_kv_heads · head_dim]
//   block       the block that holds the position; slot = position % kKvBlockTokens
void StoreKv(const Context& context, const KvLayout& layout, std::span<const float> key,
             std::span<const float> value, int64_t slot, std::byte* block);

// out[r, h·D : (h+1)·D] = attention of query row r, head h, over ranges[r]; KV head = h /
// (num_heads / num_kv_heads).
//   q    [rows, num_heads · head_dim]   f32, rotated
//   out  [rows, num_heads · head_dim]   f32, overwritten; must not alias q
// Every range holds at least one position. Scores, softmax and sums in f32.
void Attend(const Context& context, const KvLayout& layout, int64_t num_heads, float scale,
            MatView<const float> q, std::span<const KvRange> ranges, MatView<float> out);

}  // namespace conclave::kernels
