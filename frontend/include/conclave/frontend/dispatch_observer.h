// What a dispatcher tells of every attempt of a call, and of every layer: for traces and for the
// view of stragglers.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "conclave/base/clock.h"
#include "conclave/base/ids.h"

namespace conclave::frontend {

// How an attempt ended.
enum class AttemptEnd : uint8_t {
  kAnswered,   // combined
  kOvertaken,  // the call's other attempt was answered first
  kTimeout,
  kLinkLost,
  kRefused,    // AttemptRecord::code says how
  kAbandoned,  // the layer failed for another reason
};

struct AttemptRecord {
  WorkerId worker;  // below 0: the frontend itself, as a rescue
  size_t link = 0;  // the dispatcher's index of the worker, which it keeps
  int32_t layer = 0;
  uint8_t micro_batch = 0;
  bool is_prefill = false;
  bool is_inline = false;  // computed on the engine's thread: there is no network
  bool is_hedge = false;
  int32_t number = 0;  // of the call's attempts, from 0
  int32_t rows = 0;
  int32_t image_rows = 0;
  AttemptEnd end = AttemptEnd::kAnswered;
  absl::StatusCode code = absl::StatusCode::kOk;
  MonotonicTime sent_at;
  // When it ended, as seen by the frontend: it may have been busy when an answer arrived.
  MonotonicTime ended_at;
  // Of an answer, by the worker's clock: waiting, and computing. And what is left of the round
  // trip, which is free of the frontend's own delay where that can be told.
  std::chrono::microseconds queue{0};
  std::chrono::microseconds service{0};
  std::chrono::microseconds network{0};
  // Of the call's first attempt: a retry or a hedge makes up for that worker.
  WorkerId first_worker;
  size_t first_link = 0;
  MonotonicTime first_sent_at;

  // When the answer was there.
  MonotonicTime arrived_at() const { return sent_at + queue + service + network; }
};

// A layer's end.
struct LayerRecord {
  int32_t layer = 0;
  uint8_t micro_batch = 0;
  bool is_ok = false;
  // From when on the frontend did nothing but wait for it; the layer's begin where the caller
  // drives the dispatcher in pieces.
  MonotonicTime awaited_at;
  MonotonicTime ended_at;
};

// Called on the engine's thread, some thousand times a second: must neither block nor, while
// nothing fails, allocate.
class DispatchObserver {
 public:
  virtual ~DispatchObserver() = default;
  // When it ends, in the order of ends. Attempts of a layer come before its OnLayer, with the same
  // micro-batch.
  virtual void OnAttempt(const AttemptRecord& record) = 0;
  virtual void OnLayer(const LayerRecord& record) = 0;
};

}  // namespace conclave::frontend
