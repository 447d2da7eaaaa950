// What the router knows of each member. Plain records: the rules are in the core.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "conclave/base/clock.h"
#include "conclave/router_service/router_types.h"

namespace conclave::router_service {

struct Worker {
  enum class State : uint8_t {
    kExpected,  // of a kept placement, not here yet: counts as holding what that says
    kJoining,   // registered; its id, or the router's term, is not durable yet
    kMember,
    kGone  // dead; kept until no placement names it
  };

  WorkerId id;
  WorkerRegistration registration;  // without what it holds
  uint64_t key = 0;
  State state = State::kJoining;
  bool has_durable_id = false;  // others may be told of it
  std::optional<SessionId> session;
  std::chrono::nanoseconds last_heard{0};  // by the lease clock
  MonotonicTime heard_at;                  // for people

  bool is_silent = false;  // heartbeats are missing
  std::map<SessionId, MonotonicTime> reporters;
  bool wishes_to_leave = false;
  bool is_distrusted = false;
  bool is_drained = false;
  int32_t num_failed_loads = 0;
  MonotonicTime no_loads_before;

  std::map<ExpertUnit, HeldExpert> held;
  std::map<ExpertUnit, uint64_t> loading;               // by which Prepare
  std::map<uint64_t, MonotonicTime> loads;              // Prepare commands under way, since when
  std::map<uint64_t, std::vector<ExpertUnit>> retires;  // Retire commands under way
  std::set<ExpertUnit> retiring;
  std::set<ExpertUnit> refused;  // it has them, and they are not what the others have
  // Held experts that the placements from this epoch on do not name here.
  std::map<ExpertUnit, Epoch> unused_since;
  std::optional<Epoch> unrouted_since;  // the whole worker

  uint64_t heartbeat_seq = 0;
  uint64_t load_seq = 0;
  double busy_ratio = 0;
  uint32_t queued_rows = 0;

  bool IsHere() const { return state == State::kMember || state == State::kJoining; }
  bool IsAlive() const { return state != State::kGone; }
  bool IsSuspect() const { return is_silent || reporters.size() >= 2; }
  // Rows may be sent to it for `unit`.
  bool CanServe(ExpertUnit unit, bool is_placed) const {
    switch (state) {
      case State::kGone:
        return false;
      case State::kExpected:
        return is_placed;
      case State::kJoining:
      case State::kMember:
        return held.contains(unit) && !retiring.contains(unit);
    }
    return false;
  }
};

// Of a name: starts that did not last are a crash loop, which is not to be fed with loads.
struct Starts {
  int32_t num_short = 0;
  MonotonicTime last;
};

struct Frontend {
  SessionId session = 0;
  uint32_t id = 0;
  FrontendRegistration registration;
  bool is_greeted = false;  // has its id and a placement
  Epoch acked;
  // Since when an epoch waits for its acknowledgement.
  std::optional<MonotonicTime> waits_since;
};

}  // namespace conclave::router_service
