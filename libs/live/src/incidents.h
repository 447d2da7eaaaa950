// Losses and hangs of workers, from the last sign of life to the repair, with what they cost.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "conclave/live/figures.h"

namespace conclave::live {

struct Incident {
  uint64_t id = 0;
  int32_t worker = 0;
  std::string name;
  bool is_death = false;  // else a suspicion
  double begin = 0;       // last sign of life before it, seconds since 1970
  double detected_after = 0;
  std::optional<double> restored_after;
  uint64_t epoch_before = 0;
  std::optional<uint64_t> epoch_after;
  uint64_t rows_resent = 0;
  uint64_t calls_resent = 0;
  uint64_t requests_touched = 0;
  uint64_t requests_failed = 0;
  Buckets recovery;
};

// How far the placement is from what is wanted.
struct Coverage {
  uint64_t epoch = 0;
  bool is_planning = false;
  int32_t lowest = 0;  // replicas of the expert that has fewest
  int32_t wanted = 0;  // as far as workers allow
};

class Incidents {
 public:
  // What frontends have counted by now; about once per second. Costs of open incidents follow it.
  void Note(double now, const FrontendFigures& sums);

  // `heard_at`: last sign of life.
  void OnSuspect(int32_t worker, const std::string& name, double heard_at, double now,
                 const Coverage& coverage);
  // It answers again.
  void OnRecovered(int32_t worker, double now);
  void OnDead(int32_t worker, const std::string& name, double heard_at, double now,
              const Coverage& coverage);
  // Whatever changed in the placement.
  void OnCoverage(double now, const Coverage& coverage);

  // The last of them, oldest first.
  const std::deque<Incident>& all() const { return incidents_; }

 private:
  struct Sample {
    double time = 0;
    std::map<int32_t, std::pair<uint64_t, uint64_t>> resent;  // worker -> rows, calls
    uint64_t touched = 0;
    uint64_t failed = 0;
    Buckets recovery;
  };
  // What belongs to an incident whose costs still grow.
  struct Open {
    Sample before;
    std::optional<double> placed_at;  // of the epoch without the worker
    std::optional<double> closed_at;
  };
  static Sample ToSample(double now, const FrontendFigures& sums);
  Incident* FindOpen(int32_t worker);
  Incident& Begin(int32_t worker, const std::string& name, double heard_at, double now,
                  const Coverage& coverage);
  static void Charge(const Sample& before, const Sample& after, Incident& incident);
  void Close(Incident& incident, Open& open, double now);

  std::deque<Incident> incidents_;
  std::map<uint64_t, Open> open_;  // by id
  std::deque<Sample> samples_;
  uint64_t next_ = 1;
};

}  // namespace conclave::live
