// ExpertChannel within one process: the embedded default and the base of every unit test.
//
// A slot goes FREE → FILLED (Acquire) → DISPATCHED → DONE (Await) or CANCELLED → FREE (Release); a
// step out of turn is a broken invariant. The channel, not the caller, writes frontend, slot, seq,
// row_width and dtype into the call; seq grows with every Acquire of a slot and starts at 1.
#pragma once

#include <memory>

#include "conclave/base/clock.h"
#include "conclave/transport/expert_channel.h"

namespace conclave::transport {

struct InprocOptions {
  // num_slots, max_rows, max_pairs and row_width are at least 1; max_rows <= kMaxRowsPerCall of
  // frame.h.
  ChannelLimits limits;
  uint32_t frontend = 0;
  // Encode every call, reply and refusal to the frames of frame.h and parse them again, with CRC
  // over the payload, and deliver each call twice ("paranoid"): on in debug and test builds, so
  // that every test exercises the protocol. The handler then runs twice per call, and its counters
  // count both; the second reply is compared with the first and dropped.
  bool use_frames = false;
  // What calls are checked against beside `limits`, with frames and in debug builds (FrameLimits).
  uint16_t num_layers = 0xffff;
  uint16_t num_experts_max = 0xffff;
  uint16_t top_k = 2;
  float gate_bound = 1.0f;
  // Measures queue and service time and expires deadlines. Outlives the channel.
  const Clock* clock = &Clock::Real();
};

// `handler` outlives the channel. Several channels of one thread may share a handler. All memory is
// allocated here; without frames, dispatching and awaiting a good call allocates nothing (the
// handler willing).
//
// Beside the handler's errors Await returns kDeadlineExceeded ("deadline") for a call whose
// deadline_us (0: none) had passed before it was computed, kCancelled ("cancelled"), kInternal
// ("numeric_error") for a reply with NaN or infinity, and with frames kInternal ("frame_differs",
// "duplicate_differs", "protocol_violation") when the protocol lost something. After an error
// slot->reply.rows is empty.
std::unique_ptr<ExpertChannel> MakeInprocChannel(CallHandler& handler,
                                                 const InprocOptions& options);

}  // namespace conclave::transport
