// A router: its core between streams, ticks and a folder.
#include <algorithm>
#include <cstdio>

#include "cluster.h"
#include "conclave/base/planted_bug.h"
#include "conclave/base/status.h"
#include "conclave/router_service/router_state.h"
#include "conclave/router_service/state_file.h"

namespace conclave::simulation {

namespace rs = router_service;
namespace ew = expert_worker;
using std::chrono::milliseconds;

namespace {

constexpr size_t kGenerations = 3;
constexpr Micros kAckTimeout = 10'000'000;

uint64_t HashOfPlacement(const rs::PlacementView& view) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const rs::UnitReplicas& unit : *view.experts) {
    hash =
        (hash ^ static_cast<uint64_t>(unit.unit.layer.value() * 1000 + unit.unit.expert.value())) *
        0x100000001b3;
    for (const WorkerId worker : unit.workers) {
      hash = (hash ^ static_cast<uint64_t>(worker.value() + 7)) * 0x100000001b3;
    }
  }
  return hash;
}

std::vector<WorkerId> WorkersIn(const rs::PlacementView& view, ExpertUnit unit) {
  for (const rs::UnitReplicas& replicas : *view.experts) {
    if (replicas.unit == unit) {
      return replicas.workers;
    }
  }
  return {};
}

bool Contains(const std::vector<WorkerId>& workers, WorkerId worker) {
  return std::find(workers.begin(), workers.end(), worker) != workers.end();
}

}  // namespace

rs::CoreOptions Cluster::RouterOptions(const RouterNode& router) {
  rs::CoreOptions options;
  char id[24];
  std::snprintf(id, sizeof(id), "r%d-%llu", router.node,
                static_cast<unsigned long long>(++num_starts_));
  options.router_id = id;
  options.replication = plan_.replication;
  return options;
}

void Cluster::StartRouter(RouterNode& router) {
  kernel_.StartProcess(router.node);
  std::optional<rs::RouterState> state;
  Disk& disk = router.disk;
  if (disk.writing.has_value()) {
    // The rename may have come through before the end, and then what it names is whole.
    if (random_.Chance(0.5)) {
      disk.files.push_back(*disk.writing);
    }
    disk.writing.reset();
  }
  const bool is_rotten = std::exchange(disk.is_rotten, false);
  if (is_rotten && !disk.files.empty()) {
    std::string& newest = disk.files.back();
    newest[newest.size() / 2] = static_cast<char>(newest[newest.size() / 2] ^ 4);
  }
  while (!disk.files.empty() && !state.has_value()) {
    const auto blob = rs::DecodeStateFile(disk.files.back(), rs::kStateVersion);
    if (blob.ok()) {
      auto parsed = rs::ParseRouterState(*blob);
      if (parsed.ok()) {
        state = *std::move(parsed);
        continue;
      }
    }
    disk.files.pop_back();
  }
  if (!is_rotten && router.disk.durable.has_value() &&
      (!state.has_value() || rs::MakeEpoch(state->term, state->epoch_n) <
                                 rs::MakeEpoch(disk.durable->term, disk.durable->epoch_n))) {
    kernel_.Violate("INV6", "a router came back without a state that was durable");
  }
  disk.durable = state;
  router.sessions.clear();
  router.members.clear();
  router.published.reset();
  router.core = std::make_unique<rs::RouterCore>(RouterOptions(router), std::move(state));
  router.ticked_at = kernel_.LocalNow(router.node);
  TickRouter(router);
}

void Cluster::TickRouter(RouterNode& router) {
  StepRouter(router, rs::TickEvent{});
  constexpr milliseconds kTick{50};
  router.ticked_at = kernel_.LocalNow(router.node);
  kernel_.Timer(router.node, router.ticked_at + kTick, [this, &router] { TickRouter(router); });
}

void Cluster::Accept(RouterNode& router, const StreamPtr& stream, int member_node,
                     rs::Event event) {
  if (router.sessions.contains(stream->id)) {
    return;
  }
  stream->on_lost[1] = [this, &router, id = stream->id](const absl::Status&) {
    router.sessions.erase(id);
    router.changed_at = kernel_.now();
    StepRouter(router, rs::SessionClosedEvent{id});
    router.members.erase(id);
  };
  router.sessions[stream->id] = stream;
  RouterNode::Member& member = router.members[stream->id];
  member.is_worker = plan_.is_worker(member_node);
  member.node = member_node;
  member.heard_at = kernel_.UnpausedTime(router.node);
  StepRouter(router, event);
}

