// Header and index of a packed file, as bytes and checked. Pure functions over text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "conclave/checkpoint/packed_file.h"
#include "file.h"

namespace conclave::checkpoint {

// Also the size of the header.
inline constexpr int64_t kPackedPage = 4096;
inline constexpr int64_t kPackedFloatsAlignment = 64;
inline constexpr uint32_t kPackedVersion = 1;

// Where an entry of that kind may begin.
constexpr int64_t PackedAlignment(PackedKind kind) {
  return kind == PackedKind::kFloats ? kPackedFloatsAlignment : kPackedPage;
}

struct PackedHeader {
  int32_t panel_revision = 0;
  int64_t index_offset = 0;
  int64_t index_bytes = 0;
  int64_t file_bytes = 0;
  uint32_t index_crc = 0;
};

std::string HeaderText(const PackedHeader& header);

// `text` is the first kPackedPage bytes of a file of `file_bytes`, or all of a shorter one.
// "packed_header", "packed_version", "packed_truncated".
absl::StatusOr<PackedHeader> ParseHeader(std::string_view text, int64_t file_bytes);

std::string IndexText(const PackedIndex& index);

// `index_offset`: entries end before it. "packed_index" for everything that is not as
// packed_file.h has it: unknown or missing members, wrong types, names that stand twice or out of
// order, sizes that do not follow from shape and dtype, places outside of the file, unaligned ones
// and those that overlap. What the bytes of a matrix must be is the kernels' to say and is not
// checked here.
absl::StatusOr<PackedIndex> ParseIndex(std::string_view text, int64_t index_offset);

// Both, from the file. `text` gets the index as it stands there.
struct PackedParts {
  PackedHeader header;
  PackedIndex index;
  std::string index_hash;
};
absl::StatusOr<PackedParts> ReadPackedParts(const OpenedFile& file);

}  // namespace conclave::checkpoint
