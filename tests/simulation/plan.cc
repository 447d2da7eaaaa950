#include "plan.h"

#include <algorithm>
#include <cstdio>

#include "random.h"

namespace conclave::simulation {
namespace {

constexpr Micros kSecond = 1'000'000;

std::string Seconds(Micros at) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.3f", static_cast<double>(at) * 1e-6);
  return text;
}

struct Class {
  FaultKind kind;
  double mean_period_s;  // at the middle of the rates
  double for_min_s;
  double for_max_s;
};

// How often and for how long, if the class is on; rates are log-uniform over a factor of nine.
constexpr Class kClasses[] = {
    {FaultKind::kCrash, 8, 0.05, 8},      {FaultKind::kPause, 8, 0.1, 12},
    {FaultKind::kLoseState, 25, 0.05, 5}, {FaultKind::kClockJump, 10, 0, 0},
    {FaultKind::kSlow, 10, 1, 10},        {FaultKind::kWrongWeights, 15, 1, 10},
    {FaultKind::kCanary, 25, 0, 0},       {FaultKind::kCut, 8, 0.1, 8},
    {FaultKind::kPartition, 8, 0.1, 8},   {FaultKind::kIsolate, 12, 0.1, 8},
    {FaultKind::kReset, 5, 0, 0},         {FaultKind::kLoss, 10, 1, 10},
    {FaultKind::kDelay, 10, 1, 10},       {FaultKind::kDuplicate, 10, 1, 10},
    {FaultKind::kDiskError, 12, 0.5, 5},  {FaultKind::kDiskSlow, 12, 1, 10},
    {FaultKind::kDiskRot, 25, 0, 0},      {FaultKind::kOtherRouter, 10, 1, 10},
    {FaultKind::kDrain, 12, 2, 15},       {FaultKind::kLeave, 15, 0, 0},
    {FaultKind::kPin, 12, 0, 0},          {FaultKind::kReplicate, 12, 0, 0},
    {FaultKind::kRebalance, 8, 0, 0},
};

bool IsOfRouter(FaultKind kind) {
  return kind == FaultKind::kLoseState || kind == FaultKind::kDiskError ||
         kind == FaultKind::kDiskSlow || kind == FaultKind::kDiskRot;
}

bool IsOfWorker(FaultKind kind) {
  return kind == FaultKind::kSlow || kind == FaultKind::kWrongWeights ||
         kind == FaultKind::kCanary || kind == FaultKind::kDrain || kind == FaultKind::kLeave ||
         kind == FaultKind::kPin;
}

Fault Draw(const Plan& plan, const Class& what, Micros at, Random& random) {
  Fault fault;
  fault.at = at;
  fault.kind = what.kind;
  fault.salt = random.Next();
  fault.for_us = what.for_max_s == 0
                     ? 0
                     : static_cast<Micros>(random.LogUniform(what.for_min_s, what.for_max_s) * 1e6);
  if (IsOfRouter(what.kind)) {
    fault.a = static_cast<int>(random.Between(0, plan.num_routers - 1));
  } else if (IsOfWorker(what.kind)) {
    fault.a = plan.worker(static_cast<int>(random.Between(0, plan.num_workers - 1)));
  } else if (what.kind == FaultKind::kOtherRouter) {
    fault.a = static_cast<int>(random.Between(plan.num_routers, plan.num_nodes() - 1));
  } else {
    fault.a = static_cast<int>(random.Between(0, plan.num_nodes() - 1));
    fault.b = static_cast<int>(random.Between(0, plan.num_nodes() - 2));
    fault.b += fault.b >= fault.a ? 1 : 0;
  }
  switch (what.kind) {
    case FaultKind::kClockJump:
      fault.rate = (random.Chance(0.5) ? 1 : -1) * random.LogUniform(1, 86'400);
      break;
    case FaultKind::kSlow:
      fault.rate = random.LogUniform(2, 50);
      break;
    case FaultKind::kLoss:
      fault.rate = random.LogUniform(0.001, 0.2);
      break;
    case FaultKind::kDelay:
      fault.rate = random.LogUniform(0.001, 2);
      break;
    case FaultKind::kDuplicate:
      fault.rate = random.LogUniform(0.01, 0.5);
      break;
    default:
      break;
  }
  return fault;
}

}  // namespace

std::string_view NameOf(FaultKind kind) {
  constexpr std::string_view kNames[] = {
      "crash",  "pause",     "lose_state", "clock_jump", "slow",     "wrong_weights",
      "canary", "cut",       "partition",  "isolate",    "reset",    "loss",
      "delay",  "duplicate", "disk_error", "disk_slow",  "disk_rot", "other_router",
      "drain",  "leave",     "pin",        "replicate",  "rebalance"};
  return kNames[static_cast<size_t>(kind)];
}

std::string Describe(const Fault& fault) {
  std::string text = Seconds(fault.at) + " s " + std::string(NameOf(fault.kind));
  if (fault.a >= 0) {
    text += " a=" + std::to_string(fault.a);
  }
  if (fault.b >= 0) {
    text += " b=" + std::to_string(fault.b);
  }
  if (fault.for_us > 0) {
    text += " for " + Seconds(fault.for_us) + " s";
  }
  if (fault.rate != 0) {
    text += " rate " + std::to_string(fault.rate);
  }
  return text;
}

std::string Plan::NodeName(int node) const {
  if (node < num_routers) {
    return "r" + std::to_string(node);
  }
  if (node < num_routers + num_frontends) {
    return "f" + std::to_string(node - num_routers);
  }
  return "w" + std::to_string(node - num_routers - num_frontends);
}

std::string Describe(const Plan& plan) {
  std::string text = "seed " + std::to_string(plan.seed);
  for (const auto& [name, value] :
       {std::pair("routers", plan.num_routers), std::pair("frontends", plan.num_frontends),
        std::pair("workers", plan.num_workers), std::pair("layers", plan.num_layers),
        std::pair("experts", plan.num_experts), std::pair("replication", plan.replication),
        std::pair("memory", plan.memory_experts),
        std::pair("faults", static_cast<int>(plan.faults.size()))}) {
    text += std::string(" ") + name + " " + std::to_string(value);
  }
  return text + " fault phase " + Seconds(plan.fault_phase) + " s\n";
}

Plan PlanOf(uint64_t seed) {
  constexpr uint64_t kFaultFreeEvery = 20;
  Plan plan;
  plan.seed = seed;
  Random shape = Random(seed).Fork("shape");
  plan.num_routers = shape.Chance(0.35) ? 2 : 1;
  plan.num_frontends = static_cast<int>(shape.Between(1, 3));
  plan.num_workers = static_cast<int>(shape.Between(2, 6));
  plan.num_layers = static_cast<int>(shape.Between(1, 3));
  plan.num_experts = static_cast<int>(shape.Between(2, 6));
  plan.replication = std::min(plan.num_workers, static_cast<int>(shape.Between(1, 3)));
  const int units = plan.num_layers * plan.num_experts;
  // From just enough for all replicas to room for every expert.
  const int least = (units * plan.replication + plan.num_workers - 1) / plan.num_workers;
  plan.memory_experts = static_cast<int>(shape.Between(std::min(units, least + 1), units));
  plan.think_us = static_cast<Micros>(shape.LogUniform(20'000, 300'000));
  plan.load_us = static_cast<Micros>(shape.LogUniform(5'000, 500'000));
  plan.lateness = shape.Chance(0.5) ? shape.LogUniform(0.0005, 0.05) : 0;
  plan.has_clock_rates = shape.Chance(0.5);
  plan.fault_phase = shape.Between(8, 25) * kSecond;
  if (seed % kFaultFreeEvery == 0) {
    plan.lateness = 0;
    return plan;
  }
  Random random = Random(seed).Fork("faults");
  for (const Class& what : kClasses) {
    const bool is_on = random.Chance(0.5);
    const double period = what.mean_period_s * random.LogUniform(1.0 / 3, 3);
    if (!is_on || (what.kind == FaultKind::kOtherRouter && plan.num_routers == 1)) {
      continue;
    }
    auto at = static_cast<Micros>(random.Exponential(period) * 1e6);
    while (at < plan.fault_phase) {
      plan.faults.push_back(Draw(plan, what, at, random));
      at += 1 + static_cast<Micros>(random.Exponential(period) * 1e6);
    }
  }
  std::stable_sort(plan.faults.begin(), plan.faults.end(),
                   [](const Fault& x, const Fault& y) { return x.at < y.at; });
  return plan;
}

}  // namespace conclave::simulation
