// State of one token stream inside the engine.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "conclave/base/clock.h"
#include "conclave/frontend/engine.h"
#include "conclave/model/kv_pool.h"
#include "sequence_trace.h"

namespace conclave::frontend {

struct Sequence {
  SequenceId id;
  SequenceRequest request;
  std::shared_ptr<SequenceSink> sink;

  // What stands at every position so far: prompt rows, then generated tokens.
  std::vector<model::PositionKey> keys;
  // For image positions, which of request.images; -1 for tokens. As long as the prompt.
  std::vector<int16_t> image_index;
  std::vector<int32_t> prompt_tokens;  // ids without images, for penalties
  std::vector<int32_t> generated;

  int32_t rope_table = 0;  // model::Decoder::RopeTable of the prompt
  // Embeddings of positions below this are not multiplied by the model's embedding scale.
  int32_t num_unscaled = 0;

  int32_t num_computed = 0;     // positions whose K and V are in the pool
  std::vector<int32_t> blocks;  // KV blocks of positions [0, ...)
  int32_t num_published = 0;    // leading blocks offered for reuse
  bool is_touched = false;      // was in a step in which a call was sent again

  SequenceStats stats;
  MonotonicTime submitted;
  MonotonicTime last_token;
  std::unique_ptr<SequenceTrace> trace;  // null: not traced

  int32_t num_pending() const { return static_cast<int32_t>(keys.size()) - num_computed; }
  // One row that continues an answer, as against rows of a prompt.
  bool is_decoding() const { return !generated.empty() && num_pending() == 1; }
  bool is_scaled(int32_t position) const { return position >= num_unscaled; }
  // The key of a position that holds `token`.
  model::PositionKey KeyOf(int32_t token, int32_t position) const {
    return {static_cast<uint64_t>(token), -1, rope_table * 2 + (is_scaled(position) ? 1 : 0)};
  }
  bool is_image(int32_t position) const {
    return position < static_cast<int32_t>(image_index.size()) &&
           image_index[static_cast<size_t>(position)] >= 0;
  }
};

// The state of a new sequence; its prompt is checked already. `now`: when it was submitted.
std::unique_ptr<Sequence> MakeSequence(const EngineOptions& options, const model::Decoder& decoder,
                                       SequenceId id, SequenceRequest request,
                                       std::shared_ptr<SequenceSink> sink, MonotonicTime now);

// Experts of the layer that has most.
int32_t MostExperts(const checkpoint::MoeSpec& moe);

// Keeps what the gate of the MoE layer with that index gave to the experts at `position`, in
// SequenceStats::gate_probabilities and as far as kGateValuesMax goes.
void KeepProbabilities(const checkpoint::MoeSpec& moe, Sequence& sequence, int32_t position,
                       size_t moe_layer, std::span<const float> probabilities);

}  // namespace conclave::frontend
