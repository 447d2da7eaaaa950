// As much of etcd's v3 API as a router needs, over etcd's JSON gateway (etcd 3.4 and later): one
// HTTP/1.1 request per connection, keys and values in base64.
//
// Any thread; every call waits for its answer, and no longer than to its deadline. Endpoints are
// tried in turn, the one that answered last first; each gets an equal share of the time left. So a
// request may be carried out more than once, or after its caller has given up: whoever writes must
// compare revisions (EtcdTxn::all_of).
//
// Errors, all of them passing: kUnavailable ("etcd_unreachable") when no endpoint answers in time
// or has a quorum; kUnavailable ("etcd_answer") when an answer is none of etcd, or refuses the
// request; kNotFound ("etcd_lease") for a lease that is over.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/base/clock.h"
#include "conclave/service/address.h"

namespace conclave::router_service {

struct EtcdEntry {
  std::string value;
  int64_t create_revision = 0;
  int64_t mod_revision = 0;
  int64_t lease = 0;  // 0: none
};

struct EtcdCompare {
  enum class What : uint8_t { kCreateRevision, kModRevision, kLease };
  std::string key;
  What what = What::kCreateRevision;
  int64_t value = 0;  // of a key that is not there: 0 for the revisions; a lease never equals
};

struct EtcdPut {
  std::string key;
  std::string value;
  int64_t lease = 0;
};

// When all comparisons hold: the puts, then the reads of then_get; otherwise the reads of else_get.
struct EtcdTxn {
  std::vector<EtcdCompare> all_of;
  std::vector<EtcdPut> then_put;
  std::vector<std::string> then_get;
  std::vector<std::string> else_get;
};

struct EtcdTxnResult {
  bool held = false;                            // all comparisons
  int64_t revision = 0;                         // of the store; of the puts when there are any
  std::vector<std::optional<EtcdEntry>> found;  // one per key of the list that was read
};

struct EtcdLease {
  int64_t id = 0;
  std::chrono::seconds ttl{0};
};

class EtcdClient {
 public:
  // Numeric hosts; at least one.
  explicit EtcdClient(std::vector<service::Address> endpoints);
  EtcdClient(const EtcdClient&) = delete;
  EtcdClient& operator=(const EtcdClient&) = delete;

  // What a majority has agreed on, or nothing.
  absl::StatusOr<std::optional<EtcdEntry>> Get(const std::string& key, MonotonicTime deadline);
  absl::StatusOr<EtcdTxnResult> Commit(const EtcdTxn& txn, MonotonicTime deadline);
  // etcd may give more time than is asked for.
  absl::StatusOr<EtcdLease> Grant(std::chrono::seconds ttl, MonotonicTime deadline);
  absl::StatusOr<EtcdLease> KeepAlive(int64_t lease, MonotonicTime deadline);
  absl::Status Revoke(int64_t lease, MonotonicTime deadline);

  // Bytes of an answer; a longer one is refused.
  static constexpr size_t kAnswerBytesMax = size_t{4} << 20;

 private:
  absl::StatusOr<std::string> Call(const char* path, const std::string& body,
                                   MonotonicTime deadline);

  const std::vector<service::Address> endpoints_;
  std::atomic<size_t> preferred_{0};
};

}  // namespace conclave::router_service
