#include "cluster.h"

#include <algorithm>

#include "conclave/base/planted_bug.h"
#include "conclave/base/status.h"
#include "sim_channel.h"

namespace conclave::simulation {

namespace rs = router_service;
namespace ew = expert_worker;

namespace {

constexpr Micros kSecond = 1'000'000;
// What a cluster may need at most to come to rest once everything is whole: a name that crashed
// often gets no loads for a minute, a plan is given up and made again.
constexpr Micros kRestWithin = 150 * kSecond;
constexpr Micros kRestFor = 3 * kSecond;

}  // namespace

Cluster::Cluster(const Plan& plan, const RunOptions& options)
    : plan_(plan),
      options_(options),
      kernel_(plan, options),
      random_(Random(plan.seed).Fork("cluster")),
      router_of_(static_cast<size_t>(plan.num_nodes()), 0),
      routers_(static_cast<size_t>(plan.num_routers)),
      workers_(static_cast<size_t>(plan.num_workers)),
      frontends_(static_cast<size_t>(plan.num_frontends)) {
  for (int32_t layer = 0; layer < plan.num_layers; ++layer) {
    for (int32_t expert = 0; expert < plan.num_experts; ++expert) {
      units_.push_back({LayerId(layer), ExpertId(expert)});
    }
  }
}

Cluster::~Cluster() {
  for (FrontendNode& front : frontends_) {
    front.dispatcher.reset();
    front.links.reset();
  }
}

const WorkerNode* Cluster::WorkerOfId(WorkerId id, const rs::PlacementView& view) const {
  for (const rs::MemberView& member : view.workers) {
    if (member.id == id) {
      const WorkerNode& worker =
          workers_[static_cast<size_t>(NodeOfWorker(member.name) - plan_.worker(0))];
      return kernel_.process(worker.node).is_up && worker.incarnation == member.incarnation
                 ? &worker
                 : nullptr;
    }
  }
  return nullptr;
}

int Cluster::NodeOfWorker(const std::string& name) const {
  return plan_.worker(std::stoi(name.substr(1)));
}

void Cluster::Begin(int node) {
  if (kernel_.process(node).is_up) {
    return;
  }
  if (plan_.is_router(node)) {
    if (is_healed_ && node != ruler_) {
      return;
    }
    StartRouter(routers_[static_cast<size_t>(node)]);
  } else if (plan_.is_worker(node)) {
    StartWorker(Worker(node));
  } else {
    StartFrontend(Front(node));
  }
}

void Cluster::Crash(int node, Micros restart_after) {
  if (!kernel_.process(node).is_up) {
    return;
  }
  LoseDataLinks(node, -1, random_.Between(100, 12'000));
  kernel_.CrashProcess(node);
  if (plan_.is_router(node)) {
    RouterNode& router = routers_[static_cast<size_t>(node)];
    router.core.reset();
    router.sessions.clear();
  } else if (plan_.is_worker(node)) {
    WorkerNode& worker = Worker(node);
    worker.memory.clear();
    worker.stream = nullptr;
    worker.is_registered = false;
  } else {
    FrontendNode& front = Front(node);
    front.num_broken += front.run.has_value() ? 1 : 0;
    front.dispatcher.reset();
    front.links.reset();
    front.run.reset();
    front.stream = nullptr;
    front.routed_by = nullptr;
  }
  kernel_.At(kernel_.now() + restart_after, [this, node] { Begin(node); });
}

void Cluster::Apply(const Fault& fault) {
  if (is_healed_) {
    return;
  }
  const Micros until = kernel_.now() + fault.for_us;
  kernel_.Note(NameOf(fault.kind), fault.a, static_cast<uint64_t>(fault.b + 1),
               static_cast<uint64_t>(fault.for_us));
  switch (fault.kind) {
    case FaultKind::kCrash:
      Crash(fault.a, fault.for_us);
      break;
    case FaultKind::kPause:
      kernel_.Pause(fault.a, until);
      break;
    case FaultKind::kLoseState:
      Crash(fault.a, fault.for_us);
      routers_[static_cast<size_t>(fault.a)].disk = Disk();
      break;
    case FaultKind::kClockJump:
      kernel_.process(fault.a).wall_offset +=
          std::chrono::milliseconds(static_cast<int64_t>(fault.rate * 1e3));
      break;
    case FaultKind::kSlow:
      Worker(fault.a).slowness = fault.rate;
      Worker(fault.a).slow_until = until;
      break;
    case FaultKind::kWrongWeights:
      Worker(fault.a).wrong_weights_until = until;
      break;
    case FaultKind::kCanary:
      FailCanary(Worker(fault.a), fault.salt);
      break;
    case FaultKind::kDiskError:
      routers_[static_cast<size_t>(fault.a)].disk.fails_until = until;
      break;
    case FaultKind::kDiskSlow:
      routers_[static_cast<size_t>(fault.a)].disk.slow_until = until;
      break;
    case FaultKind::kDiskRot:
      routers_[static_cast<size_t>(fault.a)].disk.is_rotten = true;
      break;
    case FaultKind::kOtherRouter:
      router_of_[static_cast<size_t>(fault.a)] = 1 - router_of_[static_cast<size_t>(fault.a)];
      kernel_.ResetStreams(fault.a, 1 - router_of_[static_cast<size_t>(fault.a)]);
      break;
    case FaultKind::kLeave:
      Leave(Worker(fault.a));
      break;
    case FaultKind::kDrain:
    case FaultKind::kPin:
    case FaultKind::kReplicate:
    case FaultKind::kRebalance:
      AskRouter(fault);
      break;
    default:
      ApplyToLinks(fault);
      break;
  }
}

void Cluster::FailCanary(WorkerNode& worker, uint64_t salt) {
  if (!kernel_.IsRunning(worker.node) || worker.memory.empty()) {
    return;
  }
  const auto which = static_cast<std::ptrdiff_t>(salt % worker.memory.size());
  const ExpertUnit unit = std::next(worker.memory.begin(), which)->first;
  worker.changed_at = kernel_.now();
  StepWorker(worker, [&](ew::WorkerActions* out) {
    worker.control->OnCanaryFailed(kernel_.LocalNow(worker.node), unit, out);
  });
}

void Cluster::Leave(WorkerNode& worker) {
  if (!kernel_.IsRunning(worker.node)) {
    return;
  }
  worker.is_leaving = true;
  StepWorker(worker, [&](ew::WorkerActions* out) {
    worker.control->OnDrainWish(kernel_.LocalNow(worker.node), out);
  });
}

void Cluster::ApplyToLinks(const Fault& fault) {
  const Micros until = kernel_.now() + fault.for_us;
  switch (fault.kind) {
    case FaultKind::kCut:
      kernel_.Cut(fault.a, fault.b, until);
      break;
    case FaultKind::kPartition:
      kernel_.Cut(fault.a, fault.b, until);
      kernel_.Cut(fault.b, fault.a, until);
      break;
    case FaultKind::kIsolate:
      for (int other = 0; other < plan_.num_nodes(); ++other) {
        if (other != fault.a) {
          kernel_.Cut(fault.a, other, until);
          kernel_.Cut(other, fault.a, until);
        }
      }
      break;
    case FaultKind::kReset:
      kernel_.ResetStreams(fault.a, fault.b);
      LoseDataLinks(fault.a, fault.b, 0);
      break;
    case FaultKind::kLoss:
      loss_ = fault.rate;
      loss_until_ = until;
      break;
    case FaultKind::kDelay:
      delay_s_ = fault.rate;
      delay_until_ = until;
      break;
    case FaultKind::kDuplicate:
      duplicate_ = fault.rate;
      duplicate_until_ = until;
      break;
    default:
      break;
  }
}

void Cluster::AskRouter(const Fault& fault) {
  RouterNode& router = routers_[fault.salt % routers_.size()];
  if (!kernel_.IsRunning(router.node)) {
    return;
  }
  rs::AdminEvent event;
  event.request = ++router.num_requests;
  const ExpertUnit unit = units_[(fault.salt >> 8) % units_.size()];
  switch (fault.kind) {
    case FaultKind::kDrain: {
      const std::string name = plan_.NodeName(fault.a);
      event.command = rs::DrainCommand{name, false};
      router.drains_asked[event.request] = {name, false};
      kernel_.AtNode(kernel_.now() + fault.for_us, router.node, [this, &router, name] {
        const uint64_t request = ++router.num_requests;
        router.drains_asked[request] = {name, true};
        StepRouter(router, rs::AdminEvent{request, rs::DrainCommand{name, true}});
      });
      break;
    }
    case FaultKind::kPin:
      has_replicas_asked_ = true;
      event.command = rs::PinCommand{unit, plan_.NodeName(fault.a), (fault.salt & 3) == 0};
      break;
    case FaultKind::kReplicate:
      has_replicas_asked_ = true;
      event.command = rs::ReplicateCommand{
          unit,
          static_cast<int32_t>((fault.salt >> 16) % static_cast<uint64_t>(plan_.num_workers + 1))};
      break;
    default:
      event.command = rs::RebalanceCommand{(fault.salt & 1) == 0};
      break;
  }
  StepRouter(router, event);
}

// Everything works again, and one router is everybody's: that of the highest term that commands.
void Cluster::Heal() {
  is_healed_ = true;
  healed_at_ = kernel_.now();
  loss_until_ = delay_until_ = duplicate_until_ = 0;
  kernel_.HealAll();
  for (WorkerNode& worker : workers_) {
    worker.slow_until = 0;
    worker.wrong_weights_until = 0;
  }
  ruler_ = 0;
  uint32_t highest = 0;
  for (RouterNode& router : routers_) {
    router.disk.fails_until = router.disk.slow_until = 0;
    router.disk.is_rotten = false;
    const bool is_standing_by =
        router.core == nullptr ||
        router.core->Status(kernel_.LocalNow(router.node)).state == "standby";
    if (!is_standing_by && router.core->identity().term > highest) {
      highest = router.core->identity().term;
      ruler_ = router.node;
    }
  }
  for (RouterNode& router : routers_) {
    if (router.node != ruler_) {
      Crash(router.node, 0);
    }
  }
  std::fill(router_of_.begin(), router_of_.end(), ruler_);
  RouterNode& router = routers_[static_cast<size_t>(ruler_)];
  Operate(router);
  for (int node = plan_.num_routers; node < plan_.num_nodes(); ++node) {
    for (const RouterNode& other : routers_) {
      if (other.node != ruler_) {
        kernel_.ResetStreams(node, other.node);
      }
    }
    kernel_.At(kernel_.now() + random_.Between(0, kSecond), [this, node] { Begin(node); });
  }
  // Drains are taken back.
  kernel_.At(kernel_.now() + 6 * kSecond, [this, &router] {
    if (!kernel_.process(router.node).is_up) {
      return;
    }
    for (WorkerNode& worker : workers_) {
      const std::string name = plan_.NodeName(worker.node);
      const uint64_t request = ++router.num_requests;
      StepRouter(router, rs::AdminEvent{request, rs::DrainCommand{name, true}});
    }
  });
}

// What an operator does: a router that has met followers of a higher term stands by for good and,
// as the only one, is started anew; so is a worker that is not trusted any more.
void Cluster::Operate(RouterNode& router) {
  if (router.core != nullptr) {
    const rs::RouterStatus status = router.core->Status(kernel_.LocalNow(router.node));
    for (const rs::WorkerStatus& worker : status.workers) {
      if (worker.is_distrusted) {
        Crash(NodeOfWorker(worker.member.name), 100'000);
      }
    }
    if (status.state == "standby") {
      Crash(router.node, 500'000);
    }
  }
  kernel_.At(kernel_.now() + 2 * kSecond, [this, &router] { Operate(router); });
}

void Cluster::RunAll() {
  kernel_.Note("plan", -1, plan_.seed, plan_.faults.size());
  for (int node = 0; node < plan_.num_nodes(); ++node) {
    if (plan_.is_router(node)) {
      routers_[static_cast<size_t>(node)].node = node;
    } else if (plan_.is_worker(node)) {
      Worker(node).node = node;
    } else {
      Front(node).node = node;
    }
    kernel_.At(plan_.is_router(node) ? 0 : random_.Between(0, 2 * kSecond),
               [this, node] { Begin(node); });
  }
  for (const Fault& fault : plan_.faults) {
    kernel_.At(fault.at, [this, &fault] { Apply(fault); });
  }
  kernel_.RunUntil(plan_.fault_phase);
  if (plan_.faults.empty() && !kernel_.is_over()) {
    CheckCalm();
  }
  Heal();
  // At rest: every look for a while finds it so.
  Micros rested_since = -1;
  while (!kernel_.is_over() && kernel_.now() < healed_at_ + kRestWithin) {
    kernel_.RunUntil(kernel_.now() + 250'000);
    const bool is_settled = kernel_.now() > healed_at_ + 8 * kSecond && IsSettled(&last_unsettled_);
    rested_since = !is_settled ? -1 : rested_since < 0 ? kernel_.now() : rested_since;
    if (is_settled && kernel_.now() - rested_since >= kRestFor) {
      break;
    }
  }
  if (!kernel_.is_over() && (rested_since < 0 || kernel_.now() - rested_since < kRestFor)) {
    kernel_.Violate(last_unsettled_.substr(0, last_unsettled_.find(' ')), last_unsettled_);
  }
  is_loaded_ = false;
  kernel_.RunUntil(kernel_.now() + 9 * kSecond);
  // The loads of the last layers may have led to a plan, which has to end.
  constexpr int kLooks = 40;
  for (int look = 0; look < kLooks && !IsIdle(); ++look) {
    kernel_.RunUntil(kernel_.now() + kSecond);
  }
  if (!kernel_.is_over()) {
    if (!IsIdle()) {
      kernel_.Violate("LIV1", "a plan or a load that never ends");
    }
    CheckRest();
  }
  kernel_.outcome().ended_at = kernel_.now();
  for (const FrontendNode& front : frontends_) {
    if (front.dispatcher != nullptr) {
      kernel_.outcome().num_resends +=
          front.dispatcher->Stats().retries + front.dispatcher->Stats().hedges;
    }
  }
}

// Without faults nobody dies, no timer is early, and no link is given up (LIV5).
void Cluster::CheckCalm() {
  for (RouterNode& router : routers_) {
    if (router.core->counters().workers_lost > 0) {
      kernel_.Violate("LIV5", "a worker was lost in a run without faults");
    }
  }
}

// Whether the cluster is as it should be for ever, or which invariant it lacks for that.
bool Cluster::IsSettled(std::string* why) const {
  const RouterNode* router = &routers_[static_cast<size_t>(ruler_)];
  const auto lacks = [why](std::string what) {
    *why = std::move(what);
    return false;
  };
  if (router->core == nullptr) {
    return lacks("LIV1 no router");
  }
  const rs::RouterStatus status = router->core->Status(kernel_.LocalNow(router->node));
  if (status.state != "serving") {
    return lacks("LIV1 the router is " + status.state);
  }
  if (!status.blocked.empty()) {
    return lacks("LIV1 the router is blocked: " + status.blocked);
  }
  for (const WorkerNode& worker : workers_) {
    if (!kernel_.process(worker.node).is_up ||
        worker.control->state(kernel_.LocalNow(worker.node)) != ew::WorkerState::kRegistered) {
      return lacks("LIV4 worker " + plan_.NodeName(worker.node) + " is no member");
    }
    if (worker.control->epoch() != status.epoch) {
      return lacks("LIV1 worker " + plan_.NodeName(worker.node) + " is in epoch " +
                   std::to_string(worker.control->epoch().value()) + " of " +
                   std::to_string(status.epoch.value()));
    }
  }
  for (const FrontendNode& front : frontends_) {
    if (front.links == nullptr || front.acknowledged != status.epoch) {
      return lacks("LIV1 frontend " + plan_.NodeName(front.node) + " is in epoch " +
                   std::to_string(front.acknowledged.value()) + " of " +
                   std::to_string(status.epoch.value()));
    }
    if (!front.links->keeper().Readiness().ok() ||
        front.links->keeper().num_links() != plan_.num_workers) {
      return lacks("LIV4 frontend " + plan_.NodeName(front.node) + " lacks links");
    }
  }
  const int possible = std::min(plan_.replication, plan_.num_workers);
  for (const rs::ExpertStatus& expert : status.experts) {
    int num_live = 0;
    for (const WorkerId id : expert.workers) {
      const WorkerNode* worker =
          router->published == nullptr ? nullptr : WorkerOfId(id, *router->published);
      if (worker == nullptr || !worker->memory.contains(expert.unit)) {
        return lacks("LIV2 a placement names a worker that does not hold its expert");
      }
      ++num_live;
    }
    // A command may ask for more of one expert than there is room for all.
    if (num_live < (has_replicas_asked_ ? 1 : possible)) {
      return lacks("LIV2 an expert has " + std::to_string(num_live) + " replicas");
    }
  }
  return status.experts.empty() ? lacks("LIV2 no experts") : true;
}

bool Cluster::IsIdle() const {
  const RouterNode& router = routers_[static_cast<size_t>(ruler_)];
  return router.core != nullptr &&
         router.core->Status(kernel_.LocalNow(router.node)).plan_id == 0 &&
         std::all_of(workers_.begin(), workers_.end(), [](const WorkerNode& worker) {
           return worker.control->num_loading() == 0 && worker.tasks.empty();
         });
}

// Quiescence: nothing is under way, nothing was left behind.
void Cluster::CheckRest() {
  for (FrontendNode& front : frontends_) {
    if (front.dispatcher != nullptr) {
      // A probe outlives its layer until somebody looks, as the next layer would.
      front.dispatcher->OnWoken(kernel_.LocalNow(front.node), true);
    }
    if (front.run.has_value()) {
      kernel_.Violate("INV12", "a layer that never ends");
    } else if (front.links != nullptr && front.links->num_held_slots() > 0) {
      kernel_.Violate("Q1", "slots of ended calls are held");
    }
    if (front.num_begun != front.num_ok + front.num_failed + front.num_broken) {
      kernel_.Violate("Q3", "layers begun and ended differ");
    }
    if (front.links != nullptr &&
        front.links->keeper().num_channels() > static_cast<size_t>(plan_.num_workers)) {
      kernel_.Violate("INV18", "a frontend has more links than workers");
    }
  }
  const RouterNode* router = &routers_[static_cast<size_t>(ruler_)];
  if (router->core == nullptr || router->published == nullptr) {
    return;
  }
  for (const WorkerNode& worker : workers_) {
    if (worker.control->num_loading() > 0 || !worker.tasks.empty()) {
      kernel_.Violate("Q1", "a worker still loads");
    }
    std::vector<ExpertUnit> placed;
    for (const rs::UnitReplicas& unit : *router->published->experts) {
      for (const WorkerId id : unit.workers) {
        if (WorkerOfId(id, *router->published) == &worker) {
          placed.push_back(unit.unit);
        }
      }
    }
    for (const auto& [unit, entry] : worker.memory) {
      // What cannot be reached, because a command asks for more than there is room for, may stay.
      if (!has_replicas_asked_ && std::find(placed.begin(), placed.end(), unit) == placed.end()) {
        kernel_.Violate("Q2", "worker " + plan_.NodeName(worker.node) +
                                  " holds an expert that nobody asked it to");
        return;
      }
    }
  }
}

Outcome Run(const Plan& plan, const RunOptions& options) {
  PlantBug(options.bug);
  Outcome outcome;
  {
    Cluster cluster(plan, options);
    cluster.RunAll();
    outcome = cluster.kernel().outcome();
  }
  PlantBug({});
  return outcome;
}

}  // namespace conclave::simulation
