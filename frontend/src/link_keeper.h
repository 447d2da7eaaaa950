// The members of a cluster and what stands between each of them and a link: which are to be
// connected to, when to try again, which links and placements the dispatcher has yet to take, and
// which epoch counts as taken. ClusterLinks without its threads: no clock, lock or I/O, so that a
// simulation drives it as the threads do.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "conclave/base/clock.h"
#include "conclave/frontend/cluster_view.h"
#include "conclave/frontend/link_source.h"
#include "conclave/transport/expert_channel.h"

namespace conclave::frontend {

class LinkKeeper {
 public:
  struct Settings {
    // As in ClusterLinksOptions.
    std::chrono::milliseconds retry_min{100};
    std::chrono::milliseconds retry_max{2'000};
    std::chrono::milliseconds ping_interval{100};
    int silent_looks_max = 10;
    std::function<void(Epoch)> on_switched;
  };
  // A connection to be made; `number` tells its answer from that of an older one.
  struct Attempt {
    uint64_t number = 0;
    uint32_t frontend_id = 0;
    ClusterMember member;
  };

  explicit LinkKeeper(Settings settings) : settings_(std::move(settings)) {}

  void Apply(ClusterView view);

  // The attempts that are due, each to be answered by OnConnected or OnFailed.
  std::vector<Attempt> StartDue(MonotonicTime now);
  // When the next one is; MonotonicTime::max(): none is waited for.
  MonotonicTime NextRetry() const;
  // Whether the channel is a link now, and the dispatcher is to be woken; otherwise it comes too
  // late and is unused.
  bool OnConnected(const Attempt& attempt, std::unique_ptr<transport::ExpertChannel> channel,
                   MonotonicTime now);
  // Whether this is the first failure since the last link.
  bool OnFailed(const Attempt& attempt, MonotonicTime now);

  // At most every ping_interval, whenever it is called: asks every link for a sign of life, and
  // gives up those that gave none for silent_looks_max looks, or that ended while idle. A new one
  // is tried at once; the dispatcher, if it has the old one, gives that back when it takes the
  // update.
  struct GivenUp {
    std::string worker;
    absl::Status why;
  };
  std::vector<GivenUp> LookAfterLinks(MonotonicTime now);

  // LinkSource's functions.
  void Enter() { is_running_ = true; }
  void Leave();
  void Take(LinkSource::Update& update);
  // The member whose link it was, or null when it was given up before.
  const ClusterMember* Release(transport::ExpertChannel* channel, MonotonicTime now);

  // Channels that nobody uses any more: the caller closes them, which may take a while.
  std::vector<std::unique_ptr<transport::ExpertChannel>> TakeUnused();

  absl::Status Readiness() const;
  int32_t num_links() const;
  int32_t num_links(std::string_view channel) const;
  std::vector<MemberLink> Links() const;
  size_t num_channels() const { return channels_.size(); }
  Epoch epoch() const { return placement_ == nullptr ? Epoch() : placement_->epoch(); }

  // All channels at once, for the end.
  void Clear();

 private:
  struct Peer {
    ClusterMember member;
    enum class Phase : uint8_t { kDown, kConnecting, kUp } phase = Phase::kDown;
    MonotonicTime retry_at;
    std::chrono::milliseconds backoff{0};
    uint64_t attempt = 0;
    transport::ExpertChannel* channel = nullptr;
    bool has_failed = false;  // since the last link
    MonotonicTime up_since;
    std::optional<MonotonicTime> heard_at;  // as of the last look
    int num_silent_looks = 0;
  };

  Peer* FindWaiting(const Attempt& attempt);
  void Retry(Peer& peer, MonotonicTime now);
  // Takes the peer's link back: from the dispatcher, if that has taken it.
  void TakeBack(WorkerId id, const Peer& peer);

  const Settings settings_;
  uint32_t frontend_id_ = 0;
  uint64_t num_attempts_ = 0;
  std::map<WorkerId, Peer> peers_;
  std::shared_ptr<const placement::Placement> placement_;
  LinkSource::Update pending_;
  bool is_running_ = false;  // between Enter and Leave
  MonotonicTime next_look_;
  Epoch acked_;
  // Channels in use or waiting to be taken.
  std::map<transport::ExpertChannel*, std::unique_ptr<transport::ExpertChannel>> channels_;
  std::vector<std::unique_ptr<transport::ExpertChannel>> unused_;
};

}  // namespace conclave::frontend
