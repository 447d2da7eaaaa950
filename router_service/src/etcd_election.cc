#include "conclave/router_service/etcd_election.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "conclave/base/status.h"
#include "conclave/router_service/router_state.h"
#include "conclave/router_service/state_file.h"

namespace conclave::router_service {
namespace {

using std::chrono::milliseconds;
using What = EtcdCompare::What;

std::string LeaderKey(const EtcdElectionOptions& options) { return options.prefix + "/leader"; }
std::string TermKey(const EtcdElectionOptions& options) { return options.prefix + "/term"; }
std::string StateKey(const EtcdElectionOptions& options) { return options.prefix + "/state"; }

// One call. Several of them must fit in a lease.
MonotonicTime DeadlineOf(const EtcdElectionOptions& options) {
  return Clock::Real().Now() + milliseconds(options.lease) / 3;
}

absl::StatusOr<uint32_t> TermOf(const std::optional<EtcdEntry>& entry) {
  if (!entry.has_value()) {
    return 0;
  }
  const std::string& text = entry->value;
  uint32_t term = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), term);
  if (error != std::errc() || end != text.data() + text.size()) {
    return Error(absl::StatusCode::kFailedPrecondition, "state_corrupt",
                 "the term in etcd: expected a number below 2^32");
  }
  return term;
}

absl::Status Lost() {
  return Error(absl::StatusCode::kFailedPrecondition, "leadership_lost",
               "another router may command by now");
}

}  // namespace

EtcdLeadership::EtcdLeadership(EtcdClient& client, EtcdElectionOptions options, EtcdLease lease,
                               int64_t create_revision, uint32_t term, MonotonicTime since)
    : client_(client),
      options_(std::move(options)),
      lease_(lease),
      create_revision_(create_revision),
      term_(term),
      held_until_ns_((since + lease.ttl).time_since_epoch().count()) {}

MonotonicTime EtcdLeadership::held_until() const {
  return MonotonicTime(std::chrono::nanoseconds(held_until_ns_.load()));
}

bool EtcdLeadership::IsHeld() const {
  return !is_lost_.load() && Clock::Real().Now() < held_until();
}

absl::Status EtcdLeadership::KeepAlive() {
  if (!IsHeld()) {
    is_lost_.store(true);
    return Lost();
  }
  // etcd counts from when it hears of it, which is later: the leader stops first.
  const MonotonicTime sent = Clock::Real().Now();
  const absl::StatusOr<EtcdLease> lease =
      client_.KeepAlive(lease_.id, std::min(DeadlineOf(options_), held_until()));
  if (absl::IsNotFound(lease.status())) {
    is_lost_.store(true);
    return Lost();
  }
  CONCLAVE_RETURN_IF_ERROR(lease.status());
  if (!IsHeld()) {
    is_lost_.store(true);  // An answer that comes too late does not bring it back.
    return Lost();
  }
  held_until_ns_.store((sent + lease->ttl).time_since_epoch().count());
  return absl::OkStatus();
}

void EtcdLeadership::Resign() {
  is_lost_.store(true);
  (void)client_.Revoke(lease_.id, DeadlineOf(options_));
}

std::vector<EtcdCompare> EtcdLeadership::Conditions() const {
  return {{LeaderKey(options_), What::kCreateRevision, create_revision_},
          {LeaderKey(options_), What::kLease, lease_.id}};
}

bool EtcdLeadership::IsOurs(const std::optional<EtcdEntry>& leader) const {
  return leader.has_value() && leader->create_revision == create_revision_ &&
         leader->lease == lease_.id;
}

EtcdElection::EtcdElection(EtcdClient& client, EtcdElectionOptions options)
    : client_(client), options_(std::move(options)) {}

absl::StatusOr<std::optional<std::string>> EtcdElection::Leader() {
  CONCLAVE_ASSIGN_OR_RETURN(const std::optional<EtcdEntry> leader,
                            client_.Get(LeaderKey(options_), DeadlineOf(options_)));
  return leader.has_value() ? std::optional<std::string>(leader->value) : std::nullopt;
}

