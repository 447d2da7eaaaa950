// The only thing the frontend's layer loop sees of a worker: dispatch a call, get its rows back or
// an error, cancel. All implementations (inproc, grpc, ucx) carry the same header,
// epoch, deadline and idempotence key, so one encoder, one parser and one fuzz corpus serve them
// all (frame.h).
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/base/clock.h"
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
  // Of a call that the worker refused: the epoch that it is in, and who it knows to hold what it
  // does not. Until Release. Empty after any other end, and where a channel carries no NACKs.
  Epoch worker_epoch;
  std::span<const WorkerId> holders;
};

struct ChannelLimits {
  uint16_t num_slots = 4;
  uint16_t max_rows = 256;   // per call
  uint16_t max_pairs = 512;  // per call: max_rows · top_k
  uint16_t row_width = 0;
  WireDtype dtype = WireDtype::kBf16;
};

// What a link has carried and what was wrong with it; only grows.
struct LinkCounters {
  uint64_t bytes_sent = 0;      // of frames, as handed to the network
  uint64_t bytes_received = 0;  // likewise
  uint64_t late_replies = 0;    // to calls that were cancelled, or answered before
  uint64_t malformed = 0;       // frames that were none
};

// What is known of a link without its owner's help.
struct LinkSigns {
  absl::Status status;                    // as LinkStatus
  std::optional<MonotonicTime> heard_at;  // nullopt: the worker has not been asked
};

// One frontend's link to one worker. Owned and used by one thread, the frontend's engine, but for
// CheckOn.
class ExpertChannel {
 public:
  virtual ~ExpertChannel() = default;

  virtual const ChannelLimits& limits() const = 0;

  // A free slot, or null when all are in flight.
  virtual CallSlot* Acquire() = 0;

  // Sends slot->call, whose spans the caller has set to prefixes of the slot's memory. Does not
  // block. kUnavailable ("link_lost") on a link that is gone.
  virtual absl::Status Dispatch(CallSlot* slot) = 0;

  // How a dispatched call ended: OK with slot->reply filled, kUnavailable ("link_lost"), or what
  // the worker refused it with; nullopt while it is under way. Does not block; drives the channel's
  // progress. Deadlines are the caller's matter. The inproc channel computes the call here, on the
  // caller's thread and its pool. Once it has given a status it is not asked again.
  virtual std::optional<absl::Status> Poll(CallSlot* slot) = 0;

  // Poll until there is a status; kDeadlineExceeded ("deadline") when call.deadline_us (0: none)
  // has passed since Dispatch: the call is then still to be cancelled.
  virtual absl::Status Await(CallSlot* slot) = 0;

  // OK, or why no call can be sent any more (kUnavailable, "link_lost"). A link that is lost stays
  // lost: a new channel takes its place.
  virtual absl::Status LinkStatus() const = 0;

  // Gives up a dispatched call and tells the worker; a late reply is dropped. The slot is still to
  // be released.
  virtual void Cancel(CallSlot* slot) = 0;

  virtual void Release(CallSlot* slot) = 0;

  // Asks the worker for a sign of life, without blocking; nothing while the last one is unanswered.
  // Whoever answers is not the thread that computes.
  virtual void Ping() {}

  // Asks the worker for a sign of life, as Ping does, and says what has come of it so far. Any
  // thread, while the channel lives. A channel that only its owner can drive asks when that does.
  virtual LinkSigns CheckOn() { return {}; }

  // When anything last came from the worker; never in the past where it is in this process.
  virtual MonotonicTime last_heard() const { return MonotonicTime::max(); }

  // Of the last PING that was answered; 0 before that.
  virtual std::chrono::nanoseconds ping_round_trip() const { return std::chrono::nanoseconds(0); }

  virtual LinkCounters counters() const { return {}; }

  // What carries the frames: "inproc", "grpc" or "ucx".
  virtual const char* name() const { return "inproc"; }

  // What its bytes go over: "inproc", "grpc", of ucx "shm" (shared memory) or "tcp". A constant.
  virtual const char* carrier() const { return name(); }
};

}  // namespace conclave::transport
