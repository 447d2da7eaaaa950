// Attention of one tile of queries over the blocks of one KV head, with an online softmax.
//
// What a query's bits come from, whatever shares its tile: per block the scores are one chain over
// d per position; the block's maximum and sum go through the 16-lane tree over (lane l of positions
// 0..15, then of 16..31); the values are one chain over the valid positions in ascending order.
// Positions that are not valid are replaced by a select and their values are never read into an
// arithmetic operation of the query.
#pragma once

namespace conclave::kernels {
namespace {

inline constexpr int64_t kBlockTokens = 32;  // kKvBlockTokens

// The running softmax of one query. The weighted values live unnormalized in `out`.
struct Query {
  const float* q;
  float* out;
  float max;
  float sum;
  bool has_started;
};

CONCLAVE_KERNEL_INLINE V16 LoadKv(const float* p) { return Load(p); }
CONCLAVE_KERNEL_INLINE V16 LoadKv(const uint16_t* p) { return LoadBf16(p); }

// A block is a few KiB somewhere else than the one before, too short for the hardware prefetcher to
// learn: the values are asked for while the scores are computed, the next keys while the values are
// added.
CONCLAVE_KERNEL_INLINE void Prefetch32(const uint16_t* p) { __builtin_prefetch(p); }
CONCLAVE_KERNEL_INLINE void Prefetch32(const float* p) {
  __builtin_prefetch(p);
  __builtin_prefetch(p + 16);
}

// acc[d] = acc[d]·alpha, then fma(p[j], v[j][d], acc[d]) for lo <= j < hi, for C vectors of d of R
// queries.
template <int R, int C, typename Kv>
CONCLAVE_KERNEL_INLINE void AddValues(Query* const (&queries)[R], const float (&p)[R][kBlockTokens],
                                      const float (&alpha)[R], const Kv* v, int64_t value_stride,
                                      int64_t lo, int64_t hi, int64_t d, int64_t head_dim) {
  V16 acc[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int64_t c = 0; c < C; ++c) {
      const int64_t at = d + 16 * c;
      // The first block starts from zero: `out` holds no result yet, and 0·NaN would be NaN.
      acc[r][c] = queries[r]->has_started
                      ? Mul(LoadN(queries[r]->out + at, LanesLeft(head_dim, at)), Set1(alpha[r]))
                      : Zero();
    }
  }
  for (int64_t j = lo; j < hi; ++j) {
    V16 value[C];
#pragma GCC unroll 8
    for (int64_t c = 0; c < C; ++c) {
      value[c] = LoadKv(v + j * value_stride + d + 16 * c);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const V16 weight = Set1(p[r][j]);
#pragma GCC unroll 8
      for (int64_t c = 0; c < C; ++c) {
        acc[r][c] = Fma(weight, value[c], acc[r][c]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int64_t c = 0; c < C; ++c) {
      const int64_t at = d + 16 * c;
      StoreN(queries[r]->out + at, acc[r][c], LanesLeft(head_dim, at));
    }
  }
}

// The same for as many vectors as the head still has from d on, at most C.
template <int R, int C, typename Kv>
CONCLAVE_KERNEL_INLINE void AddValuesUpTo(Query* const (&queries)[R],
                                          const float (&p)[R][kBlockTokens],
                                          const float (&alpha)[R], const Kv* v,
                                          int64_t value_stride, int64_t lo, int64_t hi, int64_t d,
                                          int64_t head_dim) {
  if constexpr (C > 1) {
    if (head_dim - d <= 16 * (int64_t{C} - 1)) {
      AddValuesUpTo<R, C - 1>(queries, p, alpha, v, value_stride, lo, hi, d, head_dim);
      return;
    }
  }
  AddValues<R, C>(queries, p, alpha, v, value_stride, lo, hi, d, head_dim);
}

// Turns the scores of one block into weights p and the factor alpha of what was added before.
CONCLAVE_KERNEL_INLINE void SoftmaxStep(Query& query, V16 low, V16 high, int64_t lo, int64_t hi,
                                        float (&p)[kBlockTokens], float& alpha) {
  const V16 minus_infinity = Set1(-__builtin_inff());
  const M16 low_valid = LaneRange(lo, hi);
  const M16 high_valid = LaneRange(lo - 16, hi - 16);
  low = Select(low_valid, low, minus_infinity);
  high = Select(high_valid, high, minus_infinity);
  const float block_max = ReduceMax(Max(low, high));
  const float max = query.has_started && query.max > block_max ? query.max : block_max;
  const V16 shift = Set1(max);
  const V16 p_low = Select(low_valid, ExpNonPositive(Sub(low, shift)), Zero());
  const V16 p_high = Select(high_valid, ExpNonPositive(Sub(high, shift)), Zero());
  Store(p, p_low);
  Store(p + 16, p_high);
  const float block_sum = ReduceAdd(Add(p_low, p_high));
  alpha = 0.0f;
  if (query.has_started) {
    float lanes[16];
    Store(lanes, ExpNonPositive(Set1(query.max - max)));
    alpha = lanes[0];
    query.sum = __builtin_fmaf(query.sum, alpha, block_sum);
  } else {
    query.sum = block_sum;
  }
  query.max = max;
}

// One block for R queries of which query r sees the positions [lo, hi[r]), at least one. Rows of a
// prompt that follow each other end one after another in their last block.
template <int R, typename Kv>
__attribute__((noinline)) void AttendBlock(const AttendTile& tile, Query* const (&queries)[R],
                                           const Kv* k, const Kv* next_k, int64_t lo,
                                           const int64_t (&hi)[R]) {
  const Kv* v = k + tile.head_dim * kBlockTokens;
  V16 low[R];
  V16 high[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    low[r] = Zero();
    high[r] = Zero();
  }
  for (int64_t d = 0; d < tile.head_dim; ++d) {
    const V16 k_low = LoadKv(k + d * kBlockTokens);
    const V16 k_high = LoadKv(k + d * kBlockTokens + 16);
    Prefetch32(v + d * kBlockTokens);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const V16 q = Set1(queries[r]->q[d]);
      low[r] = Fma(q, k_low, low[r]);
      high[r] = Fma(q, k_high, high[r]);
    }
  }
  alignas(64) float p[R][kBlockTokens];
  float alpha[R];
  const V16 scale = Set1(tile.scale);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    SoftmaxStep(*queries[r], Mul(low[r], scale), Mul(high[r], scale), lo, hi[r], p[r], alpha[r]);
  }
  for (int64_t d = 0; d < tile.head_dim; ++d) {
    Prefetch32(next_k + d * kBlockTokens);
  }
  constexpr int64_t kVecs = kAttendAccumulators / R < 8 ? kAttendAccumulators / R : 8;
  int64_t common = hi[0];
  for (int r = 1; r < R; ++r) {
    common = hi[r] < common ? hi[r] : common;
  }
  for (int64_t d = 0; d < tile.head_dim; d += 16 * kVecs) {
    AddValuesUpTo<R, kVecs>(queries, p, alpha, v, tile.value_stride, lo, common, d, tile.head_dim);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    queries[r]->has_started = true;
  }
  // What a query sees beyond the others goes on its chain alone; a factor of 1 changes no bit.
  for (int r = 0; R > 1 && r < R; ++r) {
    if (hi[r] > common) {
      constexpr int64_t kOneVecs = kAttendAccumulators < 8 ? kAttendAccumulators : 8;
      Query* const one[1] = {queries[r]};
      float weights[1][kBlockTokens];
      __builtin_memcpy(weights[0], p[r], sizeof weights[0]);
      const float kept[1] = {1.0f};
      for (int64_t d = 0; d < tile.head_dim; d += 16 * kOneVecs) {
        AddValuesUpTo<1, kOneVecs>(one, weights, kept, v, tile.value_stride, common, hi[r], d,
                                   tile.head_dim);
      }
    }
  }
}

template <typename Kv>
CONCLAVE_KERNEL_INLINE const Kv* BlockKeys(const AttendTile& tile, int64_t block) {
  return reinterpret_cast<const Kv*>(tile.base + static_cast<size_t>(tile.block_table[block]) *
                                                     tile.block_stride);
}

template <int R, typename Kv>
__attribute__((noinline)) void AttendItems(const AttendTile& tile, int from) {
  Query state[R];
  Query* all[R];
  int64_t first = tile.first[from];
  int64_t last = tile.last[from];
  for (int r = 0; r < R; ++r) {
    state[r] = {tile.q[from + r], tile.out[from + r], 0.0f, 0.0f, false};
    all[r] = &state[r];
    first = tile.first[from + r] < first ? tile.first[from + r] : first;
    last = tile.last[from + r] > last ? tile.last[from + r] : last;
  }
  for (int64_t block = first / kBlockTokens; block * kBlockTokens < last; ++block) {
    const int64_t start = block * kBlockTokens;
    const Kv* k = BlockKeys<Kv>(tile, block);
    const Kv* next_k = start + kBlockTokens < last ? BlockKeys<Kv>(tile, block + 1) : k;
    int64_t lo[R];
    int64_t hi[R];
    bool is_together = true;
    for (int r = 0; r < R; ++r) {
      lo[r] = tile.first[from + r] > start ? tile.first[from + r] - start : 0;
      hi[r] =
          tile.last[from + r] < start + kBlockTokens ? tile.last[from + r] - start : kBlockTokens;
      is_together = is_together && lo[r] == lo[0] && hi[r] > lo[r];
    }
    if (is_together) {
      AttendBlock<R>(tile, all, k, next_k, lo[0], hi);
      continue;
    }
    for (int r = 0; r < R; ++r) {
      if (lo[r] < hi[r]) {
        Query* const one[1] = {&state[r]};
        const int64_t end[1] = {hi[r]};
        AttendBlock<1>(tile, one, k, next_k, lo[r], end);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    const V16 sum = Set1(state[r].sum);
    for (int64_t d = 0; d < tile.head_dim; d += 16) {
      const int64_t lanes = LanesLeft(tile.head_dim, d);
      StoreN(state[r].out + d, Div(LoadN(state[r].out + d, lanes), sum), lanes);
    }
  }
}

template <typename Kv>
CONCLAVE_KERNEL_INLINE void AttendAll(const AttendTile& tile) {
  int from = 0;
  while (from < tile.num_items) {
    const int left = tile.num_items - from;
    if constexpr (kAttendItems >= 8) {
      if (left >= 8) {
        AttendItems<8, Kv>(tile, from);
        from += 8;
        continue;
      }
    }
    if constexpr (kAttendItems >= 4) {
      if (left >= 4) {
        AttendItems<4, Kv>(tile, from);
        from += 4;
        continue;
      }
    }
    if constexpr (kAttendItems >= 2) {
      if (left >= 2) {
        AttendItems<2, Kv>(tile, from);
        from += 2;
        continue;
      }
    }
    AttendItems<1, Kv>(tile, from);
    ++from;
  }
}

void Attend(const AttendTile& tile) {
  if (tile.is_bf16) {
    AttendAll<uint16_t>(tile);
  } else {
    AttendAll<float>(tile);
  }
}

}  // namespace
}  // namespace conclave::kernels
