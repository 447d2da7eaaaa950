#include "conclave/frontend/dispatcher.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <tuple>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "conclave/kernels/elementwise.h"
#include "conclave/tensor/aligned_buffer.h"

namespace conclave::frontend {
namespace {

using model::GateChoice;
using model::StepRow;
using transport::CallSlot;
using transport::WireDtype;

// A call that waits for its answer, and the step rows behind its rows.
struct Pending {
  size_t link = 0;
  CallSlot* slot = nullptr;
  int64_t first_row = 0;  // into State::call_rows
  int64_t num_rows = 0;
};

struct Pair {
  uint16_t expert;
  uint16_t row;  // of the call
  float weight;
};

}  // namespace

struct Dispatcher::State {
  DispatcherOptions options;
  std::shared_ptr<const placement::Placement> placement;
  std::vector<Link> links;

  AlignedBuffer wire_rows;          // [max_rows, io_dim] in the wire dtype
  std::vector<size_t> pair_link;    // [max_rows · top_k] index into links
  std::vector<int32_t> call_rows;   // step rows of all calls of the layer, call after call
  std::vector<uint8_t> terms_seen;  // per step row
  std::vector<Pair> pairs;          // of the call being built
  std::vector<Pending> pending;     // dispatched and not combined, oldest first
  size_t row_bytes = 0;

