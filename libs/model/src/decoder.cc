#include "conclave/model/decoder.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "conclave/kernels/elementwise.h"
#include "conclave/model/gate.h"
#include "decoder_weights.h"

namespace conclave::model {
namespace {

// An owned f32 matrix, allocated once.
class Matrix {
 public:
  Matrix(int64_t rows, int64_t cols)
      : cols_(cols),
        buffer_(static_cast<size_t>(std::max<int64_t>(rows * cols, 1)) * sizeof(float)) {}

  MatView<float> Rows(int64_t rows) { return RowsFrom(0, rows); }
  MatView<float> RowsFrom(int64_t first, int64_t rows) {
    return {data() + first * cols_, rows, cols_, cols_};
  }
  // The memory of the same rows with fewer columns, close together.
  MatView<float> Narrow(int64_t first, int64_t rows, int64_t cols) {
    return {data() + first * cols_, rows, cols, cols};
  }
  float* data() { return buffer_.As<float>(); }

 private:
  int64_t cols_;
  AlignedBuffer buffer_;
};

// Rotary table of a prompt: 0 up to ntk_length, then one more with every doubling.
int32_t RopeTableOf(const checkpoint::ModelDesc& desc, int32_t prompt_rows) {
  const int64_t length = desc.attention.rope.ntk_length;
  int32_t table = 0;
  while (length > 0 && (length << table) < prompt_rows) {
    ++table;
  }
  return table;
}

int32_t NumRopeTables(const checkpoint::ModelDesc& desc) {
  return RopeTableOf(desc, desc.max_positions) + 1;
}

int64_t MaxExperts(const checkpoint::ModelDesc& desc) {
  int64_t most = 1;
  for (const checkpoint::MoeLayerSpec& layer : desc.moe.layers) {
    most = std::max<int64_t>(most, layer.num_experts);
  }
  return most;
}

// A part of a step's rows that goes through the layers together. Of every buffer that must last
// while another part computes, its rows are its own.
struct MicroBatch {
  int32_t index = 0;
  int64_t first_row = 0;  // of the step
  std::span<const StepRow> rows;
  // Of the layer that is under way.
  bool is_away = false;  // experts have its rows
  GateChoice choice;

  int64_t size() const { return static_cast<int64_t>(rows.size()); }
};

}  // namespace

void StepObserver::OnHidden(int32_t /*layer*/, MatView<const float> /*hidden*/) {}
void StepObserver::OnGate(int32_t /*layer*/, MatView<const float> /*logits*/,
                          MatView<const float> /*probabilities*/, const GateChoice& /*choice*/) {}
void StepObserver::OnFinalNorm(MatView<const float> /*normed*/) {}

struct Decoder::State {
  State(const checkpoint::ModelDesc& model_desc, const DecoderOptions& decoder_options,
        DecoderWeights loaded);

  // qkv of `normed`, rotated, stored, attended: out = attention output projection, [rows, hidden].
  // `away`: experts that compute meanwhile and are looked after between the parts; may be null.
  void Attend(int32_t layer, const MicroBatch& batch, MatView<const float> normed, KvPool& kv,
              MoeExecutor* away, MatView<float> out);
  // The feed-forward part of a layer in two: StartFfn gates and sends the rows, or computes a dense
  // network at once; FinishFfn completes `out`. In between batch.is_away tells whether experts are
  // under way.
  void StartFfn(int32_t layer, MicroBatch& batch, MatView<const float> normed, MoeExecutor& experts,
                StepObserver* observer, MatView<float> out);
  absl::Status FinishFfn(int32_t layer, MicroBatch& batch, MatView<const float> normed,
                         MoeExecutor& experts, MatView<float> out);
  // out = c0 · out + c1 · beside with c = softmax(W input + b): residual MoE (spec 4.3).
  void MixResidual(const LayerWeights& w, MatView<const float> input, MatView<const float> beside,
                   MatView<float> out);
  // A layer in two, between which another micro-batch may do either. `is_any_away`: experts of
  // another one are under way.
  void BeginLayer(int32_t layer, MicroBatch& batch, bool is_any_away, KvPool& kv,
                  MoeExecutor& experts, StepObserver* observer);
  absl::Status EndLayer(int32_t layer, MicroBatch& batch, MoeExecutor& experts,
                        StepObserver* observer);
  absl::Status Layers(std::span<MicroBatch> batches, KvPool& kv, MoeExecutor& experts,
                      StepObserver* observer);
  void BuildRopeTable(int32_t table);
  void BuildLogn();
  // Queries of `rows` times the log-n factor of their position.
  void ScaleQueries(std::span<const StepRow> rows, MatView<float> q) const;

