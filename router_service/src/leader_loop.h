// The thread that stands by, takes leadership, holds it and gives it up.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "conclave/base/mutex.h"
#include "conclave/router_service/etcd_election.h"

namespace conclave::router_service {

class LeaderLoop {
 public:
  // All on the loop's thread, never two at once.
  struct Hooks {
    // This router leads from now on. An error: it cannot, and gives the leadership back.
    std::function<absl::Status(const std::shared_ptr<EtcdLeadership>& leadership)> on_elected;
    // Behind on_elected, once: stop commanding.
    std::function<void(const absl::Status& why)> on_deposed;
    // While it stands by, at each look: why ("standby", with the leader's address, or an error of
    // the client).
    std::function<void(const absl::Status& why)> on_standby;
    // An error that another try does not mend; the loop has ended.
    std::function<void(const absl::Status& why)> on_failed;
  };
  LeaderLoop(std::unique_ptr<EtcdClient> client, EtcdElectionOptions options, Hooks hooks);
  ~LeaderLoop();
  LeaderLoop(const LeaderLoop&) = delete;
  LeaderLoop& operator=(const LeaderLoop&) = delete;

  // Once; before it nothing happens.
  void Start();
  // Gives a leadership back, so that the next router need not wait for the lease, and ends the
  // thread.
  void Stop();

  // The leader gives up and stands by. Any thread.
  void StepDown(const std::string& why);

 private:
  void Loop();
  // One look at who leads, and a leadership if there is none. False: the loop ends.
  bool StandBy();
  void Lead(EtcdLeadership& leadership);
  // False when the loop stops.
  bool Sleep(std::chrono::nanoseconds time);
  bool IsStopping() const;

  const std::unique_ptr<EtcdClient> client_;
  const EtcdElectionOptions options_;
  const Hooks hooks_;
  EtcdElection election_;
  mutable Mutex mu_;
  CondVar changed_;
  bool is_stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::string step_down_ ABSL_GUARDED_BY(mu_);  // why; empty: it may lead on
  std::thread thread_;
};

}  // namespace conclave::router_service
