#include "bandwidth.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "conclave/base/clock.h"
#include "conclave/tensor/aligned_buffer.h"

namespace conclave::cli {
namespace {

constexpr int64_t kChunkBytes = int64_t{1} << 20;

// Four independent sums, so that the adds do not wait for each other.
uint64_t Sum(const uint64_t* words, int64_t count) {
  uint64_t s0 = 0;
  uint64_t s1 = 0;
  uint64_t s2 = 0;
  uint64_t s3 = 0;
  for (int64_t i = 0; i + 4 <= count; i += 4) {
    s0 += words[i];
    s1 += words[i + 1];
    s2 += words[i + 2];
    s3 += words[i + 3];
  }
  return s0 + s1 + s2 + s3;
}

}  // namespace

double MeasureReadBandwidth(ThreadPool& pool, int64_t num_bytes,
                            std::chrono::milliseconds duration) {
  const int64_t num_chunks = num_bytes / kChunkBytes;
  if (num_chunks == 0) {
    return 0;
  }
  AlignedBuffer buffer(static_cast<size_t>(num_chunks * kChunkBytes));
  // Written once: untouched pages all map to one page of zeros, which stays in the cache.
  pool.ParallelFor(num_chunks, [&](int64_t chunk) {
    std::memset(buffer.As<char>() + chunk * kChunkBytes, 1, kChunkBytes);
  });
  // Read by everybody, so that no compiler removes the reads.
  std::atomic<uint64_t> sink{0};
  double best = 0;
  const MonotonicTime end = Clock::Real().Now() + duration;
  do {
    const MonotonicTime start = Clock::Real().Now();
    pool.ParallelFor(num_chunks, [&](int64_t chunk) {
      const auto* words =
          reinterpret_cast<const uint64_t*>(buffer.As<char>() + chunk * kChunkBytes);
      sink.fetch_add(Sum(words, kChunkBytes / 8), std::memory_order_relaxed);
    });
    const double seconds = std::chrono::duration<double>(Clock::Real().Now() - start).count();
    best = std::max(best, static_cast<double>(num_chunks * kChunkBytes) / seconds);
  } while (Clock::Real().Now() < end);
  return best;
}

}  // namespace conclave::cli
