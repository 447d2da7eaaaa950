// A KV cache of one layer for tests: blocks in a scattered order, filled position by position.
#pragma once

#include <algorithm>
#include <numeric>

#include "conclave/kernels/attention.h"
#include "conclave/tensor/aligned_buffer.h"
#include "kernels_testing.h"

namespace conclave::kernels {

class KvCache {
 public:
  // `stale` fills the memory before anything is stored; 0xff makes every element a NaN.
  KvCache(const KvLayout& layout, int64_t num_tokens, unsigned char stale, uint64_t table_seed = 9)
      : layout_(layout),
        table_(static_cast<size_t>((num_tokens + kKvBlockTokens - 1) / kKvBlockTokens)) {
    memory_ = AlignedBuffer(table_.size() * layout.block_bytes());
    std::memset(memory_.As<std::byte>(), stale, memory_.size_bytes());
    std::iota(table_.begin(), table_.end(), 0);
    std::mt19937_64 engine(table_seed);
    std::shuffle(table_.begin(), table_.end(), engine);
  }

  void Store(const Context& context, int64_t position, std::span<const float> key,
             std::span<const float> value) {
    StoreKv(context, layout_, key, value, position % kKvBlockTokens, Block(position));
  }

  std::byte* Block(int64_t position) {
    const auto physical =
        static_cast<size_t>(table_[static_cast<size_t>(position / kKvBlockTokens)]);
    return memory_.As<std::byte>() + physical * layout_.block_bytes();
  }

  KvRange Range(int64_t first, int64_t last) const {
    return {memory_.As<std::byte>(), layout_.block_bytes(), table_.data(), first, last};
  }

 private:
  KvLayout layout_;
  std::vector<int32_t> table_;
  AlignedBuffer memory_;
};

}  // namespace conclave::kernels
