// Tracing: which part of a request took how long, as spans that an exporter sends to a collector.
//
// Few requests are traced (a ratio, or the caller's wish), and only those cost anything: the rest
// has no RequestTrace, and nobody allocates, locks or reads a clock for it.
//
// What must never be in a span: prompts, images, tokens, generated text, expert ids or gate values
// of a request. Keys of attributes and names of events are literals of ours.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "conclave/base/clock.h"
#include "conclave/base/mutex.h"
#include "conclave/observability/trace_context.h"

namespace conclave::observability {

// The numbers are OTLP's.
enum class SpanKind : uint8_t { kInternal = 1, kServer = 2, kClient = 3 };

struct SpanAttribute {
  using Value = std::variant<bool, int64_t, double, std::string, std::vector<std::string>>;

  SpanAttribute(std::string_view k, bool v) : key(k), value(v) {}
  SpanAttribute(std::string_view k, int v) : key(k), value(int64_t{v}) {}
  SpanAttribute(std::string_view k, int64_t v) : key(k), value(v) {}
  SpanAttribute(std::string_view k, double v) : key(k), value(v) {}
  SpanAttribute(std::string_view k, const char* v) : key(k), value(std::string(v)) {}
  SpanAttribute(std::string_view k, std::string_view v) : key(k), value(std::string(v)) {}
  SpanAttribute(std::string_view k, std::string v) : key(k), value(std::move(v)) {}
  SpanAttribute(std::string_view k, std::vector<std::string> v) : key(k), value(std::move(v)) {}

  std::string_view key;  // lives for ever
  Value value;
};

struct SpanEvent {
  std::string_view name;  // lives for ever
  int64_t time_ns = 0;    // since 1970
  std::vector<SpanAttribute> attributes;
};

// Another span that belongs to this one without being its parent.
struct SpanLink {
  TraceId trace_id{};
  SpanId span_id{};
};

// A finished span. A value.
struct Span {
  std::string_view name;  // lives for ever
  SpanKind kind = SpanKind::kInternal;
  TraceId trace_id{};
  SpanId id{};
  SpanId parent_id{};  // zeros: none
  bool has_remote_parent = false;
  std::string trace_state;
  int64_t start_ns = 0;  // since 1970
  int64_t end_ns = 0;
  std::vector<SpanAttribute> attributes;
  std::vector<SpanEvent> events;
  std::vector<SpanLink> links;
  bool is_error = false;
  std::string error;  // a reason, no free text of others
};

struct TracerOptions {
  // Share of the requests that bring no decision of their caller, 0 to 1. It is taken by the
  // trace's id, so that it is the same everywhere where the rule of W3C's level 2 is known.
  double sample_ratio = 0.01;
  // Spans that wait for the exporter, which may hold as many again while it sends.
  size_t queue_spans_max = 8192;
  // From how many on the exporter is woken.
  size_t batch_spans = 512;
  uint64_t seed = 0;  // of ids; 0: from the system
};

// Where spans have gone, since the start.
struct TraceCounts {
  uint64_t exported = 0;  // taken by the collector
  uint64_t dropped = 0;   // the queue was full
  uint64_t failed = 0;    // refused by the collector, or it was away for too long
};

// What the caller of a request sent, as it came.
struct IncomingTrace {
  std::string_view traceparent;
  std::string_view tracestate;
};

class RequestTrace;

// Decides what is traced, gives ids, and keeps finished spans for the exporter. Any thread.
// Outlives its RequestTraces.
class Tracer {
 public:
  explicit Tracer(const TracerOptions& options);
  Tracer(const Tracer&) = delete;
  Tracer& operator=(const Tracer&) = delete;

  // Null when the request is not traced: a caller's decision is kept, whichever it is; without one
  // the ratio decides. `name`: of the request's own span, lives for ever. `start`: on the real
  // clock, not later than now.
  std::shared_ptr<RequestTrace> StartRequest(const IncomingTrace& incoming, std::string_view name,
                                             MonotonicTime start);

  // Never zeros, never twice.
  SpanId NewSpanId();

  // Takes finished spans. Does not wait: the lock is held for moves only, and what finds no room is
  // dropped and counted. The engine's thread comes here once per recorded step.
  void Add(std::span<Span> spans) ABSL_LOCKS_EXCLUDED(mu_);

  // For the exporter: all spans that there are, when they are batch_spans or more, after
  // `patience`, or when Wake was called since. May be none.
  std::vector<Span> Take(std::chrono::nanoseconds patience) ABSL_LOCKS_EXCLUDED(mu_);
  void Wake() ABSL_LOCKS_EXCLUDED(mu_);
  void CountExported(uint64_t spans) { exported_.fetch_add(spans, std::memory_order_relaxed); }
  void CountFailed(uint64_t spans) { failed_.fetch_add(spans, std::memory_order_relaxed); }

  TraceCounts Counts() const;

 private:
  uint64_t NextRandom();

  const TracerOptions options_;
  // Trace ids with as much in their last 56 bits, or more, are sampled.
  const uint64_t threshold_;
  std::atomic<uint64_t> random_;
  std::atomic<uint64_t> exported_{0}, dropped_{0}, failed_{0};

  Mutex mu_;
  CondVar wake_;
  bool is_woken_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<Span> queue_ ABSL_GUARDED_BY(mu_);
};

// One traced request: its own span, and what its parts need to add theirs. Shared by all who work
// on it; its own span is handed to the tracer when the last of them lets go, so that it ends behind
// all of its children. Any thread.
class RequestTrace {
 public:
  RequestTrace(Tracer& tracer, const TraceContext& context, std::string_view name,
               MonotonicTime start);
  ~RequestTrace();
  RequestTrace(const RequestTrace&) = delete;
  RequestTrace& operator=(const RequestTrace&) = delete;

  // Of the request's own span, which is the parent of all others.
  const TraceContext& context() const { return context_; }
  SpanId NewSpanId() { return tracer_.NewSpanId(); }

  // A span of this trace over [start, end] of the real clock, which the caller completes and gives
  // to Add. `parent`: context().span_id, or a span of NewSpanId.
  Span MakeSpan(std::string_view name, MonotonicTime start, MonotonicTime end,
                const SpanId& parent);
  // Nanoseconds since 1970. One offset for the whole trace, so that a step of the system's clock
  // cannot turn the order of its spans round.
  int64_t UnixNanos(MonotonicTime time) const;

  void Add(Span span) { Add(std::span(&span, 1)); }
  void Add(std::span<Span> spans);

  // Of the request's own span; a later value of a key takes the place of the earlier.
  void Set(SpanAttribute attribute) ABSL_LOCKS_EXCLUDED(mu_);
  // The first reason stays: who comes later knows less.
  void Fail(std::string_view reason) ABSL_LOCKS_EXCLUDED(mu_);
  // The answer is out, or nobody waits for it any more. The latest counts; without one the end is
  // when the last owner lets go.
  void End(MonotonicTime end) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  friend class Tracer;

  Tracer& tracer_;
  const TraceContext context_;
  const MonotonicTime steady_;  // now, at the start, on both clocks
  const int64_t unix_ns_;
  std::atomic<int64_t> last_end_ns_{0};  // of what was added

  Mutex mu_;
  Span span_ ABSL_GUARDED_BY(mu_);
};

}  // namespace conclave::observability
