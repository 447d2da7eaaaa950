#include "cluster_report.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <map>

#include "conclave/base/status.h"
#include "conclave/observability/log.h"
#include "conclave/service/units.h"
#include "table.h"

namespace conclave::cli {
namespace {

namespace json = boost::json;
using placement::ExpertUnit;
using router_service::MemberState;
using router_service::RebalancePlan;
using router_service::RecordingStatus;
using router_service::ReplicaMove;
using router_service::RouterStatus;
using router_service::WorkerStatus;

std::string Mebibytes(int64_t bytes) { return std::to_string(bytes >> 20) + "MiB"; }

const char* NameOf(const WorkerStatus& worker) {
  if (worker.is_drained) {
    return "drained";
  }
  switch (worker.member.state) {
    case MemberState::kSuspect:
      return "suspect";
    case MemberState::kDraining:
      return "draining";
    case MemberState::kLive:
      break;
  }
  return worker.is_distrusted ? "distrusted" : "live";
}

// Names of peers go to a terminal.
std::string Safe(const std::string& text) { return observability::Printable(text, 128); }

json::object ExpertJson(ExpertUnit unit) {
  return {{"layer", unit.layer.value()}, {"expert", unit.expert.value()}};
}

json::array IdsJson(const std::vector<WorkerId>& workers) {
  json::array ids;
  for (const WorkerId worker : workers) {
    ids.emplace_back(worker.value());
  }
  return ids;
}

json::object RecordingObject(const RecordingStatus& recording) {
  return {{"is_recording", recording.is_recording},
          {"is_full", recording.is_full},
          {"windows", recording.windows},
          {"rows", recording.rows},
          {"bytes", recording.bytes}};
}

json::object WorkerJson(const WorkerStatus& worker) {
  json::array channels;
  for (const std::string& channel : worker.member.channels) {
    channels.emplace_back(channel);
  }
  return {{"id", worker.member.id.value()},
          {"name", worker.member.name},
          {"state", NameOf(worker)},
          {"incarnation", worker.member.incarnation},
          {"data_address", worker.member.data_address},
          {"host_id", worker.member.host_id},
          {"channels", std::move(channels)},
          {"dtype", worker.member.numeric.dtype},
          {"isa", worker.member.numeric.isa},
          {"kernel_revision", worker.member.numeric.kernel_revision},
          {"experts", worker.num_experts},
          {"loading", worker.num_loading},
          {"memory_bytes", worker.memory_bytes},
          {"memory_used_bytes", worker.memory_used_bytes},
          {"last_heartbeat_ms", worker.last_heartbeat_ms},
          {"rows_per_second", worker.rows_per_second},
          {"busy_ratio", worker.busy_ratio},
          {"queued_rows", worker.queued_rows},
          {"is_drained", worker.is_drained},
          {"is_distrusted", worker.is_distrusted}};
}

}  // namespace

std::string ToString(ExpertUnit unit) {
  return std::to_string(unit.layer.value()) + ":" + std::to_string(unit.expert.value());
}

std::string ToString(Epoch epoch) {
  return std::to_string(epoch.value() >> 32) + "." + std::to_string(epoch.value() & UINT32_MAX);
}

absl::StatusOr<ExpertUnit> ParseExpert(const std::string& text) {
  constexpr int64_t kMax = 65'535;
  const size_t colon = text.find(':');
  if (colon != std::string::npos) {
    const auto layer = service::ParseInt(text.substr(0, colon));
    const auto expert = service::ParseInt(text.substr(colon + 1));
    if (layer.ok() && expert.ok() && *layer >= 0 && *layer <= kMax && *expert >= 0 &&
        *expert <= kMax) {
      return ExpertUnit{LayerId(static_cast<int32_t>(*layer)),
                        ExpertId(static_cast<int32_t>(*expert))};
    }
  }
  return InvalidArgument("usage",
                         "expected LAYER:EXPERT such as 1:3, found " + service::Quoted(text));
}

std::string StatusText(const RouterStatus& status) {
  std::string out = "router " + status.router.router_id + ": " + status.state + ", epoch " +
                    ToString(status.epoch) + ", placement " +
                    Fixed(static_cast<double>(status.placement_age_ms) / 1000, 1) + " s old\n";
  if (!status.blocked.empty()) {
    out += "blocked: " + Safe(status.blocked) + "\n";
  }
  const auto num_unserved =
      std::count_if(status.experts.begin(), status.experts.end(),
                    [](const auto& expert) { return expert.workers.empty(); });
  out += "replicas: " + std::to_string(status.replication_lowest) + " lowest, " +
         std::to_string(status.replication_wanted) + " wanted; " +
         std::to_string(status.experts.size()) + " experts, " + std::to_string(num_unserved) +
         " unserved\n";
  out += "imbalance: " + Fixed(status.imbalance_planned, 3) + " planned, " +
         Fixed(status.imbalance_seen, 3) + " seen" +
         (status.plan_id != 0 ? "; a plan is under way\n" : "\n");
  if (status.recording.has_value()) {
    out += RecordingText(*status.recording);
  }
  Table workers;
  workers.Add({"ID", "WORKER", "STATE", "EXPERTS", "LOADING", "MEMORY", "ROWS/S", "BUSY",
               "HEARTBEAT", "ADDRESS"});
  for (const WorkerStatus& worker : status.workers) {
    workers.Add({std::to_string(worker.member.id.value()), Safe(worker.member.name), NameOf(worker),
                 std::to_string(worker.num_experts), std::to_string(worker.num_loading),
                 Mebibytes(worker.memory_used_bytes) + "/" + Mebibytes(worker.memory_bytes),
                 Fixed(worker.rows_per_second, 0), Fixed(worker.busy_ratio * 100, 0) + "%",
                 std::to_string(worker.last_heartbeat_ms) + "ms",
                 Safe(worker.member.data_address)});
  }
  out += "\n" + workers.Text();
  if (!status.frontends.empty()) {
    Table frontends;
    frontends.Add({"FRONTEND", "ACKED EPOCH"});
    for (const auto& frontend : status.frontends) {
      frontends.Add({Safe(frontend.name), ToString(frontend.acked_epoch)});
    }
    out += "\n" + frontends.Text();
  }
  Table experts;
  experts.Add({"EXPERT", "WORKERS", "DECODE/S", "PREFILL/S"});
  constexpr size_t kShown = 64;
  for (size_t i = 0; i < std::min(kShown, status.experts.size()); ++i) {
    const auto& expert = status.experts[i];
    std::string workers_text;
    for (const WorkerId worker : expert.workers) {
      workers_text += (workers_text.empty() ? "" : " ") + std::to_string(worker.value());
    }
    experts.Add({ToString(expert.unit), workers_text.empty() ? "none" : workers_text,
                 Fixed(expert.rows_per_second[0] + expert.rows_per_second[1], 1),
                 Fixed(expert.rows_per_second[2] + expert.rows_per_second[3], 1)});
  }
  out += "\n" + experts.Text();
  if (status.experts.size() > kShown) {
    out += "... and " + std::to_string(status.experts.size() - kShown) +
           " more experts; --json shows all\n";
  }
  return out;
}

std::string StatusJson(const RouterStatus& status) {
  json::array workers;
  for (const WorkerStatus& worker : status.workers) {
    workers.push_back(WorkerJson(worker));
  }
  json::array frontends;
  for (const auto& frontend : status.frontends) {
    frontends.push_back(json::object{{"id", frontend.frontend_id},
                                     {"name", frontend.name},
                                     {"acked_epoch", frontend.acked_epoch.value()}});
  }
  json::array experts;
  for (const auto& expert : status.experts) {
    json::object object = ExpertJson(expert.unit);
    object["workers"] = IdsJson(expert.workers);
    const char* const kinds[] = {"decode_text", "decode_image", "prefill_text", "prefill_image"};
    for (size_t kind = 0; kind < router_service::kNumRowKinds; ++kind) {
      object[kinds[kind]] = expert.rows_per_second[kind];
    }
    experts.push_back(std::move(object));
  }
  return json::serialize(json::object{
             {"router_id", status.router.router_id},
             {"term", status.router.term},
             {"epoch", status.epoch.value()},
             {"state", status.state},
             {"blocked", status.blocked},
             {"replication_wanted", status.replication_wanted},
             {"replication_lowest", status.replication_lowest},
             {"imbalance_planned", status.imbalance_planned},
             {"imbalance_seen", status.imbalance_seen},
             {"placement_age_ms", status.placement_age_ms},
             {"plan_id", status.plan_id},
             {"recording",
              status.recording.has_value() ? RecordingObject(*status.recording) : json::value()},
             {"workers", std::move(workers)},
             {"frontends", std::move(frontends)},
             {"experts", std::move(experts)}}) +
         "\n";
}

std::string RebalanceText(const RebalancePlan& plan, bool is_dry_run) {
  const auto num_loads =
      std::count_if(plan.moves.begin(), plan.moves.end(),
                    [](const ReplicaMove& move) { return move.to.value() >= 0; });
  std::string out = plan.moves.empty() ? "nothing to move" : is_dry_run ? "would load " : "loads ";
  if (!plan.moves.empty()) {
    out += std::to_string(num_loads) + " replicas, " + Mebibytes(plan.bytes);
  }
  out += "; imbalance " + Fixed(plan.imbalance_before, 3) + " -> " +
         Fixed(plan.imbalance_after, 3) + "\n";
  if (!plan.moves.empty()) {
    Table moves;
    moves.Add({"EXPERT", "FROM", "TO"});
    for (const ReplicaMove& move : plan.moves) {
      const auto name = [](WorkerId id) {
        return id.value() < 0 ? std::string("-") : std::to_string(id.value());
      };
      moves.Add({ToString(move.unit), name(move.from), name(move.to)});
    }
    out += "\n" + moves.Text();
  }
  return out;
}

std::string RebalanceJson(const RebalancePlan& plan, bool is_dry_run) {
  json::array moves;
  for (const ReplicaMove& move : plan.moves) {
    json::object object = ExpertJson(move.unit);
    object["from"] = move.from.value();
    object["to"] = move.to.value();
    moves.push_back(std::move(object));
  }
  return json::serialize(json::object{{"dry_run", is_dry_run},
                                      {"moves", std::move(moves)},
                                      {"bytes", plan.bytes},
                                      {"imbalance_before", plan.imbalance_before},
                                      {"imbalance_after", plan.imbalance_after},
                                      {"plan_id", plan.plan_id}}) +
         "\n";
}

std::string RecordingText(const RecordingStatus& recording) {
  return std::string(recording.is_recording ? "recording: "
                     : recording.is_full    ? "its memory is full, recording has stopped: "
                                            : "recording has stopped: ") +
         std::to_string(recording.windows) + " windows, " + std::to_string(recording.rows) +
         " rows, " + std::to_string(recording.bytes) + " bytes\n";
}

std::string RecordingJson(const RecordingStatus& recording) {
  return json::serialize(RecordingObject(recording)) + "\n";
}

std::string KillSafeText(const std::string& name, const std::vector<ExpertUnit>& at_risk) {
  if (at_risk.empty()) {
    return name + " may be killed: every expert stays served\n";
  }
  std::string out = std::to_string(at_risk.size()) + " experts are served by " + name + " alone:";
  constexpr size_t kShown = 16;
  for (size_t i = 0; i < std::min(kShown, at_risk.size()); ++i) {
    out += " " + ToString(at_risk[i]);
  }
  return out + (at_risk.size() > kShown ? " ...\n" : "\n");
}

std::string KillSafeJson(const std::string& name, const std::vector<ExpertUnit>& at_risk) {
  json::array experts;
  for (const ExpertUnit unit : at_risk) {
    experts.push_back(ExpertJson(unit));
  }
  return json::serialize(json::object{
             {"name", name}, {"is_safe", at_risk.empty()}, {"at_risk", std::move(experts)}}) +
         "\n";
}

}  // namespace conclave::cli
