#include "conclave/tensor/aligned_buffer.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <utility>

#include "conclave/base/check.h"

namespace conclave {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kMapFrom = size_t{2} << 20;

}  // namespace

AlignedBuffer::AlignedBuffer(size_t num_bytes) : size_(num_bytes) {
  if (num_bytes == 0) {
    return;
  }
  if (num_bytes >= kMapFrom) {
    data_ = ::mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CONCLAVE_CHECK(data_ != MAP_FAILED);
    // A hint: without huge pages everything still works.
    (void)::madvise(data_, num_bytes, MADV_HUGEPAGE);
    is_mapped_ = true;
    return;
  }
  const size_t rounded = (num_bytes + kAlignment - 1) / kAlignment * kAlignment;
  data_ = std::aligned_alloc(kAlignment, rounded);
  CONCLAVE_CHECK(data_ != nullptr);
  std::memset(data_, 0, rounded);
}

AlignedBuffer::~AlignedBuffer() {
  if (is_mapped_) {
    ::munmap(data_, size_);
  } else {
    std::free(data_);
  }
}

AlignedBuffer::AlignedBuffer(AlignedBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      is_mapped_(std::exchange(other.is_mapped_, false)) {}

AlignedBuffer& AlignedBuffer::operator=(AlignedBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(is_mapped_, other.is_mapped_);
  return *this;
}

}  // namespace conclave