absl::StatusOr<std::shared_ptr<EtcdLeadership>> EtcdElection::Campaign() {
  CONCLAVE_ASSIGN_OR_RETURN(const std::optional<EtcdEntry> entry,
                            client_.Get(TermKey(options_), DeadlineOf(options_)));
  CONCLAVE_ASSIGN_OR_RETURN(const uint32_t used, TermOf(entry));
  if (used == UINT32_MAX) {
    return Error(absl::StatusCode::kFailedPrecondition, "term_exhausted",
                 "all terms of this cluster are used");
  }
  const uint32_t term = used + 1;
  const MonotonicTime since = Clock::Real().Now();
  CONCLAVE_ASSIGN_OR_RETURN(const EtcdLease lease,
                            client_.Grant(options_.lease, DeadlineOf(options_)));
  EtcdTxn txn;
  txn.all_of = {{LeaderKey(options_), What::kCreateRevision, 0},
                {TermKey(options_), What::kModRevision, entry ? entry->mod_revision : 0}};
  txn.then_put = {{LeaderKey(options_), options_.address, lease.id},
                  {TermKey(options_), std::to_string(term)}};
  txn.else_get = {LeaderKey(options_)};
  const absl::StatusOr<EtcdTxnResult> result = client_.Commit(txn, DeadlineOf(options_));
  if (result.ok() && result->held) {
    return std::make_shared<EtcdLeadership>(client_, options_, lease, result->revision, term,
                                            since);
  }
  // The first of two tries may have been carried out without an answer.
  if (result.ok() && result->found[0].has_value() && result->found[0]->lease == lease.id) {
    return std::make_shared<EtcdLeadership>(client_, options_, lease,
                                            result->found[0]->create_revision, term, since);
  }
  (void)client_.Revoke(lease.id, DeadlineOf(options_));
  CONCLAVE_RETURN_IF_ERROR(result.status());
  return nullptr;
}

EtcdStateStore::EtcdStateStore(std::shared_ptr<EtcdLeadership> leadership)
    : leadership_(std::move(leadership)) {}

absl::StatusOr<StoredState> EtcdStateStore::Load() {
  const EtcdElectionOptions& options = leadership_->options();
  EtcdTxn txn;
  txn.all_of = leadership_->Conditions();
  txn.then_get = {StateKey(options)};
  CONCLAVE_ASSIGN_OR_RETURN(const EtcdTxnResult result,
                            leadership_->client().Commit(txn, DeadlineOf(options)));
  if (!result.held) {
    leadership_->MarkLost();
    return Lost();
  }
  StoredState stored;
  stored.terms_used = leadership_->term() - 1;
  if (!result.found[0].has_value()) {
    return stored;
  }
  state_revision_ = result.found[0]->mod_revision;
  const auto blob = DecodeStateFile(result.found[0]->value, kStateVersion);
  if (absl::IsFailedPrecondition(blob.status())) {
    return blob.status();
  }
  if (!blob.ok()) {
    stored.refused.push_back(Annotate(blob.status(), "etcd " + StateKey(options)));
    return stored;
  }
  stored.is_found = true;
  stored.blob = std::string(*blob);
  return stored;
}

absl::Status EtcdStateStore::Save(std::string_view blob, uint32_t term) {
  const EtcdElectionOptions& options = leadership_->options();
  if (blob.size() > kBlobBytesMax) {
    return Error(absl::StatusCode::kUnavailable, "state_write_failed",
                 "etcd: expected a state of at most " + std::to_string(kBlobBytesMax) +
                     " bytes, found " + std::to_string(blob.size()));
  }
  EtcdTxn txn;
  txn.then_put = {{StateKey(options), EncodeStateFile(kStateVersion, blob)},
                  {TermKey(options), std::to_string(std::max(term, leadership_->term()))}};
  txn.else_get = {LeaderKey(options), StateKey(options)};
  // The second try is for an earlier write of ours that was carried out without an answer.
  for (int tries = 0; tries < 2; ++tries) {
    if (!leadership_->IsHeld()) {
      return Lost();
    }
    txn.all_of = leadership_->Conditions();
    txn.all_of.push_back({StateKey(options), What::kModRevision, state_revision_});
    const absl::StatusOr<EtcdTxnResult> result =
        leadership_->client().Commit(txn, DeadlineOf(options));
    if (!result.ok()) {
      return Error(absl::StatusCode::kUnavailable, "state_write_failed",
                   "etcd: " + MessageOf(result.status()));
    }
    if (result->held) {
      state_revision_ = result->revision;
      return absl::OkStatus();
    }
    if (!leadership_->IsOurs(result->found[0])) {
      leadership_->MarkLost();
      return Lost();
    }
    state_revision_ = result->found[1].has_value() ? result->found[1]->mod_revision : 0;
  }
  return Error(absl::StatusCode::kUnavailable, "state_write_failed",
               "etcd: the state changes under this router's hands");
}

}  // namespace conclave::router_service
