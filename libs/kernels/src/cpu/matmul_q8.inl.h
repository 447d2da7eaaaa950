// Row tiles times one q8 weight panel, for every vector path.
//
// Ops is how a path multiplies bytes; it has
//   kTileRows, TileVecs(rows)  rows and vectors of the tiles
//   kGroupBlocks               blocks of a group where many tiles share the weights
//   IVec                       int32 sums of kVecLanes outputs
//   Weights, LoadWeights(p)    four weights of each of kVecLanes outputs
//   Row, kRowBytes             four elements of a row in all lanes, and their bytes as LoadRow reads
//   LoadRow(p)                 them from; kExpands says that they are prepared by ExpandRow first
//   Dot(sum, weights, row)     sum + Σ of the four products, exact
//   SetSum(value), ToF32(sum)
//   LoadScales(p)              kVecLanes bf16 scales as f32
//
// A tile keeps rows × vectors int32 sums in registers over one block of 32 and adds them to f32
// sums, which lie in registers where they have room and in L1 otherwise. Groups of blocks come
// first: their weights stay in L2, and in L1 for few tiles, while all tiles pass over them
// (docs/decisions/0033-q8.md).
#pragma once

namespace conclave::kernels {
namespace {

// Blocks of a group where few tiles share the weights: 17 KiB of them stay in L1.
inline constexpr int64_t kQ8FewTiles = 3;
inline constexpr int64_t kQ8FewBlocks = 8;
inline constexpr int64_t kQ8Steps = kQ8BlockSize / 4;  // of four elements, per block
inline constexpr int64_t kQ8AheadBytes = 2 * kQ8PanelBlockBytes;

// A group of blocks for one tile, at the columns from `col` on.
struct Q8Tile {
  const char* x;  // of the group, as Ops reads rows
  int64_t x_stride;
  const float* scales;  // of the group; rows lie `blocks_stride` apart, as those of sums
  const int32_t* sums;
  int64_t blocks_stride;
  int64_t num_blocks;
  const char* w;  // the group's first block
  int64_t col;
  int64_t cols;  // columns of the panel that exist
  float* y;      // of the panel
  int64_t y_stride;
  bool is_first;
  const float* bias;  // of the panel; null unless the group is the last
  const char* ahead;  // lines to ask for, ahead_lines with every block, spread over its steps
  int64_t ahead_lines;
};

// Adds the products of block b, `w`, to the f32 sums, and asks for what is due with it.
template <typename Ops, int R, int C, typename Sums>
CONCLAVE_KERNEL_INLINE void Q8BlockStep(const Q8Tile& t, int64_t b, const char* w, Sums& acc) {
  using IVec = typename Ops::IVec;
  IVec sum[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const IVec start = Ops::SetSum(t.sums[r * t.blocks_stride + b]);
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      sum[r][c] = start;
    }
  }
  const char* x = t.x + b * kQ8Steps * Ops::kRowBytes;
  const char* step = w + kQ8PanelScaleBytes + t.col * 4;
  // Asked for all at once, many lines would fill the buffers that the tile's own reads need.
  const char* ahead = t.ahead + b * t.ahead_lines * kLineBytes;
  const int64_t lines_per_step = t.ahead_lines / kQ8Steps;
  for (int64_t line = lines_per_step * kQ8Steps; line < t.ahead_lines; ++line) {
    __builtin_prefetch(ahead + line * kLineBytes, 0, 2);
  }
#pragma GCC unroll 8
  for (int64_t i = 0; i < kQ8Steps; ++i) {
    for (int64_t line = 0; line < lines_per_step; ++line, ahead += kLineBytes) {
      __builtin_prefetch(ahead, 0, 2);
    }
    typename Ops::Weights weights[C];
#pragma GCC unroll 8
    for (int64_t c = 0; c < C; ++c) {
      weights[c] = Ops::LoadWeights(step + i * kQ8PanelStep + c * kVecLanes * 4);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const typename Ops::Row row = Ops::LoadRow(x + r * t.x_stride + i * Ops::kRowBytes);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) {
        sum[r][c] = Ops::Dot(sum[r][c], weights[c], row);
      }
    }
  }
  Vec scales[C];
#pragma GCC unroll 8
  for (int64_t c = 0; c < C; ++c) {
    scales[c] = Ops::LoadScales(w + 2 * (t.col + c * kVecLanes));
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const Vec scale = VecSet1(t.scales[r * t.blocks_stride + b]);
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      acc.Set(r, c, VecFma(Ops::ToF32(sum[r][c]), VecMul(scale, scales[c]), acc.Get(r, c)));
    }
  }
}

// f32 sums of a tile in registers.
template <int R, int C>
struct Q8SumsInRegisters {
  Vec v[R][C];
  CONCLAVE_KERNEL_INLINE Vec Get(int r, int c) const { return v[r][c]; }
  CONCLAVE_KERNEL_INLINE void Set(int r, int c, Vec value) { v[r][c] = value; }
};
// And in memory, by intent: left to the compiler, it would rather spill the integers.
template <int R, int C>
struct Q8SumsInMemory {
  alignas(64) float v[R * C * kVecLanes];
  CONCLAVE_KERNEL_INLINE Vec Get(int r, int c) const {
    return VecLoad(v + (r * C + c) * kVecLanes);
  }
  CONCLAVE_KERNEL_INLINE void Set(int r, int c, Vec value) {
    VecStore(v + (r * C + c) * kVecLanes, value);
  }
};

