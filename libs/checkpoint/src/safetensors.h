// The safetensors format: 8 bytes little-endian length n, n bytes of JSON header, then the tensors'
// bytes, which tile the rest of the file without gaps. Source: the format section of
// huggingface/safetensors' README.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/tensor/dtype.h"
#include "file.h"

namespace conclave::checkpoint {

struct StoredTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  int64_t offset = 0;  // of the first byte, from the start of the file
  int64_t size_bytes = 0;
  // Of torch.save's files alone: a view whose elements do not follow each other, as steps in
  // elements along each axis and bytes from its first to behind its last element. Empty: row-major
  // without gaps.
  std::vector<int64_t> strides;
  int64_t span_bytes = 0;
};

// Headers above this are refused before memory is taken for them, as by the format's own library.
inline constexpr int64_t kHeaderBytesMax = 100'000'000;
// More axes than any array library has.
inline constexpr size_t kDimsMax = 32;

// Reads and checks the header of `file`; sorted by name. Reasons: "safetensors_truncated",
// "safetensors_header_length", "safetensors_header_json", "tensor_dtype", "tensor_shape",
// "tensor_offsets", "model_read_error".
absl::StatusOr<std::vector<StoredTensor>> ReadSafetensorsHeader(const OpenedFile& file);

// Word of the format for a dtype: "BF16".
std::string_view FormatWord(DType dtype);

}  // namespace conclave::checkpoint
