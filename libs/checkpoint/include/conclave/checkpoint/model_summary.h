// What `conclave inspect` says about a model: parameters, bytes, experts, KV per token, image,
// warnings, and how its experts spread over workers. Works from the shapes that the config implies,
// so it also answers for a folder that holds config.json alone.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/checkpoint/model_desc.h"
#include "conclave/tensor/dtype.h"

namespace conclave::checkpoint {

struct ParameterCounts {
  int64_t total = 0;
  int64_t language = 0;   // decoder, embedding and head
  int64_t activated = 0;  // of these, what one token uses: top_k experts of each MoE layer
  int64_t vision = 0;     // tower, unused layers and pooling head included
  int64_t projector = 0;
  int64_t per_expert = 0;  // 0 for a dense model
};

struct ByteCounts {
  int64_t total = 0;
  int64_t experts = 0;
  int64_t attention = 0;
  int64_t embeddings = 0;  // embedding and head
  int64_t vision = 0;
};

// What one of N workers would hold: expert e of the i-th MoE layer goes to worker (e + i) mod N, as
// placement::SpreadEvenly has it.
struct WorkerShare {
  int32_t worker = 0;
  int32_t num_experts = 0;
  int64_t bytes = 0;
};

struct ModelSummary {
  ModelDesc desc;
  bool has_weights = false;
  // Of a packed folder: the numeric mode it is for and the bytes of its file. `bytes` below are
  // then those of the checkpoint that was packed.
  std::optional<DType> packed_dtype;
  int64_t packed_bytes = 0;
  int64_t num_tensors = 0;
  ParameterCounts parameters;
  ByteCounts bytes;  // as stored; with absent weights every tensor counts as desc.stored_dtype
  int64_t kv_bytes_per_token = 0;    // bf16
  std::vector<WorkerShare> workers;  // empty for a dense model
  // What the frontend holds when all experts are on workers.
  int64_t frontend_bytes = 0;
};

// From the config alone.
ModelSummary Summarize(const ModelDesc& desc, int32_t num_workers);
// With the dtypes of the stored tensors.
ModelSummary Summarize(const Checkpoint& checkpoint, int32_t num_workers);

// Opens `folder` whether or not it holds weights; errors as Checkpoint::Open. num_workers >= 1.
absl::StatusOr<ModelSummary> Inspect(const std::string& folder, int32_t num_workers,
                                     const OpenOptions& options = {});

// Bytes of all weights that are used once they are loaded in the numeric mode `mode`: vectors and
// gates in f32, matrices in `mode`, which in kQ8 means 34 bytes per block of 32 inputs for the
// linears of decoder and experts, and bf16 for embedding, tower and projector. A head that is the
// embedding too is loaded as both. Without `has_experts` those are elsewhere. A loader compares
// this with the memory budget before it takes any; buffers and KV come on top.
int64_t LoadedBytes(const ModelDesc& desc, DType mode, bool has_experts = true);

// KV cache of one position over all layers, K and V in `dtype`.
int64_t KvBytesPerToken(const ModelDesc& desc, DType dtype);

// One JSON object with the keys of the command line contract (`conclave inspect --json`) and some
// more.
std::string ToJson(const ModelSummary& summary);
// The same as lines for a terminal.
std::string ToText(const ModelSummary& summary);

}  // namespace conclave::checkpoint