void Cluster::StepRouter(RouterNode& router, const rs::Event& event) {
  if (router.core == nullptr) {
    return;
  }
  if (std::holds_alternative<rs::DrainWishEvent>(event) ||
      std::holds_alternative<rs::AdminEvent>(event) ||
      std::holds_alternative<rs::ExpertsLostEvent>(event)) {
    router.changed_at = kernel_.now();
  }
  const uint64_t lost_before = router.core->counters().workers_lost;
  const MonotonicTime now = kernel_.LocalNow(router.node);
  if (const auto* beat = std::get_if<rs::HeartbeatEvent>(&event)) {
    if (const auto it = router.members.find(beat->session); it != router.members.end()) {
      it->second.heard_at = kernel_.UnpausedTime(router.node);
    }
  } else if (const auto* ack = std::get_if<rs::EpochAckEvent>(&event)) {
    if (const auto it = router.members.find(ack->session); it != router.members.end()) {
      it->second.acked = std::max(it->second.acked, ack->epoch);
      it->second.ack_due = 0;
    }
  }
  std::vector<rs::Action> actions;
  router.core->Step(now, event, actions);
  kernel_.Note("router", router.node, event.index(), actions.size());
  const bool may_lose = std::holds_alternative<rs::SessionClosedEvent>(event) ||
                        std::holds_alternative<rs::TickEvent>(event);
  if (!may_lose && router.core->counters().workers_lost != lost_before) {
    kernel_.Violate("INV16", "a worker was removed for something else than silence or its stream");
  }
  for (const rs::Action& action : actions) {
    if (kernel_.is_over()) {
      return;
    }
    Do(router, event, action);
  }
}

void Cluster::SendToWorker(RouterNode& router, uint64_t session, ew::RouterCommand command) {
  const auto it = router.sessions.find(session);
  if (it == router.sessions.end() || !plan_.is_worker(it->second->node[0])) {
    return;
  }
  command.router = {router.core->identity().term, router.core->identity().router_id};
  const StreamPtr stream = it->second;
  WorkerNode& worker = Worker(stream->node[0]);
  kernel_.Send(stream, 1, [this, &worker, stream, command = std::move(command)] {
    OnCommand(worker, stream, command);
  });
}

void Cluster::Do(RouterNode& router, const rs::Event& cause, const rs::Action& action) {
  if (const auto* persist = std::get_if<rs::PersistState>(&action)) {
    WriteState(router, *persist);
  } else if (const auto* registered = std::get_if<rs::SendRegistered>(&action)) {
    const bool is_durable = router.disk.durable.has_value() &&
                            registered->worker.value() < router.disk.durable->next_worker_id;
    if (!is_durable) {
      kernel_.Violate("INV6", "a worker was given an id that is not durable");
    }
    ew::RegisteredCommand command;
    command.worker = registered->worker;
    command.worker_key = registered->key;
    SendToWorker(router, registered->session, {{}, command});
  } else if (const auto* prepare = std::get_if<rs::SendPrepare>(&action)) {
    ew::PrepareCommand command;
    command.plan_id = prepare->plan_id;
    command.units = prepare->experts;
    for (const rs::HeldExpert& held : prepare->expected) {
      command.expected[held.unit] = {held.weight_hash, held.canary_checksum};
    }
    kernel_.Note("prepare", router.node, prepare->session, prepare->experts.size());
    CheckNotDraining(router, prepare->session);
    SendToWorker(router, prepare->session, {{}, command});
  } else if (const auto* retire = std::get_if<rs::SendRetire>(&action)) {
    CheckRetire(router, *retire);
    kernel_.Note("retire", router.node, retire->session, retire->experts.size());
    SendToWorker(router, retire->session,
                 {{}, ew::RetireCommand{retire->plan_id, retire->experts}});
  } else if (const auto* drain = std::get_if<rs::SendDrainState>(&action)) {
    if (drain->is_drained) {
      CheckUnrouted(router, drain->session, units_, "INV13");
    }
    SendToWorker(router, drain->session,
                 {{}, ew::DrainCommand{drain->is_draining, drain->is_drained}});
  } else if (const auto* ack = std::get_if<rs::SendHeartbeatAck>(&action)) {
    SendToWorker(router, ack->session, {{}, ew::HeartbeatAckCommand{ack->seq}});
  } else if (const auto* placement = std::get_if<rs::SendPlacement>(&action)) {
    SendPlacementTo(router, *placement);
  } else if (const auto* end = std::get_if<rs::EndSession>(&action)) {
    End(router, cause, *end);
  } else if (const auto* reply = std::get_if<rs::AdminReply>(&action)) {
    CheckAnswer(router, *reply);
  } else if (const auto* log = std::get_if<rs::LogAction>(&action);
             log != nullptr && kernel_.is_traced()) {
    std::string text = log->message;
    for (const auto& [key, value] : log->fields) {
      text += " " + key + "=" + value;
    }
    kernel_.Say(text, router.node);
  }
}

