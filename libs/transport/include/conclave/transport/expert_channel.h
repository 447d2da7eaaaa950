// The only thing the frontend's layer loop sees of a worker: dispatch a call, get its rows back or
// an error, cancel. All implementations (inproc; later ucx, grpc, nccl) carry the same header,
// epoch, deadline and idempotence key, so one encoder, one parser and one fuzz corpus serve them
// all (frame.h).
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/base/ids.h"
#include "conclave/tensor/dtype.h"

namespace conclave::transport {

enum class Phase : uint8_t { kDecode, kPrefill };

// Element type of rows on the wire; also the rounding of every expert term, in every deployment
// (data-plane section 4).
enum class WireDtype : uint8_t { kF32, kBf16 };

// All rows of one (frontend, micro-batch, layer, phase) that go to one worker, each row once.
// Views; the memory belongs to the slot that the call is made in. Invariants, checked by
// ValidateCall (frame.h) wherever a call comes from outside:
//   pair_expert ascending; within an expert pair_row ascending; no (row, expert) twice; image rows
//   come first.
struct CallView {
  Epoch epoch;
  uint32_t frontend = 0;
  uint32_t slot = 0;
  uint64_t seq = 0;  // idempotence key with (frontend, slot): strictly increasing
  uint16_t model = 0;
  LayerId layer;
  Phase phase = Phase::kDecode;
  uint8_t micro_batch = 0;
  uint8_t attempt = 0;
  uint32_t deadline_us = 0;  // from receipt
  uint16_t image_rows = 0;   // rows [0, image_rows) are image tokens
  WireDtype dtype = WireDtype::kBf16;
  uint16_t row_width = 0;                 // elements; the experts' io_dim
  std::span<const float> pair_weight;     // [pairs], applied by the worker
  std::span<const uint16_t> pair_row;     // [pairs]
  std::span<const uint16_t> pair_expert;  // [pairs], the model's own expert ids
  std::span<const std::byte> rows;        // [num_rows, row_width] in `dtype`, 64-byte aligned
  uint16_t num_rows = 0;
};

// The answer: out[r] = wire(Σ over the row's pairs in this call, ascending expert, of wire(w_e ·
// y_e)); with one or two pairs per row the sum is exact in either order of workers.
struct ReplyView {
  std::span<std::byte> rows;  // [num_rows, row_width] in the call's dtype, 64-byte aligned
  uint32_t service_us = 0;
  uint32_t queue_us = 0;
};

// Executes calls: a worker core. Called by a channel on one thread at a time.
class CallHandler {
 public:
  virtual ~CallHandler() = default;
  // kNotFound ("not_held") when an expert of the call is not held here; kInvalidArgument
  // ("bad_items", "shape_mismatch", "nonfinite_input") never retry.
  virtual absl::Status Execute(const CallView& call, ReplyView& reply) = 0;
};

// Memory of one call in flight, allocated once per channel. The frontend fills `call`'s arrays
// through the mutable views, dispatches, awaits, reads `reply`, releases.
struct CallSlot {
  CallView call;
  ReplyView reply;
  // Writable memory behind call's spans, sized for the channel's limits.
  std::span<float> pair_weight;
  std::span<uint16_t> pair_row;
  std::span<uint16_t> pair_expert;
  std::span<std::byte> rows;
  std::span<std::byte> reply_rows;
};

struct ChannelLimits {
  uint16_t num_slots = 4;
  uint16_t max_rows = 256;   // per call
  uint16_t max_pairs = 512;  // per call: max_rows · top_k
  uint16_t row_width = 0;
  WireDtype dtype = WireDtype::kBf16;
};

// One frontend's link to one worker. Owned and used by one thread, the frontend's engine.
class ExpertChannel {
 public:
  virtual ~ExpertChannel() = default;

  virtual const ChannelLimits& limits() const = 0;

  // A free slot, or null when all are in flight.
  virtual CallSlot* Acquire() = 0;

  // Sends slot->call, whose spans the caller has set to prefixes of the slot's memory. Does not
  // block.
  virtual absl::Status Dispatch(CallSlot* slot) = 0;

  // Blocks until the reply is in slot->reply or the call failed (kDeadlineExceeded, kUnavailable,
  // or what the handler returned). The inproc channel computes the call here, on the caller's
  // thread and its pool.
  virtual absl::Status Await(CallSlot* slot) = 0;

  // Gives up a dispatched call; a late reply is dropped. The slot is still to be released.
  virtual void Cancel(CallSlot* slot) = 0;

  virtual void Release(CallSlot* slot) = 0;
};

}  // namespace conclave::transport
