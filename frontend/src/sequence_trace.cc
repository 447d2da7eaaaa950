#include "sequence_trace.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "chat_trace.h"
#include "conclave/base/status.h"
#include "sequence.h"

namespace conclave::frontend {

using observability::RequestTrace;
using observability::Span;
using observability::SpanKind;
using std::chrono::microseconds;
using std::chrono::nanoseconds;

namespace {

// Of the steps of a phase, the first and every so manyth has its dispatches recorded.
constexpr int32_t kDetailEvery = 32;
// Spans of steps that one sequence may have: of quiet ones, and of those in which a call failed.
constexpr int32_t kStepsMax = 64;
constexpr int32_t kTroublesMax = 32;
// One event per token for a short answer; of a longer one those that took longer than any before.
constexpr int32_t kTokensToldMax = 16;
constexpr size_t kEventsMax = 64;
constexpr size_t kLinksMax = 32;

const char* NameOf(AttemptEnd end) {
  switch (end) {
    case AttemptEnd::kAnswered:
      return "ok";
    case AttemptEnd::kOvertaken:
      return "overtaken";
    case AttemptEnd::kTimeout:
      return "timeout";
    case AttemptEnd::kLinkLost:
      return "link_lost";
    case AttemptEnd::kRefused:
      return "refused";
    case AttemptEnd::kAbandoned:
      break;
  }
  return "abandoned";
}

bool IsFailure(AttemptEnd end) {
  return end == AttemptEnd::kTimeout || end == AttemptEnd::kLinkLost || end == AttemptEnd::kRefused;
}

Span DispatchSpan(RequestTrace& request, const AttemptRecord& attempt,
                  const observability::SpanId& step) {
  const bool is_answered = attempt.end == AttemptEnd::kAnswered;
  // An answer may have lain there for a while; a failure is one when it is seen.
  const MonotonicTime end =
      is_answered && !attempt.is_inline ? attempt.arrived_at() : attempt.ended_at;
  Span span = request.MakeSpan("dispatch", attempt.sent_at, end, step);
  span.kind = SpanKind::kClient;
  span.attributes = {{"conclave.worker.id", attempt.worker.value()},
                     {"conclave.layer", attempt.layer},
                     {"conclave.phase", attempt.is_prefill ? "prefill" : "decode"},
                     {"conclave.micro_batch", int{attempt.micro_batch}},
                     {"conclave.rows", attempt.rows},
                     {"conclave.image_rows", attempt.image_rows},
                     {"conclave.attempt", attempt.number},
                     {"conclave.hedge", attempt.is_hedge},
                     {"conclave.result", NameOf(attempt.end)}};
  if (is_answered) {
    span.attributes.emplace_back("conclave.queue_us", int64_t{attempt.queue.count()});
    span.attributes.emplace_back("conclave.service_us", int64_t{attempt.service.count()});
    span.attributes.emplace_back("conclave.network_us", int64_t{attempt.network.count()});
  }
  if (IsFailure(attempt.end)) {
    span.is_error = true;
    span.error = attempt.code == absl::StatusCode::kOk ? NameOf(attempt.end)
                                                       : absl::StatusCodeToString(attempt.code);
  }
  return span;
}

// What the worker says of its own time. Its clock is another one, so the span is put where both
// ways of the network take equally long.
Span ComputeSpan(RequestTrace& request, const AttemptRecord& attempt,
                 const observability::SpanId& dispatch) {
  const MonotonicTime start = attempt.is_inline
                                  ? attempt.ended_at - attempt.service
                                  : attempt.sent_at + attempt.network / 2 + attempt.queue;
  Span span = request.MakeSpan("expert_worker.compute", std::max(start, attempt.sent_at),
                               start + attempt.service, dispatch);
  span.attributes = {{"conclave.worker.id", attempt.worker.value()},
                     {"conclave.layer", attempt.layer},
                     {"conclave.rows", attempt.rows},
                     {"conclave.queue_us", int64_t{attempt.queue.count()}}};
  return span;
}

}  // namespace

SequenceTrace::SequenceTrace(std::shared_ptr<RequestTrace> request)
    : request_(std::move(request)),
      prefill_id_(request_->NewSpanId()),
      decode_id_(request_->NewSpanId()) {}

void SequenceTrace::AddEvent(std::string_view name, MonotonicTime now,
                             std::vector<observability::SpanAttribute> attributes) {
  if (events_.size() < kEventsMax) {
    events_.push_back({name, request_->UnixNanos(now), std::move(attributes)});
  }
}

void SequenceTrace::OnAdmitted(MonotonicTime now) {
  if (!admitted_) {
    admitted_ = now;
  } else {
    AddEvent("resumed", now);
  }
}

void SequenceTrace::OnPreempted(MonotonicTime now) { AddEvent("preempted", now); }

void SequenceTrace::OnToken(MonotonicTime now) {
  ++num_tokens_;
  const nanoseconds gap = first_token_ ? nanoseconds(now - last_token_) : nanoseconds(0);
  if (!first_token_) {
    first_token_ = now;
  }
  last_token_ = now;
  const bool is_longest = gap > longest_gap_;
  longest_gap_ = std::max(longest_gap_, gap);
  if (num_tokens_ <= kTokensToldMax || is_longest) {
    AddEvent("token", now,
             {{"conclave.index", num_tokens_ - 1},
              {"conclave.gap_us", int64_t{std::chrono::duration_cast<microseconds>(gap).count()}}});
  }
}

void SequenceTrace::OnEnd(FinishReason reason, const absl::Status& status,
                          const SequenceStats& stats, MonotonicTime submitted, MonotonicTime now) {
  std::vector<Span> spans;
  spans.push_back(
      request_->MakeSpan("queue", submitted, admitted_.value_or(now), request_->context().span_id));
  if (admitted_) {
    spans.push_back(request_->MakeSpan("prefill", *admitted_, first_token_.value_or(now),
                                       request_->context().span_id));
    spans.back().id = prefill_id_;
    spans.back().attributes = {{"gen_ai.usage.prompt_tokens", stats.prompt_rows},
                               {"conclave.image_tokens", stats.image_rows},
                               {"conclave.cached_tokens", stats.cached_rows},
                               {"conclave.steps", num_prefill_steps_}};
  }
  if (first_token_) {
    spans.push_back(request_->MakeSpan("decode", *first_token_, now, request_->context().span_id));
    spans.back().id = decode_id_;
    spans.back().attributes = {{"gen_ai.usage.completion_tokens", stats.generated},
                               {"conclave.steps", num_decode_steps_},
                               {"conclave.finish_reason", TraceNameOf(reason)}};
  }
  const int64_t first_token_ns = first_token_ ? request_->UnixNanos(*first_token_) : INT64_MAX;
  for (observability::SpanEvent& event : events_) {
    // There is an event only behind the admission.
    spans[event.time_ns < first_token_ns ? 1 : 2].events.push_back(std::move(event));
  }
  if (reason == FinishReason::kError) {
    spans.back().is_error = true;
    spans.back().error = ReasonOf(status);
  }
  request_->Add(spans);
}

bool BeginTracedStep(std::span<Sequence* const> row_sequence, StepTrace* attempts) {
  const bool is_traced =
      std::any_of(row_sequence.begin(), row_sequence.end(),
                  [](const Sequence* sequence) { return sequence->trace != nullptr; });
  if (is_traced && attempts != nullptr) {
    attempts->Begin();
  }
  return is_traced;
}

// Chooses the sequence that a step is told of, and makes the spans.
class StepSpans {
 public:
  explicit StepSpans(bool has_trouble) : has_trouble_(has_trouble) {}

