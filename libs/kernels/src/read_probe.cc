#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>

#include "conclave/kernels/peak.h"

namespace conclave::kernels {
namespace {

using SteadyClock = std::chrono::steady_clock;

// What a thread reads between two looks at the pool's counter: enough that the look weighs nothing,
// and that a thread which is disturbed does not make the others wait long at the end of a pass.
constexpr int64_t kChunkBytes = int64_t{4} << 20;
// Four lines of a stream, then the next stream.
constexpr int64_t kBurstBytes = 256;

enum class Width : uint8_t { kSse, kAvx, kAvx512 };

Width WidestWidth() {
  if (IsSupported(Isa::kAvx512)) {
    return Width::kAvx512;
  }
  return IsSupported(Isa::kAvx2) ? Width::kAvx : Width::kSse;
}

// Loads alone, into registers that nobody reads: nothing but the memory can be the limit, and a
// compiler cannot drop them.
template <Width kWidth>
inline void ReadBurst(const std::byte* from) {
  if constexpr (kWidth == Width::kAvx512) {
    asm volatile(
        "vmovups (%0),%%zmm0\n vmovups 64(%0),%%zmm1\n"
        "vmovups 128(%0),%%zmm2\n vmovups 192(%0),%%zmm3\n"
        :
        : "r"(from)
        : "xmm0", "xmm1", "xmm2", "xmm3", "memory");
  } else if constexpr (kWidth == Width::kAvx) {
    asm volatile(
        ".irp at,0,64,128,192\n vmovups \\at(%0),%%ymm0\n vmovups \\at+32(%0),%%ymm1\n.endr\n"
        :
        : "r"(from)
        : "xmm0", "xmm1", "memory");
  } else {
    asm volatile(
        ".irp at,0,64,128,192\n movups \\at(%0),%%xmm0\n movups \\at+16(%0),%%xmm1\n"
        "movups \\at+32(%0),%%xmm2\n movups \\at+48(%0),%%xmm3\n.endr\n"
        :
        : "r"(from)
        : "xmm0", "xmm1", "xmm2", "xmm3", "memory");
  }
}

template <Width kWidth, bool kHasPrefetch>
void ReadChunk(const std::byte* chunk, int num_streams) {
  constexpr int64_t kAhead = 4096;
  const int64_t stream_bytes = kChunkBytes / num_streams;
  for (int64_t at = 0; at < stream_bytes; at += kBurstBytes) {
    for (int stream = 0; stream < num_streams; ++stream) {
      const std::byte* from = chunk + stream * stream_bytes + at;
      if constexpr (kHasPrefetch) {
        // Beyond the buffer's end a prefetch is dropped.
        for (int64_t line = 0; line < kBurstBytes; line += 64) {
          __builtin_prefetch(from + kAhead + line, 0, 3);
        }
      }
      ReadBurst<kWidth>(from);
    }
  }
  if constexpr (kWidth != Width::kSse) {
    // Or the SSE code of others is slow from here on.
    asm volatile("vzeroupper" : : : "memory");
  }
}

template <Width kWidth>
void ReadChunk(const std::byte* chunk, const ReadVariant& variant) {
  if (variant.has_prefetch) {
    ReadChunk<kWidth, true>(chunk, variant.num_streams);
  } else {
    ReadChunk<kWidth, false>(chunk, variant.num_streams);
  }
}

}  // namespace

std::span<const ReadVariant> ReadVariants() {
  static constexpr std::array<ReadVariant, 8> kVariants = {
      {{1, false}, {1, true}, {2, false}, {2, true}, {4, false}, {4, true}, {8, false}, {8, true}}};
  return kVariants;
}

ReadProbe::ReadProbe(int64_t num_bytes, ThreadPool& pool)
    : buffer_(static_cast<size_t>(std::max<int64_t>(num_bytes, 0) / kChunkBytes * kChunkBytes)) {
  // Untouched pages all map to one page of zeros, which stays in the cache.
  pool.ParallelFor(size_bytes() / kChunkBytes, [&](int64_t chunk) {
    std::memset(buffer_.As<std::byte>() + chunk * kChunkBytes, 1, kChunkBytes);
  });
}

int64_t ReadProbe::BytesFor(int64_t available_bytes) {
  constexpr int64_t kLeast = int64_t{1} << 30;
  // 0 or below where the system does not say.
  const int64_t cache = ::sysconf(_SC_LEVEL3_CACHE_SIZE);
  return std::min(std::max(kLeast, 4 * cache), available_bytes / 4);
}

double ReadProbe::Measure(const ReadVariant& variant, ThreadPool& pool) const {
  static const Width width = WidestWidth();
  const SteadyClock::time_point start = SteadyClock::now();
  pool.ParallelFor(size_bytes() / kChunkBytes, [&](int64_t task) {
    const std::byte* chunk = buffer_.As<std::byte>() + task * kChunkBytes;
    switch (width) {
      case Width::kAvx512:
        return ReadChunk<Width::kAvx512>(chunk, variant);
      case Width::kAvx:
        return ReadChunk<Width::kAvx>(chunk, variant);
      case Width::kSse:
        return ReadChunk<Width::kSse>(chunk, variant);
    }
  });
  const double seconds = std::chrono::duration<double>(SteadyClock::now() - start).count();
  return seconds > 0 ? static_cast<double>(size_bytes()) / seconds : 0;
}

double ReadProbe::MeasureBest(ThreadPool& pool) const {
  double best = 0;
  for (const ReadVariant& variant : ReadVariants()) {
    best = std::max(best, Measure(variant, pool));
  }
  return best;
}

}  // namespace conclave::kernels
