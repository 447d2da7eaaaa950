// A worker: its control core between a stream, a loader, memory and calls.
#include <algorithm>

#include "cluster.h"
#include "conclave/base/planted_bug.h"
#include "conclave/base/status.h"

namespace conclave::simulation {

namespace rs = router_service;
namespace ew = expert_worker;
namespace action = expert_worker::action;
using std::chrono::nanoseconds;

namespace {

template <typename... Parts>
struct Overloaded : Parts... {
  using Parts::operator()...;
};
template <typename... Parts>
Overloaded(Parts...) -> Overloaded<Parts...>;

rs::HeldExpert ToRouterHeld(const ew::HeldExpert& held) {
  return {held.unit, held.weight_hash, held.canary_checksum};
}

// What a command must not lead to when its router is not the one to obey.
bool IsEffect(const ew::WorkerAction& what) {
  return std::holds_alternative<action::LoadExpert>(what) ||
         std::holds_alternative<action::RetireExperts>(what) ||
         std::holds_alternative<action::SetPlacement>(what) ||
         std::holds_alternative<action::SetRegistration>(what);
}

}  // namespace

rs::WeightHash HashOf(ExpertUnit unit, uint64_t revision) {
  rs::WeightHash hash{};
  hash[0] = static_cast<uint8_t>(revision);
  hash[1] = static_cast<uint8_t>(unit.layer.value());
  hash[2] = static_cast<uint8_t>(unit.expert.value());
  hash[3] = 1;
  return hash;
}

float TermOf(ExpertUnit unit, uint64_t revision, float weight, float row, int32_t column) {
  const auto factor = static_cast<float>(16 * unit.layer.value() + unit.expert.value() + 1) +
                      static_cast<float>(revision - kRevision) * 512.0f;
  return weight * (row * factor + static_cast<float>(column));
}

rs::HeldExpert Cluster::HeldOf(ExpertUnit unit, const MemoryEntry& entry) const {
  return {unit, HashOf(unit, entry.revision), static_cast<uint32_t>(entry.revision)};
}

void Cluster::StartWorker(WorkerNode& worker) {
  kernel_.StartProcess(worker.node);
  const int node = worker.node;
  WorkerNode fresh;
  fresh.node = node;
  fresh.incarnation = worker.incarnation + 1;
  fresh.timer = worker.timer;
  fresh.slowness = worker.slowness;
  fresh.slow_until = worker.slow_until;
  fresh.wrong_weights_until = worker.wrong_weights_until;
  worker = std::move(fresh);
  ew::WorkerControlOptions options;
  options.seed = random_.Next();
  options.drain_timeout = std::chrono::milliseconds(8'000);
  worker.control = std::make_unique<ew::WorkerControlCore>(options);
  const MonotonicTime now = kernel_.LocalNow(node);
  StepWorker(worker, [&](ew::WorkerActions* out) { worker.control->Start(now, out); });
}

void Cluster::StepWorker(WorkerNode& worker, const std::function<void(ew::WorkerActions*)>& what) {
  ew::WorkerActions actions;
  const MonotonicTime now = kernel_.LocalNow(worker.node);
  if (now >= worker.control->NextTimer()) {
    worker.control->OnTimer(now, &actions);
  }
  what(&actions);
  const uint64_t life = kernel_.process(worker.node).life;
  for (const ew::WorkerAction& one : actions) {
    Do(worker, one);
    if (kernel_.process(worker.node).life != life || kernel_.is_over()) {
      return;  // it has stopped
    }
  }
  // Fencing: terms only grow, and within one there is one router.
  const ew::RouterIdentity& router = worker.control->router();
  if (router.term < worker.obeyed.term ||
      (router.term == worker.obeyed.term && worker.obeyed.term > 0 && router != worker.obeyed)) {
    kernel_.Violate("INV5", "a worker changed to a router of a term that is not higher");
  }
  worker.obeyed = router;
  if (worker.control->epoch() < worker.epoch_seen) {
    kernel_.Violate("INV4", "a worker's epoch fell");
  }
  worker.epoch_seen = worker.control->epoch();
  ArmWorker(worker);
}

void Cluster::ArmWorker(WorkerNode& worker) {
  const MonotonicTime due = worker.control->NextTimer();
  const uint64_t number = ++worker.timer;
  if (due == MonotonicTime::max()) {
    return;
  }
  kernel_.Timer(worker.node, due, [this, &worker, number] {
    if (worker.timer == number) {
      StepWorker(worker, [](ew::WorkerActions*) {});
    }
  });
}

void Cluster::OnCommand(WorkerNode& worker, const StreamPtr& stream,
                        const ew::RouterCommand& command) {
  if (worker.stream != stream || worker.control == nullptr) {
    return;
  }
  const MonotonicTime now = kernel_.LocalNow(worker.node);
  const bool is_foreign = command.router.term < worker.obeyed.term ||
                          (command.router.term == worker.obeyed.term && worker.obeyed.term > 0 &&
                           command.router.router_id != worker.obeyed.router_id);
  if (const auto* ack = std::get_if<ew::HeartbeatAckCommand>(&command.command);
      ack != nullptr && !is_foreign) {
    if (const auto it = worker.beats.find(ack->seq); it != worker.beats.end()) {
      worker.lease_from = std::max(worker.lease_from, it->second);
    }
  }
  if (std::holds_alternative<ew::RegisteredCommand>(command.command) && !is_foreign) {
    worker.changed_at = kernel_.now();
    worker.is_registered = true;
    worker.lease_from = std::max(worker.lease_from, worker.connected_at);
  }
  StepWorker(worker, [&](ew::WorkerActions* out) {
    ew::WorkerActions actions;
    worker.control->OnCommand(now, command, &actions);
    if (is_foreign && std::any_of(actions.begin(), actions.end(), IsEffect)) {
      kernel_.Violate("INV5", "a worker did what a router said that it must not obey");
    }
    out->insert(out->end(), actions.begin(), actions.end());
  });
}

void Cluster::ToRouter(WorkerNode& worker, std::function<rs::Event(uint64_t)> make) {
  const StreamPtr stream = worker.stream;
  if (stream == nullptr) {
    return;
  }
  RouterNode& router = routers_[static_cast<size_t>(stream->node[1])];
  kernel_.Send(stream, 0, [this, &router, stream, make = std::move(make)] {
    if (router.sessions.contains(stream->id)) {
      StepRouter(router, make(stream->id));
    }
  });
}

void Cluster::ConnectWorker(WorkerNode& worker) {
  if (worker.stream != nullptr) {
    kernel_.Close(worker.stream, 0, absl::CancelledError("closed"));
  }
  worker.beats.clear();
  worker.is_registered = false;
  worker.connected_at = kernel_.LocalNow(worker.node);
  const int router_node = RouterOf(worker.node);
  RouterNode& router = routers_[static_cast<size_t>(router_node)];
  const auto is_current = std::make_shared<StreamPtr>();
  StreamPtr stream = kernel_.OpenStream(
      worker.node, router_node, [this, &worker, is_current](const absl::Status& why) {
        if (worker.stream == *is_current && worker.stream != nullptr) {
          worker.stream = nullptr;
          worker.is_registered = false;
          worker.changed_at = kernel_.now();
          const MonotonicTime now = kernel_.LocalNow(worker.node);
          StepWorker(worker,
                     [&](ew::WorkerActions* out) { worker.control->OnStreamLost(now, why, out); });
        }
      });
  *is_current = stream;
  worker.stream = stream;
  rs::WorkerRegistration r;
  r.name = plan_.NodeName(worker.node);
  r.incarnation = worker.incarnation;
  r.data_address = r.name + ":1";
  r.host_id = r.name;
  r.channels = {"grpc"};
  r.model = {"model", kRowWidth, kTopK};
  r.numeric = {"bf16", "scalar", 1};
  r.memory_bytes = plan_.memory_experts;
  r.expert_bytes = 1;
  const ew::RegistrationFacts facts = worker.control->registration();
  for (const ew::HeldExpert& held : facts.held) {
    r.held.push_back(ToRouterHeld(held));
  }
  r.last_router = {facts.last_router.term, facts.last_router.router_id};
  r.last_epoch = facts.last_epoch;
  r.is_draining = facts.is_draining;
  for (int32_t layer = 0; layer < plan_.num_layers; ++layer) {
    r.moe_layers.push_back({LayerId(layer), plan_.num_experts});
  }
  kernel_.Send(stream, 0, [this, &router, &worker, stream, r, key = random_.Next()] {
    Accept(router, stream, worker.node, rs::WorkerRegisterEvent{stream->id, r, key});
  });
}

void Cluster::SendLoads(WorkerNode& worker, uint64_t seq) {
  std::vector<ew::UnitRows> cumulative;
  for (const auto& [unit, rows] : worker.rows) {
    cumulative.push_back(rows);
  }
  rs::LoadEvent event;
  event.seq = seq;
  for (const ew::UnitRows& rows : worker.control->LoadDeltas(cumulative)) {
    event.experts.push_back({rows.unit, {rows.rows[0], rows.rows[1], rows.rows[2], rows.rows[3]}});
  }
  ToRouter(worker, [event](uint64_t session) {
    rs::LoadEvent out = event;
    out.session = session;
    return out;
  });
}

void Cluster::SendPrepareResult(WorkerNode& worker, const action::SendPrepareResult& result) {
  rs::PrepareResultEvent event;
  event.plan_id = result.plan_id;
  for (const ew::HeldExpert& held : result.ready) {
    event.ready.push_back(ToRouterHeld(held));
  }
  event.failed = result.failed;
  event.error = result.error;
  ToRouter(worker, [event](uint64_t session) {
    rs::PrepareResultEvent out = event;
    out.session = session;
    return out;
  });
}

void Cluster::Do(WorkerNode& worker, const ew::WorkerAction& what) {
  const MonotonicTime now = kernel_.LocalNow(worker.node);
  const auto check_lease = [&](const char* change) {
    // 0.8 of dead_after behind what the router has acknowledged, and never longer.
    constexpr nanoseconds kFence = std::chrono::milliseconds(1'200);
    if (now - worker.lease_from > kFence) {
      kernel_.Violate("FENCE", std::string(change) + " begun by a worker without a lease");
    }
  };
  kernel_.Note("worker", worker.node, what.index(), worker.memory.size());
  std::visit(
      Overloaded{
          [&](const action::Connect&) { ConnectWorker(worker); },
          [&](const action::Disconnect&) {
            if (worker.stream != nullptr) {
              kernel_.Close(worker.stream, 0, absl::CancelledError("given up"));
              worker.stream = nullptr;
              worker.is_registered = false;
            }
          },
          [&](const action::SendHeartbeat& beat) {
            worker.beats[beat.seq] = now;
            ToRouter(worker, [beat](uint64_t session) {
              rs::HeartbeatEvent event;
              event.session = session;
              event.seq = beat.seq;
              event.is_canary_ok = beat.is_canary_ok;
              event.epoch = beat.epoch;
              return event;
            });
          },
          [&](const action::SendLoads& loads) { SendLoads(worker, loads.seq); },
          [&](const action::LoadExpert& load) {
            check_lease("a load");
            WorkerNode::Task task;
            task.unit = load.unit;
            task.expected = load.expected;
            worker.tasks.push_back(std::move(task));
            NextTask(worker);
          },
          [&](const action::RetireExperts& retire) {
            if (retire.plan_id != 0) {
              check_lease("a retire");
            }
            WorkerNode::Task task;
            task.is_load = false;
            task.plan_id = retire.plan_id;
            task.units = retire.units;
            worker.tasks.push_back(std::move(task));
            NextTask(worker);
          },
          [&](const action::SendPrepareResult& result) { SendPrepareResult(worker, result); },
          [&](const action::SendRetireResult& result) {
            ToRouter(worker, [id = result.plan_id](uint64_t session) {
              return rs::RetireResultEvent{session, id};
            });
          },
          [&](const action::SendExpertsLost& lost) {
            ToRouter(worker, [lost](uint64_t session) {
              return rs::ExpertsLostEvent{session, lost.units, lost.why};
            });
          },
          [&](const action::SendDrainWish&) {
            ToRouter(worker, [](uint64_t session) { return rs::DrainWishEvent{session}; });
          },
          [&](const action::SetRegistration&) {}, [&](const action::SetPlacement&) {},
          [&](const action::AnnounceReady&) {},
          [&](const action::Stop&) { Crash(worker.node, random_.Between(100'000, 2'000'000)); }},
      what);
}

void Cluster::CheckMemory(WorkerNode& worker) {
  if (static_cast<int>(worker.memory.size()) + (worker.is_loading ? 1 : 0) > plan_.memory_experts) {
    kernel_.Violate("INV9", "a worker loads more than its memory holds");
  }
}

void Cluster::NextTask(WorkerNode& worker) {
  if (worker.is_loading || worker.tasks.empty()) {
    return;
  }
  worker.is_loading = true;
  const WorkerNode::Task& task = worker.tasks.front();
  if (task.is_load && !worker.memory.contains(task.unit)) {
    CheckMemory(worker);
  }
  const Micros time = task.is_load ? plan_.load_us / 2 + random_.Between(0, plan_.load_us)
                                   : random_.Between(50, 2'000);
  kernel_.AtNode(kernel_.now() + time, worker.node, [this, &worker] { EndTask(worker); });
}

void Cluster::EndTask(WorkerNode& worker) {
  const WorkerNode::Task task = worker.tasks.front();
  worker.tasks.pop_front();
  worker.is_loading = false;
  const MonotonicTime now = kernel_.LocalNow(worker.node);
  if (!task.is_load) {
    for (const ExpertUnit unit : task.units) {
      worker.memory.erase(unit);
    }
    StepWorker(worker, [&](ew::WorkerActions* out) {
      worker.control->OnRetired(now, task.plan_id, static_cast<int64_t>(task.units.size()), out);
    });
  } else {
    MemoryEntry entry;
    entry.revision = worker.wrong_weights_until > kernel_.now() ? kRevision + 1 : kRevision;
    const rs::HeldExpert held = HeldOf(task.unit, entry);
    const bool is_wrong =
        task.expected.weight_hash.has_value() && *task.expected.weight_hash != held.weight_hash;
    // Nothing is known of an expert's weights before its first replica: then the manifest decides.
    const bool is_refused =
        (task.expected.weight_hash.has_value() ? is_wrong : entry.revision != kRevision) &&
        !CONCLAVE_PLANTED_BUG("weight_hash_ignored");
    absl::StatusOr<ew::HeldExpert> loaded =
        ew::HeldExpert{held.unit, held.weight_hash, held.canary_checksum};
    if (is_refused) {
      loaded = Error(absl::StatusCode::kFailedPrecondition, "wrong_weights",
                     "expected the weights of the other replicas, found others");
    } else {
      worker.memory[task.unit] = entry;
    }
    StepWorker(worker, [&](ew::WorkerActions* out) {
      worker.control->OnLoaded(now, task.unit, loaded, out);
    });
  }
  NextTask(worker);
}

void Cluster::OnCall(const std::shared_ptr<CallMessage>& call) {
  WorkerNode& worker = Worker(call->link->worker);
  call->received_at = kernel_.now();
  worker.calls.push_back(call);
  Compute(worker);
}

void Cluster::Compute(WorkerNode& worker) {
  constexpr Micros kExpertUs = 150;
  constexpr Micros kRowUs = 60;
  if (worker.is_computing || worker.calls.empty()) {
    return;
  }
  const std::shared_ptr<CallMessage> call = worker.calls.front();
  worker.calls.pop_front();
  worker.is_computing = true;
  const double slowness = worker.slow_until > kernel_.now() ? worker.slowness : 1;
  const auto time = static_cast<Micros>(
      slowness * static_cast<double>(kExpertUs + kRowUs * static_cast<Micros>(call->num_rows)));
  kernel_.AtNode(kernel_.now() + time, worker.node, [this, &worker, call] {
    worker.is_computing = false;
    Answer(worker, call);
    Compute(worker);
  });
}

void Cluster::Answer(WorkerNode& worker, const std::shared_ptr<CallMessage>& call) {
  auto reply = std::make_shared<ReplyMessage>();
  reply->link = call->link;
  reply->slot = call->slot;
  reply->seq = call->seq;
  reply->service_us = static_cast<uint32_t>(kernel_.now() - call->received_at);
  reply->rows.assign(call->num_rows * kRowWidth, 0.0f);
  for (size_t p = 0; p < call->pairs.size() && reply->status.ok(); ++p) {
    const auto [expert, row] = call->pairs[p];
    const ExpertUnit unit{LayerId(call->layer), ExpertId(expert)};
    const auto held = worker.memory.find(unit);
    if (held == worker.memory.end()) {
      reply->status = NotFound("not_held", "call: an expert is not held");
      break;
    }
    if (held->second.revision != kRevision) {
      kernel_.Violate("INV2", "computed with the weights of another revision");
    }
    for (int32_t c = 0; c < kRowWidth; ++c) {
      const size_t at = static_cast<size_t>(row) * kRowWidth + static_cast<size_t>(c);
      reply->rows[at] += TermOf(unit, held->second.revision, call->weights[p], call->rows[at], c);
    }
  }
  if (reply->status.ok()) {
    for (const auto& [expert, row] : call->pairs) {
      const ExpertUnit unit{LayerId(call->layer), ExpertId(expert)};
      ew::UnitRows& rows = worker.rows[unit];
      rows.unit = unit;
      ++rows.rows[0];
    }
  }
  SendReply(std::move(reply));
}

}  // namespace conclave::simulation
