// The language model without its experts: embedding, norms, attention, dense FFNs, gates, head. One
// step takes a batch of rows of different sequences and phases; experts are reached through a
// MoeExecutor.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/kernels/context.h"
#include "conclave/model/kv_pool.h"
#include "conclave/tensor/dtype.h"
#include "conclave/tensor/view.h"

namespace conclave::model {

// One row of a step: one position of one sequence. Plain data, rebuilt each step without
// allocation.
struct StepRow {
  int32_t position = 0;                  // absolute, within its sequence
  const int32_t* block_table = nullptr;  // the sequence's KV blocks, position / kKvBlockTokens
  bool is_image = false;  // the modality byte that travels to the gate and the workers
  bool is_prefill = false;
  // Decoder::RopeTable of the sequence: the same for all its rows.
  int32_t rope_table = 0;
};

// What the gate chose for the rows of one layer. Views into the decoder's buffers, valid during
// MoeExecutor::Start to Finish.
struct GateChoice {
  MatView<const int32_t> experts;  // [rows, top_k]
  MatView<const float> weights;    // [rows, top_k]
  // [rows, E] softmax over all experts, for whoever counts; empty where the caller has none.
  MatView<const float> probabilities = {};
};

// Into how many micro-batches a step may be divided.
inline constexpr int32_t kMicroBatches = 2;

// Runs the experts of one MoE layer: the frontend's dispatcher. One layer at a time of each
// micro-batch; the step's thread.
class MoeExecutor {
 public:
  virtual ~MoeExecutor() = default;

  // out[r, :] = wire-rounded Σ_k wire(weight_k · expert_k(n[r, :])), as data-plane.md section 4
  // defines it.
  //   n    [rows, io_dim]  f32 norm output; the executor rounds it to the wire dtype
  //   out  [rows, io_dim]  overwritten
  // Start sends the rows as far as that needs no waiting, and Finish waits for what has to come
  // back: between the two the caller computes what needs nothing of the experts. Every Start has
  // its Finish. Until that returns, what Start was given, and what it views, stays where and as it
  // is; `out` may be written at any time. `micro_batch`, in [0, kMicroBatches), tells apart what is
  // under way at once; each is started and finished for itself.
  virtual void Start(int32_t micro_batch, int32_t layer, MatView<const float> n,
                     std::span<const StepRow> rows, const GateChoice& choice,
                     MatView<float> out) = 0;
  // Between Start and Finish, now and then: takes up what has come and sends what waited for it.
  // Does not wait.
  virtual void Poll() {}
  // An error fails the whole step; nothing of it may be used.
  virtual absl::Status Finish(int32_t micro_batch) = 0;

  // Calls that had to be sent again since the start; always 0 where rows go nowhere.
  virtual uint64_t num_resent() const { return 0; }

  // Start and Finish, for a caller that has nothing to do meanwhile.
  absl::Status Run(int32_t layer, MatView<const float> n, std::span<const StepRow> rows,
                   const GateChoice& choice, MatView<float> out) {
    Start(0, layer, n, rows, choice, out);
    return Finish(0);
  }
};

// Sees intermediate results, for parity tests and telemetry. Called on the step's thread; views die
// with the call.
class StepObserver {
 public:
  virtual ~StepObserver() = default;
  // [rows, hidden_dim] after layer `layer`, before the final norm.
  virtual void OnHidden(int32_t layer, MatView<const float> hidden);
  // Gate of an MoE layer: raw logits and the softmax, [rows, E], and the choice.
  virtual void OnGate(int32_t layer, MatView<const float> logits,
                      MatView<const float> probabilities, const GateChoice& choice);
  // [logit_rows, hidden_dim]
  virtual void OnFinalNorm(MatView<const float> normed);
};

struct DecoderOptions {
  DType dtype = DType::kBf16;  // the numeric mode (linear.h)
  kernels::Context compute;
  int32_t max_rows = 0;        // rows of one step
  int32_t max_logit_rows = 0;  // of those, rows whose logits are wanted
};

// Weights and buffers of the decoder. Step() by one thread.
class Decoder {
 public:
  // Reads everything but the experts and the tower. `on_progress(bytes_done, bytes_total)` may be
  // null.
  static absl::StatusOr<std::unique_ptr<Decoder>> Load(
      const checkpoint::Checkpoint& checkpoint, const DecoderOptions& options,
      const std::function<void(int64_t, int64_t)>& on_progress);
  ~Decoder();

  // Memory for what depends on positions alone (rotary tables, log-n factors): config.json alone
  // decides how many there are, so a loader counts it before it takes any.
  static int64_t TableBytes(const checkpoint::ModelDesc& desc);

  const checkpoint::ModelDesc& desc() const;
  kernels::KvLayout kv_layout() const;
  size_t weight_bytes() const;

  // out = embedding row of `token`, which must be in [0, vocab_rows); multiplied by
  // ModelDesc::embedding_scale when `is_scaled`.
  void Embed(int32_t token, bool is_scaled, std::span<float> out) const;

  // Which rotary table a sequence of `prompt_rows` positions uses from its first row to its last
  // (StepRow::rope_table). 0 unless the model stretches long prompts (RopeSpec::ntk_length).
  // prompt_rows <= max_positions.
  int32_t RopeTable(int32_t prompt_rows) const;

  // The buffer for the rows of the next step, [max_rows, hidden_dim]: the caller writes embeddings
  // or image features into the first rows.size() rows.
  MatView<float> input();

  // Runs all layers over the first rows.size() rows of input(), storing their keys and values at
  // their positions.
  //   rows        rows of one sequence stand in ascending position, and every earlier position is
  //   in the pool or in
  //               this step
  //   logit_rows  indices of rows whose logits are wanted
  //   num_first   0, or the rows of the first of two micro-batches: while the experts of one are
  //   away, this thread attends with the other. A row's bits are the same either way, whatever the
  //   cut. An observer sees whole steps: with one the step is not divided
  // Returns logits [logit_rows, vocab_rows], f32, valid until the next step. `observer` may be
  // null. No allocation.
  absl::StatusOr<MatView<const float>> Step(std::span<const StepRow> rows,
                                            std::span<const int32_t> logit_rows, KvPool& kv,
                                            MoeExecutor& experts, StepObserver* observer,
                                            int32_t num_first = 0);

 private:
  struct State;
  explicit Decoder(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace conclave::model
