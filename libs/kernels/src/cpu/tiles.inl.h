// What the GEMMs of all types share in cutting rows into tiles.
#pragma once

namespace conclave::kernels {
namespace {

inline constexpr int64_t kLineBytes = 64;

CONCLAVE_KERNEL_INLINE int64_t Smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Rows of tile `i` when `rows` are spread over tiles as evenly as possible: a last tile of one row
// costs nearly as much as a full one.
CONCLAVE_KERNEL_INLINE int64_t FirstRowOfTile(int64_t rows, int64_t num_tiles, int64_t i) {
  return rows * i / num_tiles;
}

}  // namespace
}  // namespace conclave::kernels
