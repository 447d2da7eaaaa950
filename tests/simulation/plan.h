// What a seed chooses: the shape of a cluster and the faults and operator's commands that it meets.
// A plan is a value, so that a shorter one can be tried (shrink.h).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace conclave::simulation {

using Micros = int64_t;  // of the simulated time, from 0

enum class FaultKind : uint8_t {
  // Processes. `a`: node.
  kCrash,         // kill -9, started again after for_us
  kPause,         // SIGSTOP for for_us
  kLoseState,     // as kCrash of router `a`, and its folder is empty
  kClockJump,     // the wall clock of node `a` jumps by rate seconds
  kSlow,          // worker `a` computes rate times as long, for for_us
  kWrongWeights,  // the files of worker `a` are of another revision, for for_us
  kCanary,        // an expert in the memory of worker `a` gives other bits
  // Links.
  kCut,        // nothing arrives from `a` at `b`, for for_us
  kPartition,  // neither way
  kIsolate,    // `a` from everybody
  kReset,      // every connection between `a` and `b` is reset
  kLoss,       // frames of calls are lost with chance rate, for for_us
  kDelay,      // and take up to rate seconds more
  kDuplicate,  // and come twice with chance rate
  // Disks of router `a`, for for_us.
  kDiskError,
  kDiskSlow,
  kDiskRot,  // the newest file has a flipped bit when the router starts next
  // The address of the router leads node `a` to another one, for for_us.
  kOtherRouter,
  // Operators.
  kDrain,  // of worker `a`, taken back after for_us
  kLeave,  // SIGTERM of worker `a`, started again when it has left
  kPin,
  kReplicate,
  kRebalance,
};
std::string_view NameOf(FaultKind kind);

struct Fault {
  Micros at = 0;
  FaultKind kind = FaultKind::kCrash;
  int a = -1;
  int b = -1;
  Micros for_us = 0;
  double rate = 0;
  uint64_t salt = 0;  // what else it draws
};
std::string Describe(const Fault& fault);

// Nodes are numbered: routers, frontends, workers.
struct Plan {
  uint64_t seed = 0;
  int num_routers = 1;
  int num_frontends = 2;
  int num_workers = 3;
  int num_layers = 2;
  int num_experts = 4;  // per layer
  int replication = 2;
  int memory_experts = 16;    // per worker
  Micros think_us = 100'000;  // between the layers that a frontend runs
  Micros load_us = 50'000;    // to load an expert
  double lateness = 0;        // of timers: chance of a late one
  bool has_clock_rates = false;
  Micros fault_phase = 20'000'000;
  std::vector<Fault> faults;

  int num_nodes() const { return num_routers + num_frontends + num_workers; }
  int frontend(int i) const { return num_routers + i; }
  int worker(int i) const { return num_routers + num_frontends + i; }
  bool is_router(int node) const { return node < num_routers; }
  bool is_worker(int node) const { return node >= num_routers + num_frontends; }
  std::string NodeName(int node) const;
};
std::string Describe(const Plan& plan);

// Every twentieth seed has no faults.
Plan PlanOf(uint64_t seed);

}  // namespace conclave::simulation