void Cluster::End(RouterNode& router, const rs::Event& cause, const rs::EndSession& end) {
  const auto member = router.members.find(end.session);
  if (std::holds_alternative<rs::TickEvent>(cause) && member != router.members.end() &&
      member->second.is_worker && ReasonOf(end.status) == "reregister") {
    // A tick late, two pauses that count for two ticks each, and a clock two hundredths fast.
    constexpr Micros kDeadAfter = 1'500'000;
    constexpr Micros kSlack = 350'000;
    const Micros silence = kernel_.UnpausedTime(router.node) - member->second.heard_at;
    if (silence < kDeadAfter - kSlack) {
      kernel_.Violate("INV15", "declared dead after " + std::to_string(silence) +
                                   " us of the router's own time without a heartbeat");
    }
  }
  if (const auto it = router.sessions.find(end.session); it != router.sessions.end()) {
    kernel_.Close(it->second, 1, end.status);
    router.sessions.erase(it);
    router.members.erase(end.session);
    router.changed_at = kernel_.now();
  }
}

void Cluster::CheckAnswer(RouterNode& router, const rs::AdminReply& reply) {
  const auto it = router.drains_asked.find(reply.request);
  if (it == router.drains_asked.end() || !reply.status.ok() || !router.disk.durable.has_value()) {
    return;
  }
  const auto known = router.disk.durable->names.find(it->second.first);
  const bool is_later =
      std::any_of(std::next(it), router.drains_asked.end(),
                  [&](const auto& other) { return other.second.first == it->second.first; });
  if (!is_later && known != router.disk.durable->names.end() &&
      known->second.is_draining == it->second.second) {
    kernel_.Violate("INV6", "an operator was answered before the command was durable");
  }
}

