// Which of several routers commands, and the state that goes from one to the next, in etcd.
//
//   <prefix>/leader   the leader's control address, under the leader's lease
//   <prefix>/term     the highest term that was ever taken or written, in decimal
//   <prefix>/state    the state, as a file of the state folder has it (state_file.h)
//
// The transaction that creates the leader's key raises the term, so every leadership has a term of
// its own, even where the state was lost. Every write of the state is conditioned on that key's
// lease and creation and on the state's own revision: neither a deposed leader nor a write that was
// delayed somewhere changes anything. Commands are no part of etcd: they are fenced by the term,
// and a leader stops by its own clock before etcd can have given its lease away.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/base/clock.h"
#include "conclave/router_service/etcd_client.h"
#include "conclave/router_service/state_store.h"

namespace conclave::router_service {

struct EtcdElectionOptions {
  std::string prefix = "/conclave/default";
  std::string address;  // of this router, for those who ask another
  // How long a leader may be silent. A third of it passes between signs of life.
  std::chrono::seconds lease{3};
};

// One leadership, from the transaction that gave it to its end; it never comes back. Any thread.
class EtcdLeadership {
 public:
  EtcdLeadership(EtcdClient& client, EtcdElectionOptions options, EtcdLease lease,
                 int64_t create_revision, uint32_t term, MonotonicTime since);

  uint32_t term() const { return term_; }
  // False from the moment on at which another may lead, by this process's clock, or does.
  bool IsHeld() const;
  // When IsHeld becomes false if nothing is heard of etcd.
  MonotonicTime held_until() const;
  // Prolongs the lease; returns at held_until at the latest. An error without consequence while
  // IsHeld.
  absl::Status KeepAlive();
  // Ends it, so that another router need not wait for the lease. Best effort.
  void Resign();

  // The parts of a transaction that only the leader may commit.
  std::vector<EtcdCompare> Conditions() const;
  bool IsOurs(const std::optional<EtcdEntry>& leader) const;
  void MarkLost() { is_lost_.store(true); }

  EtcdClient& client() { return client_; }
  const EtcdElectionOptions& options() const { return options_; }

 private:
  EtcdClient& client_;
  const EtcdElectionOptions options_;
  const EtcdLease lease_;
  const int64_t create_revision_;
  const uint32_t term_;
  std::atomic<int64_t> held_until_ns_;
  std::atomic<bool> is_lost_{false};
};

class EtcdElection {
 public:
  // `client` outlives it and its leaderships.
  EtcdElection(EtcdClient& client, EtcdElectionOptions options);

  // The leader's address, or nothing when there is no leader.
  absl::StatusOr<std::optional<std::string>> Leader();
  // Null: another router was faster. Errors of the client; kFailedPrecondition ("term_exhausted").
  absl::StatusOr<std::shared_ptr<EtcdLeadership>> Campaign();

 private:
  EtcdClient& client_;
  const EtcdElectionOptions options_;
};

// The state as the leader has it. Load comes first.
class EtcdStateStore final : public StateStore {
 public:
  explicit EtcdStateStore(std::shared_ptr<EtcdLeadership> leadership);
  // kFailedPrecondition ("state_version_unsupported"): the state of a newer router, which must not
  // be overwritten. One that is broken ("state_corrupt") is reported and passed over; etcd's
  // history has the ones before it.
  absl::StatusOr<StoredState> Load() override;
  absl::Status Save(std::string_view blob, uint32_t term) override;

  // etcd's own limit for a request is 1.5 MiB.
  static constexpr size_t kBlobBytesMax = size_t{1} << 20;

 private:
  const std::shared_ptr<EtcdLeadership> leadership_;
  int64_t state_revision_ = 0;
};

}  // namespace conclave::router_service