  absl::Status ChooseWorkers(int32_t layer, const GateChoice& choice);
  size_t LinkOf(WorkerId worker) const;
  // Appends the step rows that have a pair on `link` in `phase`, image rows first, to call_rows.
  void CollectRows(size_t link, bool is_prefill, std::span<const StepRow> rows);
  absl::Status Send(int32_t layer, size_t link, int64_t first, int64_t count,
                    std::span<const StepRow> rows, const GateChoice& choice, MatView<float> out);
  void FillPairs(size_t link, int64_t first, int64_t count, const GateChoice& choice,
                 CallSlot& slot);
  // Awaits the oldest call and adds its rows to `out`.
  absl::Status Finish(MatView<float> out);
  void Combine(const Pending& call, MatView<float> out);
  void AbandonAll();
};

Dispatcher::Dispatcher(const DispatcherOptions& options,
                       std::shared_ptr<const placement::Placement> placement,
                       std::vector<Link> links)
    : state_(std::make_unique<State>()) {
  CONCLAVE_CHECK(options.top_k == 1 || options.top_k == 2);
  State& s = *state_;
  s.options = options;
  s.placement = std::move(placement);
  s.links = std::move(links);
  s.row_bytes = static_cast<size_t>(options.io_dim) * (options.wire == WireDtype::kBf16 ? 2 : 4);
  s.wire_rows = AlignedBuffer(s.row_bytes * static_cast<size_t>(options.max_rows));
  const auto max_pairs = static_cast<size_t>(options.max_rows) * static_cast<size_t>(options.top_k);
  s.pair_link.resize(max_pairs);
  s.call_rows.reserve(max_pairs);
  s.terms_seen.resize(static_cast<size_t>(options.max_rows));
  size_t slots = 0;
  for (const Link& link : s.links) {
    CONCLAVE_CHECK(link.channel->limits().row_width == options.io_dim);
    CONCLAVE_CHECK(link.channel->limits().max_pairs >=
                   link.channel->limits().max_rows * options.top_k);
    s.pairs.reserve(std::max<size_t>(s.pairs.capacity(), link.channel->limits().max_pairs));
    slots += link.channel->limits().num_slots;
  }
  s.pending.reserve(slots);
}

Dispatcher::~Dispatcher() = default;

size_t Dispatcher::State::LinkOf(WorkerId worker) const {
  const auto it = std::find_if(links.begin(), links.end(),
                               [worker](const Link& link) { return link.worker == worker; });
  return static_cast<size_t>(it - links.begin());
}

absl::Status Dispatcher::State::ChooseWorkers(int32_t layer, const GateChoice& choice) {
  for (int64_t r = 0; r < choice.experts.rows; ++r) {
    for (int32_t k = 0; k < options.top_k; ++k) {
      const placement::ExpertUnit unit{LayerId(layer), ExpertId(choice.experts.Row(r)[k])};
      const std::span<const WorkerId> holders = placement->WorkersOf(unit);
      size_t chosen = links.size();
      for (const WorkerId worker : holders) {
        const size_t link = LinkOf(worker);
        if (link == links.size()) {
          continue;
        }
        // Fewest workers per row: a worker that already gets the row costs no second copy of it.
        const bool has_row = k > 0 && pair_link[static_cast<size_t>(r * options.top_k)] == link;
        if (chosen == links.size() || has_row) {
          chosen = link;
        }
      }
      if (chosen == links.size()) {
        return Error(absl::StatusCode::kUnavailable, "expert_unserved",
                     "layer " + std::to_string(layer) + " expert " +
                         std::to_string(unit.expert.value()) +
                         ": no worker serves it; expected at least one replica");
      }
      pair_link[static_cast<size_t>(r * options.top_k + k)] = chosen;
    }
  }
  return absl::OkStatus();
}

void Dispatcher::State::CollectRows(size_t link, bool is_prefill, std::span<const StepRow> rows) {
  for (const bool wants_image : {true, false}) {
    for (size_t r = 0; r < rows.size(); ++r) {
      if (rows[r].is_prefill != is_prefill || rows[r].is_image != wants_image) {
        continue;
      }
      const auto first = pair_link.begin() + static_cast<ptrdiff_t>(r) * options.top_k;
      if (std::find(first, first + options.top_k, link) != first + options.top_k) {
        call_rows.push_back(static_cast<int32_t>(r));
      }
    }
  }
}

void Dispatcher::State::FillPairs(size_t link, int64_t first, int64_t count,
                                  const GateChoice& choice, CallSlot& slot) {
  pairs.clear();
  for (int64_t i = 0; i < count; ++i) {
    const int32_t r = call_rows[static_cast<size_t>(first + i)];
    for (int32_t k = 0; k < options.top_k; ++k) {
      if (pair_link[static_cast<size_t>(r * options.top_k + k)] == link) {
        pairs.push_back({static_cast<uint16_t>(choice.experts.Row(r)[k]), static_cast<uint16_t>(i),
                         choice.weights.Row(r)[k]});
      }
    }
  }
  std::sort(pairs.begin(), pairs.end(), [](const Pair& a, const Pair& b) {
    return std::tie(a.expert, a.row) < std::tie(b.expert, b.row);
  });
  for (size_t i = 0; i < pairs.size(); ++i) {
    slot.pair_weight[i] = pairs[i].weight;
    slot.pair_row[i] = pairs[i].row;
    slot.pair_expert[i] = pairs[i].expert;
  }
}

absl::Status Dispatcher::State::Send(int32_t layer, size_t link, int64_t first, int64_t count,
                                     std::span<const StepRow> rows, const GateChoice& choice,
                                     MatView<float> out) {
  transport::ExpertChannel& channel = *links[link].channel;
  CallSlot* slot = channel.Acquire();
  while (slot == nullptr) {
    CONCLAVE_CHECK(!pending.empty());
    CONCLAVE_RETURN_IF_ERROR(Finish(out));
    slot = channel.Acquire();
  }
  FillPairs(link, first, count, choice, *slot);
  uint16_t image_rows = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t r = call_rows[static_cast<size_t>(first + i)];
    image_rows =
        static_cast<uint16_t>(image_rows + (rows[static_cast<size_t>(r)].is_image ? 1 : 0));
    std::memcpy(slot->rows.data() + static_cast<size_t>(i) * row_bytes,
                wire_rows.As<std::byte>() + static_cast<size_t>(r) * row_bytes, row_bytes);
  }
  transport::CallView& call = slot->call;
  call.epoch = placement->epoch();
  call.layer = LayerId(layer);
  call.phase = rows[static_cast<size_t>(call_rows[static_cast<size_t>(first)])].is_prefill
                   ? transport::Phase::kPrefill
                   : transport::Phase::kDecode;
  call.image_rows = image_rows;
  call.dtype = options.wire;
  call.row_width = static_cast<uint16_t>(options.io_dim);
  call.num_rows = static_cast<uint16_t>(count);
  call.pair_weight = slot->pair_weight.first(pairs.size());
  call.pair_row = slot->pair_row.first(pairs.size());
  call.pair_expert = slot->pair_expert.first(pairs.size());
  call.rows = slot->rows.first(static_cast<size_t>(count) * row_bytes);
  slot->reply.rows = slot->reply_rows.first(static_cast<size_t>(count) * row_bytes);
  if (absl::Status status = channel.Dispatch(slot); !status.ok()) {
    channel.Release(slot);
    return Annotate(std::move(status), "layer " + std::to_string(layer) + " on worker " +
                                           std::to_string(links[link].worker.value()));
  }
  pending.push_back({link, slot, first, count});
  return absl::OkStatus();
}