  int64_t q_dim() const {
    return static_cast<int64_t>(desc.attention.num_heads) * desc.attention.head_dim;
  }
  int64_t kv_dim() const {
    return static_cast<int64_t>(desc.attention.num_kv_heads) * desc.attention.head_dim;
  }

  const checkpoint::ModelDesc desc;
  const DecoderOptions options;
  const DecoderWeights weights;
  kernels::KvLayout kv_layout;

  Matrix hidden, normed, qkv, attended, projected, ffn_out;
  Matrix gate_logits, gate_probabilities, gate_weights;
  std::vector<int32_t> gate_experts;
  Matrix head_input, logits;
  GemmScratch gemm;
  FfnScratch ffn_scratch;
  std::vector<int32_t> rope_rows;  // row of the rotary tables, per row of the step
  std::vector<kernels::KvRange> ranges;
  const int32_t num_rope_tables;
  std::vector<float> rope_cos, rope_sin;  // [num_rope_tables · max_positions, rotary_dim / 2]
  std::vector<float> logn;                // [max_positions]; empty: none
  Matrix residual_out, residual_mix;      // [max_rows, hidden_dim], [max_rows, 2]; empty: none
};

Decoder::State::State(const checkpoint::ModelDesc& model_desc,
                      const DecoderOptions& decoder_options, DecoderWeights loaded)
    : desc(model_desc),
      options(decoder_options),
      weights(std::move(loaded)),
      kv_layout{desc.attention.num_kv_heads, desc.attention.head_dim, RowDtypeOf(options.dtype)},
      hidden(options.max_rows, desc.hidden_dim),
      normed(options.max_rows, desc.hidden_dim),
      qkv(options.max_rows, q_dim() + 2 * kv_dim()),
      attended(options.max_rows, q_dim()),
      projected(options.max_rows, desc.hidden_dim),
      ffn_out(options.max_rows, desc.hidden_dim),
      gate_logits(options.max_rows, MaxExperts(desc)),
      gate_probabilities(options.max_rows, MaxExperts(desc)),
      gate_weights(options.max_rows, std::max(desc.moe.top_k, 1)),
      gate_experts(static_cast<size_t>(options.max_rows) *
                   static_cast<size_t>(std::max(desc.moe.top_k, 1))),
      head_input(options.max_logit_rows, desc.hidden_dim),
      logits(options.max_logit_rows, desc.vocab_rows),
      gemm(options.max_rows, std::max<int64_t>(desc.hidden_dim, q_dim()), options.dtype),
      ffn_scratch(desc.ffn, desc.hidden_dim, options.max_rows, options.dtype),
      rope_rows(static_cast<size_t>(options.max_rows)),
      ranges(static_cast<size_t>(options.max_rows)),
      num_rope_tables(NumRopeTables(desc)),
      residual_out(desc.moe.use_residual ? options.max_rows : 0, desc.hidden_dim),
      residual_mix(desc.moe.use_residual ? options.max_rows : 0, 2) {
  const int64_t half = desc.attention.rope.rotary_dim / 2;
  rope_cos.resize(static_cast<size_t>(num_rope_tables * int64_t{desc.max_positions} * half));
  rope_sin.resize(rope_cos.size());
  for (int32_t table = 0; table < num_rope_tables; ++table) {
    BuildRopeTable(table);
  }
  BuildLogn();
}

void Decoder::State::BuildRopeTable(int32_t table) {
  const checkpoint::RopeSpec& rope = desc.attention.rope;
  const int64_t half = rope.rotary_dim / 2;
  const int64_t first_row = int64_t{table} * desc.max_positions;
  // α of table t is 2^(t+1) - 1, which is 1 for the first (spec 4.2).
  const double alpha = std::exp2(table + 1) - 1.0;
  const double dims = rope.rotary_dim;
  const auto theta = static_cast<float>(
      table == 0 ? double{rope.theta} : double{rope.theta} * std::pow(alpha, dims / (dims - 2.0)));
  for (int64_t i = 0; i < half; ++i) {
    // The original keeps the inverse frequency and the angle in f32; doing so keeps long positions
    // on its grid.
    const float inverse =
        1.0f / std::pow(theta, static_cast<float>(2 * i) / static_cast<float>(rope.rotary_dim));
    for (int64_t p = 0; p < desc.max_positions; ++p) {
      const float angle = static_cast<float>(p) * inverse;
      const auto at = static_cast<size_t>((first_row + p) * half + i);
      rope_cos[at] = static_cast<float>(std::cos(static_cast<double>(angle)));
      rope_sin[at] = static_cast<float>(std::sin(static_cast<double>(angle)));
    }
  }
}

void Decoder::State::BuildLogn() {
  const int32_t length = desc.attention.logn_length;
  if (length == 0) {
    return;
  }
  logn.assign(static_cast<size_t>(desc.max_positions), 1.0f);
  for (int32_t p = length; p < desc.max_positions; ++p) {
    // Position p is the (p + 1)-th.
    logn[static_cast<size_t>(p)] =
        static_cast<float>(std::log(p + 1.0) / std::log(static_cast<double>(length)));
  }
}

void Decoder::State::ScaleQueries(std::span<const StepRow> rows, MatView<float> q) const {
  for (size_t r = 0; r < rows.size(); ++r) {
    const float factor = logn[static_cast<size_t>(rows[r].position)];
    if (factor != 1.0f) {
      for (float& value : q.RowSpan(static_cast<int64_t>(r))) {
        value *= factor;
      }
    }
  }
}

void Decoder::State::Attend(int32_t layer, const MicroBatch& batch, MatView<const float> input,
                            KvPool& kv, MoeExecutor* away, MatView<float> out) {
  const kernels::Context& compute = options.compute;
  const std::span<const StepRow> rows = batch.rows;
  const int64_t num_rows = batch.size();
  const LayerWeights& w = weights.layers[static_cast<size_t>(layer)];
  const checkpoint::AttentionSpec& spec = desc.attention;
  const MatView<float> fused = qkv.Rows(num_rows);
  ApplyLinear(compute, w.qkv, input, gemm, fused);
  if (away != nullptr) {
    away->Poll();
  }
  const MatView<float> q = fused.Cols(0, q_dim());
  const MatView<float> k = fused.Cols(q_dim(), kv_dim());
  const MatView<float> v = fused.Cols(q_dim() + kv_dim(), kv_dim());
  if (const int64_t half = spec.rope.rotary_dim / 2; half > 0) {
    const int64_t table_rows = num_rope_tables * int64_t{desc.max_positions};
    const MatView<const float> cos(rope_cos.data(), table_rows, half, half);
    const MatView<const float> sin(rope_sin.data(), table_rows, half, half);
    const auto at = std::span<const int32_t>(rope_rows).subspan(
        static_cast<size_t>(batch.first_row), rows.size());
    kernels::RotateHalfSplit(compute, cos, sin, at, spec.num_heads, spec.head_dim, q);
    kernels::RotateHalfSplit(compute, cos, sin, at, spec.num_kv_heads, spec.head_dim, k);
  }
  if (!logn.empty()) {
    ScaleQueries(rows, q);
  }
  // Store every row before any is attended: rows of one chunk see each other.
  compute.pool->ParallelFor(num_rows, [&](int64_t r) {
    const StepRow& row = rows[static_cast<size_t>(r)];
    const int32_t block = row.block_table[row.position / kernels::kKvBlockTokens];
    kernels::StoreKv(compute, kv_layout, k.RowSpan(r), v.RowSpan(r),
                     row.position % kernels::kKvBlockTokens, kv.BlockMemory(layer, block));
  });
  for (size_t r = 0; r < rows.size(); ++r) {
    const int32_t position = rows[r].position;
    const int32_t first = spec.sliding_window > 0 ? std::max(0, position - spec.sliding_window) : 0;
    ranges[r] = {kv.LayerBase(layer), kv.block_stride(), rows[r].block_table, first, position + 1};
  }
  const float scale = 1.0f / std::sqrt(static_cast<float>(spec.head_dim));
  const MatView<float> mixed = attended.Rows(num_rows);
  kernels::Attend(compute, kv_layout, spec.num_heads, scale, q,
                  std::span(ranges).first(rows.size()), mixed);
  if (away != nullptr) {
    away->Poll();
  }
  ApplyLinear(compute, w.output, mixed, gemm, out);
}

void Decoder::State::StartFfn(int32_t layer, MicroBatch& batch, MatView<const float> input,
                              MoeExecutor& experts, StepObserver* observer, MatView<float> out) {
  const kernels::Context& compute = options.compute;
  const LayerWeights& w = weights.layers[static_cast<size_t>(layer)];
  const checkpoint::MoeLayerSpec* moe = desc.FindMoe(layer);
  if (moe == nullptr) {
    FfnForward(compute, *w.ffn, input, ffn_scratch, out);
    return;
  }
  const int64_t num_experts = moe->num_experts;
  const MatView<float> gate = gate_logits.Narrow(batch.first_row, input.rows, num_experts);
  const MatView<float> probabilities =
      gate_probabilities.Narrow(batch.first_row, input.rows, num_experts);
  const MatView<const float> gate_weight(w.gate.data(), num_experts, input.cols, input.cols);
  kernels::DotRows(compute, input, gate_weight, gate);
  std::copy_n(gate.data, input.rows * num_experts, probabilities.data);
  const int64_t top_k = desc.moe.top_k;
  const MatView<int32_t> chosen(gate_experts.data() + batch.first_row * top_k, input.rows, top_k,
                                top_k);
  const MatView<float> chosen_weights = gate_weights.Narrow(batch.first_row, input.rows, top_k);
  ChooseExperts(compute, desc.moe, probabilities, chosen, chosen_weights);
  batch.choice = {chosen, chosen_weights, probabilities};
  if (observer != nullptr) {
    observer->OnGate(layer, gate, probabilities, batch.choice);
  }
  experts.Start(batch.index, layer, input, batch.rows, batch.choice, out);
  batch.is_away = true;
}

absl::Status Decoder::State::FinishFfn(int32_t layer, MicroBatch& batch, MatView<const float> input,
                                       MoeExecutor& experts, MatView<float> out) {
  if (!batch.is_away) {
    return absl::OkStatus();
  }
  if (!desc.moe.use_residual) {
    batch.is_away = false;
    return experts.Finish(batch.index);
  }
  // While the experts compute.
  const LayerWeights& w = weights.layers[static_cast<size_t>(layer)];
  const MatView<float> beside = residual_out.Rows(input.rows);
  FfnForward(options.compute, *w.residual_ffn, input, ffn_scratch, beside);
  batch.is_away = false;
  CONCLAVE_RETURN_IF_ERROR(experts.Finish(batch.index));
  MixResidual(w, input, beside, out);
  return absl::OkStatus();
}

void Decoder::State::MixResidual(const LayerWeights& w, MatView<const float> input,
                                 MatView<const float> beside, MatView<float> out) {
  const kernels::Context& compute = options.compute;
  const MatView<float> mix = residual_mix.Rows(input.rows);
  kernels::DotRows(compute, input, {w.coefficient.data(), 2, input.cols, input.cols}, mix);
  for (int64_t r = 0; r < mix.rows; ++r) {
    mix.Row(r)[0] += w.coefficient_bias[0];
    mix.Row(r)[1] += w.coefficient_bias[1];
  }
  kernels::Softmax(compute, mix);
  compute.pool->ParallelFor(input.rows, [&](int64_t r) {
    const float* share = mix.Row(r);
    const float* other = beside.Row(r);
    float* row = out.Row(r);
    for (int64_t c = 0; c < out.cols; ++c) {
      row[c] = share[0] * row[c] + share[1] * other[c];
    }
  });
}

void Decoder::State::BeginLayer(int32_t layer, MicroBatch& batch, bool is_any_away, KvPool& kv,
                                MoeExecutor& experts, StepObserver* observer) {
  const kernels::Context& compute = options.compute;
  const LayerWeights& w = weights.layers[static_cast<size_t>(layer)];
  const MatView<float> x = hidden.RowsFrom(batch.first_row, batch.size());
  const MatView<float> n = normed.RowsFrom(batch.first_row, batch.size());
  const MatView<float> attention_out = projected.RowsFrom(batch.first_row, batch.size());
  const MatView<float> feed_forward_out = ffn_out.RowsFrom(batch.first_row, batch.size());
  w.norm1.Apply(compute, x, n);
  if (desc.topology == checkpoint::BlockTopology::kSequential) {
    Attend(layer, batch, n, kv, is_any_away ? &experts : nullptr, attention_out);
    kernels::AddScaled(compute, attention_out, desc.residual_scale, x);
    w.norm2->Apply(compute, x, n);
    StartFfn(layer, batch, n, experts, observer, feed_forward_out);
  } else {
    // Attention and experts read the same rows, so the workers compute while this thread attends.
    StartFfn(layer, batch, n, experts, observer, feed_forward_out);
    Attend(layer, batch, n, kv, is_any_away || batch.is_away ? &experts : nullptr, attention_out);
  }
}

absl::Status Decoder::State::EndLayer(int32_t layer, MicroBatch& batch, MoeExecutor& experts,
                                      StepObserver* observer) {
  const kernels::Context& compute = options.compute;
  const MatView<float> x = hidden.RowsFrom(batch.first_row, batch.size());
  const MatView<float> feed_forward_out = ffn_out.RowsFrom(batch.first_row, batch.size());
  CONCLAVE_RETURN_IF_ERROR(FinishFfn(layer, batch, normed.RowsFrom(batch.first_row, batch.size()),
                                     experts, feed_forward_out));
  if (desc.topology != checkpoint::BlockTopology::kSequential) {
    kernels::AddScaled(compute, projected.RowsFrom(batch.first_row, batch.size()),
                       desc.residual_scale, x);
  }
  kernels::AddScaled(compute, feed_forward_out, desc.residual_scale, x);
  if (observer != nullptr) {
    observer->OnHidden(layer, x);
  }
  return absl::OkStatus();
}

// Each micro-batch ends a layer only when it is its turn to begin the next: until then its experts
// compute beside what the other one does here. Rows of one sequence that fall into both stand in
// the first with their lower positions, whose keys are stored before the second attends.
absl::Status Decoder::State::Layers(std::span<MicroBatch> batches, KvPool& kv, MoeExecutor& experts,
                                    StepObserver* observer) {
  absl::Status status;
  for (int32_t layer = 0; layer <= desc.num_layers && status.ok(); ++layer) {
    for (MicroBatch& batch : batches) {
      if (layer > 0 && status.ok()) {
        status = EndLayer(layer - 1, batch, experts, observer);
      }
      if (layer < desc.num_layers && status.ok()) {
        const bool is_any_away = std::any_of(batches.begin(), batches.end(),
                                             [](const MicroBatch& b) { return b.is_away; });
        BeginLayer(layer, batch, is_any_away, kv, experts, observer);
      }
    }
  }
  for (MicroBatch& batch : batches) {
    if (batch.is_away) {
      // The step has failed already; what is under way is of no use but has to end.
      experts.Finish(batch.index).IgnoreError();
    }
  }
  return status;
}

Decoder::Decoder(std::unique_ptr<State> state) : state_(std::move(state)) {}
Decoder::~Decoder() = default;

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Load(
    const checkpoint::Checkpoint& checkpoint, const DecoderOptions& options,
    const std::function<void(int64_t, int64_t)>& on_progress) {
  CONCLAVE_CHECK(options.max_rows >= 1 && options.max_logit_rows >= 1);
  const checkpoint::ModelDesc& desc = checkpoint.desc();
  CONCLAVE_ASSIGN_OR_RETURN(
      DecoderWeights weights,
      LoadDecoderWeights(checkpoint, options.dtype, *options.compute.pool, on_progress));
  return std::unique_ptr<Decoder>(
      new Decoder(std::make_unique<State>(desc, options, std::move(weights))));
}

const checkpoint::ModelDesc& Decoder::desc() const { return state_->desc; }
kernels::KvLayout Decoder::kv_layout() const { return state_->kv_layout; }
size_t Decoder::weight_bytes() const { return state_->weights.size_bytes(); }
MatView<float> Decoder::input() { return state_->hidden.Rows(state_->options.max_rows); }

int32_t Decoder::RopeTable(int32_t prompt_rows) const {
  CONCLAVE_CHECK(prompt_rows <= state_->desc.max_positions);
  return RopeTableOf(state_->desc, prompt_rows);
}

int64_t Decoder::TableBytes(const checkpoint::ModelDesc& desc) {
  const int64_t floats_per_position =
      int64_t{NumRopeTables(desc)} * desc.attention.rope.rotary_dim +
      (desc.attention.logn_length > 0 ? 1 : 0);
  return floats_per_position * desc.max_positions * static_cast<int64_t>(sizeof(float));
}

void Decoder::Embed(int32_t token, bool is_scaled, std::span<float> out) const {
  const int64_t dim = state_->desc.hidden_dim;
  CONCLAVE_CHECK(token >= 0 && token < state_->desc.vocab_rows &&
                 static_cast<int64_t>(out.size()) == dim);
  if (RowDtypeOf(state_->options.dtype) == DType::kBf16) {
    const Bf16* row = state_->weights.embedding.As<Bf16>() + token * dim;
    std::transform(row, row + dim, out.begin(), [](Bf16 value) { return ToFloat(value); });
  } else {
    const float* row = state_->weights.embedding.As<float>() + token * dim;
    std::copy(row, row + dim, out.begin());
  }
  if (is_scaled && state_->desc.embedding_scale != 1.0f) {
    for (float& value : out) {
      value *= state_->desc.embedding_scale;
    }
  }
}

absl::StatusOr<MatView<const float>> Decoder::Step(std::span<const StepRow> rows,
                                                   std::span<const int32_t> logit_rows, KvPool& kv,
                                                   MoeExecutor& experts, StepObserver* observer,
                                                   int32_t num_first) {
  // The few scalar loops between kernels run under the kernels' own rounding of denormals.
  const DenormalsOff denormals_off;
  State& s = *state_;
  CONCLAVE_CHECK(static_cast<int32_t>(rows.size()) <= s.options.max_rows);
  CONCLAVE_CHECK(static_cast<int32_t>(logit_rows.size()) <= s.options.max_logit_rows);
  for (size_t r = 0; r < rows.size(); ++r) {
    CONCLAVE_CHECK(rows[r].position >= 0 && rows[r].position < s.desc.max_positions);
    CONCLAVE_CHECK(rows[r].rope_table >= 0 && rows[r].rope_table < s.num_rope_tables);
    s.rope_rows[r] = rows[r].rope_table * s.desc.max_positions + rows[r].position;
  }
  CONCLAVE_CHECK(num_first >= 0 && num_first <= static_cast<int32_t>(rows.size()));
  std::array<MicroBatch, kMicroBatches> batches;
  const bool is_divided =
      observer == nullptr && num_first > 0 && num_first < static_cast<int32_t>(rows.size());
  const size_t first = is_divided ? static_cast<size_t>(num_first) : rows.size();
  batches[0].rows = rows.first(first);
  batches[1] = {1, static_cast<int64_t>(first), rows.subspan(first), false, {}};
  CONCLAVE_RETURN_IF_ERROR(
      s.Layers(std::span(batches).first(is_divided ? 2 : 1), kv, experts, observer));
  const auto num_logits = static_cast<int64_t>(logit_rows.size());
  const MatView<float> x = s.hidden.Rows(static_cast<int64_t>(rows.size()));
  const MatView<float> head_input = s.head_input.Rows(num_logits);
  for (int64_t i = 0; i < num_logits; ++i) {
    std::copy_n(x.Row(logit_rows[static_cast<size_t>(i)]), s.desc.hidden_dim, head_input.Row(i));
  }
  s.weights.final_norm.Apply(s.options.compute, head_input, head_input);
  if (observer != nullptr) {
    observer->OnFinalNorm(head_input);
  }
  if (s.desc.head_scale != 1.0f) {
    for (int64_t i = 0; i < num_logits; ++i) {
      for (float& value : head_input.RowSpan(i)) {
        value *= s.desc.head_scale;
      }
    }
  }
  const MatView<float> logits = s.logits.Rows(num_logits);
  ApplyLinear(s.options.compute, s.weights.head, head_input, s.gemm, logits);
  return MatView<const float>(logits);
}

}  // namespace conclave::model
