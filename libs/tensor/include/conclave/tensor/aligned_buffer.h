// Owning, 64-byte aligned, zero-filled memory. Large buffers are mapped anonymously and asked to
// use huge pages, because a packed weight panel is streamed through once per step and the TLB would
// otherwise miss on every 4 KiB.
#pragma once

#include <cstddef>

namespace conclave {

class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  // Aborts when the address space is exhausted: sizes are checked against the memory budget before.
  explicit AlignedBuffer(size_t num_bytes);
  ~AlignedBuffer();
  AlignedBuffer(AlignedBuffer&& other) noexcept;
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept;
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;

  size_t size_bytes() const { return size_; }

  template <typename T>
  T* As() {
    return static_cast<T*>(data_);
  }
  template <typename T>
  const T* As() const {
    return static_cast<const T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
  bool is_mapped_ = false;
};

}  // namespace conclave
