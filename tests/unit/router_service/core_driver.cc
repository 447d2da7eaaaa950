#include "core_driver.h"

#include <algorithm>

#include "gtest/gtest.h"

namespace conclave::router_service {
namespace {

constexpr milliseconds kTick{50};

ModelIdentity TestModel() { return {"0123456789abcdef", 64, 2}; }

}  // namespace

ExpertUnit Unit(int32_t layer, int32_t expert) { return {LayerId(layer), ExpertId(expert)}; }

std::vector<ExpertUnit> TestUnits(int32_t num_experts) {
  std::vector<ExpertUnit> units;
  for (const int32_t layer : {1, 3}) {
    for (int32_t e = 0; e < num_experts; ++e) {
      units.push_back(Unit(layer, e));
    }
  }
  return units;
}

CoreOptions CoreDriver::Defaults() {
  CoreOptions options;
  options.router_id = "aaaaaaaaaaaaaaaa";
  options.recover = milliseconds(500);
  return options;
}

CoreDriver::CoreDriver(CoreOptions options, std::optional<RouterState> state)
    : options_(options),
      core_(std::make_unique<RouterCore>(std::move(options), std::move(state))) {}

TestWorker& CoreDriver::Add(const std::string& name) {
  TestWorker& worker = workers[name];
  worker.name = name;
  worker.host = "host-" + name;
  worker.port = 10'000 + static_cast<int>(workers.size());
  return worker;
}

void CoreDriver::Join(TestWorker& worker) {
  worker.session = next_session_++;
  worker.is_silent = false;
  worker.heartbeat_seq = 0;
  worker.is_drained = false;
  WorkerRegisterEvent event;
  event.session = *worker.session;
  event.fresh_key = 1000 + *worker.session;
  WorkerRegistration& r = event.registration;
  r.name = worker.name;
  r.incarnation = worker.incarnation;
  r.data_address = "127.0.0.1:" + std::to_string(worker.port);
  r.host_id = worker.host;
  r.channels = {"grpc"};
  r.model = TestModel();
  r.numeric = {worker.dtype, "avx2", 1};
  r.expert_bytes = 1 << 20;
  r.memory_bytes = worker.memory_experts << 20;
  r.last_router = worker.last_router;
  r.last_epoch = worker.last_epoch;
  r.moe_layers = {{LayerId(1), num_experts}, {LayerId(3), num_experts}};
  for (const auto& [unit, held] : worker.held) {
    r.held.push_back(held);
  }
  Send(event);
}

void CoreDriver::Kill(TestWorker& worker) {
  worker.held.clear();
  if (worker.session.has_value()) {
    const SessionId session = *worker.session;
    worker.session.reset();
    Send(SessionClosedEvent{session});
  }
}

TestFrontend& CoreDriver::AddFrontend(const std::string& name, const std::string& dtype) {
  TestFrontend& frontend = frontends[name];
  frontend.name = name;
  frontend.session = next_session_++;
  FrontendRegisterEvent event;
  event.session = *frontend.session;
  event.registration.name = name;
  event.registration.incarnation = 0x1234'5678'9abc'0000 + *frontend.session;
  event.registration.model = TestModel();
  event.registration.numeric = {dtype, "avx512", 1};
  Send(event);
  return frontend;
}

AdminReply CoreDriver::Ask(decltype(AdminEvent::command) command) {
  const uint64_t request = next_request_++;
  Send(AdminEvent{request, std::move(command)});
  Run(milliseconds(200));
  for (const AdminReply& reply : replies) {
    if (reply.request == request) {
      return reply;
    }
  }
  ADD_FAILURE() << "no reply";
  return {};
}

void CoreDriver::Restart(bool with_state, const std::string& router_id) {
  for (auto& [name, worker] : workers) {
    worker.session.reset();
  }
  for (auto& [name, frontend] : frontends) {
    frontend.session.reset();
  }
  coming_.clear();
  options_.router_id = router_id;
  core_ = std::make_unique<RouterCore>(options_, with_state ? kept : std::nullopt);
}

TestWorker* CoreDriver::WorkerOf(SessionId session) {
  for (auto& [name, worker] : workers) {
    if (worker.session == session) {
      return &worker;
    }
  }
  return nullptr;
}

void CoreDriver::Send(const Event& event) {
  std::vector<Action> actions;
  core_->Step(now_, event, actions);
  for (const Action& action : actions) {
    std::visit([this](const auto& one) { Handle(one); }, action);
  }
}

// What was told to anybody is durable, and epochs never fall.
void CoreDriver::CheckEpoch(const PlacementView& view) {
  ASSERT_TRUE(kept.has_value());
  EXPECT_LE(view.epoch, MakeEpoch(kept->term, kept->epoch_n)) << "published and not durable";
  EXPECT_GE(view.epoch, highest_) << "an epoch fell";
  EXPECT_EQ(view.router.term, view.epoch.value() >> 32);
  highest_ = std::max(highest_, view.epoch);
}

void CoreDriver::Handle(const PersistState& persist) {
  if (disk.ok()) {
    const auto state = ParseRouterState(persist.blob);
    ASSERT_TRUE(state.ok()) << state.status();
    kept = *state;
  }
  coming_.emplace(now_ + milliseconds(5), PersistedEvent{persist.version, disk});
}

void CoreDriver::Handle(const SendPlacement& placement) {
  CheckEpoch(*placement.view);
  if (TestWorker* worker = WorkerOf(placement.session); worker != nullptr) {
    worker->last_router = placement.view->router;
    worker->last_epoch = placement.view->epoch;
  }
  for (auto& [name, frontend] : frontends) {
    if (frontend.session == placement.session) {
      frontend.view = placement.view;
      if (placement.frontend_id.has_value()) {
        frontend.id = placement.frontend_id;
      }
      EXPECT_TRUE(frontend.id.has_value());
      if (frontend.acks) {
        frontend.acked = placement.view;
        coming_.emplace(now_ + milliseconds(5),
                        EpochAckEvent{placement.session, placement.view->epoch});
      }
    }
  }
}

void CoreDriver::Handle(const SendPrepare& prepare) {
  TestWorker* worker = WorkerOf(prepare.session);
  ASSERT_NE(worker, nullptr);
  PrepareResultEvent result;
  result.session = prepare.session;
  result.plan_id = prepare.plan_id;
  for (const ExpertUnit unit : prepare.experts) {
    EXPECT_FALSE(worker->held.contains(unit)) << "told to load what it holds";
    if (worker->fails_to_load) {
      result.failed.push_back(unit);
      continue;
    }
    HeldExpert held;
    held.unit = unit;
    // Weights differ from expert to expert, and are the same on all workers.
    held.weight_hash = {worker->weights, static_cast<uint8_t>(unit.layer.value()),
                        static_cast<uint8_t>(unit.expert.value())};
    held.canary_checksum = worker->canary;
    result.ready.push_back(held);
  }
  result.error = worker->fails_to_load ? "no such file" : "";
  coming_.emplace(now_ + worker->load_time, result);
  EXPECT_LE(static_cast<int64_t>(worker->held.size() + prepare.experts.size()),
            worker->memory_experts);
}

void CoreDriver::Handle(const SendRetire& retire) {
  TestWorker* worker = WorkerOf(retire.session);
  ASSERT_NE(worker, nullptr);
  for (const ExpertUnit unit : retire.experts) {
    for (const auto& [name, frontend] : frontends) {
      if (!frontend.session.has_value() || frontend.acked == nullptr || !frontend.acks) {
        continue;
      }
      for (const UnitReplicas& replicas : *frontend.acked->experts) {
        EXPECT_FALSE(replicas.unit == unit &&
                     std::count(replicas.workers.begin(), replicas.workers.end(), *worker->id))
            << "retired while a frontend routes to it";
      }
    }
    EXPECT_TRUE(std::any_of(workers.begin(), workers.end(),
                            [&](const auto& entry) {
                              return &entry.second != worker && entry.second.session &&
                                     entry.second.held.contains(unit);
                            }) ||
                WorkersOf(unit).empty())
        << "the last replica of a served expert is retired";
    worker->held.erase(unit);
    ++worker->num_retired;
  }
  coming_.emplace(now_ + milliseconds(5), RetireResultEvent{retire.session, retire.plan_id});
}

void CoreDriver::Handle(const SendRegistered& registered) {
  TestWorker* worker = WorkerOf(registered.session);
  ASSERT_NE(worker, nullptr);
  worker->id = registered.worker;
  worker->key = registered.key;
}

void CoreDriver::Handle(const SendDrainState& drain) {
  if (TestWorker* worker = WorkerOf(drain.session); worker != nullptr) {
    worker->is_drained = drain.is_drained;
  }
}

void CoreDriver::Handle(const EndSession& end) {
  for (auto& [name, worker] : workers) {
    if (worker.session == end.session) {
      worker.session.reset();
      worker.end = end.status;
    }
  }
  for (auto& [name, frontend] : frontends) {
    if (frontend.session == end.session) {
      frontend.session.reset();
      frontend.end = end.status;
    }
  }
}

void CoreDriver::Handle(const AdminReply& reply) { replies.push_back(reply); }

void CoreDriver::Handle(const LogAction& line) { log.push_back(line.message); }

void CoreDriver::Run(milliseconds time) {
  const MonotonicTime end = now_ + time;
  while (now_ < end) {
    now_ += kTick;
    while (!coming_.empty() && coming_.begin()->first <= now_) {
      const Event event = coming_.begin()->second;
      coming_.erase(coming_.begin());
      if (const auto* loaded = std::get_if<PrepareResultEvent>(&event)) {
        TestWorker* worker = WorkerOf(loaded->session);
        if (worker == nullptr) {
          continue;  // it died meanwhile
        }
        for (const HeldExpert& held : loaded->ready) {
          worker->held[held.unit] = held;
          ++worker->num_loaded;
        }
      }
      Send(event);
    }
    if (++num_ticks_ % 4 == 0) {
      for (auto& [name, worker] : workers) {
        if (worker.session.has_value() && worker.id.has_value() && !worker.is_silent) {
          HeartbeatEvent beat;
          beat.session = *worker.session;
          beat.seq = ++worker.heartbeat_seq;
          Send(beat);
        }
      }
    }
    Send(TickEvent{});
  }
}

std::vector<WorkerId> CoreDriver::WorkersOf(ExpertUnit unit) const {
  for (const ExpertStatus& expert : Status().experts) {
    if (expert.unit == unit) {
      return expert.workers;
    }
  }
  return {};
}

int CoreDriver::LowestReplication() const { return Status().replication_lowest; }

int CoreDriver::TotalLoads() const {
  int sum = 0;
  for (const auto& [name, worker] : workers) {
    sum += worker.num_loaded;
  }
  return sum;
}

}  // namespace conclave::router_service
