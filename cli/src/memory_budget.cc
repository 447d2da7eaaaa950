#include "memory_budget.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <limits>
#include <optional>
#include <string>

#include "conclave/base/status.h"
#include "conclave/checkpoint/model_summary.h"
#include "conclave/kernels/attention.h"
#include "conclave/model/decoder.h"

namespace conclave::cli {
namespace {

// The number in the first line of `path`, or nullopt when there is none ("max").
std::optional<int64_t> ReadNumber(const char* path) {
  std::ifstream file(path);
  int64_t value = 0;
  return file >> value ? std::optional<int64_t>(value) : std::nullopt;
}

int64_t MemAvailable() {
  std::ifstream file("/proc/meminfo");
  std::string line;
  while (std::getline(file, line)) {
    int64_t kib = 0;
    if (std::sscanf(line.c_str(), "MemAvailable: %" SCNd64, &kib) == 1) {
      return kib * 1024;
    }
  }
  return std::numeric_limits<int64_t>::max();
}

std::string Gib(int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f GiB",
                static_cast<double>(bytes) / static_cast<double>(int64_t{1} << 30));
  return text;
}

}  // namespace

int64_t AvailableBytes() {
  int64_t available = MemAvailable();
  const std::optional<int64_t> limit = ReadNumber("/sys/fs/cgroup/memory.max");
  const std::optional<int64_t> used = ReadNumber("/sys/fs/cgroup/memory.current");
  if (limit.has_value() && used.has_value()) {
    available = std::min(available, std::max<int64_t>(0, *limit - *used));
  }
  return available;
}

absl::StatusOr<int64_t> PlanMemory(const checkpoint::Checkpoint& checkpoint,
                                   const MemoryRequest& request) {
  const checkpoint::ModelDesc& desc = checkpoint.desc();
  const kernels::KvLayout layout{desc.attention.num_kv_heads, desc.attention.head_dim,
                                 RowDtypeOf(request.dtype)};
  const int64_t block_bytes = static_cast<int64_t>(layout.block_bytes()) * desc.num_layers;
  const int64_t blocks =
      (request.max_model_len + kernels::kKvBlockTokens - 1) / kernels::kKvBlockTokens;
  const int64_t sequence_bytes = blocks * block_bytes;
  const int64_t weights = checkpoint::LoadedBytes(desc, request.dtype, request.has_experts) +
                          model::Decoder::TableBytes(desc);
  const int64_t available = AvailableBytes();
  const int64_t least = weights + std::max(sequence_bytes, request.kv_bytes);
  if (least > available) {
    return Error(absl::StatusCode::kResourceExhausted, "model_needs_memory",
                 checkpoint.folder() + ": weights and KV do not fit; needs " + Gib(least) +
                     ", budget " + Gib(available));
  }
  if (request.kv_bytes > 0) {
    return std::max(request.kv_bytes, sequence_bytes);
  }
  const int64_t wanted = std::min((available - weights) / 4, sequence_bytes * request.max_num_seqs);
  return std::max(wanted, sequence_bytes);
}

}  // namespace conclave::cli
