// Where a dispatcher's links and placements come from, and where it says what it saw of them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "conclave/base/clock.h"
#include "conclave/base/ids.h"
#include "conclave/placement/placement.h"
#include "conclave/transport/expert_channel.h"

namespace conclave::frontend {

// What a frontend tells the router of a worker (PeerReport of cluster.proto).
enum class PeerSighting : uint8_t { kLinkLost, kTimeout, kSlow, kBadReply, kRecovered };

struct WorkerLink {
  WorkerId worker;
  uint64_t incarnation = 0;
  transport::ExpertChannel* channel = nullptr;  // the source's; good until Release
  // The channel computes the call within Poll, so nothing can be late: no deadlines, no hedges.
  bool is_inline = false;
};

// All by the dispatcher's thread; what happens behind it is the source's matter.
class LinkSource {
 public:
  struct Update {
    std::shared_ptr<const placement::Placement> placement;  // null: as before
    std::vector<WorkerLink> added;   // takes the place of an older link to the same worker
    std::vector<WorkerId> removed;   // no members any more: their links are to be released
    std::vector<WorkerId> suspects;  // as of now, all of them; meaningful when has_suspects
    bool has_suspects = false;
    void Clear();
  };

  virtual ~LinkSource() = default;

  // Brackets the time in which calls are under way. Between Leave and Enter a new placement counts
  // as taken, so that an idle frontend holds nobody up.
  virtual void Enter() = 0;
  virtual void Leave() = 0;

  // Whether Take has something. Cheap.
  virtual bool has_update() const = 0;
  virtual void Take(Update& update) = 0;

  // The link is not used any more and no slot of it is held.
  virtual void Release(transport::ExpertChannel* channel) = 0;

  virtual void Report(WorkerId worker, uint64_t incarnation, PeerSighting sighting) = 0;

  // Sleeps until an update or a channel's answer has come, or until `until` on the dispatcher's
  // clock; whether something has come. May return early.
  virtual bool WaitUntil(MonotonicTime until) = 0;
};

}  // namespace conclave::frontend
