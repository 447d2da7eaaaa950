// An operator's calls to a router.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/router_service/router_types.h"

namespace conclave::router_service {

struct AdminClientOptions {
  std::string address;  // HOST:PORT of the router's control address
  // Files of mutual TLS; all three or none.
  std::string tls_certificate = {};
  std::string tls_key = {};
  std::string tls_authority = {};
  std::chrono::milliseconds timeout{10'000};  // of one call
};

// Any thread. Every call waits for its answer. Errors are those of the router with their reasons;
// kUnavailable ("connect") when it cannot be reached in time.
class AdminClient {
 public:
  // kInvalidArgument ("tls_config"). Does not connect yet.
  static absl::StatusOr<std::unique_ptr<AdminClient>> Create(const AdminClientOptions& options);
  ~AdminClient();
  AdminClient(const AdminClient&) = delete;
  AdminClient& operator=(const AdminClient&) = delete;

  absl::StatusOr<RouterStatus> Status();
  // Whether nothing is routed to the worker any more.
  absl::StatusOr<bool> Drain(const std::string& name);
  absl::Status Undrain(const std::string& name);
  absl::StatusOr<Epoch> Pin(ExpertUnit unit, const std::string& worker, bool undo);
  absl::StatusOr<Epoch> Replicate(ExpertUnit unit, int32_t replicas);
  absl::StatusOr<RebalancePlan> Rebalance(bool is_dry_run, bool is_full);
  // Recorded routing (routing_trace.h).
  absl::StatusOr<RecordingStatus> StartRecording();
  absl::StatusOr<RecordingStatus> StopRecording();
  // The file up to now, a piece at a time. Ends with the error that `take` gives.
  absl::Status GetRecording(const std::function<absl::Status(const std::string& piece)>& take);
  // What the cluster does, as docs/live.md has it: event ("snapshot" or "delta") and JSON, until
  // `take` gives an error, which is returned, or the router ends the stream (kUnavailable,
  // "connect"). The client's timeout holds for none of it; Cancel ends it.
  absl::Status WatchLive(
      const std::function<absl::Status(const std::string& event, const std::string& json)>& take);
  // Any thread: WatchLive, under way or begun later, returns kCancelled.
  void Cancel();
  // Experts that only this worker serves; empty: it may be killed.
  absl::StatusOr<std::vector<ExpertUnit>> AtRiskWithout(const std::string& name);

 private:
  struct State;
  explicit AdminClient(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace conclave::router_service
