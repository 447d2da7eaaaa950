#include "conclave/kernels/attention.h"

#include <algorithm>
#include <cstring>

#include "conclave/base/check.h"
#include "kernel_table.h"
#include "parallel.h"

namespace conclave::kernels {
namespace {

// Rows of a task. They walk the blocks of one KV head one tile after another, so its keys and
// values stay in L2.
constexpr int64_t kRowsPerTask = 16;

// Dims of a head that are rounded at a time.
constexpr int64_t kStoreDims = 64;

template <typename T>
void StoreHead(const KvLayout& layout, const T* key, const T* value, int64_t first, int64_t count,
               int64_t slot, T* head) {
  T* values = head + kKvBlockTokens * layout.head_dim + slot * layout.value_stride();
  std::copy_n(value, count, values + first);
  T* keys = head + first * kKvBlockTokens + slot;
  for (int64_t d = 0; d < count; ++d) {
    keys[d * kKvBlockTokens] = key[d];
  }
  if (first + count == layout.head_dim) {
    std::fill(values + layout.head_dim, values + layout.value_stride(), T{});
  }
}

bool ShareTable(const KvRange& a, const KvRange& b) {
  return a.base == b.base && a.block_stride == b.block_stride && a.block_table == b.block_table;
}

struct Job {
  const Context& context;
  const KvLayout& layout;
  int64_t num_heads;
  float scale;
  MatView<const float> q;
  std::span<const KvRange> ranges;
  MatView<float> out;
};

// Rows [first_row, end_row), which share a block table, against one KV head.
void AttendRows(const Job& job, int64_t first_row, int64_t end_row, int64_t kv_head) {
  const KvLayout& layout = job.layout;
  const KvRange& shared = job.ranges[static_cast<size_t>(first_row)];
  const int64_t heads_per_kv = job.num_heads / layout.num_kv_heads;
  AttendTile tile;
  tile.base =
      shared.base + static_cast<size_t>(kv_head * layout.head_elements()) * SizeOf(layout.dtype);
  tile.block_stride = shared.block_stride;
  tile.block_table = shared.block_table;
  tile.head_dim = layout.head_dim;
  tile.value_stride = layout.value_stride();
  tile.scale = job.scale;
  tile.is_bf16 = layout.dtype == DType::kBf16;
  const KernelTable& table = *job.context.table;
  for (int64_t row = first_row; row < end_row; ++row) {
    const KvRange& range = job.ranges[static_cast<size_t>(row)];
    for (int64_t head = kv_head * heads_per_kv; head < (kv_head + 1) * heads_per_kv; ++head) {
      tile.q[tile.num_items] = job.q.Row(row) + head * layout.head_dim;
      tile.out[tile.num_items] = job.out.Row(row) + head * layout.head_dim;
      tile.first[tile.num_items] = range.first;
      tile.last[tile.num_items] = range.last;
      if (++tile.num_items == table.attend_items) {
        table.attend(tile);
        tile.num_items = 0;
      }
    }
  }
  if (tile.num_items > 0) {
    table.attend(tile);
  }
}

// Rows of one task against one KV head, in runs that share a block table.
void AttendTask(const Job& job, int64_t first_row, int64_t end_row, int64_t kv_head) {
  while (first_row < end_row) {
    int64_t next = first_row + 1;
    while (next < end_row && ShareTable(job.ranges[static_cast<size_t>(first_row)],
                                        job.ranges[static_cast<size_t>(next)])) {
      ++next;
    }
    AttendRows(job, first_row, next, kv_head);
    first_row = next;
  }
}

}  // namespace

void StoreKv(const Context& context, const KvLayout& layout, std::span<const float> key,
             std::span<const float> value, int64_t slot, std::byte* block) {
  const int64_t width = layout.num_kv_heads * layout.head_dim;
  CONCLAVE_CHECK(static_cast<int64_t>(key.size()) == width);
  CONCLAVE_CHECK(static_cast<int64_t>(value.size()) == width);
  CONCLAVE_CHECK(slot >= 0 && slot < kKvBlockTokens);
  CONCLAVE_CHECK(layout.dtype == DType::kF32 || layout.dtype == DType::kBf16);
  for (int64_t h = 0; h < layout.num_kv_heads; ++h) {
    const float* k = key.data() + h * layout.head_dim;
    const float* v = value.data() + h * layout.head_dim;
    if (layout.dtype == DType::kF32) {
      StoreHead(layout, k, v, 0, layout.head_dim, slot,
                reinterpret_cast<float*>(block) + h * layout.head_elements());
      continue;
    }
    uint16_t* head = reinterpret_cast<uint16_t*>(block) + h * layout.head_elements();
    for (int64_t d = 0; d < layout.head_dim; d += kStoreDims) {
      const int64_t count = std::min(kStoreDims, layout.head_dim - d);
      uint16_t rounded_key[kStoreDims];
      uint16_t rounded_value[kStoreDims];
      context.table->round_to_bf16(k + d, count, rounded_key);
      context.table->round_to_bf16(v + d, count, rounded_value);
      StoreHead(layout, rounded_key, rounded_value, d, count, slot, head);
    }
  }
}

void Attend(const Context& context, const KvLayout& layout, int64_t num_heads, float scale,
            MatView<const float> q, std::span<const KvRange> ranges, MatView<float> out) {
  CONCLAVE_CHECK(layout.num_kv_heads >= 1 && num_heads % layout.num_kv_heads == 0);
  CONCLAVE_CHECK(layout.dtype == DType::kF32 || layout.dtype == DType::kBf16);
  CONCLAVE_CHECK(q.cols == num_heads * layout.head_dim && out.cols == q.cols);
  CONCLAVE_CHECK(out.rows == q.rows && static_cast<int64_t>(ranges.size()) == q.rows);
  int64_t positions = 0;
  for (const KvRange& range : ranges) {
    CONCLAVE_CHECK(range.first >= 0 && range.first < range.last);
    positions += range.last - range.first;
  }
  if (q.rows == 0) {
    return;
  }
  const Job job{context, layout, num_heads, scale, q, ranges, out};
  const int64_t row_tasks = (q.rows + kRowsPerTask - 1) / kRowsPerTask;
  const int64_t tasks = row_tasks * layout.num_kv_heads;
  const int64_t work = 2 * positions * num_heads * layout.head_dim / tasks;
  ParallelRuns(*context.pool, tasks, work, [&](int64_t first, int64_t count) {
    for (int64_t task = first; task < first + count; ++task) {
      const int64_t row = task % row_tasks * kRowsPerTask;
      AttendTask(job, row, std::min(row + kRowsPerTask, q.rows), task / row_tasks);
    }
  });
}

}  // namespace conclave::kernels
