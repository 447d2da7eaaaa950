#include <algorithm>
#include <string>
#include <utility>

#include "cluster.pb.h"
#include "conclave/base/status.h"
#include "worker_messages.h"

namespace conclave::expert_worker {

using placement::ExpertUnit;

namespace {

absl::Status Violation(const char* what) {
  return Error(absl::StatusCode::kInternal, "protocol_violation",
               std::string("router: expected ") + what + ", found something else");
}

absl::StatusOr<ExpertUnit> FromRef(const v1::ExpertRef& ref) {
  if (ref.layer() < 0 || ref.expert() < 0) {
    return Violation("layers and experts from 0 on");
  }
  return ExpertUnit{LayerId(ref.layer()), ExpertId(ref.expert())};
}

template <typename Refs>
absl::StatusOr<std::vector<ExpertUnit>> FromRefs(const Refs& refs) {
  std::vector<ExpertUnit> units;
  for (const v1::ExpertRef& ref : refs) {
    CONCLAVE_ASSIGN_OR_RETURN(const ExpertUnit unit, FromRef(ref));
    units.push_back(unit);
  }
  return units;
}

void ToRef(ExpertUnit unit, v1::ExpertRef* out) {
  out->set_layer(unit.layer.value());
  out->set_expert(unit.expert.value());
}

void ToHeld(const HeldExpert& held, v1::HeldExpert* out) {
  ToRef(held.unit, out->mutable_expert());
  out->set_weight_hash(held.weight_hash.data(), held.weight_hash.size());
  out->set_canary_checksum(held.canary_checksum);
}

absl::StatusOr<PrepareCommand> FromPrepare(const v1::Prepare& prepare) {
  PrepareCommand command;
  command.plan_id = prepare.plan_id();
  CONCLAVE_ASSIGN_OR_RETURN(command.units, FromRefs(prepare.experts()));
  for (const v1::HeldExpert& known : prepare.expected()) {
    CONCLAVE_ASSIGN_OR_RETURN(const ExpertUnit unit, FromRef(known.expert()));
    ExpectedExpert expected;
    if (!known.weight_hash().empty()) {
      if (known.weight_hash().size() != WeightHash().size()) {
        return Violation("a hash of 32 bytes");
      }
      expected.weight_hash.emplace();
      std::copy(known.weight_hash().begin(), known.weight_hash().end(),
                expected.weight_hash->begin());
      // Of the first replica; a router that knows the hash knows the canary, 0 included.
      expected.canary_checksum = known.canary_checksum();
    }
    command.expected.emplace(unit, expected);
  }
  return command;
}

absl::StatusOr<PlacementCommand> FromPlacement(const v1::PlacementUpdate& update) {
  PlacementCommand command;
  command.epoch = Epoch(update.epoch());
  command.base_epoch = Epoch(update.base_epoch());
  for (const v1::ExpertReplicas& replicas : update.experts()) {
    CONCLAVE_ASSIGN_OR_RETURN(const ExpertUnit unit, FromRef(replicas.expert()));
    std::vector<WorkerId> workers;
    for (const int32_t worker : replicas.workers()) {
      if (worker < 0) {
        return Violation("workers from 0 on");
      }
      workers.emplace_back(worker);
    }
    command.units.emplace_back(unit, std::move(workers));
  }
  return command;
}

absl::StatusOr<RegisteredCommand> FromRegistered(const v1::WorkerRegistered& registered) {
  if (registered.worker_id() < 0 || registered.heartbeat_interval_ms() == 0 ||
      registered.dead_after_ms() == 0 || registered.load_interval_ms() == 0) {
    return Violation("a worker id and intervals above 0");
  }
  RegisteredCommand command;
  command.worker = WorkerId(registered.worker_id());
  command.worker_key = registered.worker_key();
  command.heartbeat_interval = std::chrono::milliseconds(registered.heartbeat_interval_ms());
  command.dead_after = std::chrono::milliseconds(registered.dead_after_ms());
  command.load_interval = std::chrono::milliseconds(registered.load_interval_ms());
  return command;
}

// Fills the report's message of each kind.
struct ReportWriter {
  v1::WorkerReport& out;

