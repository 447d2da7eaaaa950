#include "conclave/expert_worker/worker_core.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "conclave/base/thread_pool.h"
#include "conclave/checkpoint/tensor_list.h"
#include "conclave/model/ffn.h"
#include "conclave/tensor/aligned_buffer.h"
#include "conclave/transport/frame.h"
#include "conclave/transport/rows.h"

namespace conclave::expert_worker {
namespace {

using placement::ExpertUnit;
using transport::CallView;
using transport::ReplyView;
using transport::WireDtype;

constexpr int32_t kNotHeld = -1;
constexpr int32_t kNotMoe = -2;

// Rows per task of the loops over rows. Few enough that two threads share a prefill call evenly,
// many enough that a task outweighs its hand-over.
constexpr int64_t kRowsPerTask = 8;

// [phase][modality] counters of one unit.
constexpr size_t kCountersPerUnit = 4;
constexpr size_t CounterOf(transport::Phase phase, bool is_image) {
  return (phase == transport::Phase::kPrefill ? 2u : 0u) + (is_image ? 1u : 0u);
}

// The pairs [first, first + count) of a call: all of one expert.
struct Segment {
  int32_t unit = 0;
  size_t first = 0;
  size_t count = 0;
};

std::string Describe(ExpertUnit unit) {
  return "layer " + std::to_string(unit.layer.value()) + " expert " +
         std::to_string(unit.expert.value());
}

absl::Status CheckUnits(const checkpoint::ModelDesc& desc, const std::vector<ExpertUnit>& units) {
  for (size_t i = 0; i < units.size(); ++i) {
    const checkpoint::MoeLayerSpec* moe = desc.FindMoe(units[i].layer.value());
    const int32_t expert = units[i].expert.value();
    if (moe == nullptr || expert < 0 || expert >= moe->num_experts) {
      return InvalidArgument("placement_unknown_unit",
                             "worker: expected experts of the model, found " + Describe(units[i]));
    }
    if (i > 0 && units[i] == units[i - 1]) {
      return InvalidArgument(
          "placement_duplicate",
          "worker: " + Describe(units[i]) + " is listed twice; expected each unit once");
    }
  }
  return absl::OkStatus();
}

template <typename Fn>
void ForEachRow(ThreadPool& pool, int64_t num_rows, const Fn& fn) {
  pool.ParallelFor((num_rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task) {
    const int64_t end = std::min(num_rows, (task + 1) * kRowsPerTask);
    for (int64_t row = task * kRowsPerTask; row < end; ++row) {
      fn(row);
    }
  });
}

inline float RoundToWire(float value, float /*wire*/) { return value; }
inline float RoundToWire(float value, Bf16 /*wire*/) { return ToFloat(ToBf16(value)); }

// sum = or += wire(weight · y), in f32.
template <typename Wire>
void AddTerm(const float* y, float weight, bool is_first, int64_t width, float* sum) {
  if (is_first) {
    for (int64_t c = 0; c < width; ++c) {
      sum[c] = RoundToWire(weight * y[c], Wire{});
    }
  } else {
    for (int64_t c = 0; c < width; ++c) {
      sum[c] += RoundToWire(weight * y[c], Wire{});
    }
  }
}

}  // namespace

struct WorkerCore::State {
  WorkerCoreOptions options;
  transport::FrameLimits limits;
  std::vector<ExpertUnit> units;           // ascending
  std::vector<model::FfnWeights> weights;  // per unit
  // [num_layers][num_experts_max]: index of a unit, kNotHeld, or kNotMoe for all experts of a dense
  // layer.
  std::vector<int32_t> unit_of;
  std::unique_ptr<std::atomic<uint64_t>[]> counters;  // [units][kCountersPerUnit]
  // The call that was counted last: one that is delivered twice loads the experts once.
  uint64_t counted_frontend = 0;
  uint64_t counted_slot = 0;
  uint64_t counted_seq = 0;  // 0: none; channels number calls from 1

  // Scratch of one call, allocated by Load.
  std::optional<model::FfnScratch> ffn_scratch;
  AlignedBuffer gathered;         // [max_rows, width] wire
  AlignedBuffer outputs;          // [max_rows, width] f32
  AlignedBuffer sums;             // [max_rows, width] f32; in f32 mode the reply itself serves
  std::vector<uint8_t> is_open;   // [max_rows] whether a row has a term yet
  std::vector<Segment> segments;  // capacity max_pairs

