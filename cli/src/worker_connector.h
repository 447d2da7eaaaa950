// How a frontend reaches the workers of its cluster: chooses a channel per worker and connects.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "conclave/base/clock.h"
#include "conclave/base/mutex.h"
#include "conclave/frontend/cluster_view.h"
#include "conclave/transport/channel_choice.h"
#include "conclave/transport/doorbell.h"
#include "conclave/transport/expert_channel.h"
#include "conclave/transport/grpc_channel.h"

namespace conclave::cli {

// Thread-safe.
class WorkerConnector {
 public:
  // A ucx link that is lost sooner than this is followed by a grpc link to the same start of the
  // worker: what is wrong with UCX there (memory that may not be read, say) would be wrong again.
  static constexpr std::chrono::seconds kUcxProvenAfter{5};

  WorkerConnector(transport::ChannelWish wish, bool is_trusted_network, transport::TlsIdentity tls);

  // `terms` are the pair's. Blocks for a few seconds at most; logs which channel it took, and why.
  // Errors: those of ConnectGrpcChannel and ConnectUcxChannel; "no_common_channel".
  absl::StatusOr<std::unique_ptr<transport::ExpertChannel>> Connect(
      const frontend::ClusterMember& member, const transport::PairTerms& terms,
      transport::Doorbell& bell) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  using Start = std::pair<WorkerId, uint64_t>;  // of a worker: its id and incarnation

  // OK, or what keeps ucx away from this worker.
  absl::Status CheckUcx(const frontend::ClusterMember& member) ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<std::unique_ptr<transport::ExpertChannel>> ConnectGrpc(
      const frontend::ClusterMember& member, const transport::PairTerms& terms,
      transport::Doorbell& bell, const std::string& why);

  const transport::ChannelWish wish_;
  const bool is_trusted_network_;
  const transport::TlsIdentity tls_;

  Mutex mu_;
  std::map<Start, MonotonicTime> ucx_since_ ABSL_GUARDED_BY(mu_);  // of the last ucx link
};

}  // namespace conclave::cli
