// Answers from a ChatBackend in this process.
#pragma once

#include "conclave/frontend/chat.h"
#include "conversation.h"

namespace conclave::cli {

// One question at a time. The backend's threads only queue; `take` runs on the caller's thread and
// may block. When it fails, the request is cancelled.
class BackendSource final : public AnswerSource {
 public:
  // `backend` outlives the source.
  explicit BackendSource(frontend::ChatBackend& backend) : backend_(backend) {}

  absl::Status Ask(const std::vector<Turn>& turns, const AskParams& params,
                   const TakeText& take) override;

 private:
  frontend::ChatBackend& backend_;
  uint64_t num_requests_ = 0;
};

}  // namespace conclave::cli
