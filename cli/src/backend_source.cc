#include "backend_source.h"

#include <deque>
#include <optional>
#include <utility>

#include "conclave/base/mutex.h"
#include "conclave/base/status.h"

namespace conclave::cli {
namespace {

// Shared with the backend, which may call it after the asker has given up.
class QueueSink final : public frontend::ChatSink {
 public:
  void OnDelta(frontend::ChatDelta delta) override {
    MutexLock lock(mu_);
    pieces_.push_back(std::move(delta.text));
    changed_.NotifyAll();
  }

  void OnChoiceEnd(frontend::ChoiceEnd end) override {
    MutexLock lock(mu_);
    if (end.reason == frontend::FinishReason::kError) {
      status_ = end.status.ok() ? Error(absl::StatusCode::kInternal, "internal",
                                        "the engine failed without saying why")
                                : std::move(end.status);
    } else if (end.reason == frontend::FinishReason::kCancelled) {
      status_ = Error(absl::StatusCode::kUnavailable, "cancelled", "the answer was cancelled");
    }
  }

  void OnDone(const frontend::Usage& /*usage*/, const frontend::Timings& /*timings*/) override {
    MutexLock lock(mu_);
    is_done_ = true;
    changed_.NotifyAll();
  }

  // The next piece; nullopt at the end.
  std::optional<std::string> Next() {
    MutexLock lock(mu_);
    while (pieces_.empty() && !is_done_) {
      changed_.Wait(mu_);
    }
    if (pieces_.empty()) {
      return std::nullopt;
    }
    std::string piece = std::move(pieces_.front());
    pieces_.pop_front();
    return piece;
  }

  absl::Status status() const {
    MutexLock lock(mu_);
    return status_;
  }

 private:
  mutable Mutex mu_;
  CondVar changed_;
  // Bounded by the tokens of one answer.
  std::deque<std::string> pieces_ ABSL_GUARDED_BY(mu_);
  bool is_done_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
};

frontend::Message MessageOf(const Turn& turn) {
  frontend::Message message;
  message.role =
      turn.is_user ? frontend::Message::Role::kUser : frontend::Message::Role::kAssistant;
  for (const std::string& image : turn.images) {
    message.parts.push_back({frontend::ContentPart::Kind::kImage, image, "image"});
  }
  message.parts.push_back({frontend::ContentPart::Kind::kText, turn.text, "question"});
  return message;
}

}  // namespace

absl::Status BackendSource::Ask(const std::vector<Turn>& turns, const AskParams& params,
                                const TakeText& take) {
  frontend::ChatRequest request;
  request.request_id = "ask-" + std::to_string(++num_requests_);
  for (const Turn& turn : turns) {
    request.messages.push_back(MessageOf(turn));
  }
  request.sampling.temperature = static_cast<float>(params.temperature);
  request.sampling.seed = static_cast<uint64_t>(params.seed.value_or(0));
  request.max_tokens = params.max_tokens;
  const auto sink = std::make_shared<QueueSink>();
  CONCLAVE_ASSIGN_OR_RETURN(const frontend::ChatId id, backend_.Submit(std::move(request), sink));
  absl::Status taken;
  while (const std::optional<std::string> piece = sink->Next()) {
    if (taken.ok() && !piece->empty()) {
      taken = take(*piece);
      if (!taken.ok()) {
        backend_.Cancel(id);
      }
    }
  }
  return taken.ok() ? sink->status() : taken;
}

}  // namespace conclave::cli
