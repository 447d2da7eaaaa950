// A call without a link: remembers how it was finished.
#pragma once

#include <atomic>
#include <vector>

#include "conclave/base/mutex.h"
#include "conclave/transport/call_server.h"
#include "gtest/gtest.h"

namespace conclave::expert_worker {

class FakeCall : public transport::ServedCall {
 public:
  bool is_cancelled() const override { return is_cancelled_.load(); }
  void Cancel() { is_cancelled_.store(true); }

  void Finish(const absl::Status& status, Epoch epoch, std::span<const WorkerId> holders) override {
    MutexLock lock(mu_);
    EXPECT_FALSE(is_finished_) << "a call is finished once";
    is_finished_ = true;
    status_ = status;
    epoch_ = epoch;
    holders_.assign(holders.begin(), holders.end());
    changed_.NotifyAll();
  }

  // Waits for Finish; a test that would wait for ever fails by its time limit.
  void Await() {
    MutexLock lock(mu_);
    while (!is_finished_) {
      changed_.Wait(mu_);
    }
  }
  bool is_finished() const {
    MutexLock lock(mu_);
    return is_finished_;
  }
  absl::Status status() const {
    MutexLock lock(mu_);
    return status_;
  }
  Epoch epoch() const {
    MutexLock lock(mu_);
    return epoch_;
  }
  std::vector<WorkerId> holders() const {
    MutexLock lock(mu_);
    return holders_;
  }

  // Rows without content, for what only counts them.
  void SetRowBytes(size_t row_bytes) {
    bytes_.resize(row_bytes * call.num_rows);
    call.rows = bytes_;
    reply.rows = bytes_;
  }

 private:
  std::vector<std::byte> bytes_;
  std::atomic<bool> is_cancelled_{false};
  mutable Mutex mu_;
  CondVar changed_;
  bool is_finished_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  Epoch epoch_ ABSL_GUARDED_BY(mu_);
  std::vector<WorkerId> holders_ ABSL_GUARDED_BY(mu_);
};

}  // namespace conclave::expert_worker
