// The pickle inside a file of torch.save that holds tensors, read without executing anything: an
// interpreter for the few opcodes, and names for the few globals, that a dictionary of tensors
// needs. Every other opcode or global ends the reading.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/tensor/dtype.h"

namespace conclave::checkpoint {

// A tensor as the pickle describes it: a view of a storage, whose bytes are elsewhere. Numbers are
// as found; only their signs and the number of axes are checked.
struct PickledTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::string storage;  // key of the storage: entry "data/<key>" of the archive
  int64_t storage_elements = 0;
  int64_t first_element = 0;  // of the storage
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;  // in elements; as many as axes
};

// Pickles above this are refused before memory is taken for them; a tensor needs some 200 bytes.
inline constexpr int64_t kPickleBytesMax = 16 << 20;

// The tensors of a dictionary from names to tensors, in its order. Fails with "pickle_refused" and
// "at byte N: <why>"; the caller adds the file. Memory is bounded by a small multiple of
// kPickleBytesMax whatever `bytes` are.
absl::StatusOr<std::vector<PickledTensor>> ReadTensorPickle(std::string_view bytes);

}  // namespace conclave::checkpoint