  // In the order of rows, once per traced sequence of the step.
  void Consider(SequenceTrace& trace, bool is_prefill) {
    const int32_t index = is_prefill ? trace.num_prefill_steps_++ : trace.num_decode_steps_++;
    traces_.push_back(&trace);
    const bool has_room =
        has_trouble_ ? trace.num_troubles_told_ < kTroublesMax : trace.num_steps_told_ < kStepsMax;
    const bool wants_details = has_trouble_ || index % kDetailEvery == 0;
    if (!has_room || (!is_prefill && !wants_details)) {
      return;
    }
    if (lead_ == nullptr || (wants_details && !has_details_)) {
      lead_ = &trace;
      has_details_ = wants_details;
    }
  }

  void Record(const StepFacts& step, std::span<const model::StepRow> rows,
              const StepTrace* attempts) {
    if (lead_ == nullptr) {
      return;
    }
    ++(has_trouble_ ? lead_->num_troubles_told_ : lead_->num_steps_told_);
    RequestTrace& request = *lead_->request_;
    const observability::SpanId& parent =
        lead_->first_token_ ? lead_->decode_id_ : lead_->prefill_id_;
    std::vector<Span> spans;
    spans.push_back(request.MakeSpan("step", step.start, step.end, parent));
    const observability::SpanId step_id = spans.front().id;
    if (has_details_ && attempts != nullptr) {
      for (const AttemptRecord& attempt : attempts->attempts()) {
        spans.push_back(DispatchSpan(request, attempt, step_id));
        if (attempt.end == AttemptEnd::kAnswered) {
          const observability::SpanId dispatch = spans.back().id;
          spans.push_back(ComputeSpan(request, attempt, dispatch));
        }
      }
    }
    Span& span = spans.front();
    const auto prefill_rows = std::count_if(
        rows.begin(), rows.end(), [](const model::StepRow& row) { return row.is_prefill; });
    span.attributes = {{"conclave.prefill_rows", int64_t{prefill_rows}},
                       {"conclave.decode_rows", static_cast<int64_t>(rows.size()) - prefill_rows},
                       {"conclave.micro_batches", step.is_divided ? 2 : 1}};
    if (has_details_ && attempts != nullptr && attempts->num_left_out() > 0) {
      span.attributes.emplace_back("conclave.dispatches_left_out", attempts->num_left_out());
    }
    if (!step.status.ok()) {
      span.is_error = true;
      span.error = ReasonOf(step.status);
    }
    AddLinks(span);
    request.Add(spans);
  }

 private:
  // To the requests that share the step, each once.
  void AddLinks(Span& span) const {
    std::vector<const RequestTrace*> told = {lead_->request_.get()};
    for (const SequenceTrace* trace : traces_) {
      const RequestTrace* request = trace->request_.get();
      if (told.size() <= kLinksMax && std::find(told.begin(), told.end(), request) == told.end()) {
        told.push_back(request);
        span.links.push_back({request->context().trace_id, request->context().span_id});
      }
    }
  }

  const bool has_trouble_;
  std::vector<SequenceTrace*> traces_;
  SequenceTrace* lead_ = nullptr;
  bool has_details_ = false;
};

void EndTracedStep(const StepFacts& step, std::span<Sequence* const> row_sequence,
                   std::span<const model::StepRow> rows, StepTrace* attempts) {
  if (attempts != nullptr) {
    attempts->End();
  }
  StepSpans spans(!step.status.ok() || (attempts != nullptr && attempts->has_trouble()));
  for (size_t r = 0; r < rows.size(); ++r) {
    // The rows of a sequence stand together.
    if (row_sequence[r]->trace != nullptr && (r == 0 || row_sequence[r - 1] != row_sequence[r])) {
      spans.Consider(*row_sequence[r]->trace, rows[r].is_prefill);
    }
  }
  spans.Record(step, rows, attempts);
}

}  // namespace conclave::frontend