template <typename Ops, int R, int C>
CONCLAVE_KERNEL_INLINE void RunQ8Tile(const Q8Tile& t) {
  constexpr bool kInRegisters = 2 * R * C + Ops::kSpareRegisters(C) <= Ops::kRegisters;
  std::conditional_t<kInRegisters, Q8SumsInRegisters<R, C>, Q8SumsInMemory<R, C>> acc;
  float* y = t.y + t.col;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      acc.Set(r, c,
              t.is_first
                  ? VecZero()
                  : VecLoadN(y + r * t.y_stride + c * kVecLanes, t.cols - t.col - c * kVecLanes));
    }
  }
  const char* w = t.w;
  for (int64_t b = 0; b < t.num_blocks; ++b, w += kQ8PanelBlockBytes) {
    Q8BlockStep<Ops, R, C>(t, b, w, acc);
  }
#pragma GCC unroll 8
  for (int64_t c = 0; c < C; ++c) {
    const int64_t n = t.cols - t.col - c * kVecLanes;
    const Vec bias = t.bias != nullptr ? VecLoadN(t.bias + t.col + c * kVecLanes, n) : VecZero();
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec sum = acc.Get(r, static_cast<int>(c));
      // Without a bias nothing is added: a sum of -0 stays one.
      VecStoreN(y + r * t.y_stride + c * kVecLanes, t.bias != nullptr ? VecAdd(sum, bias) : sum, n);
    }
  }
}

// All columns of the panel for R rows.
template <typename Ops, int R>
__attribute__((noinline)) void RunQ8Rows(const Q8Tile& tile) {
  constexpr int kVecs = Ops::TileVecs(R);
  Q8Tile t = tile;
  for (; t.col < t.cols; t.col += kVecs * kVecLanes) {
    RunQ8Tile<Ops, R, kVecs>(t);
    t.ahead_lines = 0;
  }
}

template <typename Ops, int R = Ops::kTileRows>
CONCLAVE_KERNEL_INLINE void RunQ8AnyRows(int64_t rows, const Q8Tile& tile) {
  if constexpr (R > 1) {
    if (rows < R) {
      RunQ8AnyRows<Ops, R - 1>(rows, tile);
      return;
    }
  }
  RunQ8Rows<Ops, R>(tile);
}

template <typename Ops>
void MatMulQ8(const Q8PanelJob& job) {
  constexpr int64_t kGroupBytes = Ops::kGroupBlocks * kQ8Steps * Ops::kRowBytes;
  alignas(64) char expanded[Ops::kExpands ? Ops::kTileRows * kGroupBytes : 1];
  const int64_t num_tiles = (job.rows + Ops::kTileRows - 1) / Ops::kTileRows;
  const int64_t group_blocks = num_tiles <= kQ8FewTiles ? kQ8FewBlocks : Ops::kGroupBlocks;
  int64_t b0 = 0;
  // At least once, so that K = 0 gives the bias.
  do {
    const int64_t num_blocks = Smaller(group_blocks, job.num_blocks - b0);
    const int64_t bytes = num_blocks * kQ8PanelBlockBytes;
    const char* w = static_cast<const char*>(job.panel) + b0 * kQ8PanelBlockBytes;
    const int64_t lines = kQ8PanelBlockBytes / kLineBytes / num_tiles + 1;
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      const int64_t row = FirstRowOfTile(job.rows, num_tiles, tile);
      const int64_t rows = FirstRowOfTile(job.rows, num_tiles, tile + 1) - row;
      const int8_t* x = job.x + (row * job.num_blocks + b0) * kQ8BlockSize;
      Q8Tile t = {
          reinterpret_cast<const char*>(x),
          job.num_blocks * kQ8BlockSize,
          job.scales + row * job.num_blocks + b0,
          job.sums + row * job.num_blocks + b0,
          job.num_blocks,
          num_blocks,
          w,
          0,
          job.cols,
          job.y + row * job.y_stride,
          job.y_stride,
          b0 == 0,
          b0 + num_blocks >= job.num_blocks ? job.bias : nullptr,
          num_tiles == 1 ? w + kQ8AheadBytes : w + bytes + tile * num_blocks * lines * kLineBytes,
          lines};
      if constexpr (Ops::kExpands) {
        for (int64_t r = 0; r < rows; ++r) {
          Ops::ExpandRow(x + r * t.x_stride, num_blocks, expanded + r * kGroupBytes);
        }
        t.x = expanded;
        t.x_stride = kGroupBytes;
      }
      RunQ8AnyRows<Ops>(rows, t);
    }
    b0 += num_blocks;
  } while (b0 < job.num_blocks);
}

}  // namespace
}  // namespace conclave::kernels
