// The links of a frontend to the workers of its cluster: connects to every member, again and again
// until it answers, and hands links and placements to the dispatcher.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/frontend/cluster_view.h"
#include "conclave/frontend/link_source.h"
#include "conclave/transport/doorbell.h"
#include "conclave/transport/expert_channel.h"

namespace conclave::frontend {

struct ClusterLinksOptions {
  // Shakes hands with a member and opens a channel whose answers ring the bell. Called on threads
  // of the links, several at once; must come back within a few seconds.
  std::function<absl::StatusOr<std::unique_ptr<transport::ExpertChannel>>(
      uint32_t frontend_id, const ClusterMember& member, transport::Doorbell& bell)>
      connect;
  // A link that could not be opened or was lost is tried again after this, doubled up to the
  // maximum.
  std::chrono::milliseconds retry_min{100};
  std::chrono::milliseconds retry_max{2'000};
  // Every link is asked for a sign of life this often, by a PING that the worker's I/O answers; one
  // from which nothing came for so many looks in a row is lost, as is one whose connection ended
  // while no call was under way. Looks and not time: a frontend that stood still has not listened.
  // Calls have their own deadlines, far below.
  std::chrono::milliseconds ping_interval{100};
  int silent_looks_max = 10;
  // The dispatcher routes by this epoch and by no older one. Any thread; must not block.
  std::function<void(Epoch)> on_switched;
  // What the dispatcher saw. Its thread; must not block.
  std::function<void(WorkerId, uint64_t incarnation, PeerSighting)> on_sighting;
};

// LinkSource's functions by the dispatcher's thread, all others by any.
class ClusterLinks final : public LinkSource {
 public:
  explicit ClusterLinks(ClusterLinksOptions options);
  // The dispatcher is gone by then.
  ~ClusterLinks() override;

  // The cluster as it is now: members that are new or restarted get a link, links to others are
  // taken back. Views must come in the order of their epochs.
  void Apply(ClusterView view);

  // OK when every expert has a worker with a link; kUnavailable "no_placement", "expert_unserved".
  absl::Status Readiness() const;
  // Links that are up.
  int32_t num_links() const;
  // Those over this channel (ExpertChannel::name).
  int32_t num_links(std::string_view channel) const;
  Epoch epoch() const;
  // Of every member, by id.
  std::vector<MemberLink> Links() const;

  void Enter() override;
  void Leave() override;
  bool has_update() const override;
  void Take(Update& update) override;
  void Release(transport::ExpertChannel* channel) override;
  void Report(WorkerId worker, uint64_t incarnation, PeerSighting sighting) override;
  bool WaitUntil(MonotonicTime until) override;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace conclave::frontend
