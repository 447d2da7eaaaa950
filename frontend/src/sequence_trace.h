// The engine's spans of a traced request: of each of its sequences "queue", "prefill" and "decode",
// below these "step", and below some of the steps "dispatch", one per attempt of a call, with the
// worker's own "expert_worker.compute".
//
// How many there are is bounded: of a request that goes on for an hour too. Nothing here is called
// for a sequence that is not traced.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "conclave/base/clock.h"
#include "conclave/frontend/chat.h"
#include "conclave/frontend/engine.h"
#include "conclave/frontend/step_trace.h"
#include "conclave/model/decoder.h"
#include "conclave/observability/trace.h"

namespace conclave::frontend {

struct Sequence;

// Of one sequence. The engine's thread, once it is submitted.
class SequenceTrace {
 public:
  explicit SequenceTrace(std::shared_ptr<observability::RequestTrace> request);

  // It gets its first rows in the next step. Again after a preemption.
  void OnAdmitted(MonotonicTime now);
  void OnPreempted(MonotonicTime now);
  void OnToken(MonotonicTime now);
  // The last call: adds its spans.
  void OnEnd(FinishReason reason, const absl::Status& status, const SequenceStats& stats,
             MonotonicTime submitted, MonotonicTime now);

 private:
  friend class StepSpans;

  void AddEvent(std::string_view name, MonotonicTime now,
                std::vector<observability::SpanAttribute> attributes = {});

  const std::shared_ptr<observability::RequestTrace> request_;
  const observability::SpanId prefill_id_, decode_id_;
  std::optional<MonotonicTime> admitted_;  // the first time
  std::optional<MonotonicTime> first_token_;
  MonotonicTime last_token_;
  std::chrono::nanoseconds longest_gap_{0};
  int32_t num_tokens_ = 0;
  std::vector<observability::SpanEvent> events_;  // of "decode"
  int32_t num_prefill_steps_ = 0;
  int32_t num_decode_steps_ = 0;
  int32_t num_steps_told_ = 0;     // spans, of quiet steps
  int32_t num_troubles_told_ = 0;  // and of those with a retry, timeout or hedge
};

// A step that has run.
struct StepFacts {
  MonotonicTime start, end;
  bool is_divided = false;
  absl::Status status;
};

// Whether a row of the step belongs to a traced sequence; `attempts` (may be null) then begins to
// keep what the dispatcher tells.
bool BeginTracedStep(std::span<Sequence* const> row_sequence, StepTrace* attempts);

// Behind a step for which that was true, before its tokens are given out: records the step once, if
// at all, below the first sequence that has a wish for it, with links to the other traced requests.
void EndTracedStep(const StepFacts& step, std::span<Sequence* const> row_sequence,
                   std::span<const model::StepRow> rows, StepTrace* attempts);

}  // namespace conclave::frontend
