#include "conclave/model/kv_pool.h"

#include <algorithm>

#include "conclave/base/check.h"

namespace conclave::model {
namespace {

constexpr int64_t kBlockTokens = kernels::kKvBlockTokens;

uint64_t Mix(uint64_t hash, uint64_t value) {
  // The finaliser of SplitMix64 over a running sum.
  hash += value + 0x9e3779b97f4a7c15u;
  hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9u;
  hash = (hash ^ (hash >> 27)) * 0x94d049bb133111ebu;
  return hash ^ (hash >> 31);
}

}  // namespace

KvPool::KvPool(const kernels::KvLayout& layout, int32_t num_layers, int32_t num_blocks)
    : layout_(layout),
      num_blocks_(num_blocks),
      memory_(BlockBytes(layout, num_layers) * static_cast<size_t>(num_blocks)),
      blocks_(static_cast<size_t>(num_blocks)) {
  CONCLAVE_CHECK(num_blocks >= 1);
  free_.reserve(static_cast<size_t>(num_blocks));
  for (int32_t block = num_blocks - 1; block >= 0; --block) {
    free_.push_back(block);
  }
}

size_t KvPool::BlockBytes(const kernels::KvLayout& layout, int32_t num_layers) {
  return layout.block_bytes() * static_cast<size_t>(num_layers);
}

const std::byte* KvPool::LayerBase(int32_t layer) const {
  return memory_.As<std::byte>() +
         static_cast<size_t>(layer) * static_cast<size_t>(num_blocks_) * block_stride();
}

std::byte* KvPool::BlockMemory(int32_t layer, int32_t block) {
  return memory_.As<std::byte>() + (static_cast<size_t>(layer) * static_cast<size_t>(num_blocks_) +
                                    static_cast<size_t>(block)) *
                                       block_stride();
}

uint64_t KvPool::Hash(uint64_t parent_uid, std::span<const PositionKey> keys) {
  uint64_t hash = Mix(0, parent_uid);
  for (const PositionKey& key : keys) {
    const uint64_t how = static_cast<uint64_t>(static_cast<uint32_t>(key.variant)) << 32 |
                         static_cast<uint64_t>(static_cast<uint32_t>(key.row));
    hash = Mix(Mix(hash, key.content), how);
  }
  return hash;
}

int32_t KvPool::FindNamed(uint64_t parent_uid, std::span<const PositionKey> keys) const {
  // The hash only finds candidates; the keys themselves decide, so a collision cannot mix up two
  // users' prompts.
  const auto [first, last] = named_.equal_range(Hash(parent_uid, keys));
  for (auto it = first; it != last; ++it) {
    const Block& block = blocks_[static_cast<size_t>(it->second)];
    if (block.parent_uid == parent_uid && std::ranges::equal(block.keys, keys)) {
      return it->second;
    }
  }
  return -1;
}

void KvPool::Unname(int32_t index) {
  Block& block = blocks_[static_cast<size_t>(index)];
  const auto [first, last] = named_.equal_range(block.name);
  named_.erase(
      std::find_if(first, last, [index](const auto& entry) { return entry.second == index; }));
  block.is_named = false;
  block.keys.clear();
}

std::optional<int32_t> KvPool::Allocate() {
  int32_t index = -1;
  if (!free_.empty()) {
    index = free_.back();
    free_.pop_back();
  } else if (num_evictable_ > 0) {
    uint64_t oldest = UINT64_MAX;
    for (int32_t i = 0; i < num_blocks_; ++i) {
      const Block& block = blocks_[static_cast<size_t>(i)];
      if (block.holders == 0 && block.is_named && block.last_used < oldest) {
        oldest = block.last_used;
        index = i;
      }
    }
    Unname(index);
    --num_evictable_;
  } else {
    return std::nullopt;
  }
  Block& block = blocks_[static_cast<size_t>(index)];
  block.holders = 1;
  block.uid = next_uid_++;
  return index;
}

std::vector<int32_t> KvPool::AcquirePrefix(std::span<const PositionKey> keys) {
  std::vector<int32_t> found;
  uint64_t parent_uid = 0;
  while (keys.size() >= static_cast<size_t>(kBlockTokens)) {
    const int32_t index = FindNamed(parent_uid, keys.first(kBlockTokens));
    if (index < 0) {
      break;
    }
    Block& block = blocks_[static_cast<size_t>(index)];
    if (block.holders++ == 0) {
      --num_evictable_;
    }
    found.push_back(index);
    parent_uid = block.uid;
    keys = keys.subspan(kBlockTokens);
  }
  return found;
}

void KvPool::Publish(int32_t index, int32_t parent, std::span<const PositionKey> keys) {
  CONCLAVE_CHECK(keys.size() == static_cast<size_t>(kBlockTokens));
  Block& block = blocks_[static_cast<size_t>(index)];
  const uint64_t parent_uid = parent < 0 ? 0 : blocks_[static_cast<size_t>(parent)].uid;
  if (block.is_named || FindNamed(parent_uid, keys) >= 0) {
    return;
  }
  block.is_named = true;
  block.parent_uid = parent_uid;
  block.keys.assign(keys.begin(), keys.end());
  block.name = Hash(parent_uid, keys);
  named_.emplace(block.name, index);
}

void KvPool::Release(int32_t index) {
  Block& block = blocks_[static_cast<size_t>(index)];
  CONCLAVE_CHECK(block.holders > 0);
  if (--block.holders > 0) {
    return;
  }
  if (block.is_named) {
    // The last block of a chain is released first by its holder, so children are older than parents
    // and go first.
    block.last_used = ++clock_;
    ++num_evictable_;
  } else {
    free_.push_back(index);
  }
}

}  // namespace conclave::model
