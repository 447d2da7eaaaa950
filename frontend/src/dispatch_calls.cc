// From the gate's choice to calls: which worker gets which rows, at first and after a failure.
#include <algorithm>
#include <cstring>
#include <optional>
#include <tuple>

#include "conclave/base/check.h"
#include "conclave/base/planted_bug.h"
#include "conclave/base/status.h"
#include "conclave/transport/rows.h"
#include "dispatch_state.h"

namespace conclave::frontend {

using model::GateChoice;
using model::StepRow;
using transport::CallSlot;
using transport::ExpertChannel;
using transport::WireDtype;

// Chooses a link for each expert that rows of this phase want; in prefill, where an expert's rows
// are many, one for each part of them.
void Dispatcher::MicroBatch::AssignPhase(bool is_prefill) {
  std::fill(s.rows_of.begin(), s.rows_of.end(), 0);
  s.order.clear();
  const int32_t top_k = s.options.top_k;
  for (size_t r = 0; r < rows.size(); ++r) {
    if (rows[r].is_prefill != is_prefill) {
      continue;
    }
    const int32_t* experts = choice->experts.Row(static_cast<int64_t>(r));
    for (int32_t k = 0; k < top_k; ++k) {
      CONCLAVE_CHECK(experts[k] >= 0 && static_cast<size_t>(experts[k]) < s.rows_of.size());
      pair_link[r * static_cast<size_t>(top_k) + static_cast<size_t>(k)] = -1;
      if (s.rows_of[static_cast<size_t>(experts[k])]++ == 0) {
        s.order.push_back(experts[k]);
      }
    }
  }
  std::sort(s.order.begin(), s.order.end(), [this](int32_t a, int32_t b) {
    const int32_t rows_a = s.rows_of[static_cast<size_t>(a)];
    const int32_t rows_b = s.rows_of[static_cast<size_t>(b)];
    return rows_a != rows_b ? rows_a > rows_b : a < b;
  });
  const MonotonicTime now = s.Now();
  s.table.BeginChoice();
  for (const int32_t expert : s.order) {
    const placement::ExpertUnit unit{LayerId(layer), ExpertId(expert)};
    LinkTable::Demand demand;
    demand.rows = s.rows_of[static_cast<size_t>(expert)];
    demand.is_prefill = is_prefill;
    std::fill(s.rows_elsewhere.begin(), s.rows_elsewhere.end(), 0);
    if (top_k == 2 && s.placement->WorkersOf(unit).size() > 1) {
      for (size_t r = 0; r < rows.size(); ++r) {
        if (rows[r].is_prefill != is_prefill) {
          continue;
        }
        if (const int32_t link = LinkOfOther(r, expert); link >= 0) {
          ++s.rows_elsewhere[static_cast<size_t>(link)];
          ++demand.rows_placed;
        }
      }
    }
    demand.rows_elsewhere = s.rows_elsewhere;
    s.parts.clear();
    std::optional<size_t> link;
    if (!is_prefill || !s.table.ChooseParts(*s.placement, unit, demand, LinkSet(), now, s.parts)) {
      link = s.table.Choose(*s.placement, unit, demand, LinkSet(), now);
    }
    // Rows of an expert that nobody serves now travel in a call of their own, which waits.
    AssignRows(expert, is_prefill, link ? static_cast<int32_t>(*link) : -1);
  }
}

// The link of row `r`'s other expert, when the row has `expert` and the other is assigned; else -1.
int32_t Dispatcher::MicroBatch::LinkOfOther(size_t r, int32_t expert) const {
  const int32_t* experts = choice->experts.Row(static_cast<int64_t>(r));
  return experts[0] == expert ? pair_link[2 * r + 1] : experts[1] == expert ? pair_link[2 * r] : -1;
}

void Dispatcher::MicroBatch::AssignRows(int32_t expert, bool is_prefill, int32_t link) {
  const auto top_k = static_cast<size_t>(s.options.top_k);
  // Where the row's other expert is first, so that most rows travel once; what is left in order.
  for (const bool is_beside_other : {true, false}) {
    if (is_beside_other && (s.parts.empty() || top_k != 2)) {
      continue;
    }
    for (size_t r = 0; r < rows.size(); ++r) {
      const int32_t* experts = choice->experts.Row(static_cast<int64_t>(r));
      if (rows[r].is_prefill != is_prefill) {
        continue;
      }
      for (size_t k = 0; k < top_k; ++k) {
        int32_t& target = pair_link[r * top_k + k];
        if (experts[k] != expert || target >= 0) {
          continue;
        }
        if (s.parts.empty()) {
          target = link;
          continue;
        }
        const int32_t beside = is_beside_other ? LinkOfOther(r, expert) : -1;
        const auto part = std::find_if(s.parts.begin(), s.parts.end(), [&](const auto& p) {
          return p.rows > 0 && (!is_beside_other || static_cast<int32_t>(p.link) == beside);
        });
        if (part != s.parts.end()) {
          --part->rows;
          target = static_cast<int32_t>(part->link);
        }
      }
    }
  }
}

void Dispatcher::MicroBatch::AppendCall(size_t link, bool is_prefill, size_t first_row,
                                        size_t num_rows) {
  Call call;
  call.is_prefill = is_prefill;
  call.first_row = first_row;
  call.num_rows = num_rows;
  call.first_pair = call_pairs.size();
  call.give_up_at = s.Now() + s.options.call_deadline;
  call.link = link;
  const bool is_served = link < s.table.size();
  const auto wanted = is_served ? static_cast<int32_t>(link) : -1;
  for (size_t i = 0; i < num_rows; ++i) {
    const auto r = static_cast<size_t>(call_rows[first_row + i]);
    call.image_rows = static_cast<uint16_t>(call.image_rows + (rows[r].is_image ? 1 : 0));
    for (int32_t k = 0; k < s.options.top_k; ++k) {
      if (pair_link[r * static_cast<size_t>(s.options.top_k) + static_cast<size_t>(k)] == wanted) {
        call_pairs.push_back(
            {static_cast<uint16_t>(choice->experts.Row(static_cast<int64_t>(r))[k]),
             static_cast<uint16_t>(i), choice->weights.Row(static_cast<int64_t>(r))[k]});
      }
    }
  }
  call.num_pairs = call_pairs.size() - call.first_pair;
  const auto begin = call_pairs.begin() + static_cast<std::ptrdiff_t>(call.first_pair);
  std::sort(begin, call_pairs.end(), [](const Pair& a, const Pair& b) {
    return std::tie(a.expert, a.row) < std::tie(b.expert, b.row);
  });
  for (auto it = begin; it != call_pairs.end(); ++it) {
    call.num_experts = static_cast<uint16_t>(
        call.num_experts + (it == begin || it->expert != std::prev(it)->expert ? 1 : 0));
  }
  if (!is_served) {
    Unserve(call);
  }
  calls.push_back(call);
  ++num_open;
}

// Rows of one link and phase, image rows first, cut into calls; then those that no link serves.
void Dispatcher::MicroBatch::BuildCalls(bool is_prefill) {
  for (size_t link = 0; link <= s.table.size(); ++link) {
    const bool is_served = link < s.table.size();
    if (is_served && !s.table[link].is_up()) {
      continue;
    }
    const auto wanted = is_served ? static_cast<int32_t>(link) : -1;
    const size_t first = call_rows.size();
    for (const bool wants_image : {true, false}) {
      for (size_t r = 0; r < rows.size(); ++r) {
        if (rows[r].is_prefill != is_prefill || rows[r].is_image != wants_image) {
          continue;
        }
        const auto pair = pair_link.begin() + static_cast<std::ptrdiff_t>(r) * s.options.top_k;
        if (std::find(pair, pair + s.options.top_k, wanted) != pair + s.options.top_k) {
          call_rows.push_back(static_cast<int32_t>(r));
        }
      }
    }
    const size_t end = call_rows.size();
    const size_t most = is_served ? s.table[link].link.channel->limits().max_rows
                                  : transport::ChannelLimits().max_rows;
    for (size_t at = first; at < end; at += most) {
      AppendCall(link, is_prefill, at, std::min(most, end - at));
    }
  }
}

void Dispatcher::MicroBatch::Unserve(Call& call) {
  if (call.state != CallState::kUnserved) {
    ++s.waits;
    call.unserved_at = s.Now();
  }
  call.state = CallState::kUnserved;
}

void Dispatcher::MicroBatch::Fill(const Call& call, CallSlot& slot) {
  for (size_t i = 0; i < call.num_pairs; ++i) {
    const Pair& pair = call_pairs[call.first_pair + i];
    slot.pair_weight[i] = pair.weight;
    slot.pair_row[i] = pair.row;
    slot.pair_expert[i] = pair.expert;
  }
  for (size_t i = 0; i < call.num_rows; ++i) {
    const auto r = static_cast<size_t>(call_rows[call.first_row + i]);
    std::memcpy(slot.rows.data() + i * s.row_bytes, wire_rows.As<std::byte>() + r * s.row_bytes,
                s.row_bytes);
  }
  transport::CallView& view = slot.call;
  view.epoch = s.placement->epoch();
  view.layer = LayerId(layer);
  view.phase = call.is_prefill ? transport::Phase::kPrefill : transport::Phase::kDecode;
  view.micro_batch = index;
  view.attempt = static_cast<uint8_t>(call.num_attempts);
  view.image_rows = call.image_rows;
  view.dtype = s.options.wire;
  view.row_width = static_cast<uint16_t>(s.options.io_dim);
  view.num_rows = static_cast<uint16_t>(call.num_rows);
  view.pair_weight = slot.pair_weight.first(call.num_pairs);
  view.pair_row = slot.pair_row.first(call.num_pairs);
  view.pair_expert = slot.pair_expert.first(call.num_pairs);
  view.rows = slot.rows.first(call.num_rows * s.row_bytes);
  slot.reply.rows = slot.reply_rows.first(call.num_rows * s.row_bytes);
}

bool Dispatcher::State::IsServed(placement::ExpertUnit unit, const LinkSet& excluded) const {
  const auto workers = placement->WorkersOf(unit);
  return std::any_of(workers.begin(), workers.end(), [&](WorkerId worker) {
    const std::optional<size_t> link = table.Find(worker);
    return link && table[*link].is_up() && !excluded.test(*link);
  });
}

bool Dispatcher::MicroBatch::Rescue(const Call& call) {
  if (!s.rescue_link ||
      (s.rescued.empty() && s.Now() - call.unserved_at < s.options.rescue_after)) {
    return false;
  }
  for (size_t i = 0; i < call.num_pairs; ++i) {
    const placement::ExpertUnit unit{LayerId(layer),
                                     ExpertId(call_pairs[call.first_pair + i].expert)};
    if (s.options.rescue->Holds(unit) || s.IsServed(unit, call.refused)) {
      continue;
    }
    s.rescue_status = s.options.rescue->Load(unit);
    if (!s.rescue_status.ok()) {
      return false;
    }
    s.rescued.push_back(unit);
  }
  return true;
}

void Dispatcher::State::EndRescues() {
  const auto served = std::stable_partition(
      rescued.begin(), rescued.end(),
      [this](placement::ExpertUnit unit) { return placement == nullptr || !IsServed(unit, {}); });
  if (served != rescued.end()) {
    options.rescue->Retire({served, rescued.end()});
    rescued.erase(served, rescued.end());
  }
}

// Finds a link for every expert of `call`, in link_of; none if one has no replica.
std::optional<Dispatcher::MicroBatch::ChosenLinks> Dispatcher::MicroBatch::ChooseLinks(
    const Call& call, bool avoids_tried, MonotonicTime now) {
  ChosenLinks chosen;
  for (size_t i = 0; i < call.num_pairs;) {
    const uint16_t expert = call_pairs[call.first_pair + i].expert;
    size_t end = i;
    while (end < call.num_pairs && call_pairs[call.first_pair + end].expert == expert) {
      ++end;
    }
    LinkTable::Demand demand;
    demand.rows = static_cast<int>(end - i);
    demand.is_prefill = call.is_prefill;
    demand.rows_elsewhere = s.rows_elsewhere;
    std::optional<size_t> link =
        s.table.Choose(*s.placement, {LayerId(layer), ExpertId(expert)}, demand,
                       avoids_tried ? call.tried | call.refused : call.refused, now);
    if (!link && s.rescue_link && s.options.rescue->Holds({LayerId(layer), ExpertId(expert)})) {
      link = s.rescue_link;
    }
    if (!link) {
      return std::nullopt;
    }
    if (i == 0) {
      chosen.first_link = *link;
    }
    chosen.is_whole = chosen.is_whole && *link == chosen.first_link;
    s.link_of[expert] = static_cast<int32_t>(*link);
    i = end;
  }
  return chosen;
}

// Finds links for a call that has none, as one call or as one per link.
void Dispatcher::MicroBatch::Split(size_t call_index) {
  const MonotonicTime now = s.Now();
  if (calls[call_index].needs_token) {
    if (!s.SpendToken(now)) {
      calls[call_index].not_before = s.budget.NextToken(now);
      return;
    }
    calls[call_index].needs_token = false;
    // The wait for a token was not one for a worker.
    calls[call_index].unserved_at = now;
  }
  const Call call = calls[call_index];  // a copy: calls may grow
  s.table.BeginChoice();
  std::fill(s.rows_elsewhere.begin(), s.rows_elsewhere.end(), 0);
  std::fill(s.link_of.begin(), s.link_of.end(), -1);
  std::optional<ChosenLinks> chosen = ChooseLinks(call, true, now);
  if (!chosen) {
    chosen = ChooseLinks(call, false, now);
  }
  if (!chosen) {
    return;  // it goes on waiting
  }
  const size_t first_link = chosen->first_link;
  if (chosen->is_whole && call.num_rows <= s.table[first_link].link.channel->limits().max_rows) {
    calls[call_index].link = first_link;
    calls[call_index].state = CallState::kToSend;
    return;
  }
  calls[call_index].state = CallState::kDone;
  --num_open;
  Divide(call);
}

// Every pair of `call` goes to a new call: by link, in the order of rows, cut at what the link
// takes.
void Dispatcher::MicroBatch::Divide(const Call& call) {
  for (size_t link = 0; link < s.table.size(); ++link) {
    const size_t most = s.table[link].is_up() ? s.table[link].link.channel->limits().max_rows : 1;
    size_t row = 0;
    while (row < call.num_rows) {
      Call part = call;
      part.first_row = call_rows.size();
      part.num_rows = 0;
      part.image_rows = 0;
      part.first_pair = call_pairs.size();
      part.num_experts = 0;
      part.link = link;
      part.state = CallState::kToSend;
      for (; row < call.num_rows && part.num_rows < most; ++row) {
        const size_t pairs_before = call_pairs.size();
        for (size_t i = 0; i < call.num_pairs; ++i) {
          const Pair pair = call_pairs[call.first_pair + i];
          if (pair.row == row && s.link_of[pair.expert] == static_cast<int32_t>(link)) {
            call_pairs.push_back({pair.expert, static_cast<uint16_t>(part.num_rows), pair.weight});
          }
        }
        if (call_pairs.size() > pairs_before) {
          const int32_t step_row = call_rows[call.first_row + row];
          call_rows.push_back(step_row);
          ++part.num_rows;
          part.image_rows = static_cast<uint16_t>(
              part.image_rows + (rows[static_cast<size_t>(step_row)].is_image ? 1 : 0));
        }
      }
      part.num_pairs = call_pairs.size() - part.first_pair;
      if (part.num_rows == 0 ||
          (CONCLAVE_PLANTED_BUG("split_loses_a_part") && link + 1 == s.table.size())) {
        continue;
      }
      const auto begin = call_pairs.begin() + static_cast<std::ptrdiff_t>(part.first_pair);
      std::sort(begin, call_pairs.end(), [](const Pair& a, const Pair& b) {
        return std::tie(a.expert, a.row) < std::tie(b.expert, b.row);
      });
      for (auto it = begin; it != call_pairs.end(); ++it) {
        part.num_experts = static_cast<uint16_t>(
            part.num_experts + (it == begin || it->expert != std::prev(it)->expert ? 1 : 0));
      }
      calls.push_back(part);
      ++num_open;
    }
  }
}

void Dispatcher::MicroBatch::Combine(const Call& call, const CallSlot& slot) {
  const int64_t dim = s.options.io_dim;
  const bool is_bf16 = s.options.wire == WireDtype::kBf16;
  s.options.compute.pool->ParallelFor(static_cast<int64_t>(call.num_rows), [&](int64_t i) {
    const int32_t r = call_rows[call.first_row + static_cast<size_t>(i)];
    float* sum = out.Row(r);
    const bool is_first = terms_seen[static_cast<size_t>(r)] == 0;
    const std::byte* reply = slot.reply.rows.data() + static_cast<size_t>(i) * s.row_bytes;
    if (is_bf16) {
      const auto* term = reinterpret_cast<const Bf16*>(reply);
      if (is_first) {
        std::transform(term, term + dim, sum, [](Bf16 t) { return ToFloat(t); });
      } else {
        std::transform(term, term + dim, sum, sum,
                       [](Bf16 t, float before) { return ToFloat(ToBf16(ToFloat(t) + before)); });
      }
    } else {
      const auto* term = reinterpret_cast<const float*>(reply);
      if (is_first) {
        std::copy_n(term, dim, sum);
      } else {
        std::transform(term, term + dim, sum, sum,
                       [](float t, float before) { return t + before; });
      }
    }
    ++terms_seen[static_cast<size_t>(r)];
  });
}

}  // namespace conclave::frontend