  void Prepare(const checkpoint::ModelDesc& desc);
  absl::Status FindSegments(const CallView& call);
  template <typename Wire>
  void Compute(const CallView& call, ReplyView& reply);
  template <typename Wire>
  MatView<const Wire> RowsOf(const CallView& call, const Segment& segment);
  void Count(const CallView& call);
};

void WorkerCore::State::Prepare(const checkpoint::ModelDesc& desc) {
  int32_t num_experts_max = 0;
  for (const checkpoint::MoeLayerSpec& layer : desc.moe.layers) {
    num_experts_max = std::max(num_experts_max, layer.num_experts);
  }
  CONCLAVE_CHECK(num_experts_max <= UINT16_MAX && desc.num_layers <= UINT16_MAX);
  CONCLAVE_CHECK(desc.moe.io_dim <= UINT16_MAX);
  limits.max_rows = options.max_rows;
  limits.max_pairs = options.max_pairs;
  limits.row_width = static_cast<uint16_t>(desc.moe.io_dim);
  limits.dtype = options.dtype == DType::kF32 ? WireDtype::kF32 : WireDtype::kBf16;
  limits.num_layers = static_cast<uint16_t>(desc.num_layers);
  limits.num_experts_max = static_cast<uint16_t>(num_experts_max);
  limits.top_k = static_cast<uint16_t>(desc.moe.top_k);

  unit_of.assign(static_cast<size_t>(desc.num_layers) * num_experts_max, kNotMoe);
  for (const checkpoint::MoeLayerSpec& layer : desc.moe.layers) {
    std::fill_n(unit_of.begin() + int64_t{layer.layer} * num_experts_max, num_experts_max,
                kNotHeld);
  }
  for (size_t i = 0; i < units.size(); ++i) {
    unit_of[static_cast<size_t>(units[i].layer.value()) * num_experts_max +
            units[i].expert.value()] = static_cast<int32_t>(i);
  }
  counters = std::make_unique<std::atomic<uint64_t>[]>(units.size() * kCountersPerUnit);
  if (units.empty()) {
    return;
  }
  const size_t elements = size_t{limits.max_rows} * limits.row_width;
  ffn_scratch.emplace(desc.ffn, limits.max_rows, options.dtype);
  gathered = AlignedBuffer(elements * SizeOf(limits.dtype));
  outputs = AlignedBuffer(elements * sizeof(float));
  if (options.dtype == DType::kBf16) {
    sums = AlignedBuffer(elements * sizeof(float));
  }
  is_open.resize(limits.max_rows);
  segments.reserve(limits.max_pairs);
}

absl::Status WorkerCore::State::FindSegments(const CallView& call) {
  segments.clear();
  const size_t layer_at = static_cast<size_t>(call.layer.value()) * limits.num_experts_max;
  for (size_t p = 0; p < call.pair_expert.size(); ++p) {
    if (p > 0 && call.pair_expert[p] == call.pair_expert[p - 1]) {
      ++segments.back().count;
      continue;
    }
    const int32_t unit = unit_of[layer_at + call.pair_expert[p]];
    // Which expert it was stays out of the message: routing is the user's data (SR-21).
    if (unit == kNotMoe) {
      return InvalidArgument("no_such_layer",
                             "call: layer " + std::to_string(call.layer.value()) +
                                 ": expected a layer with experts, found a dense one");
    }
    if (unit == kNotHeld) {
      return NotFound("not_held", "call: layer " + std::to_string(call.layer.value()) +
                                      ": expected experts held by this worker, found another");
    }
    segments.push_back({unit, p, 1});
  }
  return absl::OkStatus();
}

// The call's own rows where they already lie one after another (one row, or all of them), else
// gathered ones.
template <typename Wire>
MatView<const Wire> WorkerCore::State::RowsOf(const CallView& call, const Segment& segment) {
  const int64_t width = limits.row_width;
  const Wire* rows = reinterpret_cast<const Wire*>(call.rows.data());
  const std::span<const uint16_t> row_of = call.pair_row.subspan(segment.first, segment.count);
  const int64_t num_rows = static_cast<int64_t>(segment.count);
  // Rows ascend strictly, so the ends say whether there is a gap.
  if (row_of.back() - row_of.front() == num_rows - 1) {
    return {rows + row_of.front() * width, num_rows, width};
  }
  Wire* gathered_rows = gathered.As<Wire>();
  ForEachRow(*options.compute.pool, num_rows, [&](int64_t i) {
    std::memcpy(gathered_rows + i * width, rows + row_of[i] * width, width * sizeof(Wire));
  });
  return {gathered_rows, num_rows, width};
}

template <typename Wire>
void WorkerCore::State::Compute(const CallView& call, ReplyView& reply) {
  // The loops over rows run on pool threads or here; all of them flush denormals, as the frontend's
  // combine does.
  const DenormalsOff denormals_off;
  constexpr bool kIsF32 = std::is_same_v<Wire, float>;
  const int64_t width = limits.row_width;
  ThreadPool& pool = *options.compute.pool;
  float* sum = kIsF32 ? reinterpret_cast<float*>(reply.rows.data()) : sums.As<float>();
  std::fill_n(is_open.begin(), call.num_rows, uint8_t{0});
  for (const Segment& segment : segments) {
    const MatView<const Wire> x = RowsOf<Wire>(call, segment);
    const MatView<float> y(outputs.As<float>(), x.rows, width);
    model::FfnForward(options.compute, weights[segment.unit], x, *ffn_scratch, y);
    ForEachRow(pool, x.rows, [&](int64_t i) {
      const size_t pair = segment.first + static_cast<size_t>(i);
      const uint16_t row = call.pair_row[pair];
      AddTerm<Wire>(y.Row(i), call.pair_weight[pair], is_open[row] == 0, width, sum + row * width);
      is_open[row] = 1;
    });
  }
  if constexpr (!kIsF32) {
    Bf16* out = reinterpret_cast<Bf16*>(reply.rows.data());
    ForEachRow(pool, call.num_rows, [&](int64_t row) {
      for (int64_t c = row * width; c < (row + 1) * width; ++c) {
        out[c] = ToBf16(sum[c]);
      }
    });
  }
}

void WorkerCore::State::Count(const CallView& call) {
  const bool is_repeat = call.seq != 0 && call.seq == counted_seq && call.slot == counted_slot &&
                         call.frontend == counted_frontend;
  if (is_repeat) {
    return;
  }
  counted_frontend = call.frontend;
  counted_slot = call.slot;
  counted_seq = call.seq;
  for (const Segment& segment : segments) {
    const auto begin = call.pair_row.begin() + static_cast<std::ptrdiff_t>(segment.first);
    const auto end = begin + static_cast<std::ptrdiff_t>(segment.count);
    const auto image = static_cast<uint64_t>(std::lower_bound(begin, end, call.image_rows) - begin);
    std::atomic<uint64_t>* unit = &counters[static_cast<size_t>(segment.unit) * kCountersPerUnit];
    unit[CounterOf(call.phase, true)].fetch_add(image, std::memory_order_relaxed);
    unit[CounterOf(call.phase, false)].fetch_add(segment.count - image, std::memory_order_relaxed);
  }
}

WorkerCore::WorkerCore(std::unique_ptr<State> state) : state_(std::move(state)) {}
WorkerCore::~WorkerCore() = default;

absl::StatusOr<std::unique_ptr<WorkerCore>> WorkerCore::Load(
    const checkpoint::Checkpoint& checkpoint, std::vector<ExpertUnit> units,
    const WorkerCoreOptions& options, const std::function<void(int64_t, int64_t)>& on_progress) {
  CONCLAVE_CHECK(options.dtype == DType::kF32 || options.dtype == DType::kBf16);
  CONCLAVE_CHECK(options.compute.table != nullptr && options.compute.pool != nullptr);
  CONCLAVE_CHECK(options.max_rows >= 1 && options.max_rows <= transport::kMaxRowsPerCall);
  const checkpoint::ModelDesc& desc = checkpoint.desc();
  std::sort(units.begin(), units.end());
  CONCLAVE_RETURN_IF_ERROR(CheckUnits(desc, units));

  auto state = std::make_unique<State>();
  state->options = options;
  state->units = std::move(units);
  state->Prepare(desc);
  const int64_t total = static_cast<int64_t>(state->units.size());
  for (const ExpertUnit unit : state->units) {
    const std::string prefix =
        checkpoint::ExpertPrefix(desc.names, unit.layer.value(), unit.expert.value());
    CONCLAVE_ASSIGN_OR_RETURN(
        model::FfnWeights expert,
        model::LoadFfn(checkpoint, prefix, desc.moe.io_dim, options.dtype, *options.compute.pool));
    state->weights.push_back(std::move(expert));
    if (on_progress) {
      on_progress(static_cast<int64_t>(state->weights.size()), total);
    }
  }
  CONCLAVE_RETURN_IF_ERROR(checkpoint.VerifyUnchanged());
  return std::unique_ptr<WorkerCore>(new WorkerCore(std::move(state)));
}

absl::Status WorkerCore::Execute(const CallView& call, ReplyView& reply) {
  State& s = *state_;
  CONCLAVE_RETURN_IF_ERROR(transport::ValidateCall(call, s.limits));
  CONCLAVE_CHECK(reply.rows.size() == call.rows.size());
  CONCLAVE_RETURN_IF_ERROR(s.FindSegments(call));
  if (!transport::AllFinite(call.rows, call.dtype)) {
    return InvalidArgument("nonfinite_input", "call: layer " + std::to_string(call.layer.value()) +
                                                  ": expected finite rows, found NaN or infinity");
  }
  if (call.dtype == WireDtype::kF32) {
    s.Compute<float>(call, reply);
  } else {
    s.Compute<Bf16>(call, reply);
  }
  s.Count(call);
  return absl::OkStatus();
}

std::vector<ExpertLoad> WorkerCore::Loads() const {
  std::vector<ExpertLoad> loads;
  loads.reserve(state_->units.size());
  for (size_t i = 0; i < state_->units.size(); ++i) {
    ExpertLoad load{.unit = state_->units[i], .rows = {}};
    const std::atomic<uint64_t>* unit = &state_->counters[i * kCountersPerUnit];
    for (const transport::Phase phase : {transport::Phase::kDecode, transport::Phase::kPrefill}) {
      for (const bool is_image : {false, true}) {
        load.rows[static_cast<size_t>(phase)][is_image ? 1 : 0] =
            unit[CounterOf(phase, is_image)].load(std::memory_order_relaxed);
      }
    }
    loads.push_back(load);
  }
  return loads;
}

size_t WorkerCore::weight_bytes() const {
  size_t bytes = 0;
  for (const model::FfnWeights& expert : state_->weights) {
    bytes += expert.size_bytes();
  }
  return bytes;
}

}  // namespace conclave::expert_worker
