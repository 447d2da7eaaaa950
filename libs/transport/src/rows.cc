#include "conclave/transport/rows.h"

namespace conclave::transport {
namespace {

// An exponent of all ones is an infinity or a NaN. No early exit, so that the loop vectorizes: rows
// are finite.
template <typename Word>
bool HasNonfinite(const std::byte* bytes, size_t count, Word exponent) {
  const Word* words = reinterpret_cast<const Word*>(bytes);
  Word found = 0;
  for (size_t i = 0; i < count; ++i) {
    found |= static_cast<Word>((words[i] & exponent) == exponent ? 1 : 0);
  }
  return found != 0;
}

}  // namespace

bool AllFinite(std::span<const std::byte> rows, WireDtype dtype) {
  const size_t count = rows.size() / SizeOf(dtype);
  if (dtype == WireDtype::kF32) {
    return !HasNonfinite<uint32_t>(rows.data(), count, 0x7f800000u);
  }
  return !HasNonfinite<uint16_t>(rows.data(), count, 0x7f80u);
}

}  // namespace conclave::transport
