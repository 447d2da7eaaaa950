#include "conclave/observability/trace.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <random>
#include <utility>

namespace conclave::observability {
namespace {

constexpr int kRandomBits = 56;

uint64_t SeedFromSystem() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

uint64_t ThresholdOf(double sample_ratio) {
  const double rejected = 1.0 - std::clamp(sample_ratio, 0.0, 1.0);
  return static_cast<uint64_t>(std::llround(std::ldexp(rejected, kRandomBits)));
}

void Store(uint64_t value, uint8_t* out) {
  for (int i = 0; i < 8; ++i) {
    out[i] = static_cast<uint8_t>(value >> (56 - 8 * i));
  }
}

int64_t UnixNow() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace

Tracer::Tracer(const TracerOptions& options)
    : options_(options),
      threshold_(ThresholdOf(options.sample_ratio)),
      random_(options.seed != 0 ? options.seed : SeedFromSystem()) {}

// splitmix64: a counter through a bijection, so that no value comes twice, and without a lock.
uint64_t Tracer::NextRandom() {
  constexpr uint64_t kStep = 0x9e3779b97f4a7c15u;
  uint64_t x = random_.fetch_add(kStep, std::memory_order_relaxed) + kStep;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

SpanId Tracer::NewSpanId() {
  SpanId id{};
  uint64_t value = NextRandom();
  if (value == 0) {
    value = NextRandom();
  }
  Store(value, id.data());
  return id;
}

std::shared_ptr<RequestTrace> Tracer::StartRequest(const IncomingTrace& incoming,
                                                   std::string_view name, MonotonicTime start) {
  const std::optional<TraceContext> parent = ParseTraceparent(incoming.traceparent);
  if (parent) {
    if (!parent->is_sampled) {
      return nullptr;
    }
    auto trace = std::make_shared<RequestTrace>(
        *this, TraceContext{parent->trace_id, NewSpanId(), true}, name, start);
    MutexLock lock(trace->mu_);
    trace->span_.parent_id = parent->span_id;
    trace->span_.has_remote_parent = true;
    trace->span_.trace_state = CheckedTracestate(incoming.tracestate);
    return trace;
  }
  // A tracestate without a good traceparent belongs to nothing.
  const uint64_t low = NextRandom();
  if ((low & ((uint64_t{1} << kRandomBits) - 1)) < threshold_) {
    return nullptr;
  }
  TraceContext context{{}, NewSpanId(), true};
  Store(NextRandom() | 1, context.trace_id.data());  // never zeros
  Store(low, context.trace_id.data() + 8);
  return std::make_shared<RequestTrace>(*this, context, name, start);
}

void Tracer::Add(std::span<Span> spans) {
  size_t taken = 0;
  {
    MutexLock lock(mu_);
    taken = std::min(spans.size(), options_.queue_spans_max - queue_.size());
    queue_.insert(queue_.end(), std::move_iterator(spans.begin()),
                  std::move_iterator(spans.begin() + static_cast<std::ptrdiff_t>(taken)));
    if (queue_.size() >= options_.batch_spans) {
      wake_.NotifyOne();
    }
  }
  dropped_.fetch_add(spans.size() - taken, std::memory_order_relaxed);
}

std::vector<Span> Tracer::Take(std::chrono::nanoseconds patience) {
  const auto deadline = std::chrono::steady_clock::now() + patience;
  std::vector<Span> taken;
  MutexLock lock(mu_);
  while (!is_woken_ && queue_.size() < options_.batch_spans) {
    const auto left = deadline - std::chrono::steady_clock::now();
    if (left <= std::chrono::nanoseconds(0)) {
      break;
    }
    wake_.WaitFor(mu_, left);
  }
  is_woken_ = false;
  taken.swap(queue_);
  return taken;
}

void Tracer::Wake() {
  MutexLock lock(mu_);
  is_woken_ = true;
  wake_.NotifyOne();
}

TraceCounts Tracer::Counts() const {
  return {exported_.load(std::memory_order_relaxed), dropped_.load(std::memory_order_relaxed),
          failed_.load(std::memory_order_relaxed)};
}

RequestTrace::RequestTrace(Tracer& tracer, const TraceContext& context, std::string_view name,
                           MonotonicTime start)
    : tracer_(tracer),
      context_(context),
      steady_(std::chrono::steady_clock::now()),
      unix_ns_(UnixNow()) {
  MutexLock lock(mu_);
  span_.name = name;
  span_.kind = SpanKind::kServer;
  span_.trace_id = context.trace_id;
  span_.id = context.span_id;
  span_.start_ns = UnixNanos(start);
}

RequestTrace::~RequestTrace() {
  Span span;
  {
    MutexLock lock(mu_);
    span = std::move(span_);
  }
  if (span.end_ns == 0) {
    span.end_ns = UnixNanos(std::chrono::steady_clock::now());
  }
  span.end_ns = std::max(span.end_ns, last_end_ns_.load());
  tracer_.Add(std::span(&span, 1));
}

int64_t RequestTrace::UnixNanos(MonotonicTime time) const {
  return unix_ns_ + std::chrono::duration_cast<std::chrono::nanoseconds>(time - steady_).count();
}

Span RequestTrace::MakeSpan(std::string_view name, MonotonicTime start, MonotonicTime end,
                            const SpanId& parent) {
  Span span;
  span.name = name;
  span.trace_id = context_.trace_id;
  span.id = NewSpanId();
  span.parent_id = parent;
  span.start_ns = UnixNanos(start);
  span.end_ns = std::max(span.start_ns, UnixNanos(end));
  return span;
}

void RequestTrace::Add(std::span<Span> spans) {
  int64_t last = last_end_ns_.load();
  for (const Span& span : spans) {
    while (span.end_ns > last && !last_end_ns_.compare_exchange_weak(last, span.end_ns)) {
    }
  }
  tracer_.Add(spans);
}

void RequestTrace::Set(SpanAttribute attribute) {
  MutexLock lock(mu_);
  const auto same = std::find_if(span_.attributes.begin(), span_.attributes.end(),
                                 [&](const SpanAttribute& a) { return a.key == attribute.key; });
  if (same != span_.attributes.end()) {
    same->value = std::move(attribute.value);
  } else {
    span_.attributes.push_back(std::move(attribute));
  }
}

void RequestTrace::Fail(std::string_view reason) {
  MutexLock lock(mu_);
  if (!span_.is_error) {
    span_.is_error = true;
    span_.error = std::string(reason);
  }
}

void RequestTrace::End(MonotonicTime end) {
  const int64_t end_ns = UnixNanos(end);
  MutexLock lock(mu_);
  span_.end_ns = std::max(span_.end_ns, end_ns);
}

}  // namespace conclave::observability
