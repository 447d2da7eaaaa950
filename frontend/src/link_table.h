// The links of a dispatcher with what is known of each, and the choice of replicas among them.
// Without clock, thread or I/O.
#pragma once

#include <bitset>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "conclave/frontend/link_health.h"
#include "conclave/frontend/link_source.h"
#include "conclave/placement/placement.h"

namespace conclave::frontend {

inline constexpr size_t kMaxLinks = 1024;
using LinkSet = std::bitset<kMaxLinks>;

struct LinkEntry {
  LinkEntry(const WorkerLink& worker_link, const LinkSettings& settings)
      : link(worker_link), health(settings) {}

  WorkerLink link;  // channel null: down
  LinkHealth health;
  bool is_suspected_by_router = false;

  bool is_up() const { return link.channel != nullptr; }

  // A call that was sent over it is given up at its deadline: its answer may still come.
  void OnGivenUp(MonotonicTime now);
  // Before the next one: answers to such calls have come after all, so that deadlines are too short
  // here. Later than a second they say nothing of that, nor do those of overtaken calls.
  void NoteLateAnswers(MonotonicTime now);

  uint64_t late_replies = 0;  // of the channel, as last seen
  uint64_t num_given_up = 0;  // calls whose answers may still come
  MonotonicTime given_up_at;  // the last of them
};

class LinkTable {
 public:
  LinkTable(const LinkSettings& settings, double expert_us, double row_us, uint32_t frontend);

  // A link to a worker that has one already takes its place; what was learned of the same
  // incarnation stays. Returns the channel that is to be released, or null. Links beyond kMaxLinks
  // are refused: the new channel itself is returned.
  transport::ExpertChannel* Add(const WorkerLink& link);
  // One that no placement names and that is never chosen; its index. For the frontend's own rescue.
  size_t AddUnlisted(const WorkerLink& link);
  // The channel that is to be released, or null.
  transport::ExpertChannel* Remove(WorkerId worker);
  void SetSuspects(std::span<const WorkerId> suspects);

  LinkEntry& operator[](size_t index) { return *entries_[index]; }
  const LinkEntry& operator[](size_t index) const { return *entries_[index]; }
  size_t size() const { return entries_.size(); }
  std::optional<size_t> Find(WorkerId worker) const;

  // Rows that one expert has in the calls to be built, and how many of them have their other expert
  // on which link.
  struct Demand {
    int rows = 0;
    bool is_prefill = false;
    std::span<const int> rows_elsewhere;  // [size()] rows whose other expert goes to that link
    int rows_placed = 0;                  // sum of rows_elsewhere
  };

  // A link's part of an expert's rows.
  struct Part {
    size_t link = 0;
    int rows = 0;
  };

  // Begins a choice: nothing is assigned yet.
  void BeginChoice();
  // The link for all these rows of `unit`: fewest workers per row first, then the least load, ties
  // by a hash. Links of `excluded` are not taken. Healthy links first; a suspect one only when
  // there is no other. nullopt: none is up.
  std::optional<size_t> Choose(const placement::Placement& placement, placement::ExpertUnit unit,
                               const Demand& demand, const LinkSet& excluded, MonotonicTime now);

  // Divides a prefill expert's rows among healthy links that hold it, so that all of them are done
  // at about the same time (data-plane.md section 11): each further one reads the expert's weights
  // once more, so that few rows stay together. Into `parts`, largest first; false, and nothing
  // assigned, where one link alone is about as good. The rest as Choose.
  bool ChooseParts(const placement::Placement& placement, placement::ExpertUnit unit,
                   const Demand& demand, const LinkSet& excluded, MonotonicTime now,
                   std::vector<Part>& parts);

 private:
  double CostOf(size_t index, const Demand& demand) const;
  // Trust before load: 0 healthy, 1 the router misses its heartbeats, 2 nothing better.
  static int TierOf(const LinkEntry& entry, MonotonicTime now);

  const LinkSettings settings_;
  const double expert_us_;
  const double row_us_;
  const uint32_t frontend_;
  std::vector<std::unique_ptr<LinkEntry>> entries_;
  std::vector<int32_t> index_of_;    // by worker id, -1: none
  std::vector<double> assigned_us_;  // of the choice under way, per link
  struct Candidate {
    size_t link = 0;
    double begin_us = 0;  // what it has to do before the first of the rows
    double row_us = 0;
    uint32_t hash = 0;
  };
  std::vector<Candidate> candidates_;  // of ChooseParts; kept for its memory
};

}  // namespace conclave::frontend
