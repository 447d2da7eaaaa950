// The serving engine: one thread owns all sequences and steps them. Every step takes one batch of
// rows of different sequences and phases: each decoding sequence gives its row, and the rest of the
// step goes to prompts in chunks, so a long image prompt never stalls those who already read their
// answer.
//
// Neither the batch nor the chunks nor reuse of KV blocks can be seen in a token (architecture,
// section 4).
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/base/clock.h"
#include "conclave/base/ids.h"
#include "conclave/frontend/chat.h"
#include "conclave/frontend/step_trace.h"
#include "conclave/model/decoder.h"
#include "conclave/model/sampler.h"

namespace conclave::frontend {

// The projected rows of one picture, shared by every sequence that shows it.
struct ImageFeatures {
  uint64_t digest = 0;  // of the pixels that were encoded, their size and the image mode
  int32_t num_rows = 0;
  std::vector<float> rows;  // [num_rows, hidden_dim]
};

struct SequenceRequest {
  std::vector<int32_t> tokens;  // ids; text::kImageToken stands for the next of `images`
  std::vector<std::shared_ptr<const ImageFeatures>> images;
  model::SamplerParams sampling;
  int32_t max_tokens = 1;            // >= 1; prompt rows + max_tokens <= max_model_len
  std::vector<int32_t> stop_tokens;  // generation ends on one; it is not emitted
  bool wants_routed_experts = false;
  bool wants_gate_probabilities = false;
  std::shared_ptr<observability::RequestTrace> trace;  // null: not traced
};

struct SequenceToken {
  int32_t token = 0;
  bool is_stop = false;  // one of stop_tokens: carries no text
  model::TokenChoice choice;
};

struct SequenceStats {
  int32_t prompt_rows = 0;  // image rows included
  int32_t image_rows = 0;
  int32_t cached_rows = 0;  // taken from kept KV blocks
  int32_t generated = 0;
  // Since Submit.
  std::chrono::nanoseconds queue{0};
  std::chrono::nanoseconds first_token{0};
  std::chrono::nanoseconds total{0};
  // Experts that each position's gate chose, when asked for: [positions][MoE layers][top_k], by
  // falling weight; -1 where the position came from a kept KV block and was not computed.
  std::vector<int16_t> routed_experts;
  // The gates' probabilities, when asked for: [positions][MoE layers][experts of the largest
  // layer]; NaN where nothing was computed. Of as many leading positions as kGateValuesMax allows.
  std::vector<float> gate_probabilities;
  // Positions of the prompt that are rows of pictures: first and count, in order.
  std::vector<std::pair<int32_t, int32_t>> image_spans;
};

// Bounds SequenceStats::gate_probabilities to 32 MiB.
inline constexpr size_t kGateValuesMax = size_t{8} << 20;

// Called on the engine's thread; must not block. OnEnd is the last call.
class SequenceSink {
 public:
  virtual ~SequenceSink() = default;
  // Returns false to end the sequence with FinishReason::kStop (a stop string is complete).
  virtual bool OnToken(const SequenceToken& token) = 0;
  virtual void OnEnd(FinishReason reason, const absl::Status& status,
                     const SequenceStats& stats) = 0;
};

// Which token embeddings are multiplied by ModelDesc::embedding_scale, for models that have one
// (spec 4.2). The original does so whenever it is called with ids: in text-only prompts and in
// every decode step, but not in prompts with images.
enum class EmbeddingScaling {
  kReference,   // as the original
  kConsistent,  // never, where the model has a vision tower: what the checkpoint was trained with
};

// Into how many micro-batches a step is divided: with two, the experts of one compute while the
// frontend attends with the other (data-plane.md section 9). No bit depends on it.
enum class MicroBatching : uint8_t {
  kOne,   // never: right where frontend and experts share one set of threads
  kTwo,   // every step of two rows or more
  kAuto,  // where it was measured to be faster
};

struct EngineOptions {
  int32_t max_num_seqs = 64;    // sequences that run at once
  int32_t max_queued = 512;     // sequences that wait; more are refused
  int32_t prefill_chunk = 256;  // prompt rows of a step when nothing decodes
  // Prompt rows of a step while something decodes: bounds what a long prompt adds to everybody's
  // time per token.
  int32_t prefill_chunk_mixed = 64;
  int32_t max_model_len = 0;  // positions of one sequence
  int64_t kv_bytes = 0;       // at least one sequence of max_model_len fits
  EmbeddingScaling embedding_scaling = EmbeddingScaling::kReference;
  MicroBatching micro_batches = MicroBatching::kOne;
  // What the dispatcher of `experts` tells, for traces; null: they end at the engine's steps.
  // Outlives the engine.
  StepTrace* step_trace = nullptr;
};

// Rows that a step may have under `options`: DecoderOptions::max_rows.
int32_t MaxStepRows(const EngineOptions& options);

// What the engine tells metrics. Called on the engine's thread.
class EngineObserver {
 public:
  virtual ~EngineObserver() = default;
  struct Step {
    int32_t decode_rows = 0;
    int32_t prefill_rows = 0;
    int32_t running = 0;
    int32_t waiting = 0;
    double kv_used = 0;       // 0..1
    bool is_divided = false;  // into two micro-batches
    // Sequences that took part in a step in which a call was sent again, and in none before.
    int32_t touched = 0;
    std::chrono::nanoseconds duration{0};
  };
  // After every step, and once without rows when the engine has nothing more to do.
  virtual void OnStep(const Step& step) = 0;
  virtual void OnTokenGap(std::chrono::nanoseconds since_last_token) = 0;
  virtual void OnSequenceEnd(FinishReason reason, const SequenceStats& stats) = 0;
  virtual void OnPreemption() = 0;
  // The logits [vocab_rows] that the next token of `sequence` is chosen from; `position` is the row
  // they belong to. For tests of the bits.
  virtual void OnLogits(SequenceId sequence, int32_t position, std::span<const float> logits);
};

class Engine {
 public:
  // `decoder`, `experts`, `clock` and `observer` (may be null) outlive the engine; decoder and
  // experts belong to its thread from Start on.
  Engine(const EngineOptions& options, model::Decoder& decoder, model::MoeExecutor& experts,
         int32_t vocab_size, const Clock& clock, EngineObserver* observer);
  // Ends running sequences with kCancelled.
  ~Engine();

  // Starts the thread. Without it a test calls Step itself.
  void Start();

  // Any thread. kUnavailable ("overloaded") when the queue is full.
  absl::StatusOr<SequenceId> Submit(SequenceRequest request, std::shared_ptr<SequenceSink> sink);

  // Any thread. The sequence's memory is free before the next step's rows are chosen. Unknown ids
  // are ignored.
  void Cancel(SequenceId id);

  // One scheduler iteration; false when there was nothing to do. Only without Start().
  bool Step();

  // Sequences that wait or run. Any thread.
  int32_t num_open() const;

  const EngineOptions& options() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace conclave::frontend
