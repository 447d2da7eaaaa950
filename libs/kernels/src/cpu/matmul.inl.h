// Row tiles times one weight panel, for every path that computes with plain FMA.
//
// A tile keeps rows × vectors accumulators in registers over one block of K and parks them in y
// between blocks, which costs no bits: an accumulator is an f32 either way. Blocks of K come first,
// so that a block of the panel stays in L2 (in L1 for its columns) while all row tiles pass over
// it.
#pragma once

namespace conclave::kernels {
namespace {

// A multiple of 2. A panel block is 64 KiB (bf16) or 128 KiB (f32), the widened rows of a tile 12
// KiB: half of L1.
inline constexpr int64_t kBlockK = 512;
inline constexpr int64_t kPanelStep = 64;  // kPanelColumns: weights per k
// One row streams the weights from memory; asking this far ahead bridges the page borders of the
// hardware prefetcher.
inline constexpr int64_t kPrefetchBytes = 2048;

CONCLAVE_KERNEL_INLINE int64_t Smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// f32 weights, panel[k][64]: acc = fma(x[k], w[k], acc).
struct F32Weights {
  using X = float;      // as the caller passes it
  using StepX = float;  // as the steps read it
  using W = float;
  static constexpr bool kWidensX = false;

  template <int R, int C>
  static CONCLAVE_KERNEL_INLINE void Steps(const float* x, int64_t x_stride, int64_t k,
                                           const float* w, Vec (&acc)[R][C]) {
    for (int64_t i = 0; i < k; ++i, w += kPanelStep) {
      if constexpr (R == 1) {
        for (int64_t c = 0; c < C * kVecLanes / 16; ++c) {
          __builtin_prefetch(reinterpret_cast<const char*>(w + 16 * c) + kPrefetchBytes);
        }
      }
      Vec weight[C];
#pragma GCC unroll 8
      for (int64_t c = 0; c < C; ++c) {
        weight[c] = VecLoad(w + c * kVecLanes);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Vec value = VecSet1(x[r * x_stride + i]);
#pragma GCC unroll 8
        for (int64_t c = 0; c < C; ++c) {
          acc[r][c] = VecFma(value, weight[c], acc[r][c]);
        }
      }
    }
  }
};

// bf16 weights, panel[k / 2][64][2], with x widened to f32 before: the odd element of a pair, then
// the even one.
struct WidenedBf16Weights {
  using X = uint16_t;
  using StepX = float;
  using W = uint16_t;
  static constexpr bool kWidensX = true;

  template <bool kOdd, int R, int C>
  static CONCLAVE_KERNEL_INLINE void HalfStep(const float* x, int64_t x_stride, const uint16_t* w,
                                              Vec (&acc)[R][C]) {
    Vec weight[C];
#pragma GCC unroll 8
    for (int64_t c = 0; c < C; ++c) {
      const uint16_t* pairs = w + 2 * c * kVecLanes;
      weight[c] = kOdd ? VecOdd(pairs) : VecEven(pairs);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec value = VecSet1(x[r * x_stride + (kOdd ? 1 : 0)]);
#pragma GCC unroll 8
      for (int64_t c = 0; c < C; ++c) {
        acc[r][c] = VecFma(value, weight[c], acc[r][c]);
      }
    }
  }

