// From members and loads to the placement that is aimed at: the planner of libs/placement, and what
// it does not know of: why a plan is made, replica numbers of single experts, memory that does not
// hold everything. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "conclave/placement/planner.h"
#include "conclave/router_service/router_types.h"

namespace conclave::router_service {

// Workers of every expert, in the order of preference.
using ReplicaMap = std::map<ExpertUnit, std::vector<WorkerId>>;

struct PlanInput {
  placement::PlanProblem problem;
  int32_t replication = 2;
  std::map<ExpertUnit, int32_t> replicas;  // of single experts
  // What is aimed at so far, as far as its workers live.
  ReplicaMap current;
};

enum class PlanPurpose : uint8_t {
  kRepair,   // what is missing, and nothing else
  kFill,     // a new worker gets its part, in steps of a tenth
  kBalance,  // by the loads, at most a tenth
  kFull      // by the loads, from nothing
};

struct PlanOutcome {
  ReplicaMap goal;
  double imbalance_before = 0;
  double imbalance_after = 0;
};

// Replicas that `unit` should have with the workers there are.
int32_t WantedReplicas(const PlanInput& input, ExpertUnit unit);

// Whether an expert has fewer replicas than wanted on workers that take experts, or a pin waits.
bool LacksReplicas(const PlanInput& input);

// Never fails: with too little memory the goal has as many experts as fit, those without a replica
// first, and an expert that fits nowhere stays where it is.
PlanOutcome MakeGoal(const PlanInput& input, PlanPurpose purpose);

// Loads and drops that turn `from` into `to`, paired per expert.
std::vector<ReplicaMove> MovesBetween(const ReplicaMap& from, const ReplicaMap& to);
int64_t BytesOf(const std::vector<ReplicaMove>& moves, const placement::PlanProblem& problem);

std::vector<placement::Replica> ToReplicas(const ReplicaMap& map);

}  // namespace conclave::router_service
