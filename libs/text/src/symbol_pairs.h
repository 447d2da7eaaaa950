// A set of pairs of symbols, asked for every two neighbours of a text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace conclave::text {

// Symbols are numbers >= 0. Open addressing, at most half full. Filled first, then immutable: any
// thread.
class SymbolPairs {
 public:
  void Insert(int32_t left, int32_t right) {
    if (Contains(left, right)) return;
    if (2 * (size_ + 1) > slots_.size()) Grow();
    Place(Key(left, right));
    ++size_;
  }
  bool Contains(int32_t left, int32_t right) const {
    const uint64_t key = Key(left, right);
    for (size_t slot = SlotOf(key);; slot = (slot + 1) & (slots_.size() - 1)) {
      if (slots_[slot] == key) return true;
      if (slots_[slot] == kFree) return false;
    }
  }

 private:
  static constexpr uint64_t kFree = ~uint64_t{0};  // the key of no two symbols >= 0

  static uint64_t Key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  // Fibonacci hashing: the high bits of the product depend on all bits of the key.
  size_t SlotOf(uint64_t key) const {
    return static_cast<size_t>((key * 0x9E3779B97F4A7C15u) >> 32) & (slots_.size() - 1);
  }
  void Place(uint64_t key) {
    size_t slot = SlotOf(key);
    while (slots_[slot] != kFree) slot = (slot + 1) & (slots_.size() - 1);
    slots_[slot] = key;
  }
  void Grow() {
    const std::vector<uint64_t> old = std::move(slots_);
    slots_.assign(2 * old.size(), kFree);
    for (const uint64_t key : old) {
      if (key != kFree) Place(key);
    }
  }

  std::vector<uint64_t> slots_ = std::vector<uint64_t>(16, kFree);  // a power of two
  size_t size_ = 0;
};

}  // namespace conclave::text
