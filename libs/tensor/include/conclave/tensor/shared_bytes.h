// Read-only memory with a shared owner: a buffer of this process, or a part of a mapped file.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <utility>

#include "conclave/tensor/aligned_buffer.h"

namespace conclave {

// Immutable while anybody holds it; copies share the memory.
class SharedBytes {
 public:
  SharedBytes() = default;
  // `owner` keeps `bytes` where they are.
  SharedBytes(std::span<const std::byte> bytes, std::shared_ptr<const void> owner)
      : bytes_(bytes), owner_(std::move(owner)) {}
  explicit SharedBytes(AlignedBuffer buffer) {
    auto owned = std::make_shared<const AlignedBuffer>(std::move(buffer));
    bytes_ = {owned->As<std::byte>(), owned->size_bytes()};
    owner_ = std::move(owned);
  }

  std::span<const std::byte> bytes() const { return bytes_; }
  size_t size_bytes() const { return bytes_.size(); }

  template <typename T>
  const T* As() const {
    return reinterpret_cast<const T*>(bytes_.data());
  }

 private:
  std::span<const std::byte> bytes_;
  std::shared_ptr<const void> owner_;
};

}  // namespace conclave
