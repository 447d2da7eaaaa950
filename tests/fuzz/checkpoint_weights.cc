// A reader of weight files; the build gives it in CONCLAVE_FUZZ_READER.
//
// Promises: a file is refused with a reason, or every tensor has a name of its own, a size that
// follows from shape and dtype, and its bytes inside the file; two tensors share no byte, but for
// torch.save's ties, which share all.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "memory_file.h"
#include "safetensors.h"
#include "torch_zip.h"

namespace conclave::checkpoint {
namespace {

int64_t SpanOf(const StoredTensor& tensor) {
  return tensor.strides.empty() ? tensor.size_bytes : tensor.span_bytes;
}

void CheckTensor(const StoredTensor& tensor, int64_t file_bytes) {
  auto bytes = static_cast<__int128>(SizeOf(tensor.dtype));
  for (const int64_t size : tensor.shape) {
    CONCLAVE_CHECK(size >= 0);
    bytes *= size;
    CONCLAVE_CHECK(bytes <= INT64_MAX);
  }
  CONCLAVE_CHECK(tensor.size_bytes == static_cast<int64_t>(bytes));
  CONCLAVE_CHECK(tensor.offset >= 0 && SpanOf(tensor) >= 0);
  CONCLAVE_CHECK(tensor.offset <= file_bytes - SpanOf(tensor));
  if (!tensor.strides.empty()) {
    CONCLAVE_CHECK(tensor.strides.size() == tensor.shape.size());
    CONCLAVE_CHECK(tensor.size_bytes <= tensor.span_bytes);
    auto last = static_cast<__int128>(0);
    for (size_t axis = 0; axis < tensor.shape.size(); ++axis) {
      last += static_cast<__int128>(tensor.shape[axis] - 1) * tensor.strides[axis];
    }
    CONCLAVE_CHECK((last + 1) * SizeOf(tensor.dtype) == tensor.span_bytes);
  }
}

void CheckFile(const uint8_t* bytes, size_t size) {
  const OpenedFile file = MemoryFile(bytes, size);
  absl::StatusOr<std::vector<StoredTensor>> tensors = CONCLAVE_FUZZ_READER(file);
  if (!tensors.ok()) {
    CONCLAVE_CHECK(!ReasonOf(tensors.status()).empty());
    return;
  }
  for (size_t i = 0; i < tensors->size(); ++i) {
    CheckTensor((*tensors)[i], file.stamp.size_bytes);
    CONCLAVE_CHECK(i == 0 || (*tensors)[i - 1].name < (*tensors)[i].name);
  }
  std::erase_if(*tensors, [](const StoredTensor& tensor) { return tensor.size_bytes == 0; });
  std::sort(tensors->begin(), tensors->end(), [](const StoredTensor& a, const StoredTensor& b) {
    return std::pair(a.offset, SpanOf(a)) < std::pair(b.offset, SpanOf(b));
  });
  for (size_t i = 1; i < tensors->size(); ++i) {
    const StoredTensor& a = (*tensors)[i - 1];
    const StoredTensor& b = (*tensors)[i];
    const bool is_tie = CONCLAVE_FUZZ_TIES && a.offset == b.offset && SpanOf(a) == SpanOf(b);
    CONCLAVE_CHECK(is_tie || a.offset + SpanOf(a) <= b.offset);
  }
}

}  // namespace
}  // namespace conclave::checkpoint

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  conclave::checkpoint::CheckFile(bytes, size);
  return 0;
}