  void operator()(const HeartbeatReport& report) const {
    v1::Heartbeat* beat = out.mutable_heartbeat();
    beat->set_seq(report.seq);
    beat->set_oldest_call_age_us(static_cast<uint64_t>(report.oldest_call_age.count()));
    beat->set_queued_rows(report.queued_rows);
    beat->set_busy_ratio(report.busy_ratio);
    beat->set_tick_lateness_us(static_cast<uint64_t>(report.tick_lateness.count()));
    beat->set_is_canary_ok(report.is_canary_ok);
    beat->set_epoch(report.epoch.value());
  }
  void operator()(const LoadsReport& report) const {
    v1::LoadReport* load = out.mutable_load();
    load->set_seq(report.seq);
    load->set_window_us(static_cast<uint64_t>(report.window.count()));
    load->set_us_per_row(report.us_per_row);
    for (const UnitRows& rows : report.experts) {
      v1::ExpertRows* expert = load->add_experts();
      ToRef(rows.unit, expert->mutable_expert());
      expert->set_decode_text(rows.rows[0]);
      expert->set_decode_image(rows.rows[1]);
      expert->set_prefill_text(rows.rows[2]);
      expert->set_prefill_image(rows.rows[3]);
    }
  }
  void operator()(const action::SendPrepareResult& report) const {
    v1::PrepareResult* result = out.mutable_prepare_result();
    result->set_plan_id(report.plan_id);
    for (const HeldExpert& held : report.ready) {
      ToHeld(held, result->add_ready());
    }
    for (const ExpertUnit unit : report.failed) {
      ToRef(unit, result->add_failed());
    }
    result->set_error(report.error);
  }
  void operator()(const action::SendRetireResult& report) const {
    out.mutable_retire_result()->set_plan_id(report.plan_id);
    out.mutable_retire_result()->set_freed_bytes(report.freed_bytes);
  }
  void operator()(const action::SendExpertsLost& report) const {
    for (const ExpertUnit unit : report.units) {
      ToRef(unit, out.mutable_experts_lost()->add_experts());
    }
    out.mutable_experts_lost()->set_why(report.why);
  }
  void operator()(const action::SendDrainWish& /*report*/) const { out.mutable_drain_wish(); }
};

}  // namespace

absl::StatusOr<RouterCommand> FromCommand(const v1::WorkerCommand& message) {
  RouterCommand command;
  command.router = {message.router().term(), message.router().router_id()};
  switch (message.command_case()) {
    case v1::WorkerCommand::kRegistered: {
      CONCLAVE_ASSIGN_OR_RETURN(command.command, FromRegistered(message.registered()));
      return command;
    }
    case v1::WorkerCommand::kPrepare: {
      CONCLAVE_ASSIGN_OR_RETURN(command.command, FromPrepare(message.prepare()));
      return command;
    }
    case v1::WorkerCommand::kRetire: {
      RetireCommand retire;
      retire.plan_id = message.retire().plan_id();
      CONCLAVE_ASSIGN_OR_RETURN(retire.units, FromRefs(message.retire().experts()));
      command.command = std::move(retire);
      return command;
    }
    case v1::WorkerCommand::kPlacement: {
      CONCLAVE_ASSIGN_OR_RETURN(command.command, FromPlacement(message.placement()));
      return command;
    }
    case v1::WorkerCommand::kDrain:
      command.command = DrainCommand{message.drain().is_draining(), message.drain().is_drained()};
      return command;
    case v1::WorkerCommand::kHeartbeatAck:
      command.command = HeartbeatAckCommand{message.heartbeat_ack().seq()};
      return command;
    case v1::WorkerCommand::COMMAND_NOT_SET:
      break;
  }
  return Violation("a command");
}

v1::WorkerReport ToReport(const RouterReport& report) {
  v1::WorkerReport out;
  std::visit(ReportWriter{out}, report);
  return out;
}

void AddFacts(const RegistrationFacts& facts, v1::RegisterWorker* out) {
  for (const HeldExpert& held : facts.held) {
    ToHeld(held, out->add_held());
  }
  out->mutable_last_router()->set_term(facts.last_router.term);
  out->mutable_last_router()->set_router_id(facts.last_router.router_id);
  out->set_last_epoch(facts.last_epoch.value());
  out->set_is_draining(facts.is_draining);
}

}  // namespace conclave::expert_worker
