// How much memory a model needs here, and what is left for KV.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/tensor/dtype.h"

namespace conclave::cli {

struct MemoryRequest {
  DType dtype = DType::kBf16;  // the numeric mode
  int64_t kv_bytes = 0;        // 0: to be chosen
  int32_t max_num_seqs = 1;
  int32_t max_model_len = 0;
  bool has_experts = true;  // false: they are on workers elsewhere
};

// Bytes that this process may still take: MemAvailable, or what the cgroup's limit leaves,
// whichever is less.
int64_t AvailableBytes();

// Bytes for the KV pool. Chosen: a quarter of what the weights leave, at most what `max_num_seqs`
// sequences of `max_model_len` fill, at least one such sequence. kResourceExhausted
// ("model_needs_memory") before anything is allocated when weights and one sequence do not fit.
absl::StatusOr<int64_t> PlanMemory(const checkpoint::Checkpoint& checkpoint,
                                   const MemoryRequest& request);

}  // namespace conclave::cli