void Cluster::WriteState(RouterNode& router, const rs::PersistState& state) {
  Disk& disk = router.disk;
  Micros delay = random_.Between(500, 8'000);
  if (disk.slow_until > kernel_.now()) {
    delay += random_.Between(50'000, 600'000);
  }
  const Micros began_at = kernel_.now();
  disk.writing = rs::EncodeStateFile(rs::kStateVersion, state.blob);
  const bool fails = disk.fails_until > kernel_.now();
  kernel_.AtNode(kernel_.now() + delay, router.node,
                 [this, &router, fails, began_at, version = state.version, blob = state.blob] {
                   Disk& written = router.disk;
                   absl::Status status;
                   if (fails) {
                     status = Error(absl::StatusCode::kUnavailable, "state_write_failed", "disk");
                   } else if (CONCLAVE_PLANTED_BUG("state_not_synced") && random_.Chance(0.5)) {
                     // Said to be written; gone with the process.
                   } else {
                     written.files.push_back(*written.writing);
                     while (written.files.size() > kGenerations) {
                       written.files.pop_front();
                     }
                   }
                   if (status.ok()) {
                     written.decided_after = std::exchange(written.began_at, began_at);
                     auto parsed = rs::ParseRouterState(blob);
                     if (!parsed.ok()) {
                       kernel_.Violate("INV6", "the router wrote a state that it cannot read");
                       return;
                     }
                     written.durable = *std::move(parsed);
                   }
                   written.writing.reset();
                   StepRouter(router, rs::PersistedEvent{version, status});
                 });
}

void Cluster::SendPlacementTo(RouterNode& router, const rs::SendPlacement& send) {
  CheckPublication(router, *send.view);
  router.published = send.view;
  const auto it = router.sessions.find(send.session);
  const auto member = router.members.find(send.session);
  if (it == router.sessions.end() || member == router.members.end()) {
    return;
  }
  const std::shared_ptr<const rs::PlacementView> from =
      send.is_snapshot ? nullptr : member->second.sent;
  member->second.sent = send.view;
  if (!member->second.is_worker) {
    if (member->second.acked < send.view->epoch && member->second.ack_due == 0) {
      member->second.ack_due = std::max<Micros>(1, kernel_.now());
    }
    FrontendNode& front = Front(member->second.node);
    const StreamPtr stream = it->second;
    kernel_.Send(stream, 1, [this, &front, stream, from, view = send.view, id = send.frontend_id] {
      const rs::PlacementView nothing{
          {}, Epoch(), {}, std::make_shared<const std::vector<rs::UnitReplicas>>()};
      OnUpdate(front, stream, view, from == nullptr ? Epoch() : from->epoch,
               rs::Diff(from == nullptr ? nothing : *from, *view), id);
    });
    return;
  }
  ew::PlacementCommand command;
  command.epoch = send.view->epoch;
  command.base_epoch = from == nullptr ? Epoch() : from->epoch;
  if (from == nullptr) {
    for (const rs::UnitReplicas& unit : *send.view->experts) {
      command.units.emplace_back(unit.unit, unit.workers);
    }
  } else {
    for (const rs::UnitReplicas* unit : rs::Diff(*from, *send.view).experts) {
      command.units.emplace_back(unit->unit, unit->workers);
    }
  }
  SendToWorker(router, send.session, {{}, std::move(command)});
}

// INV4 and INV6 of what is about to be seen, and whether INV7 can be judged.
void Cluster::CheckPublication(RouterNode& router, const rs::PlacementView& view) {
  const auto& durable = router.disk.durable;
  if (!durable.has_value() || view.epoch > rs::MakeEpoch(durable->term, durable->epoch_n)) {
    kernel_.Violate("INV6", "an epoch is published before it is durable");
  }
  const auto [known, is_new] =
      placements_.try_emplace({view.router.router_id, view.epoch.value()}, HashOfPlacement(view));
  if (!is_new) {
    if (known->second != HashOfPlacement(view)) {
      kernel_.Violate("INV4", "one epoch, two placements");
    }
    return;
  }
  kernel_.Note("epoch", router.node, view.epoch.value(), HashOfPlacement(view));
  if (kernel_.is_traced()) {
    std::string text;
    for (const rs::UnitReplicas& unit : *view.experts) {
      text += " " + std::to_string(unit.unit.layer.value()) + ":" +
              std::to_string(unit.unit.expert.value()) + "@";
      for (const WorkerId worker : unit.workers) {
        text += std::to_string(worker.value()) + ",";
      }
    }
    kernel_.Say("placement" + text, router.node);
  }
  ++kernel_.outcome().num_epochs;
  // What faults did behind the router's back since it decided is not of its doing.
  const bool has_changed =
      router.changed_at >= router.disk.decided_after ||
      std::any_of(workers_.begin(), workers_.end(), [&](const WorkerNode& worker) {
        return worker.changed_at >= router.disk.decided_after ||
               !kernel_.process(worker.node).is_up;
      });
  if (router.published != nullptr && !has_changed) {
    CheckReplicas(router, view);
  }
}

// INV7 of what is about to be seen.
void Cluster::CheckReplicas(RouterNode& router, const rs::PlacementView& view) {
  const int possible = PossibleReplicas(router);
  for (const rs::UnitReplicas& unit : *router.published->experts) {
    const std::vector<WorkerId> now = WorkersIn(view, unit.unit);
    int num_now = 0;
    int num_dropped = 0;
    // A worker serves what it has loaded whether or not it is a member, as weights do not change;
    // and the router cannot know that one has given up its stream before silence or the stream's
    // end says so. Of those that are dropped only members count.
    const auto is_loaded = [&](WorkerId id) {
      const WorkerNode* worker = WorkerOfId(id, view);
      return worker != nullptr && worker->memory.contains(unit.unit);
    };
    const auto is_member = [&](WorkerId id) {
      const WorkerNode* worker = WorkerOfId(id, view);
      return worker != nullptr && worker->is_registered && worker->stream != nullptr &&
             router.sessions.contains(worker->stream->id);
    };
    const auto is_suspect = [&](WorkerId id) {
      return std::any_of(view.workers.begin(), view.workers.end(), [&](const rs::MemberView& m) {
        return m.id == id && m.state == rs::MemberState::kSuspect;
      });
    };
    for (const WorkerId id : now) {
      num_now += is_loaded(id) && (is_member(id) || !is_suspect(id)) ? 1 : 0;
    }
    for (const WorkerId id : unit.workers) {
      num_dropped += !Contains(now, id) && is_loaded(id) && is_member(id) ? 1 : 0;
    }
    if (num_dropped > 0 && num_now < std::min(possible, num_now + num_dropped)) {
      std::string workers;
      for (const WorkerId id : unit.workers) {
        workers += " " + std::to_string(id.value());
      }
      workers += " ->";
      for (const WorkerId id : now) {
        workers += " " + std::to_string(id.value());
      }
      kernel_.Violate(
          "INV7", "a placement drops a live replica before its successor is loaded: " + workers +
                      ", " + std::to_string(num_now) + " of " + std::to_string(possible));
      return;
    }
  }
}

// A suspect member may drain too; its state says the former.
bool Cluster::IsDrainAsked(const RouterNode& router, const rs::MemberView& member) const {
  bool is_asked = member.state == rs::MemberState::kDraining;
  for (const auto& [request, drain] : router.drains_asked) {
    is_asked = drain.first == member.name ? !drain.second : is_asked;
  }
  const WorkerNode& worker =
      workers_[static_cast<size_t>(NodeOfWorker(member.name) - plan_.worker(0))];
  return is_asked || member.state == rs::MemberState::kDraining ||
         (kernel_.process(worker.node).is_up && worker.is_leaving);
}

// Replicas that every expert can have on the workers that take experts, as this router knows them.
int Cluster::PossibleReplicas(const RouterNode& router) const {
  const rs::RouterStatus status = router.core->Status(kernel_.LocalNow(router.node));
  const auto num_takers = static_cast<int>(
      std::count_if(status.workers.begin(), status.workers.end(), [&](const rs::WorkerStatus& w) {
        return !IsDrainAsked(router, w.member) && !w.is_distrusted;
      }));
  const int room = num_takers * plan_.memory_experts / static_cast<int>(units_.size());
  return std::min({has_replicas_asked_ ? 1 : plan_.replication, num_takers, room});
}

// INV13: a worker that is to leave gets nothing new. What was aimed at before it was to leave is
// taken back in the same step.
void Cluster::CheckNotDraining(RouterNode& router, uint64_t session) {
  // Where nobody else has room, an expert on a worker that leaves is better than none.
  const auto it = router.sessions.find(session);
  if (it == router.sessions.end() || has_replicas_asked_ ||
      PossibleReplicas(router) < plan_.replication) {
    return;
  }
  const std::string name = plan_.NodeName(it->second->node[0]);
  for (const rs::WorkerStatus& status :
       router.core->Status(kernel_.LocalNow(router.node)).workers) {
    if (status.member.name == name && status.member.state == rs::MemberState::kDraining) {
      kernel_.Violate("INV13", "a worker that drains is told to load");
    }
  }
}

void Cluster::CheckRetire(RouterNode& router, const rs::SendRetire& retire) {
  CheckUnrouted(router, retire.session, retire.experts, "INV7");
}

// No frontend of this router that answers routes rows for these experts to the worker.
void Cluster::CheckUnrouted(RouterNode& router, uint64_t session,
                            const std::vector<ExpertUnit>& units, std::string_view invariant) {
  const auto stream = router.sessions.find(session);
  if (stream == router.sessions.end() || router.published == nullptr) {
    return;
  }
  const std::string name = plan_.NodeName(stream->second->node[0]);
  for (const auto& [id, member] : router.members) {
    if (member.is_worker || member.sent == nullptr) {
      continue;
    }
    const FrontendNode& front = Front(member.node);
    const bool is_given_up =
        member.ack_due > 0 && kernel_.now() - member.ack_due > kAckTimeout * 9 / 10;
    const auto it = router.sessions.find(id);
    // Between layers the newest placement counts as taken.
    if (!front.run.has_value() || front.routed_by == nullptr || is_given_up ||
        it == router.sessions.end() || front.stream != it->second ||
        !kernel_.process(member.node).is_up) {
      continue;
    }
    for (const auto& [worker_id, worker] : front.picture.members) {
      if (worker.name != name ||
          worker.incarnation != Worker(stream->second->node[0]).incarnation) {
        continue;
      }
      for (const ExpertUnit unit : units) {
        const auto workers = front.routed_by->WorkersOf(unit);
        if (std::find(workers.begin(), workers.end(), worker_id) != workers.end() &&
            Worker(stream->second->node[0]).memory.contains(unit)) {
          kernel_.Violate(invariant, "taken from a worker while a frontend routes to it");
          return;
        }
      }
    }
  }
}

}  // namespace conclave::simulation
