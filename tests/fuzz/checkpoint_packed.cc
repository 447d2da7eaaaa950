// Header and index of a packed file. The first byte of the input says which: an index alone, or a
// whole file.
//
// Promises: an index is refused with a reason, or its entries lie behind the header and before the
// index, aligned, of the size that shape and dtype have and without a byte in common, no name
// twice; and writing it again gives an equal one.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "memory_file.h"
#include "packed_index.h"

namespace conclave::checkpoint {
namespace {

void CheckIndex(const PackedIndex& index, int64_t index_offset) {
  std::vector<std::pair<int64_t, int64_t>> places;
  for (size_t i = 0; i < index.entries.size(); ++i) {
    const PackedEntry& entry = index.entries[i];
    CONCLAVE_CHECK(entry.offset >= kPackedPage && entry.size_bytes >= 0);
    CONCLAVE_CHECK(entry.offset % PackedAlignment(entry.kind) == 0);
    CONCLAVE_CHECK(entry.offset <= index_offset - entry.size_bytes);
    if (entry.kind != PackedKind::kMatrix) {
      CONCLAVE_CHECK(static_cast<__int128>(entry.n) * entry.k * SizeOf(entry.dtype) ==
                     entry.size_bytes);
    }
    if (i > 0) {
      const PackedEntry& before = index.entries[i - 1];
      CONCLAVE_CHECK(std::pair(before.kind, before.name) < std::pair(entry.kind, entry.name));
    }
    if (entry.size_bytes > 0) {
      places.emplace_back(entry.offset, entry.size_bytes);
    }
  }
  std::sort(places.begin(), places.end());
  for (size_t i = 1; i < places.size(); ++i) {
    CONCLAVE_CHECK(places[i - 1].first + places[i - 1].second <= places[i].first);
  }
  const absl::StatusOr<PackedIndex> again = ParseIndex(IndexText(index), index_offset);
  CONCLAVE_CHECK(again.ok() && *again == index);
}

void CheckBytes(const uint8_t* bytes, size_t size) {
  constexpr int64_t kIndexOffset = int64_t{1} << 20;
  if (size > 0 && bytes[0] != 0) {
    const std::string_view text(reinterpret_cast<const char*>(bytes) + 1, size - 1);
    const absl::StatusOr<PackedIndex> index = ParseIndex(text, kIndexOffset);
    if (index.ok()) {
      CheckIndex(*index, kIndexOffset);
    } else {
      CONCLAVE_CHECK(ReasonOf(index.status()) == "packed_index");
    }
    return;
  }
  const size_t skip = std::min<size_t>(size, 1);
  const OpenedFile file = MemoryFile(bytes + skip, size - skip);
  const absl::StatusOr<PackedParts> parts = ReadPackedParts(file);
  if (parts.ok()) {
    CheckIndex(parts->index, parts->header.index_offset);
  } else {
    CONCLAVE_CHECK(!ReasonOf(parts.status()).empty());
  }
}

}  // namespace
}  // namespace conclave::checkpoint

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  conclave::checkpoint::CheckBytes(bytes, size);
  return 0;
}
