// Paged KV memory of one frontend: blocks of kernels::kKvBlockTokens positions over all layers,
// with reuse of shared prefixes.
//
// A full block is named by what its positions hold and by the block before it; sequences that begin
// alike share such blocks, and blocks of ended sequences stay until their memory is needed. Because
// a row's bits do not depend on who computed the keys before it (architecture, section 4), reuse
// never changes a token.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "conclave/kernels/attention.h"
#include "conclave/tensor/aligned_buffer.h"

namespace conclave::model {

// What stands at one position: a token id, or one row of an image's features.
struct PositionKey {
  uint64_t content = 0;  // token id, or the digest of the picture
  int32_t row = -1;      // -1 for a token, else the feature row
  // Whatever else of the sequence its K and V depend on: rotary table, scaled embedding.
  int32_t variant = 0;
  friend bool operator==(const PositionKey&, const PositionKey&) = default;
};

// Used by one thread, the engine's.
class KvPool {
 public:
  // `num_blocks` >= 1 blocks for `num_layers` layers. Memory is mapped here and touched on first
  // use.
  KvPool(const kernels::KvLayout& layout, int32_t num_layers, int32_t num_blocks);

  // Bytes of one block over all layers.
  static size_t BlockBytes(const kernels::KvLayout& layout, int32_t num_layers);

  int32_t num_blocks() const { return num_blocks_; }
  // Blocks that no running sequence holds; those kept only for reuse count as free.
  int32_t num_free() const { return static_cast<int32_t>(free_.size()) + num_evictable_; }

  // A block with one holder, or nullopt when every block is held by a sequence. Drops the least
  // recently used kept block if no empty one is left.
  std::optional<int32_t> Allocate();

  // Finds the longest run of kept full blocks for `keys` (position 0 on), takes a hold on each and
  // returns them.
  std::vector<int32_t> AcquirePrefix(std::span<const PositionKey> keys);

  // Names `block`, which now is full: it holds `keys` (exactly kKvBlockTokens) and follows `parent`
  // (-1: first). A no-op when an equal block is named already.
  void Publish(int32_t block, int32_t parent, std::span<const PositionKey> keys);

  // Gives up one hold.
  void Release(int32_t block);

  const kernels::KvLayout& layout() const { return layout_; }
  // Start of `layer`'s part of the pool, for KvRange::base; blocks are block_stride() apart.
  const std::byte* LayerBase(int32_t layer) const;
  size_t block_stride() const { return layout_.block_bytes(); }
  std::byte* BlockMemory(int32_t layer, int32_t block);

 private:
  struct Block {
    int32_t holders = 0;
    bool is_named = false;
    uint64_t name = 0;  // hash of (parent's identity, keys)
    uint64_t parent_uid = 0;
    uint64_t uid = 0;  // never reused, unlike the index
    uint64_t last_used = 0;
    std::vector<PositionKey> keys;
  };

  static uint64_t Hash(uint64_t parent_uid, std::span<const PositionKey> keys);
  int32_t FindNamed(uint64_t parent_uid, std::span<const PositionKey> keys) const;
  void Unname(int32_t block);

  kernels::KvLayout layout_;
  int32_t num_blocks_;
  AlignedBuffer memory_;
  std::vector<Block> blocks_;
  std::vector<int32_t> free_;
  int32_t num_evictable_ = 0;  // named, no holder
  uint64_t clock_ = 0;
  uint64_t next_uid_ = 1;
  std::unordered_multimap<uint64_t, int32_t> named_;
};

}  // namespace conclave::model
