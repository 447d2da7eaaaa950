#include "slot_memory.h"

#include <algorithm>
#include <string>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "conclave/transport/rows.h"
#include "frame_io.h"

namespace conclave::transport {
namespace {

template <typename T>
bool IsPrefix(std::span<const T> used, std::span<T> memory) {
  return used.size() <= memory.size() && (used.empty() || used.data() == memory.data());
}

size_t MaxRowBytes(const ChannelLimits& limits) {
  return RowBytes(limits.max_rows, limits.row_width, limits.dtype);
}

}  // namespace

void CheckLimits(const ChannelLimits& limits) {
  CONCLAVE_CHECK(limits.num_slots >= 1 && limits.max_rows >= 1 && limits.max_pairs >= 1);
  CONCLAVE_CHECK(limits.row_width >= 1 && limits.max_rows <= kMaxRowsPerCall);
}

size_t SlotBytes(const ChannelLimits& limits) {
  return AlignUp(PairBytes(limits.max_pairs)) + 2 * AlignUp(MaxRowBytes(limits));
}

void LayOutSlot(const ChannelLimits& limits, std::byte* memory, CallSlot& slot) {
  const size_t pairs = limits.max_pairs;
  const size_t row_bytes = MaxRowBytes(limits);
  slot.pair_weight = {reinterpret_cast<float*>(memory), pairs};
  slot.pair_row = {reinterpret_cast<uint16_t*>(memory + 4 * pairs), pairs};
  slot.pair_expert = {reinterpret_cast<uint16_t*>(memory + 6 * pairs), pairs};
  std::byte* rows = memory + AlignUp(PairBytes(pairs));
  slot.rows = {rows, row_bytes};
  slot.reply_rows = {rows + AlignUp(row_bytes), row_bytes};
}

void StampCall(const ChannelLimits& limits, uint32_t frontend, uint32_t index, uint64_t seq,
               CallView& call) {
  call.frontend = frontend;
  call.slot = index;
  call.seq = seq;
  call.row_width = limits.row_width;
  call.dtype = limits.dtype;
}

absl::Status CheckSpans(const ChannelLimits& limits, const CallSlot& slot) {
  const CallView& call = slot.call;
  const bool is_within = IsPrefix(call.pair_weight, slot.pair_weight) &&
                         IsPrefix(call.pair_row, slot.pair_row) &&
                         IsPrefix(call.pair_expert, slot.pair_expert) &&
                         IsPrefix(call.rows, slot.rows) && call.num_rows <= limits.max_rows;
  if (!is_within) {
    return InvalidArgument("bad_items",
                           "call: expected spans that are prefixes of the slot's memory and at "
                           "most " +
                               std::to_string(limits.max_rows) + " rows, found others");
  }
  return absl::OkStatus();
}

uint32_t MicrosecondsBetween(MonotonicTime from, MonotonicTime to) {
  const auto us = std::chrono::duration_cast<std::chrono::microseconds>(to - from).count();
  return static_cast<uint32_t>(std::clamp<int64_t>(us, 0, UINT32_MAX));
}

}  // namespace conclave::transport