  template <int R, int C>
  static CONCLAVE_KERNEL_INLINE void Steps(const float* x, int64_t x_stride, int64_t k,
                                           const uint16_t* w, Vec (&acc)[R][C]) {
    for (int64_t i = 0; i < k; i += 2, w += 2 * kPanelStep) {
      if constexpr (R == 1) {
        for (int64_t c = 0; c < C * kVecLanes / 16; ++c) {
          __builtin_prefetch(reinterpret_cast<const char*>(w + 32 * c) + kPrefetchBytes);
        }
      }
      HalfStep<true>(x + i, x_stride, w, acc);
      HalfStep<false>(x + i, x_stride, w, acc);
    }
  }
};

// One block of K for one tile, at the columns from `col` on.
struct TileBlock {
  const void* x;
  int64_t x_stride;
  int64_t k;
  const void* w;  // of the block, at `col`
  int64_t cols;   // columns that exist from `col` on
  float* y;
  int64_t y_stride;
  bool is_first;
  const float* bias;  // at `col`; null unless the block is the last
};

template <typename Weights, int R, int C>
CONCLAVE_KERNEL_INLINE void RunTile(const TileBlock& t) {
  using X = typename Weights::StepX;
  Vec acc[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int64_t c = 0; c < C; ++c) {
      acc[r][c] = t.is_first
                      ? VecZero()
                      : VecLoadN(t.y + r * t.y_stride + c * kVecLanes, t.cols - c * kVecLanes);
    }
  }
  Weights::Steps(static_cast<const X*>(t.x), t.x_stride, t.k,
                 static_cast<const typename Weights::W*>(t.w), acc);
#pragma GCC unroll 8
  for (int64_t c = 0; c < C; ++c) {
    const int64_t n = t.cols - c * kVecLanes;
    if (t.bias != nullptr) {
      const Vec bias = VecLoadN(t.bias + c * kVecLanes, n);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        acc[r][c] = VecAdd(acc[r][c], bias);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      VecStoreN(t.y + r * t.y_stride + c * kVecLanes, acc[r][c], n);
    }
  }
}

// All columns of the panel for R rows.
template <typename Weights, int R>
__attribute__((noinline)) void RunRows(const TileBlock& block) {
  constexpr int kVecs = TileVecs(R);
  constexpr int64_t kCols = int64_t{kVecs} * kVecLanes;
  constexpr int64_t kElementsPerCol = sizeof(typename Weights::W) == 2 ? 2 : 1;
  TileBlock t = block;
  while (t.cols > 0) {
    RunTile<Weights, R, kVecs>(t);
    t.w = static_cast<const typename Weights::W*>(t.w) + kCols * kElementsPerCol;
    t.cols -= kCols;
    t.y += kCols;
    if (t.bias != nullptr) {
      t.bias += kCols;
    }
  }
}

template <typename Weights>
CONCLAVE_KERNEL_INLINE void RunAnyRows(int64_t rows, const TileBlock& block) {
  if constexpr (kTileRowsMax == 1) {
    RunRows<Weights, 1>(block);
  } else {
    switch (rows) {
      case 1:
        RunRows<Weights, 1>(block);
        break;
      case 2:
        RunRows<Weights, 2>(block);
        break;
      case 3:
        RunRows<Weights, 3>(block);
        break;
      case 4:
        RunRows<Weights, 4>(block);
        break;
      case 5:
        RunRows<Weights, 5>(block);
        break;
      default:
        RunRows<Weights, 6>(block);
        break;
    }
  }
}

// Rows of tile `i` when `rows` are spread over tiles as evenly as possible: a last tile of one row
// costs nearly as much as a full one.
CONCLAVE_KERNEL_INLINE int64_t FirstRowOfTile(int64_t rows, int64_t num_tiles, int64_t i) {
  return rows * i / num_tiles;
}

// Widens `rows` rows of k elements to f32, zero up to the next even k.
CONCLAVE_KERNEL_INLINE void WidenRows(const uint16_t* x, int64_t x_stride, int64_t rows, int64_t k,
                                      float* out) {
  for (int64_t r = 0; r < rows; ++r) {
    // Whole vectors stay inside the kBlockK floats of a row.
    for (int64_t i = 0; i < k; i += 16) {
      Store(out + r * kBlockK + i, LoadBf16N(x + r * x_stride + i, Smaller(16, k - i)));
    }
  }
}

template <typename Weights>
void MatMulPanel(const PanelJob& job, int64_t block_k) {
  using X = typename Weights::X;
  using W = typename Weights::W;
  alignas(64) float widened[Weights::kWidensX ? kTileRowsMax * kBlockK : 1];
  const int64_t num_tiles = (job.rows + kTileRowsMax - 1) / kTileRowsMax;
  int64_t k0 = 0;
  // At least once, so that K = 0 gives the bias.
  do {
    const int64_t k = Smaller(block_k, job.k - k0);
    const bool is_last = k0 + k >= job.k;
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      const int64_t row = FirstRowOfTile(job.rows, num_tiles, tile);
      const int64_t rows = FirstRowOfTile(job.rows, num_tiles, tile + 1) - row;
      const X* x = static_cast<const X*>(job.x) + row * job.x_stride + k0;
      TileBlock block = {x,
                         job.x_stride,
                         k,
                         static_cast<const W*>(job.panel) + k0 * kPanelStep,
                         job.cols,
                         job.y + row * job.y_stride,
                         job.y_stride,
                         k0 == 0,
                         is_last ? job.bias : nullptr};
      if constexpr (Weights::kWidensX) {
        WidenRows(x, job.x_stride, rows, k, widened);
        block.x = widened;
        block.x_stride = kBlockK;
      }
      RunAnyRows<Weights>(rows, block);
    }
    k0 += k;
  } while (k0 < job.k);
}

void MatMulF32(const PanelJob& job) { MatMulPanel<F32Weights>(job, kBlockK); }

[[maybe_unused]] void MatMulWidenedBf16(const PanelJob& job) {
  MatMulPanel<WidenedBf16Weights>(job, kBlockK);
}

}  // namespace
}  // namespace conclave::kernels
