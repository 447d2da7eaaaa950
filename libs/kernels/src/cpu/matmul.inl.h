// Row tiles times weight panels, for every path that computes with plain FMA.
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
// A single tile streams the weights from memory; asking this far ahead bridges the page borders of
// the hardware prefetcher.
inline constexpr int64_t kPrefetchBytes = 4096;

// What a tile asks for while it computes: `num_lines` of the four cache lines that a panel has per
// step (a k of f32, a pair of bf16), from `line` on, `distance` bytes ahead.
struct Ahead {
  int64_t distance = 0;
  int64_t line = 0;
  int64_t num_lines = 0;
};

// Tile `tile` of `num_tiles` over a block of `block_bytes`. A single tile waits for memory itself
// and asks a little ahead of its reads; several share out the next block, so that memory works as
// long as they compute.
CONCLAVE_KERNEL_INLINE Ahead AheadOf(int64_t tile, int64_t num_tiles, int64_t block_bytes) {
  if (num_tiles == 1) {
    return {kPrefetchBytes, 0, 4};
  }
  if (num_tiles < 4) {
    return {block_bytes, 2 * tile % 4, 2};
  }
  return {block_bytes, tile, tile < 4 ? 1 : 0};
}

template <int kLines>
CONCLAVE_KERNEL_INLINE void PrefetchLines(const char* p) {
#pragma GCC unroll 8
  for (int l = 0; l < kLines; ++l) {
    __builtin_prefetch(p + l * kLineBytes, 0, 2);
  }
}

// acc[r][c] += x[r]·weight[c], each a link of its chain.
template <int R, int C>
CONCLAVE_KERNEL_INLINE void AddProducts(const float* x, int64_t x_stride, const Vec (&weight)[C],
                                        Vec (&acc)[R][C]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const Vec value = VecSet1(x[r * x_stride]);
#pragma GCC unroll 8
    for (int64_t c = 0; c < C; ++c) {
      acc[r][c] = VecFma(value, weight[c], acc[r][c]);
    }
  }
}

// f32 weights, panel[k][64]: acc = fma(x[k], w[k], acc).
struct F32Weights {
  using X = float;      // as the caller passes it
  using StepX = float;  // as the steps read it
  using W = float;
  static constexpr bool kWidensX = false;

  template <int R, int C, int kAhead>
  static CONCLAVE_KERNEL_INLINE void Steps(const float* x, int64_t x_stride, int64_t k,
                                           const float* w, const char* ahead, Vec (&acc)[R][C]) {
    for (int64_t i = 0; i < k; ++i, w += kPanelStep, ahead += kPanelStep * sizeof(float)) {
      PrefetchLines<kAhead>(ahead);
      Vec weight[C];
#pragma GCC unroll 8
      for (int64_t c = 0; c < C; ++c) {
        weight[c] = VecLoad(w + c * kVecLanes);
      }
      AddProducts(x + i, x_stride, weight, acc);
    }
  }
};

