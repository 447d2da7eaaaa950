// A frontend: the dispatcher, its links and its view of the cluster, between clients and networks.
#include <algorithm>
#include <cstring>

#include "cluster.h"
#include "conclave/base/status.h"
#include "sim_channel.h"

namespace conclave::simulation {

namespace rs = router_service;
namespace fe = frontend;
using std::chrono::milliseconds;

namespace {

constexpr milliseconds kBackoffMin{100};
constexpr milliseconds kBackoffMax{2'000};

}  // namespace

void Cluster::StartFrontend(FrontendNode& front) {
  kernel_.StartProcess(front.node);
  const FrontendNode before = [&] {
    FrontendNode kept;
    kept.num_begun = front.num_begun;
    kept.num_ok = front.num_ok;
    kept.num_failed = front.num_failed;
    kept.num_broken = front.num_broken;
    kept.incarnation = front.incarnation;
    return kept;
  }();
  // The dispatcher first: it uses the links.
  front.dispatcher.reset();
  front.links.reset();
  front.run.reset();
  front.picture = {};
  front.stream = nullptr;
  front.backoff = kBackoffMin;
  front.acknowledged = Epoch();
  front.routed_by = nullptr;
  front.is_rung = false;
  front.incarnation = before.incarnation + 1;
  front.started_at = kernel_.now();
  front.clock = std::make_unique<NodeClock>(kernel_, front.node);
  front.links = std::make_unique<SimLinks>(*this, front);
  fe::DispatcherOptions options;
  options.compute = kernels::Context(kernels::Isa::kScalar, pool_);
  options.wire = transport::WireDtype::kF32;
  options.io_dim = kRowWidth;
  options.top_k = kTopK;
  options.max_rows = 16;
  options.frontend = static_cast<uint32_t>(front.node);
  options.clock = front.clock.get();
  options.expert_us = 300;
  options.row_us = 80;
  front.dispatcher = std::make_unique<fe::Dispatcher>(options, *front.links);
  ConnectFrontend(front);
  ThinkThenRun(front);
}

void Cluster::ConnectFrontend(FrontendNode& front) {
  const int router_node = RouterOf(front.node);
  RouterNode& router = routers_[static_cast<size_t>(router_node)];
  const MonotonicTime began_at = kernel_.LocalNow(front.node);
  const auto self = std::make_shared<StreamPtr>();
  const StreamPtr stream = kernel_.OpenStream(
      front.node, router_node, [this, &front, self, began_at](const absl::Status&) {
        if (front.stream != *self) {
          return;
        }
        front.stream = nullptr;
        const MonotonicTime now = kernel_.LocalNow(front.node);
        if (now - began_at > kBackoffMax) {
          front.backoff = kBackoffMin;
        }
        const milliseconds wait = front.backoff;
        front.backoff = std::min(front.backoff * 2, kBackoffMax);
        kernel_.Timer(front.node, now + wait, [this, &front] { ConnectFrontend(front); });
      });
  *self = stream;
  front.stream = stream;
  rs::FrontendRegistration r;
  r.name = plan_.NodeName(front.node);
  r.incarnation = front.incarnation;
  r.model = {"model", kRowWidth, kTopK};
  r.numeric = {"bf16", "scalar", 1};
  r.last_router = front.picture.router;
  r.last_epoch = front.picture.epoch;
  kernel_.Send(stream, 0, [this, &router, &front, stream, r] {
    Accept(router, stream, front.node, rs::FrontendRegisterEvent{stream->id, r});
  });
}

void Cluster::SendFromFrontend(FrontendNode& front, std::function<rs::Event(uint64_t)> make) {
  const StreamPtr stream = front.stream;
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

// As RouterClient does with what its stream brings.
void Cluster::OnUpdate(FrontendNode& front, const StreamPtr& stream,
                       const std::shared_ptr<const rs::PlacementView>& view, Epoch base,
                       const rs::PlacementDelta& delta, std::optional<uint32_t> id) {
  if (front.stream != stream) {
    return;
  }
  Picture& picture = front.picture;
  const bool is_foreign =
      view->router.term < picture.router.term ||
      (view->router.term == picture.router.term && !picture.router.router_id.empty() &&
       view->router.router_id != picture.router.router_id);
  if (is_foreign || view->epoch < picture.epoch) {
    return;
  }
  if (base != Epoch() && base != picture.epoch) {
    SendFromFrontend(front, [](uint64_t session) { return rs::ResyncEvent{session}; });
    return;
  }
  if (base == Epoch()) {
    picture.members.clear();
    picture.holders.clear();
  }
  for (const rs::MemberView* member : delta.workers) {
    fe::ClusterMember& kept = picture.members[member->id];
    kept.id = member->id;
    kept.name = member->name;
    kept.incarnation = member->incarnation;
    kept.data_address = member->data_address;
    kept.is_suspect = member->state == rs::MemberState::kSuspect;
    kept.is_draining = member->state == rs::MemberState::kDraining;
    kept.pair_key = member->key;
  }
  for (const WorkerId gone : delta.removed_workers) {
    picture.members.erase(gone);
  }
  for (const rs::UnitReplicas* unit : delta.experts) {
    picture.holders[unit->unit] = unit->workers;
  }
  picture.router = view->router;
  picture.epoch = view->epoch;
  if (id.has_value()) {
    picture.frontend_id = *id;
  }
  std::vector<placement::Replica> replicas;
  for (const auto& [unit, workers] : picture.holders) {
    for (const WorkerId worker : workers) {
      replicas.push_back({unit, worker});
    }
  }
  auto placement = placement::Placement::CreatePartial(picture.epoch, units_, replicas);
  if (!placement.ok()) {
    kernel_.Violate("INV4", "a placement that is none: " + MessageOf(placement.status()));
    return;
  }
  fe::ClusterView out;
  out.frontend_id = picture.frontend_id;
  out.placement = std::make_shared<const placement::Placement>(*std::move(placement));
  for (const auto& [worker, member] : picture.members) {
    out.members.push_back(member);
  }
  kernel_.Note("view", front.node, picture.epoch.value(), out.members.size());
  front.links->keeper().Apply(std::move(out));
  if (id.has_value()) {
    SendFromFrontend(front, [epoch = front.acknowledged](uint64_t session) {
      return rs::EpochAckEvent{session, epoch};
    });
  }
  TryLinks(front);
  front.links->Wake();
}

void Cluster::TryLinks(FrontendNode& front) {
  const MonotonicTime now = kernel_.LocalNow(front.node);
  for (const fe::LinkKeeper::Attempt& attempt : front.links->keeper().StartDue(now)) {
    ConnectData(front, attempt);
  }
  (void)front.links->keeper().TakeUnused();
  const uint64_t number = ++front.retry;
  const MonotonicTime next = front.links->keeper().NextRetry();
  if (next != MonotonicTime::max()) {
    kernel_.Timer(front.node, next, [this, &front, number] {
      if (front.retry == number) {
        TryLinks(front);
      }
    });
  }
}

// A handshake: the worker must be up, the one that the router knows, and within reach both ways.
void Cluster::ConnectData(FrontendNode& front, const fe::LinkKeeper::Attempt& attempt) {
  constexpr Micros kTimeout = 1'000'000;
  const int node = NodeOfWorker(attempt.member.name);
  const bool is_reachable = !kernel_.IsCutEitherWay(front.node, node) && !kernel_.IsPaused(node);
  const Micros delay = is_reachable ? 2 * kernel_.NetworkDelay() : kTimeout;
  kernel_.AtNode(kernel_.now() + delay, front.node, [this, &front, attempt, node, is_reachable] {
    const bool is_there = is_reachable && kernel_.process(node).is_up &&
                          Worker(node).incarnation == attempt.member.incarnation &&
                          Worker(node).is_registered;
    if (!is_there) {
      (void)front.links->keeper().OnFailed(attempt, kernel_.LocalNow(front.node));
    } else {
      auto link = std::make_shared<DataLink>();
      link->frontend = front.node;
      link->worker = node;
      link->frontend_life = kernel_.process(front.node).life;
      link->worker_life = kernel_.process(node).life;
      link->incarnation = attempt.member.incarnation;
      std::erase_if(data_links_, [](const auto& other) { return other.expired(); });
      data_links_.push_back(link);
      kernel_.Note("link", front.node, static_cast<uint64_t>(node), link->incarnation);
      if (front.links->keeper().OnConnected(attempt, std::make_unique<SimChannel>(*this, link),
                                            kernel_.LocalNow(front.node))) {
        front.links->Wake();
      }
    }
    TryLinks(front);
  });
}

void Cluster::LoseDataLinks(int a, int b, Micros delay) {
  for (const std::weak_ptr<DataLink>& weak : data_links_) {
    const std::shared_ptr<DataLink> link = weak.lock();
    if (link == nullptr || link->is_lost || (link->frontend != a && link->worker != a) ||
        (b >= 0 && link->frontend != b && link->worker != b)) {
      continue;
    }
    if (kernel_.IsCut(link->worker, link->frontend)) {
      continue;  // nobody is told
    }
    kernel_.AtNode(kernel_.now() + delay, link->frontend, [this, link] {
      link->is_lost = true;
      if (link->channel != nullptr) {
        Ring(Front(link->frontend));
      }
    });
  }
}

// TCP: what is lost comes late, when it is sent again; sometimes (another transport) never.
void Cluster::Carry(int from, int to, Act act) {
  constexpr Micros kResendUs = 200'000;
  constexpr double kNever = 0.3;
  Micros delay = kernel_.NetworkDelay();
  if (loss_until_ > kernel_.now() && random_.Chance(loss_)) {
    if (random_.Chance(kNever)) {
      return;
    }
    delay += kResendUs;
  }
  if (delay_until_ > kernel_.now()) {
    delay += static_cast<Micros>(std::min(delay_s_, random_.Exponential(delay_s_ / 8)) * 1e6);
  }
  const bool is_twice = duplicate_until_ > kernel_.now() && random_.Chance(duplicate_);
  for (int copy = 0; copy <= (is_twice ? 1 : 0); ++copy) {
    kernel_.At(kernel_.now() + delay, [this, from, to, act] {
      if (kernel_.IsCut(from, to)) {
        // Until the link is whole again, or for ever.
        if (random_.Chance(0.5) && !is_healed_) {
          kernel_.At(kernel_.now() + random_.Between(100'000, 3'000'000),
                     [this, from, to, act] { Carry(from, to, act); });
        }
        return;
      }
      act();
    });
    delay += random_.Between(0, 50'000);
  }
}

void Cluster::SendCall(const std::shared_ptr<CallMessage>& call) {
  const std::shared_ptr<DataLink> link = call->link;
  Carry(link->frontend, link->worker, [this, call, link] {
    const Process& p = kernel_.process(link->worker);
    if (p.is_up && p.life == link->worker_life && !link->is_lost) {
      kernel_.AtNode(kernel_.now(), link->worker,
                     [this, call] { OnCall(std::make_shared<CallMessage>(*call)); });
    }
  });
}

void Cluster::SendReply(std::shared_ptr<ReplyMessage> reply) {
  const std::shared_ptr<DataLink> link = reply->link;
  Carry(link->worker, link->frontend, [this, reply, link] {
    const Process& p = kernel_.process(link->frontend);
    if (p.is_up && p.life == link->frontend_life && !link->is_lost) {
      kernel_.AtNode(kernel_.now(), link->frontend, [this, reply, link] {
        if (link->channel != nullptr && link->channel->OnReply(*reply)) {
          Ring(Front(link->frontend));
        }
      });
    }
  });
}

// ---- Layers -------------------------------------------------------------------------------------

void Cluster::ThinkThenRun(FrontendNode& front) {
  const auto think = static_cast<Micros>(random_.Exponential(static_cast<double>(plan_.think_us)));
  kernel_.AtNode(kernel_.now() + 1 + think, front.node, [this, &front] { BeginLayer(front); });
}

void Cluster::BeginLayer(FrontendNode& front) {
  if (!is_loaded_) {
    return;
  }
  LayerRun& run = front.run.emplace();
  run.layer = static_cast<int32_t>(random_.Between(0, plan_.num_layers - 1));
  const int64_t num_rows = random_.Between(1, 6);
  run.n.resize(static_cast<size_t>(num_rows * kRowWidth));
  run.out.assign(run.n.size(), -1.0f);
  for (int32_t r = 0; r < num_rows; ++r) {
    // Every row of a layer is another, or a check would take one call for a copy of the other.
    const auto value = static_cast<float>(random_.Between(1, 60) + 64 * r);
    std::fill_n(run.n.begin() + r * kRowWidth, kRowWidth, value);
    const auto first = static_cast<int32_t>(random_.Between(0, plan_.num_experts - 1));
    auto second = static_cast<int32_t>(random_.Between(0, plan_.num_experts - 2));
    second += second >= first ? 1 : 0;
    run.experts.insert(run.experts.end(), {first, second});
    run.weights.insert(run.weights.end(), {0.5f, 0.25f});
    model::StepRow row;
    row.position = r;
    row.is_prefill = random_.Chance(0.3);
    row.is_image = random_.Chance(0.3);
    run.rows.push_back(row);
  }
  run.began_at = kernel_.now();
  run.refusals_before = front.dispatcher->Stats().refusals;
  run.paused_before = kernel_.process(front.node).paused_total;
  ++front.num_begun;
  kernel_.Note("layer", front.node, static_cast<uint64_t>(run.layer),
               static_cast<uint64_t>(num_rows));
  const model::GateChoice choice{{run.experts.data(), num_rows, kTopK},
                                 {run.weights.data(), num_rows, kTopK}};
  front.is_rung = false;
  // The choice is a view whose arrays live in the run; the dispatcher keeps its address.
  front.links->choice = choice;
  front.dispatcher->Begin(run.layer, MatView<const float>(run.n.data(), num_rows, kRowWidth),
                          run.rows, front.links->choice,
                          MatView<float>(run.out.data(), num_rows, kRowWidth));
  Pump(front);
}

void Cluster::Pump(FrontendNode& front) {
  const std::optional<absl::Status> status = front.dispatcher->Advance();
  if (status.has_value()) {
    EndLayer(front, *status);
    return;
  }
  front.wake_at = front.dispatcher->NextTimer();
  const uint64_t number = ++front.wake;
  kernel_.Timer(front.node, front.wake_at, [this, &front, number] {
    if (front.wake == number && front.run.has_value()) {
      front.dispatcher->OnWoken(front.wake_at, std::exchange(front.is_rung, false));
      Pump(front);
    }
  });
}

// Wakes the dispatcher for an answer or an update, once.
void Cluster::Ring(FrontendNode& front) {
  if (!front.run.has_value() || front.is_rung) {
    return;
  }
  front.is_rung = true;
  const uint64_t number = front.wake;
  kernel_.AtNode(kernel_.now() + 1, front.node, [this, &front, number] {
    if (front.run.has_value() && front.wake == number && front.is_rung) {
      front.is_rung = false;
      front.dispatcher->OnWoken(front.wake_at, true);
      Pump(front);
    }
  });
}

void Cluster::EndLayer(FrontendNode& front, const absl::Status& status) {
  ++front.wake;
  front.is_rung = false;
  kernel_.Note("end", front.node, static_cast<uint64_t>(status.code()), 0);
  // A call's own deadline, and an expert may have been without a worker when it ended.
  constexpr Micros kLongest = 7'000'000;
  constexpr Micros kSlack = 1'200'000;
  const Micros paused = kernel_.process(front.node).paused_total - front.run->paused_before;
  if (kernel_.now() - front.run->began_at - paused > kLongest + kSlack) {
    kernel_.Violate(
        "INV12",
        "a layer took " + std::to_string(kernel_.now() - front.run->began_at - paused) + " us");
  }
  CheckBudget(front);
  if (status.ok()) {
    ++front.num_ok;
    ++kernel_.outcome().num_layers_ok;
    CheckRows(front);
  } else {
    ++front.num_failed;
    ++kernel_.outcome().num_layers_failed;
    if (ReasonOf(status) == "expert_unserved") {
      CheckUnserved(front);
    }
    const std::string reason = ReasonOf(status);
    if (reason != "expert_unserved" && reason != "call_deadline") {
      kernel_.Violate("INV12", "a layer ended with an error that is not documented: " +
                                   std::string(status.message()));
    }
    if (is_healed_ && kernel_.now() - healed_at_ > 20'000'000 && IsSettled(&last_unsettled_)) {
      kernel_.Violate("LIV3",
                      "a layer failed in a whole cluster: " + std::string(status.message()));
    }
  }
  front.run.reset();
  ThinkThenRun(front);
}

void Cluster::CheckRows(FrontendNode& front) {
  const LayerRun& run = *front.run;
  for (size_t r = 0; r < run.rows.size(); ++r) {
    for (int32_t c = 0; c < kRowWidth; ++c) {
      float term[kTopK];
      for (size_t k = 0; k < kTopK; ++k) {
        const ExpertUnit unit{LayerId(run.layer), ExpertId(run.experts[r * kTopK + k])};
        term[k] = TermOf(unit, kRevision, run.weights[r * kTopK + k],
                         run.n[r * kRowWidth + static_cast<size_t>(c)], c);
      }
      const float found = run.out[r * kRowWidth + static_cast<size_t>(c)];
      if (found == term[0] + term[1]) {
        continue;
      }
      for (int i = 0; i <= 4; ++i) {
        for (int j = 0; j <= 4; ++j) {
          if (found == static_cast<float>(i) * term[0] + static_cast<float>(j) * term[1]) {
            kernel_.Violate("INV1", "terms of a row were combined " + std::to_string(i) + " and " +
                                        std::to_string(j) + " times");
            return;
          }
        }
      }
      kernel_.Violate(found == -1.0f ? "INV1" : "INV3", "a row is not what the experts give");
      return;
    }
  }
}

// What re-sends cost is within the token bucket (INV11).
void Cluster::CheckBudget(FrontendNode& front) {
  const fe::DispatchStats stats = front.dispatcher->Stats();
  const fe::RetryBudget::Settings budget;
  const double seconds = static_cast<double>(kernel_.now() - front.started_at) * 1e-6 *
                         kernel_.process(front.node).rate;
  const double earned = budget.cap + budget.per_call * static_cast<double>(stats.calls) +
                        budget.per_second_min * seconds + 1;
  if (static_cast<double>(stats.tokens) > earned) {
    kernel_.Violate("INV11", std::to_string(stats.tokens) + " re-sends were paid of " +
                                 std::to_string(earned) + " tokens");
  }
}

// An expert is unserved only when nobody that holds it is within reach (INV8, INV14).
void Cluster::CheckUnserved(FrontendNode& front) {
  // A worker that has refused is not asked again before the next placement.
  if (front.routed_by == nullptr ||
      front.dispatcher->Stats().refusals != front.run->refusals_before) {
    return;
  }
  constexpr Micros kWait = 2'000'000;
  for (const int32_t expert : front.run->experts) {
    const ExpertUnit unit{LayerId(front.run->layer), ExpertId(expert)};
    bool is_served = false;
    for (const WorkerId id : front.routed_by->WorkersOf(unit)) {
      const std::optional<int> node = front.links->UpSince(id, kernel_.now() - kWait);
      // One that has lost it refuses, whatever the placement says.
      is_served = is_served || (node.has_value() && Worker(*node).memory.contains(unit));
    }
    if (!is_served) {
      return;
    }
  }
  kernel_.Violate("INV14", "given up as unserved while every expert had a link all the time");
}

}  // namespace conclave::simulation
