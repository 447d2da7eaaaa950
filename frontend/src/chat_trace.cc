#include "chat_trace.h"

#include <utility>

#include "conclave/base/status.h"

namespace conclave::frontend {

using observability::Span;
using std::chrono::microseconds;

const char* TraceNameOf(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "abort";
    case FinishReason::kError:
      break;
  }
  return "error";
}

ChatTrace::ChatTrace(ChatRequest& request, const ModelCard& card)
    : request_(std::move(request.trace)) {
  if (request_ == nullptr) {
    return;
  }
  prepare_id_ = request_->NewSpanId();
  request_->Set({"gen_ai.request.id", request.request_id});
  request_->Set({"gen_ai.request.model", card.id});
  if (request.max_tokens > 0) {
    request_->Set({"gen_ai.request.max_tokens", request.max_tokens});
  }
  request_->Set({"gen_ai.request.temperature", double{request.sampling.temperature}});
  request_->Set({"gen_ai.request.top_p", double{request.sampling.top_p}});
  request_->Set({"gen_ai.request.n", request.num_choices});
}

void ChatTrace::OnImage(MonotonicTime start, const Image& image) {
  if (request_ == nullptr) {
    return;
  }
  const MonotonicTime decoded = start + image.decode;
  Span spans[] = {request_->MakeSpan("image.preprocess", start, decoded, prepare_id_),
                  request_->MakeSpan("image.encode", decoded, decoded + image.encode, prepare_id_)};
  spans[1].attributes = {{"conclave.cached", image.was_cached}, {"conclave.rows", image.rows}};
  request_->Add(spans);
}

void ChatTrace::OnPrepared(MonotonicTime submitted, MonotonicTime begun, MonotonicTime end,
                           const absl::Status& status) {
  if (request_ == nullptr) {
    return;
  }
  Span span = request_->MakeSpan("prepare", submitted, end, request_->context().span_id);
  span.id = prepare_id_;
  span.attributes = {
      {"conclave.wait_us",
       int64_t{std::chrono::duration_cast<microseconds>(begun - submitted).count()}}};
  if (!status.ok()) {
    span.is_error = true;
    span.error = ReasonOf(status);
  }
  request_->Add(std::move(span));
}

void ChatTrace::OnChoiceEnd(FinishReason reason, const absl::Status& status) {
  if (request_ == nullptr) {
    return;
  }
  // A request that cannot be served as it is says nothing bad of the server.
  if (reason == FinishReason::kError && !absl::IsInvalidArgument(status)) {
    request_->Fail(ReasonOf(status));
  }
  MutexLock lock(mu_);
  reasons_.emplace_back(TraceNameOf(reason));
  request_->Set({"gen_ai.response.finish_reasons", reasons_});
}

void ChatTrace::OnDone(const Usage& usage, const Timings& timings, std::chrono::nanoseconds total) {
  if (request_ == nullptr) {
    return;
  }
  const auto seconds = [](double milliseconds) { return milliseconds / 1000.0; };
  request_->Set({"gen_ai.usage.prompt_tokens", usage.prompt_tokens});
  request_->Set({"gen_ai.usage.completion_tokens", usage.completion_tokens});
  request_->Set({"conclave.image_tokens", usage.image_tokens});
  request_->Set({"conclave.cached_tokens", usage.cached_tokens});
  request_->Set({"gen_ai.latency.e2e", std::chrono::duration<double>(total).count()});
  if (usage.completion_tokens == 0) {
    return;  // the rest would be zeros that look like times
  }
  request_->Set({"gen_ai.latency.time_in_queue", seconds(timings.queue_ms)});
  request_->Set({"gen_ai.latency.time_to_first_token", seconds(timings.first_token_ms)});
  request_->Set({"gen_ai.latency.time_in_model_prefill", seconds(timings.prefill_ms)});
  request_->Set({"gen_ai.latency.time_in_model_decode", seconds(timings.decode_ms)});
  request_->Set(
      {"gen_ai.latency.time_in_model_inference", seconds(timings.prefill_ms + timings.decode_ms)});
}

}  // namespace conclave::frontend
