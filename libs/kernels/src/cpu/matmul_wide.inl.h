// The bf16 GEMM with plain FMA, for more rows than two tiles have: rows and weights are widened to
// f32 block by block, the rows once for all panels of a job, the weights once for all tiles
// (docs/decisions/0032). The first tile widens the weights as it computes; what it leaves in L1 or
// L2 is what all others read.
#pragma once

namespace conclave::kernels {
namespace {

// Inputs of a block, even. Many rows gain by visiting their sums rarely; for few, 32 KiB of widened
// weights stay in L1.
inline constexpr int64_t kWideBlockK = 256;
inline constexpr int64_t kWideShortBlockK = 128;
inline constexpr int64_t kWideTallRows = 96;
// Fewer wait for memory: two tiles that both widen as they go are faster then.
inline constexpr int64_t kWideRowsMin = 2 * kTileRowsMax + 1;
// Of a block: 408 KiB of widened rows wait in L2.
inline constexpr int64_t kWideRowsMax = 384;
// No power of two between rows, lest they all meet in a few sets of the cache.
inline constexpr int64_t kWideStride = kWideBlockK + 16;

// A tile passes over a panel by slivers of so many columns, and widened weights lie sliver by
// sliver. The same for all tiles that can be: those of four rows and more.
inline constexpr int kWideVecs = TileVecs(kTileRowsMax);
inline constexpr int64_t kSliverCols = int64_t{kWideVecs} * kVecLanes;
inline constexpr int64_t kSlivers = kPanelStep / kSliverCols;
static_assert(kTileRowsMax == 1 || TileVecs(4) == kWideVecs);
static_assert(kTileRowsMax == 1 || TileVecs(5) == kWideVecs);

// What is asked for while a tile computes: a little at each step of four inputs, so that requests
// never fill the buffers which the tile's own reads need.
struct Spread {
  const char* next;
  int64_t bytes_per_step;
};
inline constexpr int64_t kSpreadK = 4;

CONCLAVE_KERNEL_INLINE void Ask(Spread& spread) {
  __builtin_prefetch(spread.next, 0, 2);
  // With several slivers a block has enough steps to ask for one line in each.
  if constexpr (kSlivers == 1) {
    for (int64_t line = kLineBytes; line < spread.bytes_per_step; line += kLineBytes) {
      __builtin_prefetch(spread.next + line, 0, 2);
    }
  }
  spread.next += spread.bytes_per_step;
}

// One block of K for one tile, at the columns from `col` on. x and `wide` hold the elements of a
// pair swapped: in that order the chains take them.
struct WideBlock {
  const float* x;
  int64_t k;          // even
  const uint16_t* w;  // pairs as in the panel, at `col`
  float* wide;        // [k][kSliverCols], of the sliver at `col`
  int64_t cols;       // columns that exist from `col` on
  float* y;
  int64_t y_stride;
  bool is_first;
  const float* bias;  // at `col`; null unless the block is the last
};

// Sixteen registers hold one step of a tile and no more: unrolled, GCC spills sums.
inline constexpr int kStepUnroll = kSlivers == 1 ? 4 : 1;

// Weights that an earlier tile has widened.
struct WidenedBefore {
  template <int R, int C>
  static CONCLAVE_KERNEL_INLINE void Steps(const WideBlock& t, int64_t k, int64_t count,
                                           Vec (&acc)[R][C]) {
#pragma GCC unroll kStepUnroll
    for (int64_t i = k; i < k + count; ++i) {
      Vec weight[C];
#pragma GCC unroll 8
      for (int64_t c = 0; c < C; ++c) {
        weight[c] = VecLoad(t.wide + i * kSliverCols + c * kVecLanes);
      }
      AddProducts(t.x + i, kWideStride, weight, acc);
    }
  }
};

// Weights that this tile widens and leaves in `wide`.
struct WidensFirst {
  template <bool kOdd, int R, int C>
  static CONCLAVE_KERNEL_INLINE void HalfStep(const WideBlock& t, int64_t i, Vec (&acc)[R][C]) {
    Vec weight[C];
#pragma GCC unroll 8
    for (int64_t c = 0; c < C; ++c) {
      const uint16_t* pairs = t.w + i / 2 * 2 * kPanelStep + 2 * c * kVecLanes;
      weight[c] = kOdd ? VecOdd(pairs) : VecEven(pairs);
      VecStore(t.wide + i * kSliverCols + c * kVecLanes, weight[c]);
    }
    AddProducts(t.x + i, kWideStride, weight, acc);
  }

