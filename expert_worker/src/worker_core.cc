#include "conclave/expert_worker/worker_core.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/base/failpoint.h"
#include "conclave/base/mutex.h"
#include "conclave/base/status.h"
#include "conclave/base/thread_pool.h"
#include "conclave/checkpoint/expert_hash.h"
#include "conclave/checkpoint/tensor_list.h"
#include "conclave/kernels/elementwise.h"
#include "conclave/model/ffn.h"
#include "conclave/tensor/aligned_buffer.h"
#include "conclave/transport/call_server.h"
#include "conclave/transport/rows.h"
#include "held_set.h"

namespace conclave::expert_worker {
namespace {

using placement::ExpertUnit;
using transport::CallView;
using transport::ReplyView;
using transport::WireDtype;

// Experts whose networks run together.
constexpr size_t kExpertsPerLoop = 64;

// Rows per task of the loops over rows. Few enough that two threads share a prefill call evenly,
// many enough that a task outweighs its hand-over.
constexpr int64_t kRowsPerTask = 8;

// [phase][modality] counters of one unit.
constexpr size_t kCountersPerUnit = 4;
constexpr size_t CounterOf(transport::Phase phase, bool is_image) {
  return (phase == transport::Phase::kPrefill ? 2u : 0u) + (is_image ? 1u : 0u);
}

// The pairs [first, first + count) of a call of the batch: all of one expert.
struct Piece {
  uint32_t unit = 0;
  uint16_t call = 0;
  uint16_t first = 0;
  uint16_t count = 0;
};

// Where the i-th row of an expert's batch comes from and goes to.
struct Target {
  uint16_t call = 0;
  uint16_t pair = 0;
};

std::string Describe(ExpertUnit unit) {
  return "layer " + std::to_string(unit.layer.value()) + " expert " +
         std::to_string(unit.expert.value());
}

absl::Status CheckUnit(const UnitTable& table, ExpertUnit unit) {
  return table.Has(unit)
             ? absl::OkStatus()
             : InvalidArgument("placement_unknown_unit",
                               "worker: expected experts of the model, found " + Describe(unit));
}

absl::Status CheckExpected(const HeldExpert& found, const ExpectedExpert& expected) {
  if (expected.weight_hash.has_value() && *expected.weight_hash != found.weight_hash) {
    return Error(absl::StatusCode::kFailedPrecondition, "wrong_weights",
                 "worker: " + Describe(found.unit) +
                     ": the checkpoint here has other weights than those of the other replicas");
  }
  if (expected.canary_checksum.has_value() && *expected.canary_checksum != found.canary_checksum) {
    return Error(absl::StatusCode::kFailedPrecondition, "canary_mismatch",
                 "worker: " + Describe(found.unit) +
                     ": the canary row gives another answer than on the other replicas");
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

}  // namespace

struct WorkerCore::State {
  State(const checkpoint::ModelDesc& desc, const WorkerCoreOptions& core_options);

  const WorkerCoreOptions options;
  const UnitTable table;
  const size_t expert_bytes;
  transport::FrameLimits limits;
  std::unique_ptr<std::atomic<uint64_t>[]> counters;  // [table.size()][kCountersPerUnit]

  mutable Mutex held_mu;  // guards a pointer copy
  std::shared_ptr<const HeldSet> held ABSL_GUARDED_BY(held_mu);
  // Odd while a batch is computed: what was held when it became odd may be in use until it changes.
  std::atomic<uint64_t> batches{0};

  Mutex loader_mu;  // one loader at a time
  Canary canary ABSL_GUARDED_BY(loader_mu);
  ThreadPool loader_pool{1};

  // The compute thread's. The call that was counted last: one that is delivered twice loads the
  // experts once.
  uint64_t counted_frontend = 0;
  uint64_t counted_slot = 0;
  uint64_t counted_seq = 0;  // 0: none; channels number calls from 1
  // Scratch of one batch.
  std::optional<model::FfnScratch> ffn_scratch;
  AlignedBuffer gathered;        // [max_merged_rows, width] wire
  AlignedBuffer outputs;         // [max_merged_rows, width] f32
  AlignedBuffer sums;            // likewise; in f32 mode the replies themselves serve
  std::vector<uint8_t> is_open;  // [max_merged_rows] whether a row has a term yet
  std::vector<uint32_t> row_at;  // [max_merged_calls] a call's first row in sums and is_open
  std::vector<Piece> pieces;     // capacity: the pairs of max_merged_calls
  std::vector<Target> targets;   // [max_merged_rows]

  std::shared_ptr<const HeldSet> Snapshot() const {
    MutexLock lock(held_mu);
    return held;
  }
  void Publish(std::shared_ptr<const HeldSet> next) {
    MutexLock lock(held_mu);
    held.swap(next);
  }

  absl::Status Check(const CallView& call, uint16_t index, const HeldSet& set);
  absl::Status FindPieces(const CallView& call, uint16_t index, const HeldSet& set);
  absl::Status Compute(std::span<MergedCall> calls, const HeldSet& set);
  template <typename Wire>
  absl::Status ComputeAs(std::span<MergedCall> calls, const HeldSet& set);
  std::span<const Piece> GroupAt(size_t begin) const;
  template <typename Wire>
  MatView<const Wire> RowsOf(std::span<const MergedCall> calls, std::span<const Piece> group,
                             int64_t first);
  void Count(const CallView& call, uint16_t index);
};

WorkerCore::State::State(const checkpoint::ModelDesc& desc, const WorkerCoreOptions& core_options)
    : options(core_options),
      table(desc),
      expert_bytes(model::FfnBytes(desc.ffn, desc.moe.io_dim, options.dtype)),
      canary(desc, options.dtype, options.compute.table) {
  CONCLAVE_CHECK(desc.moe.io_dim <= UINT16_MAX);
  limits.max_rows = options.max_rows;
  limits.max_pairs = options.max_pairs;
  limits.row_width = static_cast<uint16_t>(desc.moe.io_dim);
  limits.dtype = transport::WireDtypeOf(options.dtype);
  limits.num_layers = static_cast<uint16_t>(desc.num_layers);
  limits.num_experts_max = static_cast<uint16_t>(table.num_experts_max());
  limits.top_k = static_cast<uint16_t>(desc.moe.top_k);

  auto empty = std::make_shared<HeldSet>();
  empty->expert_of.resize(table.size());
  held = std::move(empty);
  counters = std::make_unique<std::atomic<uint64_t>[]>(table.size() * kCountersPerUnit);
  if (table.size() == 0) {
    return;
  }
  const size_t max_rows = std::max(options.max_rows, options.max_merged_rows);
  const size_t elements = max_rows * limits.row_width;
  ffn_scratch.emplace(desc.ffn, desc.moe.io_dim, static_cast<int64_t>(max_rows), options.dtype);
  gathered = AlignedBuffer(elements * SizeOf(limits.dtype));
  outputs = AlignedBuffer(elements * sizeof(float));
  if (limits.dtype != WireDtype::kF32) {
    sums = AlignedBuffer(elements * sizeof(float));
  }
  is_open.resize(max_rows);
  targets.resize(max_rows);
  row_at.resize(options.max_merged_calls);
  pieces.reserve(size_t{options.max_pairs} * options.max_merged_calls);
}

absl::Status WorkerCore::State::FindPieces(const CallView& call, uint16_t index,
                                           const HeldSet& set) {
  const size_t layer_at = table.IndexOf(call.layer.value(), 0);
  // Which expert it was stays out of the messages: routing is the user's data (SR-21).
  if (!table.IsMoe(call.layer.value())) {
    return InvalidArgument("no_such_layer", "call: layer " + std::to_string(call.layer.value()) +
                                                ": expected a layer with experts, found a dense "
                                                "one");
  }
  for (size_t p = 0; p < call.pair_expert.size(); ++p) {
    if (p > 0 && call.pair_expert[p] == call.pair_expert[p - 1]) {
      ++pieces.back().count;
      continue;
    }
    const size_t unit = layer_at + call.pair_expert[p];
    if (set.expert_of[unit] == nullptr) {
      return NotFound("not_held", "call: layer " + std::to_string(call.layer.value()) +
                                      ": expected experts held by this worker, found another");
    }
    pieces.push_back({static_cast<uint32_t>(unit), index, static_cast<uint16_t>(p), 1});
  }
  return absl::OkStatus();
}

absl::Status WorkerCore::State::Check(const CallView& call, uint16_t index, const HeldSet& set) {
  CONCLAVE_RETURN_IF_ERROR(transport::ValidateCall(call, limits));
  const size_t num_pieces = pieces.size();
  absl::Status status = FindPieces(call, index, set);
  if (status.ok() && !transport::AllFinite(call.rows, call.dtype)) {
    status =
        InvalidArgument("nonfinite_input", "call: layer " + std::to_string(call.layer.value()) +
                                               ": expected finite rows, found NaN or infinity");
  }
  if (!status.ok()) {
    pieces.resize(num_pieces);
  }
  return status;
}

// The pieces of the expert that the piece `begin` is of.
std::span<const Piece> WorkerCore::State::GroupAt(size_t begin) const {
  size_t end = begin + 1;
  while (end < pieces.size() && pieces[end].unit == pieces[begin].unit) {
    ++end;
  }
  return std::span(pieces).subspan(begin, end - begin);
}

// One expert's rows over all calls: where they lie when they already lie one after another (one
// call's only row, or all of them), else gathered from row `first` on. Fills targets from there on.
template <typename Wire>
MatView<const Wire> WorkerCore::State::RowsOf(std::span<const MergedCall> calls,
                                              std::span<const Piece> group, int64_t first) {
  const int64_t width = limits.row_width;
  Target* const target = targets.data() + first;
  int64_t num_rows = 0;
  for (const Piece& piece : group) {
    for (uint16_t p = 0; p < piece.count; ++p) {
      target[num_rows++] = {piece.call, static_cast<uint16_t>(piece.first + p)};
    }
  }
  const auto row_of = [&](const Target& t) {
    const CallView& call = *calls[t.call].call;
    return reinterpret_cast<const Wire*>(call.rows.data()) + call.pair_row[t.pair] * width;
  };
  // A call's rows ascend strictly within an expert, so the ends say whether there is a gap.
  const Wire* start = row_of(target[0]);
  if (group.size() == 1 && row_of(target[num_rows - 1]) == start + (num_rows - 1) * width) {
    return {start, num_rows, width};
  }
  Wire* gathered_rows = gathered.As<Wire>() + first * width;
  ForEachRow(*options.compute.pool, num_rows, [&](int64_t i) {
    std::memcpy(gathered_rows + i * width, row_of(target[i]), width * sizeof(Wire));
  });
  return {gathered_rows, num_rows, width};
}

template <typename Wire>
absl::Status WorkerCore::State::ComputeAs(std::span<MergedCall> calls, const HeldSet& set) {
  // The loops over rows run on pool threads or here; all of them flush denormals, as the frontend's
  // combine does.
  const DenormalsOff denormals_off;
  constexpr bool kIsF32 = std::is_same_v<Wire, float>;
  const int64_t width = limits.row_width;
  ThreadPool& pool = *options.compute.pool;
  uint32_t num_rows = 0;
  for (size_t i = 0; i < calls.size(); ++i) {
    row_at[i] = num_rows;
    num_rows += calls[i].status.ok() ? calls[i].call->num_rows : 0;
  }
  std::fill_n(is_open.begin(), num_rows, uint8_t{0});
  // By expert, so that a row's terms are added in ascending order as in a call alone.
  std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) {
    return a.unit != b.unit ? a.unit < b.unit : a.call < b.call;
  });
  // As many experts together as the scratch has rows for.
  std::array<model::FfnCall<Wire>, kExpertsPerLoop> experts;
  for (size_t begin = 0; begin < pieces.size();) {
    size_t num_experts = 0;
    int64_t first_row = 0;
    size_t end = begin;
    while (end < pieces.size() && num_experts < kExpertsPerLoop) {
      const std::span<const Piece> group = GroupAt(end);
      int64_t rows_of_group = 0;
      for (const Piece& piece : group) {
        rows_of_group += piece.count;
      }
      if (first_row + rows_of_group > ffn_scratch->max_rows()) {
        break;
      }
      const MatView<const Wire> x = RowsOf<Wire>(calls, group, first_row);
      experts[num_experts++] = {&set.expert_of[group[0].unit]->weights, x,
                                MatView<float>(outputs.As<float>() + first_row * width, x.rows,
                                               width)};
      first_row += x.rows;
      end += group.size();
    }
    model::FfnForwardAll(options.compute,
                         std::span<const model::FfnCall<Wire>>(experts.data(), num_experts),
                         *ffn_scratch);
    const Target* target = targets.data();
    for (size_t e = 0; e < num_experts; ++e) {
      const MatView<const float> y = experts[e].y;
      ForEachRow(pool, y.rows, [&](int64_t i) {
        const CallView& call = *calls[target[i].call].call;
        const uint16_t row = call.pair_row[target[i].pair];
        const size_t at = row_at[target[i].call] + row;
        float* sum =
            kIsF32 ? reinterpret_cast<float*>(calls[target[i].call].reply->rows.data()) + row * width
                   : sums.As<float>() + static_cast<int64_t>(at) * width;
        kernels::AddTerm(options.compute, y.RowSpan(i), call.pair_weight[target[i].pair],
                         is_open[at] == 0, !kIsF32, {sum, static_cast<size_t>(width)});
        is_open[at] = 1;
      });
      target += y.rows;
      const FailpointHit hit = CONCLAVE_FAILPOINT(
          "w.mid_compute",
          {.layer = calls[0].call->layer.value(), .phase = transport::NameOf(calls[0].call->phase)});
      CONCLAVE_RETURN_IF_ERROR(hit.status());
    }
    begin = end;
  }
  for (size_t i = 0; !kIsF32 && i < calls.size(); ++i) {
    // Of a refused call nothing may be written.
    const int64_t rows = calls[i].status.ok() ? calls[i].call->num_rows : 0;
    kernels::RoundToBf16(
        options.compute,
        MatView<const float>(sums.As<float>() + int64_t{row_at[i]} * width, rows, width),
        MatView<Bf16>(reinterpret_cast<Bf16*>(calls[i].reply->rows.data()), rows, width));
  }
  return absl::OkStatus();
}

absl::Status WorkerCore::State::Compute(std::span<MergedCall> calls, const HeldSet& set) {
  return limits.dtype == WireDtype::kF32 ? ComputeAs<float>(calls, set)
                                         : ComputeAs<Bf16>(calls, set);
}

void WorkerCore::State::Count(const CallView& call, uint16_t index) {
  const bool is_repeat = call.seq != 0 && call.seq == counted_seq && call.slot == counted_slot &&
                         call.frontend == counted_frontend;
  if (is_repeat) {
    return;
  }
  counted_frontend = call.frontend;
  counted_slot = call.slot;
  counted_seq = call.seq;
  for (const Piece& piece : pieces) {
    if (piece.call != index) {
      continue;
    }
    const auto begin = call.pair_row.begin() + piece.first;
    const auto end = begin + piece.count;
    const auto image = static_cast<uint64_t>(std::lower_bound(begin, end, call.image_rows) - begin);
    std::atomic<uint64_t>* unit = &counters[size_t{piece.unit} * kCountersPerUnit];
    unit[CounterOf(call.phase, true)].fetch_add(image, std::memory_order_relaxed);
    unit[CounterOf(call.phase, false)].fetch_add(piece.count - image, std::memory_order_relaxed);
  }
}

WorkerCore::WorkerCore(std::unique_ptr<State> state) : state_(std::move(state)) {}
WorkerCore::~WorkerCore() = default;

std::unique_ptr<WorkerCore> WorkerCore::Create(const checkpoint::ModelDesc& desc,
                                               const WorkerCoreOptions& options) {
  CONCLAVE_CHECK(options.compute.table != nullptr && options.compute.pool != nullptr);
  CONCLAVE_CHECK(options.max_rows >= 1 && options.max_rows <= transport::kMaxRowsPerCall);
  CONCLAVE_CHECK(options.max_merged_calls >= 1);
  return std::unique_ptr<WorkerCore>(new WorkerCore(std::make_unique<State>(desc, options)));
}

absl::StatusOr<std::unique_ptr<WorkerCore>> WorkerCore::Load(
    const checkpoint::Checkpoint& checkpoint, std::vector<ExpertUnit> units,
    const WorkerCoreOptions& options, const std::function<void(int64_t, int64_t)>& on_progress) {
  std::unique_ptr<WorkerCore> core = Create(checkpoint.desc(), options);
  State& s = *core->state_;
  std::sort(units.begin(), units.end());
  for (size_t i = 0; i < units.size(); ++i) {
    CONCLAVE_RETURN_IF_ERROR(CheckUnit(s.table, units[i]));
    if (i > 0 && units[i] == units[i - 1]) {
      return InvalidArgument(
          "placement_duplicate",
          "worker: " + Describe(units[i]) + " is listed twice; expected each unit once");
    }
  }
  auto set = std::make_shared<HeldSet>(*s.Snapshot());
  int64_t num_done = 0;
  for (const ExpertUnit unit : units) {
    const checkpoint::ModelDesc& desc = checkpoint.desc();
    const std::string prefix =
        checkpoint::ExpertPrefix(desc.names, unit.layer.value(), unit.expert.value());
    auto expert = std::make_shared<LoadedExpert>();
    expert->about.unit = unit;
    CONCLAVE_ASSIGN_OR_RETURN(
        expert->weights,
        model::LoadFfn(checkpoint, prefix, desc.moe.io_dim, options.dtype, *options.compute.pool));
    set->expert_of[s.table.IndexOf(unit.layer.value(), unit.expert.value())] = std::move(expert);
    if (on_progress) {
      on_progress(++num_done, static_cast<int64_t>(units.size()));
    }
  }
  CONCLAVE_RETURN_IF_ERROR(checkpoint.VerifyUnchanged());
  s.Publish(std::move(set));
  return core;
}

absl::StatusOr<HeldExpert> WorkerCore::LoadExpert(const checkpoint::Checkpoint& checkpoint,
                                                  ExpertUnit unit, const ExpectedExpert& expected) {
  State& s = *state_;
  CONCLAVE_RETURN_IF_ERROR(CheckUnit(s.table, unit));
  const size_t index = s.table.IndexOf(unit.layer.value(), unit.expert.value());
  MutexLock loader(s.loader_mu);
  const std::shared_ptr<const HeldSet> before = s.Snapshot();
  if (before->expert_of[index] != nullptr) {
    const HeldExpert& about = before->expert_of[index]->about;
    CONCLAVE_RETURN_IF_ERROR(CheckExpected(about, expected));
    return about;
  }
  const size_t bytes_after = weight_bytes() + s.expert_bytes;
  if (s.options.memory_bytes > 0 && bytes_after > static_cast<size_t>(s.options.memory_bytes)) {
    return Error(absl::StatusCode::kResourceExhausted, "worker_memory",
                 "worker: " + Describe(unit) + " does not fit; needs " +
                     std::to_string(bytes_after) + " bytes with what is held, budget " +
                     std::to_string(s.options.memory_bytes));
  }
  const checkpoint::ModelDesc& desc = checkpoint.desc();
  auto expert = std::make_shared<LoadedExpert>();
  expert->about.unit = unit;
  CONCLAVE_ASSIGN_OR_RETURN(
      expert->about.weight_hash,
      checkpoint::HashExpert(checkpoint, unit.layer.value(), unit.expert.value()));
  CONCLAVE_ASSIGN_OR_RETURN(
      expert->weights,
      model::LoadFfn(checkpoint,
                     checkpoint::ExpertPrefix(desc.names, unit.layer.value(), unit.expert.value()),
                     desc.moe.io_dim, s.options.dtype, s.loader_pool));
  // The bytes were read twice: hashed and packed ones are the same when the file did not change.
  CONCLAVE_RETURN_IF_ERROR(checkpoint.VerifyUnchanged());
  expert->about.canary_checksum = s.canary.Checksum(expert->weights);
  CONCLAVE_RETURN_IF_ERROR(CheckExpected(expert->about, expected));
  const HeldExpert about = expert->about;
  auto set = std::make_shared<HeldSet>(*before);
  set->expert_of[index] = std::move(expert);
  s.Publish(std::move(set));
  return about;
}

int64_t WorkerCore::RetireExperts(std::span<const ExpertUnit> units) {
  State& s = *state_;
  MutexLock loader(s.loader_mu);
  std::vector<std::shared_ptr<const LoadedExpert>> retired;
  {
    auto set = std::make_shared<HeldSet>(*s.Snapshot());
    for (const ExpertUnit unit : units) {
      if (!s.table.Has(unit)) {
        continue;
      }
      auto& expert = set->expert_of[s.table.IndexOf(unit.layer.value(), unit.expert.value())];
      if (expert != nullptr) {
        retired.push_back(std::move(expert));
        expert = nullptr;
      }
    }
    s.Publish(std::move(set));
  }
  // A batch that began before has the old snapshot; one that begins now has the new one. Waited
  // for here, so that it is not the compute thread that gives the memory back.
  if (const uint64_t batch = s.batches.load(); batch % 2 == 1) {
    s.batches.wait(batch);
  }
  int64_t freed = 0;
  for (const std::shared_ptr<const LoadedExpert>& expert : retired) {
    freed += static_cast<int64_t>(expert->weights.size_bytes());
  }
  return freed;
}

absl::Status WorkerCore::RunCanary(ExpertUnit unit) {
  State& s = *state_;
  MutexLock loader(s.loader_mu);
  const std::shared_ptr<const HeldSet> set = s.Snapshot();
  if (!s.table.Has(unit)) {
    return absl::OkStatus();
  }
  const LoadedExpert* expert =
      set->expert_of[s.table.IndexOf(unit.layer.value(), unit.expert.value())].get();
  if (expert == nullptr || s.canary.Checksum(expert->weights) == expert->about.canary_checksum) {
    return absl::OkStatus();
  }
  return Error(absl::StatusCode::kFailedPrecondition, "canary_mismatch",
               "worker: " + Describe(unit) +
                   ": the canary row gives another answer than when it was loaded");
}

absl::Status WorkerCore::Execute(const CallView& call, ReplyView& reply) {
  MergedCall one;
  one.call = &call;
  one.reply = &reply;
  ExecuteMerged({&one, 1});
  return std::move(one.status);
}

void WorkerCore::ExecuteMerged(std::span<MergedCall> calls) {
  State& s = *state_;
  CONCLAVE_CHECK(!calls.empty() && calls.size() <= s.options.max_merged_calls);
  s.batches.fetch_add(1);  // odd, before the snapshot is taken: see RetireExperts
  {
    const std::shared_ptr<const HeldSet> set = s.Snapshot();
    s.pieces.clear();
    size_t num_rows = 0;
    const auto num_calls = static_cast<uint16_t>(calls.size());
    for (uint16_t i = 0; i < num_calls; ++i) {
      MergedCall& merged = calls[i];
      CONCLAVE_CHECK(merged.call->layer == calls[0].call->layer);
      merged.status = s.Check(*merged.call, i, *set);
      if (merged.status.ok()) {
        CONCLAVE_CHECK(merged.reply->rows.size() == merged.call->rows.size());
        num_rows += merged.call->num_rows;
      }
    }
    if (!s.pieces.empty()) {
      CONCLAVE_CHECK(num_rows <= s.is_open.size());
      const absl::Status status = s.Compute(calls, *set);
      for (uint16_t i = 0; i < num_calls; ++i) {
        if (calls[i].status.ok() && status.ok()) {
          s.Count(*calls[i].call, i);
        } else if (!status.ok()) {
          calls[i].status = status;
        }
      }
    }
  }
  s.batches.fetch_add(1);
  s.batches.notify_all();
}

bool WorkerCore::Holds(ExpertUnit unit) const {
  const State& s = *state_;
  return s.table.Has(unit) &&
         s.Snapshot()->expert_of[s.table.IndexOf(unit.layer.value(), unit.expert.value())] !=
             nullptr;
}

std::vector<HeldExpert> WorkerCore::Held() const {
  const std::shared_ptr<const HeldSet> set = state_->Snapshot();
  std::vector<HeldExpert> held;
  for (const std::shared_ptr<const LoadedExpert>& expert : set->expert_of) {
    if (expert != nullptr) {
      held.push_back(expert->about);
    }
  }
  return held;
}

std::vector<ExpertLoad> WorkerCore::Loads() const {
  const std::shared_ptr<const HeldSet> set = state_->Snapshot();
  std::vector<ExpertLoad> loads;
  for (size_t i = 0; i < set->expert_of.size(); ++i) {
    ExpertLoad load{.unit = state_->table.UnitAt(i), .rows = {}};
    const std::atomic<uint64_t>* unit = &state_->counters[i * kCountersPerUnit];
    uint64_t total = 0;
    for (const transport::Phase phase : {transport::Phase::kDecode, transport::Phase::kPrefill}) {
      for (const bool is_image : {false, true}) {
        uint64_t& rows = load.rows[static_cast<size_t>(phase)][is_image ? 1 : 0];
        rows = unit[CounterOf(phase, is_image)].load(std::memory_order_relaxed);
        total += rows;
      }
    }
    if (total > 0 || set->expert_of[i] != nullptr) {
      loads.push_back(load);
    }
  }
  return loads;
}

size_t WorkerCore::weight_bytes() const {
  const std::shared_ptr<const HeldSet> set = state_->Snapshot();
  size_t bytes = 0;
  for (const std::shared_ptr<const LoadedExpert>& expert : set->expert_of) {
    bytes += expert == nullptr ? 0 : expert->weights.size_bytes();
  }
  return bytes;
}

size_t WorkerCore::expert_bytes() const { return state_->expert_bytes; }

const transport::FrameLimits& WorkerCore::limits() const { return state_->limits; }

}  // namespace conclave::expert_worker