absl::Status Dispatcher::State::Finish(MatView<float> out) {
  const Pending call = pending.front();
  pending.erase(pending.begin());
  transport::ExpertChannel& channel = *links[call.link].channel;
  absl::Status status = channel.Await(call.slot);
  if (status.ok()) {
    Combine(call, out);
  } else {
    status = Annotate(std::move(status), "layer " + std::to_string(call.slot->call.layer.value()) +
                                             " on worker " +
                                             std::to_string(links[call.link].worker.value()));
  }
  channel.Release(call.slot);
  return status;
}

void Dispatcher::State::Combine(const Pending& call, MatView<float> out) {
  const int64_t dim = options.io_dim;
  const bool is_bf16 = options.wire == WireDtype::kBf16;
  options.compute.pool->ParallelFor(call.num_rows, [&](int64_t i) {
    const int32_t r = call_rows[static_cast<size_t>(call.first_row + i)];
    float* sum = out.Row(r);
    const bool is_first = terms_seen[static_cast<size_t>(r)] == 0;
    const std::byte* reply = call.slot->reply.rows.data() + static_cast<size_t>(i) * row_bytes;
    if (is_bf16) {
      const auto* term = reinterpret_cast<const Bf16*>(reply);
      if (is_first) {
        std::transform(term, term + dim, sum, [](Bf16 t) { return ToFloat(t); });
      } else {
        std::transform(term, term + dim, sum, sum,
                       [](Bf16 t, float s) { return ToFloat(ToBf16(ToFloat(t) + s)); });
      }
    } else {
      const auto* term = reinterpret_cast<const float*>(reply);
      if (is_first) {
        std::copy_n(term, dim, sum);
      } else {
        std::transform(term, term + dim, sum, sum, [](float t, float s) { return t + s; });
      }
    }
    ++terms_seen[static_cast<size_t>(r)];
  });
}

void Dispatcher::State::AbandonAll() {
  for (const Pending& call : pending) {
    links[call.link].channel->Cancel(call.slot);
    links[call.link].channel->Release(call.slot);
  }
  pending.clear();
}

absl::Status Dispatcher::Run(int32_t layer, MatView<const float> n, std::span<const StepRow> rows,
                             const GateChoice& choice, MatView<float> out) {
  State& s = *state_;
  const auto num_rows = static_cast<int64_t>(rows.size());
  CONCLAVE_CHECK(num_rows <= s.options.max_rows && n.rows == num_rows &&
                 n.cols == s.options.io_dim);
  if (s.options.wire == WireDtype::kBf16) {
    kernels::RoundToBf16(s.options.compute, n,
                         MatView<Bf16>(s.wire_rows.As<Bf16>(), num_rows, n.cols, n.cols));
  } else {
    for (int64_t r = 0; r < num_rows; ++r) {
      std::copy_n(n.Row(r), n.cols, s.wire_rows.As<float>() + r * n.cols);
    }
  }
  CONCLAVE_RETURN_IF_ERROR(s.ChooseWorkers(layer, choice));
  std::fill_n(s.terms_seen.begin(), rows.size(), uint8_t{0});
  s.call_rows.clear();
  absl::Status status;
  // Decode calls first: they are short and somebody waits for each of their rows.
  for (const bool is_prefill : {false, true}) {
    for (size_t link = 0; link < s.links.size() && status.ok(); ++link) {
      auto first = static_cast<int64_t>(s.call_rows.size());
      s.CollectRows(link, is_prefill, rows);
      const auto end = static_cast<int64_t>(s.call_rows.size());
      while (first < end && status.ok()) {
        const int64_t count =
            std::min<int64_t>(end - first, s.links[link].channel->limits().max_rows);
        status = s.Send(layer, link, first, count, rows, choice, out);
        first += count;
      }
    }
  }
  while (status.ok() && !s.pending.empty()) {
    status = s.Finish(out);
  }
  s.AbandonAll();
  return status;
}

}  // namespace conclave::frontend
