// What a frontend's dispatcher sees of a simulated network: its clock, its links and the channels
// on them.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "cluster.h"

namespace conclave::simulation {

class NodeClock final : public Clock {
 public:
  NodeClock(const Kernel& kernel, int node) : kernel_(kernel), node_(node) {}
  MonotonicTime Now() const override { return kernel_.LocalNow(node_); }

 private:
  const Kernel& kernel_;
  const int node_;
};

class SimChannel final : public transport::ExpertChannel {
 public:
  SimChannel(Cluster& cluster, std::shared_ptr<DataLink> link);
  ~SimChannel() override;

  const transport::ChannelLimits& limits() const override { return limits_; }
  transport::CallSlot* Acquire() override;
  absl::Status Dispatch(transport::CallSlot* slot) override;
  std::optional<absl::Status> Poll(transport::CallSlot* slot) override;
  absl::Status Await(transport::CallSlot* slot) override;
  absl::Status LinkStatus() const override;
  void Cancel(transport::CallSlot* slot) override;
  void Release(transport::CallSlot* slot) override;

  // Whether somebody waits for it: by slot and seq, as on every transport.
  bool OnReply(const ReplyMessage& reply);
  int num_held_slots() const;
  const DataLink& link() const { return *link_; }
  // Whether a first attempt of the same call is under way here.
  bool HasFirstOf(const transport::CallSlot& slot) const;

 private:
  struct Slot : transport::CallSlot {
    bool is_held = false;
    bool is_sent = false;
    uint64_t seq = 0;
    std::optional<absl::Status> status;
    std::vector<float> weights, in, answer;
    std::vector<uint16_t> pair_rows, experts;
  };

  Cluster& cluster_;
  std::shared_ptr<DataLink> link_;
  transport::ChannelLimits limits_;
  std::vector<Slot> slots_;
};

class SimLinks final : public frontend::LinkSource {
 public:
  SimLinks(Cluster& cluster, FrontendNode& front);

  void Enter() override { keeper_.Enter(); }
  void Leave() override { keeper_.Leave(); }
  bool has_update() const override { return has_update_; }
  void Take(Update& update) override;
  void Release(transport::ExpertChannel* channel) override;
  void Report(WorkerId worker, uint64_t incarnation, frontend::PeerSighting sighting) override;
  // The dispatcher is driven in pieces.
  bool WaitUntil(MonotonicTime until) override;

  frontend::LinkKeeper& keeper() { return keeper_; }
  void Wake();
  int num_held_slots() const;
  // The node to which the dispatcher has had a link all the time, if it lives.
  std::optional<int> UpSince(WorkerId worker, Micros since) const;

  model::GateChoice choice;

 private:
  struct Up {
    SimChannel* channel = nullptr;
    Micros since = 0;
  };
  Cluster& cluster_;
  FrontendNode& front_;
  frontend::LinkKeeper keeper_;
  bool has_update_ = false;
  std::map<WorkerId, Up> up_;  // as the dispatcher has taken them
};

}  // namespace conclave::simulation
