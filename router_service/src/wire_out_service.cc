// What goes out, and an operator's reading of it.
#include <optional>
#include <string>

#include "cluster.pb.h"
#include "conclave/transport/pair_key.h"
#include "wire.h"

namespace conclave::router_service {
namespace {

v1::Member::State StateOf(MemberState state) {
  switch (state) {
    case MemberState::kSuspect:
      return v1::Member::STATE_SUSPECT;
    case MemberState::kDraining:
      return v1::Member::STATE_DRAINING;
    case MemberState::kLive:
      break;
  }
  return v1::Member::STATE_LIVE;
}

void FillMember(const MemberView& in, v1::Member& out) {
  out.set_worker_id(in.id.value());
  out.set_name(in.name);
  out.set_incarnation(in.incarnation);
  out.set_data_address(in.data_address);
  out.set_host_id(in.host_id);
  for (const std::string& channel : in.channels) {
    out.add_channels(channel);
  }
  out.mutable_numeric()->set_dtype(in.numeric.dtype);
  out.mutable_numeric()->set_isa(in.numeric.isa);
  out.mutable_numeric()->set_kernel_revision(in.numeric.kernel_revision);
  out.set_state(StateOf(in.state));
}

void FillReplicas(const UnitReplicas& in, v1::ExpertReplicas& out) {
  ToWire(in.unit, *out.mutable_expert());
  for (const WorkerId worker : in.workers) {
    out.add_workers(worker.value());
  }
  if (in.weight_hash != WeightHash{}) {
    out.set_weight_hash(std::string(in.weight_hash.begin(), in.weight_hash.end()));
  }
}

}  // namespace

void ToWire(ExpertUnit unit, v1::ExpertRef& ref) {
  ref.set_layer(unit.layer.value());
  ref.set_expert(unit.expert.value());
}

void ToWire(const RouterIdentity& router, v1::WorkerCommand& command) {
  command.mutable_router()->set_term(router.term);
  command.mutable_router()->set_router_id(router.router_id);
}

void ToWire(const SendRegistered& action, const CoreOptions& options, v1::WorkerCommand& command) {
  v1::WorkerRegistered& registered = *command.mutable_registered();
  registered.set_worker_id(action.worker.value());
  registered.set_worker_key(action.key);
  constexpr uint32_t kHeartbeatIntervalMs = 200;
  constexpr uint32_t kLoadIntervalMs = 1000;
  registered.set_heartbeat_interval_ms(kHeartbeatIntervalMs);
  registered.set_suspect_after_ms(static_cast<uint32_t>(options.suspect_after.count()));
  registered.set_dead_after_ms(static_cast<uint32_t>(options.dead_after.count()));
  registered.set_load_interval_ms(kLoadIntervalMs);
}

void ToWire(const SendPrepare& action, v1::WorkerCommand& command) {
  v1::Prepare& prepare = *command.mutable_prepare();
  prepare.set_plan_id(action.plan_id);
  for (const ExpertUnit unit : action.experts) {
    ToWire(unit, *prepare.add_experts());
  }
  for (const HeldExpert& held : action.expected) {
    v1::HeldExpert& expected = *prepare.add_expected();
    ToWire(held.unit, *expected.mutable_expert());
    expected.set_weight_hash(std::string(held.weight_hash.begin(), held.weight_hash.end()));
    expected.set_canary_checksum(held.canary_checksum);
  }
}

void ToWire(const SendRetire& action, v1::WorkerCommand& command) {
  command.mutable_retire()->set_plan_id(action.plan_id);
  for (const ExpertUnit unit : action.experts) {
    ToWire(unit, *command.mutable_retire()->add_experts());
  }
}

void ToWire(const SendDrainState& action, v1::WorkerCommand& command) {
  command.mutable_drain()->set_is_draining(action.is_draining);
  command.mutable_drain()->set_is_drained(action.is_drained);
}

void ToWire(const SendHeartbeatAck& action, v1::WorkerCommand& command) {
  command.mutable_heartbeat_ack()->set_seq(action.seq);
}

void ToWire(const PlacementView* from, const PlacementView& to, std::optional<uint32_t> frontend_id,
            v1::PlacementUpdate& update) {
  update.mutable_router()->set_term(to.router.term);
  update.mutable_router()->set_router_id(to.router.router_id);
  update.set_epoch(to.epoch.value());
  PlacementDelta delta;
  if (from != nullptr) {
    update.set_base_epoch(from->epoch.value());
    delta = Diff(*from, to);
  } else {
    for (const MemberView& member : to.workers) {
      delta.workers.push_back(&member);
    }
    for (const UnitReplicas& replicas : *to.experts) {
      delta.experts.push_back(&replicas);
    }
  }
  for (const MemberView* member : delta.workers) {
    v1::Member& out = *update.add_workers();
    FillMember(*member, out);
    if (frontend_id.has_value()) {
      out.set_pair_key(transport::PairKey(member->key, *frontend_id));
    }
  }
  for (const WorkerId worker : delta.removed_workers) {
    update.add_removed_workers(worker.value());
  }
  for (const UnitReplicas* replicas : delta.experts) {
    FillReplicas(*replicas, *update.add_experts());
  }
}

void ToWire(const RouterStatus& status, v1::GetStatusResponse& response) {
  response.mutable_router()->set_term(status.router.term);
  response.mutable_router()->set_router_id(status.router.router_id);
  response.set_epoch(status.epoch.value());
  response.set_state(status.state);
  response.set_blocked(status.blocked);
  response.set_replication_wanted(status.replication_wanted);
  response.set_replication_lowest(status.replication_lowest);
  response.set_imbalance_planned(status.imbalance_planned);
  response.set_imbalance_seen(status.imbalance_seen);
  response.set_placement_age_ms(status.placement_age_ms);
  response.set_plan_id(status.plan_id);
  if (status.recording.has_value()) {
    ToWire(*status.recording, *response.mutable_recording());
  }
  for (const WorkerStatus& worker : status.workers) {
    v1::WorkerStatus& out = *response.add_workers();
    FillMember(worker.member, *out.mutable_member());
    out.set_num_experts(worker.num_experts);
    out.set_num_loading(worker.num_loading);
    out.set_memory_bytes(worker.memory_bytes);
    out.set_memory_used_bytes(worker.memory_used_bytes);
    out.set_last_heartbeat_ms(worker.last_heartbeat_ms);
    out.set_rows_per_second(worker.rows_per_second);
    out.set_busy_ratio(worker.busy_ratio);
    out.set_queued_rows(worker.queued_rows);
    out.set_is_drained(worker.is_drained);
    out.set_is_distrusted(worker.is_distrusted);
  }
  for (const FrontendStatus& frontend : status.frontends) {
    v1::FrontendStatus& out = *response.add_frontends();
    out.set_frontend_id(frontend.frontend_id);
    out.set_name(frontend.name);
    out.set_acked_epoch(frontend.acked_epoch.value());
  }
  for (const ExpertStatus& expert : status.experts) {
    v1::ExpertStatus& out = *response.add_experts();
    ToWire(expert.unit, *out.mutable_expert());
    for (const WorkerId worker : expert.workers) {
      out.add_workers(worker.value());
    }
    out.set_decode_text(expert.rows_per_second[0]);
    out.set_decode_image(expert.rows_per_second[1]);
    out.set_prefill_text(expert.rows_per_second[2]);
    out.set_prefill_image(expert.rows_per_second[3]);
  }
}

RouterStatus FromWire(const v1::GetStatusResponse& response) {
  RouterStatus status;
  status.router = {response.router().term(), response.router().router_id()};
  status.epoch = Epoch(response.epoch());
  status.state = response.state();
  status.blocked = response.blocked();
  status.replication_wanted = response.replication_wanted();
  status.replication_lowest = response.replication_lowest();
  status.imbalance_planned = response.imbalance_planned();
  status.imbalance_seen = response.imbalance_seen();
  status.placement_age_ms = response.placement_age_ms();
  status.plan_id = response.plan_id();
  if (response.has_recording()) {
    status.recording = FromWire(response.recording());
  }
  for (const v1::WorkerStatus& in : response.workers()) {
    WorkerStatus& out = status.workers.emplace_back();
    const v1::Member& member = in.member();
    out.member.id = WorkerId(member.worker_id());
    out.member.name = member.name();
    out.member.incarnation = member.incarnation();
    out.member.data_address = member.data_address();
    out.member.host_id = member.host_id();
    out.member.channels.assign(member.channels().begin(), member.channels().end());
    out.member.numeric = {member.numeric().dtype(), member.numeric().isa(),
                          member.numeric().kernel_revision()};
    out.member.state = member.state() == v1::Member::STATE_SUSPECT    ? MemberState::kSuspect
                       : member.state() == v1::Member::STATE_DRAINING ? MemberState::kDraining
                                                                      : MemberState::kLive;
    out.num_experts = in.num_experts();
    out.num_loading = in.num_loading();
    out.memory_bytes = in.memory_bytes();
    out.memory_used_bytes = in.memory_used_bytes();
    out.last_heartbeat_ms = in.last_heartbeat_ms();
    out.rows_per_second = in.rows_per_second();
    out.busy_ratio = in.busy_ratio();
    out.queued_rows = in.queued_rows();
    out.is_drained = in.is_drained();
    out.is_distrusted = in.is_distrusted();
  }
  for (const v1::FrontendStatus& in : response.frontends()) {
    status.frontends.push_back({in.frontend_id(), in.name(), Epoch(in.acked_epoch()), 0, {}});
  }
  for (const v1::ExpertStatus& in : response.experts()) {
    ExpertStatus& out = status.experts.emplace_back();
    out.unit = {LayerId(in.expert().layer()), ExpertId(in.expert().expert())};
    for (const int32_t worker : in.workers()) {
      out.workers.emplace_back(worker);
    }
    out.rows_per_second = {in.decode_text(), in.decode_image(), in.prefill_text(),
                           in.prefill_image()};
  }
  return status;
}

void ToWire(const RecordingStatus& recording, v1::RecordingStatus& out) {
  out.set_is_recording(recording.is_recording);
  out.set_is_full(recording.is_full);
  out.set_bytes(recording.bytes);
  out.set_windows(recording.windows);
  out.set_rows(recording.rows);
}

RecordingStatus FromWire(const v1::RecordingStatus& in) {
  return {in.is_recording(), in.is_full(), in.bytes(), in.windows(), in.rows()};
}

void ToWire(const RebalancePlan& plan, v1::RebalanceResponse& response) {
  for (const ReplicaMove& move : plan.moves) {
    v1::ReplicaMove& out = *response.add_moves();
    ToWire(move.unit, *out.mutable_expert());
    out.set_to(move.to.value());
    out.set_from(move.from.value());
  }
  response.set_bytes(plan.bytes);
  response.set_imbalance_before(plan.imbalance_before);
  response.set_imbalance_after(plan.imbalance_after);
  response.set_plan_id(plan.plan_id);
}

RebalancePlan FromWire(const v1::RebalanceResponse& response) {
  RebalancePlan plan;
  for (const v1::ReplicaMove& in : response.moves()) {
    plan.moves.push_back({{LayerId(in.expert().layer()), ExpertId(in.expert().expert())},
                          WorkerId(in.to()),
                          WorkerId(in.from())});
  }
  plan.bytes = response.bytes();
  plan.imbalance_before = response.imbalance_before();
  plan.imbalance_after = response.imbalance_after();
  plan.plan_id = response.plan_id();
  return plan;
}

}  // namespace conclave::router_service
