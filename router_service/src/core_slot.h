// The core that commands, or why there is none: what handlers of gRPC talk to. With etcd a core
// comes with each leadership of this router and goes with it; otherwise there is one.
#pragma once

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "conclave/base/mutex.h"
#include "core_loop.h"

namespace conclave::router_service {

// Any thread. Nothing here waits.
class CoreSlot {
 public:
  explicit CoreSlot(absl::Status refusal) : refusal_(std::move(refusal)) {}

  // `may_command` is asked before every event and every action: a router that was stopped for
  // longer than its lease must say nothing between waking up and learning that it was deposed.
  void Fill(std::unique_ptr<CoreLoop> loop, std::function<bool()> may_command);
  // The loop, if any, to be stopped by the caller; `refusal` is what peers hear from now on.
  std::unique_ptr<CoreLoop> Take(absl::Status refusal);
  void SetRefusal(absl::Status refusal);

  bool MayCommand() const;
  // Why this router does not serve; never OK.
  absl::Status refusal() const;

  // Those of CoreLoop; false without a core.
  bool Post(Event event, std::function<void()> on_done = nullptr);
  bool Ask(std::function<void(const RouterCore& core)> question);

 private:
  mutable Mutex mu_;
  std::unique_ptr<CoreLoop> loop_ ABSL_GUARDED_BY(mu_);
  std::function<bool()> may_command_ ABSL_GUARDED_BY(mu_);
  absl::Status refusal_ ABSL_GUARDED_BY(mu_);
};

}  // namespace conclave::router_service
