// Files of torch.save for tests, byte by byte: zip archives of any parts, and pickles instruction
// by instruction. Independent of the library's own writer.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "conclave/checkpoint/safetensors_writer.h"

namespace conclave::checkpoint {

// One entry. Fields that a test leaves alone make a correct one.
struct ZipPart {
  std::string name;
  std::string bytes;
  uint16_t method = 0;
  uint16_t flags = 0;
  int64_t packed_bytes = -1;  // -1: as many as `bytes`
  int64_t plain_bytes = -1;
  std::string local_name{};  // empty: `name`
  size_t padding = 0;        // bytes of extra field before the bytes
  int64_t begins_at = -1;    // offset in the directory; -1: where it is
};

// The archive. With `is_64` sizes and offsets stand in zip64 fields.
std::string MakeZip(const std::vector<ZipPart>& parts, bool is_64 = false);

// Pickle instructions, protocol 2, concatenated by the caller.
namespace pickle {
std::string String(std::string_view text);
std::string Int(int64_t number);
std::string Tuple(std::span<const int64_t> numbers);
std::string Global(std::string_view module, std::string_view name);
// A reference to storage `key` of `num` elements; type as in "FloatStorage".
std::string Storage(std::string_view type, std::string_view key, int64_t num);
// A call of _rebuild_tensor_v2.
std::string Tensor(const std::string& storage, int64_t offset, const std::vector<int64_t>& shape,
                   const std::vector<int64_t>& strides);
// The whole of a dictionary: `items` are keys and values.
std::string Dict(const std::string& items);
}  // namespace pickle

// The archive that torch.save would write for `tensors`: f32, bf16, f16 or f64.
std::string TorchFile(const std::vector<TensorValues>& tensors);
// The parts of the same, for tests that break one.
std::vector<ZipPart> TorchParts(const std::vector<TensorValues>& tensors);

}  // namespace conclave::checkpoint
