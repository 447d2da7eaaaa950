#include "core_slot.h"

#include <utility>

#include "conclave/base/status.h"

namespace conclave::router_service {

void CoreSlot::Fill(std::unique_ptr<CoreLoop> loop, std::function<bool()> may_command) {
  MutexLock lock(mu_);
  loop_ = std::move(loop);
  may_command_ = std::move(may_command);
  refusal_ =
      Error(absl::StatusCode::kUnavailable, "standby", "this router stands by: its lease is over");
}

std::unique_ptr<CoreLoop> CoreSlot::Take(absl::Status refusal) {
  MutexLock lock(mu_);
  refusal_ = std::move(refusal);
  may_command_ = [] { return false; };
  return std::move(loop_);
}

void CoreSlot::SetRefusal(absl::Status refusal) {
  MutexLock lock(mu_);
  refusal_ = std::move(refusal);
}

bool CoreSlot::MayCommand() const {
  MutexLock lock(mu_);
  return may_command_ != nullptr && may_command_();
}

absl::Status CoreSlot::refusal() const {
  MutexLock lock(mu_);
  return refusal_;
}

bool CoreSlot::Post(Event event, std::function<void()> on_done) {
  MutexLock lock(mu_);
  return loop_ != nullptr && may_command_() && loop_->Post(std::move(event), std::move(on_done));
}

bool CoreSlot::Ask(std::function<void(const RouterCore& core)> question) {
  MutexLock lock(mu_);
  return loop_ != nullptr && may_command_() && loop_->Ask(std::move(question));
}

}  // namespace conclave::router_service