  template <int R, int C>
  static CONCLAVE_KERNEL_INLINE void Steps(const WideBlock& t, int64_t k, int64_t count,
                                           Vec (&acc)[R][C]) {
#pragma GCC unroll kStepUnroll
    for (int64_t i = k; i < k + count; i += 2) {
      HalfStep<true>(t, i, acc);
      HalfStep<false>(t, i + 1, acc);
    }
  }
};

template <typename Weights, int R, int C>
CONCLAVE_KERNEL_INLINE void RunSliver(const WideBlock& t, Spread& spread) {
  Vec acc[R][C];
  BeginSums(t, acc);
  int64_t i = 0;
  for (; i + kSpreadK <= t.k; i += kSpreadK) {
    Ask(spread);
    Weights::Steps(t, i, kSpreadK, acc);
  }
  if (i < t.k) {
    Weights::Steps(t, i, 2, acc);
  }
  EndSums(t, acc);
}

// All columns of the panel for R rows.
template <typename Weights, int R>
__attribute__((noinline)) void RunWideRows(const WideBlock& block, Spread spread) {
  WideBlock t = block;
  while (t.cols > 0) {
    RunSliver<Weights, R, kWideVecs>(t, spread);
    t.w += 2 * kSliverCols;
    t.wide += kWideBlockK * kSliverCols;
    t.cols -= kSliverCols;
    t.y += kSliverCols;
    if (t.bias != nullptr) {
      t.bias += kSliverCols;
    }
  }
}

// Rows are cut evenly out of more than two tiles take, so no tile has less than four.
template <typename Weights>
CONCLAVE_KERNEL_INLINE void RunAnyWideRows(int64_t rows, const WideBlock& block,
                                           const Spread& spread) {
  static_assert(kTileRowsMax == 1 || kTileRowsMax == 6);
  if constexpr (kTileRowsMax == 1) {
    RunWideRows<Weights, 1>(block, spread);
  } else {
    switch (rows) {
      case 4:
        RunWideRows<Weights, 4>(block, spread);
        break;
      case 5:
        RunWideRows<Weights, 5>(block, spread);
        break;
      default:
        RunWideRows<Weights, 6>(block, spread);
        break;
    }
  }
}

// At most kWideRowsMax rows.
[[maybe_unused]] __attribute__((noinline)) void MatMulWideRows(const PanelJob& job) {
  constexpr int64_t kInputBytes = kPanelStep * int64_t{sizeof(uint16_t)};  // of a panel
  alignas(64) float rows_block[kWideRowsMax * kWideStride];
  alignas(64) float panel_block[kWideBlockK * kPanelStep];
  const int64_t block_k = job.rows < kWideTallRows ? kWideShortBlockK : kWideBlockK;
  const int64_t num_tiles = (job.rows + kTileRowsMax - 1) / kTileRowsMax;
  const int64_t num_panels = NumPanels(job);
  for (int64_t k0 = 0; k0 < job.k; k0 += block_k) {
    const int64_t k = Smaller(block_k, job.k - k0);
    const int64_t padded_k = (k + 1) / 2 * 2;
    const bool is_last_k = k0 + k >= job.k;
    const int64_t num_steps = padded_k / kSpreadK * kSlivers;  // of a tile
    WidenRows(static_cast<const uint16_t*>(job.x) + k0, job.x_stride, job.rows, k, rows_block,
              kWideStride);
    for (int64_t panel = 0; panel < num_panels; ++panel) {
      const PanelJob one = OnePanel(job, panel);
      // The next block comes from memory while the tiles of this one compute. Where nothing
      // follows, what is asked for is here already: an address that is not mapped would cost a walk
      // through the page tables each time.
      const char* next = reinterpret_cast<const char*>(panel_block);
      int64_t next_k = 0;
      if (panel + 1 < num_panels) {
        next = static_cast<const char*>(one.panel) + job.panel_bytes + k0 * kInputBytes;
        next_k = k;
      } else if (!is_last_k) {
        next = static_cast<const char*>(job.panel) + (k0 + block_k) * kInputBytes;
        next_k = Smaller(block_k, job.k - k0 - block_k);
      } else if (job.next != nullptr) {
        next = static_cast<const char*>(job.next);
        next_k = Smaller(block_k, job.k);
      }
      const int64_t next_bytes = next_k * kInputBytes;
      for (int64_t tile = 0; tile < num_tiles; ++tile) {
        const int64_t row = FirstRowOfTile(job.rows, num_tiles, tile);
        const int64_t rows = FirstRowOfTile(job.rows, num_tiles, tile + 1) - row;
        const Spread spread = {next + next_bytes * tile / num_tiles,
                               num_steps == 0 ? 0 : next_bytes / num_tiles / num_steps};
        const WideBlock block = {rows_block + row * kWideStride,
                                 padded_k,
                                 static_cast<const uint16_t*>(one.panel) + k0 * kPanelStep,
                                 panel_block,
                                 one.cols,
                                 one.y + row * job.y_stride,
                                 job.y_stride,
                                 k0 == 0,
                                 is_last_k ? one.bias : nullptr};
        if (tile == 0) {
          RunAnyWideRows<WidensFirst>(rows, block, spread);
        } else {
          RunAnyWideRows<WidenedBefore>(rows, block, spread);
        }
      }
    }
  }
}

[[maybe_unused]] void MatMulWidenedBf16(const PanelJob& job) {
  if (kTileRowsMax == 1 || job.rows < kWideRowsMin || job.k == 0) {
    MatMulPanels<WidenedBf16Weights>(job, kBlockK);
    return;
  }
  const int64_t num_parts = (job.rows + kWideRowsMax - 1) / kWideRowsMax;
  for (int64_t part = 0; part < num_parts; ++part) {
    const int64_t row = FirstRowOfTile(job.rows, num_parts, part);
    PanelJob rows = job;
    rows.x = static_cast<const uint16_t*>(job.x) + row * job.x_stride;
    rows.rows = FirstRowOfTile(job.rows, num_parts, part + 1) - row;
    rows.y = job.y + row * job.y_stride;
    MatMulWideRows(rows);
  }
}

}  // namespace
}  // namespace conclave::kernels
