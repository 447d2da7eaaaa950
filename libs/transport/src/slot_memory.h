// The memory of a channel's slots, and the checks that every channel makes of what a caller put
// there.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "conclave/base/clock.h"
#include "conclave/transport/expert_channel.h"
#include "conclave/transport/frame.h"

namespace conclave::transport {

#if !defined(NDEBUG) || defined(CONCLAVE_FAILPOINTS)
inline constexpr bool kValidatesCalls = true;
#else
inline constexpr bool kValidatesCalls = false;
#endif

// Aborts unless all counts are at least 1 and max_rows is within kMaxRowsPerCall.
void CheckLimits(const ChannelLimits& limits);

// Bytes of one slot's arrays, rows and reply rows.
size_t SlotBytes(const ChannelLimits& limits);

// Points the slot's writable views into `memory`, which has SlotBytes and is 64-byte aligned.
void LayOutSlot(const ChannelLimits& limits, std::byte* memory, CallSlot& slot);

// What the channel and not the caller writes into a call.
void StampCall(const ChannelLimits& limits, uint32_t frontend, uint32_t index, uint64_t seq,
               CallView& call);

// kInvalidArgument ("bad_items") unless the call's spans are prefixes of the slot's memory and its
// rows are within the limits.
absl::Status CheckSpans(const ChannelLimits& limits, const CallSlot& slot);

// Clamped to what a frame's field holds.
uint32_t MicrosecondsBetween(MonotonicTime from, MonotonicTime to);

}  // namespace conclave::transport
