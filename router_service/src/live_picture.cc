#include "live_picture.h"

#include <algorithm>

namespace conclave::router_service {
namespace {

live::WorkerState StateOf(const WorkerStatus& worker) {
  switch (worker.member.state) {
    case MemberState::kSuspect:
      return live::WorkerState::kSuspect;
    case MemberState::kDraining:
      return worker.is_drained ? live::WorkerState::kDrained : live::WorkerState::kDraining;
    case MemberState::kLive:
      break;
  }
  return worker.num_experts == 0 ? live::WorkerState::kJoining : live::WorkerState::kLive;
}

}  // namespace

live::ClusterPicture ToPicture(const RouterStatus& status) {
  live::ClusterPicture picture;
  picture.epoch = status.epoch.value() & UINT32_MAX;
  picture.term = status.router.term;
  picture.state = status.state;
  picture.blocked = status.blocked;
  picture.replicas_wanted = status.replication_wanted;
  picture.replicas_lowest = status.replication_lowest;
  picture.placement_age = static_cast<double>(status.placement_age_ms) / 1000;
  picture.imbalance_planned = status.imbalance_planned;
  picture.imbalance_seen = status.imbalance_seen;
  picture.plan = status.plan_id;
  for (const WorkerStatus& worker : status.workers) {
    live::WorkerPicture out;
    out.id = worker.member.id.value();
    out.name = worker.member.name;
    out.host = worker.member.host_id;
    out.state = StateOf(worker);
    out.experts = worker.num_experts;
    out.loading = worker.num_loading;
    out.memory_bytes = worker.memory_bytes;
    out.memory_used_bytes = worker.memory_used_bytes;
    out.busy = worker.busy_ratio;
    out.queued_rows = worker.queued_rows;
    out.rows_per_second = worker.rows_per_second;
    out.heartbeat_age = static_cast<double>(worker.last_heartbeat_ms) / 1000;
    out.is_distrusted = worker.is_distrusted;
    picture.workers.push_back(std::move(out));
  }
  for (const FrontendStatus& frontend : status.frontends) {
    picture.frontends.push_back({frontend.frontend_id, frontend.name, frontend.incarnation,
                                 frontend.acked_epoch.value() & UINT32_MAX,
                                 !frontend.api_address.empty()});
  }
  // By unit: layer after layer, experts ascending, all of them.
  for (const ExpertStatus& expert : status.experts) {
    if (picture.layers.empty() || picture.layers.back().layer != expert.unit.layer.value()) {
      picture.layers.push_back({expert.unit.layer.value(), 0});
    }
    ++picture.layers.back().num_experts;
    std::vector<int32_t>& holders = picture.placement.emplace_back();
    for (const WorkerId worker : expert.workers) {
      holders.push_back(worker.value());
    }
  }
  return picture;
}

}  // namespace conclave::router_service