// bf16 weights, panel[k / 2][64][2], with x widened to f32 before, the elements of a pair swapped:
// the odd one, then the even one.
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
    AddProducts(x + (kOdd ? 0 : 1), x_stride, weight, acc);
  }

  template <int R, int C, int kAhead>
  static CONCLAVE_KERNEL_INLINE void Steps(const float* x, int64_t x_stride, int64_t k,
                                           const uint16_t* w, const char* ahead, Vec (&acc)[R][C]) {
    for (int64_t i = 0; i < k; i += 2, w += 2 * kPanelStep) {
      PrefetchLines<kAhead>(ahead);
      ahead += 2 * kPanelStep * sizeof(uint16_t);
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
  Ahead ahead;        // lines counted from `col`
};

// Vectors of a row of y, of which `cols` columns exist.
template <int C>
CONCLAVE_KERNEL_INLINE void LoadSums(const float* y, int64_t cols, Vec (&acc)[C]) {
#pragma GCC unroll 8
  for (int64_t c = 0; c < C; ++c) {
    acc[c] = cols >= C * kVecLanes ? VecLoad(y + c * kVecLanes)
                                   : VecLoadN(y + c * kVecLanes, cols - c * kVecLanes);
  }
}
template <int C>
CONCLAVE_KERNEL_INLINE void StoreSums(float* y, int64_t cols, const Vec (&acc)[C]) {
#pragma GCC unroll 8
  for (int64_t c = 0; c < C; ++c) {
    if (cols >= C * kVecLanes) {
      VecStore(y + c * kVecLanes, acc[c]);
    } else {
      VecStoreN(y + c * kVecLanes, acc[c], cols - c * kVecLanes);
    }
  }
}

// The sums that a tile starts with and those it leaves, for every kind of block (y, y_stride, cols,
// is_first and bias as in TileBlock).
template <typename Block, int R, int C>
CONCLAVE_KERNEL_INLINE void BeginSums(const Block& t, Vec (&acc)[R][C]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    if (t.is_first) {
#pragma GCC unroll 8
      for (int64_t c = 0; c < C; ++c) {
        acc[r][c] = VecZero();
      }
    } else {
      LoadSums(t.y + r * t.y_stride, t.cols, acc[r]);
    }
  }
}
template <typename Block, int R, int C>
CONCLAVE_KERNEL_INLINE void EndSums(const Block& t, Vec (&acc)[R][C]) {
  if (t.bias != nullptr) {
#pragma GCC unroll 8
    for (int64_t c = 0; c < C; ++c) {
      const Vec bias = VecLoadN(t.bias + c * kVecLanes, t.cols - c * kVecLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        acc[r][c] = VecAdd(acc[r][c], bias);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    StoreSums(t.y + r * t.y_stride, t.cols, acc[r]);
  }
}

template <typename Weights, int R, int C>
CONCLAVE_KERNEL_INLINE void RunTile(const TileBlock& t) {
  using X = typename Weights::StepX;
  using W = typename Weights::W;
  constexpr int64_t kLines = C * kVecLanes * 4 / kLineBytes;
  Vec acc[R][C];
  BeginSums(t, acc);
  const X* x = static_cast<const X*>(t.x);
  const W* w = static_cast<const W*>(t.w);
  // Of the lines to ask for, those that lie in these columns.
  const int64_t first = t.ahead.line > 0 ? t.ahead.line : 0;
  const int64_t lines = Smaller(t.ahead.line + t.ahead.num_lines, kLines) - first;
  const char* ahead = static_cast<const char*>(t.w) + t.ahead.distance + first * kLineBytes;
  if (lines <= 0) {
    Weights::template Steps<R, C, 0>(x, t.x_stride, t.k, w, ahead, acc);
  } else if (lines == 1) {
    Weights::template Steps<R, C, 1>(x, t.x_stride, t.k, w, ahead, acc);
  } else if (kLines > 1 && lines == 2) {
    Weights::template Steps < R, C, kLines<2 ? kLines : 2>(x, t.x_stride, t.k, w, ahead, acc);
  } else {
    Weights::template Steps<R, C, kLines>(x, t.x_stride, t.k, w, ahead, acc);
  }
  EndSums(t, acc);
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
    t.ahead.line -= kCols * 4 / kLineBytes;
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

// Widens `rows` rows of k elements to f32, zero up to the next even k, the elements of every pair
// swapped: in that order the chains take them. Whole vectors are written.
CONCLAVE_KERNEL_INLINE void WidenRows(const uint16_t* x, int64_t x_stride, int64_t rows, int64_t k,
                                      float* out, int64_t out_stride) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < k; i += 16) {
      Store(out + r * out_stride + i, LoadBf16Swapped(x + r * x_stride + i, Smaller(16, k - i)));
    }
  }
}

// One panel of `job`, as a job of its own.
CONCLAVE_KERNEL_INLINE PanelJob OnePanel(const PanelJob& job, int64_t panel) {
  PanelJob one = job;
  one.panel = static_cast<const char*>(job.panel) + panel * job.panel_bytes;
  one.cols = Smaller(kPanelStep, job.cols - panel * kPanelStep);
  one.bias = job.bias == nullptr ? nullptr : job.bias + panel * kPanelStep;
  one.y = job.y + panel * kPanelStep;
  return one;
}

CONCLAVE_KERNEL_INLINE int64_t NumPanels(const PanelJob& job) {
  return (job.cols + kPanelStep - 1) / kPanelStep;
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
                         is_last ? job.bias : nullptr,
                         AheadOf(tile, num_tiles, k * kPanelStep * int64_t{sizeof(W)})};
      if constexpr (Weights::kWidensX) {
        WidenRows(x, job.x_stride, rows, k, widened, kBlockK);
        block.x = widened;
        block.x_stride = kBlockK;
      }
      RunAnyRows<Weights>(rows, block);
    }
    k0 += k;
  } while (k0 < job.k);
}

template <typename Weights>
void MatMulPanels(const PanelJob& job, int64_t block_k) {
  for (int64_t panel = 0; panel < NumPanels(job); ++panel) {
    MatMulPanel<Weights>(OnePanel(job, panel), block_k);
  }
}

void MatMulF32(const PanelJob& job) { MatMulPanels<F32Weights>(job, kBlockK); }

}  // namespace
}  // namespace conclave::kernels
