#include "link_keeper.h"

#include <algorithm>
#include <string>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/base/status.h"

namespace conclave::frontend {

using std::chrono::milliseconds;
using transport::ExpertChannel;

void LinkKeeper::Apply(ClusterView view) {
  // Another id: the router knows this frontend anew, and workers would take calls of the old id for
  // those of a dead one.
  const bool is_renamed = frontend_id_ != 0 && frontend_id_ != view.frontend_id;
  frontend_id_ = view.frontend_id;
  for (auto it = peers_.begin(); it != peers_.end();) {
    const bool is_member =
        std::any_of(view.members.begin(), view.members.end(), [&](const ClusterMember& member) {
          return member.id == it->first && member.incarnation == it->second.member.incarnation &&
                 member.pair_key == it->second.member.pair_key;
        });
    if (is_member && !is_renamed) {
      ++it;
      continue;
    }
    if (it->second.phase == Peer::Phase::kUp) {
      TakeBack(it->first, it->second);
    }
    it = peers_.erase(it);
  }
  pending_.suspects.clear();
  for (ClusterMember& member : view.members) {
    if (member.is_suspect) {
      pending_.suspects.push_back(member.id);
    }
    peers_[member.id].member = std::move(member);
  }
  pending_.has_suspects = true;
  if (view.placement != nullptr &&
      (placement_ == nullptr || view.placement->epoch() >= placement_->epoch())) {
    placement_ = view.placement;
    pending_.placement = placement_;
    if (!is_running_) {
      acked_ = placement_->epoch();
      settings_.on_switched(acked_);
    }
  }
}

std::vector<LinkKeeper::Attempt> LinkKeeper::StartDue(MonotonicTime now) {
  std::vector<Attempt> due;
  for (auto& [id, peer] : peers_) {
    if (peer.phase == Peer::Phase::kDown && peer.retry_at <= now) {
      peer.phase = Peer::Phase::kConnecting;
      peer.attempt = ++num_attempts_;
      due.push_back({peer.attempt, frontend_id_, peer.member});
    }
  }
  return due;
}

MonotonicTime LinkKeeper::NextRetry() const {
  MonotonicTime next = MonotonicTime::max();
  for (const auto& [id, peer] : peers_) {
    if (peer.phase == Peer::Phase::kDown) {
      next = std::min(next, peer.retry_at);
    }
  }
  return next;
}

LinkKeeper::Peer* LinkKeeper::FindWaiting(const Attempt& attempt) {
  const auto it = peers_.find(attempt.member.id);
  const bool is_wanted = it != peers_.end() && it->second.attempt == attempt.number &&
                         it->second.phase == Peer::Phase::kConnecting;
  return is_wanted ? &it->second : nullptr;
}

void LinkKeeper::Retry(Peer& peer, MonotonicTime now) {
  if (peer.phase == Peer::Phase::kUp && now - peer.up_since > settings_.ping_interval) {
    peer.backoff = milliseconds(0);  // it was a good one
  }
  peer.phase = Peer::Phase::kDown;
  peer.channel = nullptr;
  peer.retry_at = now + peer.backoff;
  peer.backoff = std::clamp(peer.backoff * 2, settings_.retry_min, settings_.retry_max);
}

bool LinkKeeper::OnConnected(const Attempt& attempt, std::unique_ptr<ExpertChannel> channel,
                             MonotonicTime now) {
  Peer* peer = FindWaiting(attempt);
  if (peer == nullptr) {
    unused_.push_back(std::move(channel));
    return false;
  }
  peer->phase = Peer::Phase::kUp;
  peer->up_since = now;
  peer->num_silent_looks = 0;
  peer->has_failed = false;
  peer->channel = channel.get();
  pending_.added.push_back(
      {attempt.member.id, attempt.member.incarnation, peer->channel, /*is_inline=*/false});
  channels_.emplace(peer->channel, std::move(channel));
  return true;
}

bool LinkKeeper::OnFailed(const Attempt& attempt, MonotonicTime now) {
  Peer* peer = FindWaiting(attempt);
  if (peer == nullptr) {
    return false;
  }
  Retry(*peer, now);
  return !std::exchange(peer->has_failed, true);
}

void LinkKeeper::TakeBack(WorkerId id, const Peer& peer) {
  const auto added =
      std::find_if(pending_.added.begin(), pending_.added.end(),
                   [&](const WorkerLink& link) { return link.channel == peer.channel; });
  if (added == pending_.added.end()) {
    pending_.removed.push_back(id);
    return;
  }
  // Never taken: it is still ours alone.
  unused_.push_back(std::move(channels_.at(added->channel)));
  channels_.erase(added->channel);
  pending_.added.erase(added);
}

std::vector<LinkKeeper::GivenUp> LinkKeeper::LookAfterLinks(MonotonicTime now) {
  std::vector<GivenUp> given_up;
  if (now < next_look_) {
    return given_up;
  }
  next_look_ = now + settings_.ping_interval;
  for (auto& [id, peer] : peers_) {
    if (peer.phase != Peer::Phase::kUp) {
      continue;
    }
    const transport::LinkSigns signs = peer.channel->CheckOn();
    // Who has not been asked is neither silent nor alive.
    if (signs.heard_at.has_value()) {
      peer.num_silent_looks = signs.heard_at == peer.heard_at ? peer.num_silent_looks + 1 : 0;
      peer.heard_at = signs.heard_at;
    }
    if (signs.status.ok() && peer.num_silent_looks < settings_.silent_looks_max) {
      continue;
    }
    given_up.push_back({peer.member.name, signs.status.ok()
                                              ? Error(absl::StatusCode::kUnavailable, "link_lost",
                                                      "no answer to a PING")
                                              : signs.status});
    TakeBack(id, peer);
    Retry(peer, now);
  }
  return given_up;
}

void LinkKeeper::Leave() {
  is_running_ = false;
  // What came during the layer counts as taken: the next call is routed by it.
  if (placement_ != nullptr && acked_ != placement_->epoch()) {
    acked_ = placement_->epoch();
    settings_.on_switched(acked_);
  }
}

void LinkKeeper::Take(LinkSource::Update& update) {
  std::swap(update, pending_);
  pending_.Clear();
}

const ClusterMember* LinkKeeper::Release(ExpertChannel* channel, MonotonicTime now) {
  const auto it = channels_.find(channel);
  CONCLAVE_CHECK(it != channels_.end());
  unused_.push_back(std::move(it->second));
  channels_.erase(it);
  for (auto& [id, peer] : peers_) {
    if (peer.phase == Peer::Phase::kUp && peer.channel == channel) {
      Retry(peer, now);
      return &peer.member;
    }
  }
  return nullptr;
}

std::vector<std::unique_ptr<ExpertChannel>> LinkKeeper::TakeUnused() {
  return std::exchange(unused_, {});
}

absl::Status LinkKeeper::Readiness() const {
  if (placement_ == nullptr) {
    return Error(absl::StatusCode::kUnavailable, "no_placement",
                 "the router has not published a placement yet");
  }
  int64_t unserved = 0;
  for (const placement::ExpertUnit unit : placement_->units()) {
    const auto workers = placement_->WorkersOf(unit);
    unserved += std::any_of(workers.begin(), workers.end(),
                            [this](WorkerId worker) {
                              const auto it = peers_.find(worker);
                              return it != peers_.end() && it->second.phase == Peer::Phase::kUp;
                            })
                    ? 0
                    : 1;
  }
  if (unserved > 0) {
    return Error(absl::StatusCode::kUnavailable, "expert_unserved",
                 std::to_string(unserved) + " of " + std::to_string(placement_->units().size()) +
                     " experts have no worker with a link; expected all of them served");
  }
  return absl::OkStatus();
}

int32_t LinkKeeper::num_links() const {
  return static_cast<int32_t>(std::count_if(peers_.begin(), peers_.end(), [](const auto& peer) {
    return peer.second.phase == Peer::Phase::kUp;
  }));
}

int32_t LinkKeeper::num_links(std::string_view channel) const {
  return static_cast<int32_t>(std::count_if(peers_.begin(), peers_.end(), [&](const auto& peer) {
    return peer.second.phase == Peer::Phase::kUp && peer.second.channel->name() == channel;
  }));
}

std::vector<MemberLink> LinkKeeper::Links() const {
  std::vector<MemberLink> links;
  links.reserve(peers_.size());
  for (const auto& [id, peer] : peers_) {
    links.push_back({id, peer.member.name, peer.member.data_address,
                     peer.phase == Peer::Phase::kUp ? peer.channel->carrier() : nullptr});
  }
  return links;
}

void LinkKeeper::Clear() {
  pending_.Clear();
  channels_.clear();
  unused_.clear();
}

}  // namespace conclave::frontend
