#include "sim_channel.h"

#include <algorithm>

#include "conclave/base/check.h"
#include "conclave/base/planted_bug.h"
#include "conclave/base/status.h"

namespace conclave::simulation {

namespace rs = router_service;
namespace fe = frontend;

namespace {

constexpr uint16_t kSlots = 4;
constexpr uint16_t kRowsMax = 8;

rs::PeerReportKind KindOf(fe::PeerSighting sighting) {
  switch (sighting) {
    case fe::PeerSighting::kLinkLost:
      return rs::PeerReportKind::kLinkLost;
    case fe::PeerSighting::kTimeout:
      return rs::PeerReportKind::kTimeout;
    case fe::PeerSighting::kSlow:
      return rs::PeerReportKind::kSlow;
    case fe::PeerSighting::kBadReply:
      return rs::PeerReportKind::kBadReply;
    case fe::PeerSighting::kRecovered:
      return rs::PeerReportKind::kRecovered;
  }
  return rs::PeerReportKind::kSlow;
}

}  // namespace

SimChannel::SimChannel(Cluster& cluster, std::shared_ptr<DataLink> link)
    : cluster_(cluster), link_(std::move(link)), slots_(kSlots) {
  link_->channel = this;
  limits_.num_slots = kSlots;
  limits_.max_rows = kRowsMax;
  limits_.max_pairs = kRowsMax * kTopK;
  limits_.row_width = kRowWidth;
  limits_.dtype = transport::WireDtype::kF32;
  for (Slot& slot : slots_) {
    slot.weights.resize(limits_.max_pairs);
    slot.pair_rows.resize(limits_.max_pairs);
    slot.experts.resize(limits_.max_pairs);
    slot.in.resize(kRowsMax * kRowWidth);
    slot.answer.resize(kRowsMax * kRowWidth);
    slot.pair_weight = slot.weights;
    slot.pair_row = slot.pair_rows;
    slot.pair_expert = slot.experts;
    slot.rows = std::as_writable_bytes(std::span(slot.in));
    slot.reply_rows = std::as_writable_bytes(std::span(slot.answer));
  }
}

SimChannel::~SimChannel() { link_->channel = nullptr; }

transport::CallSlot* SimChannel::Acquire() {
  for (Slot& slot : slots_) {
    if (!slot.is_held) {
      slot.is_held = true;
      slot.is_sent = false;
      slot.status.reset();
      slot.call = {};
      return &slot;
    }
  }
  return nullptr;
}

absl::Status SimChannel::Dispatch(transport::CallSlot* call_slot) {
  CONCLAVE_RETURN_IF_ERROR(LinkStatus());
  auto& slot = *static_cast<Slot*>(call_slot);
  slot.is_sent = true;
  ++slot.seq;
  auto call = std::make_shared<CallMessage>();
  call->link = link_;
  call->slot = static_cast<size_t>(&slot - slots_.data());
  call->seq = slot.seq;
  call->layer = slot.call.layer.value();
  call->num_rows = slot.call.num_rows;
  for (size_t p = 0; p < slot.call.pair_expert.size(); ++p) {
    call->pairs.emplace_back(slot.call.pair_expert[p], slot.call.pair_row[p]);
    call->weights.push_back(slot.call.pair_weight[p]);
  }
  call->rows.assign(slot.in.begin(), slot.in.begin() + slot.call.num_rows * kRowWidth);
  cluster_.kernel_.Note("call", link_->frontend, static_cast<uint64_t>(link_->worker), slot.seq);
  if (slot.call.attempt > 0 && HasFirstOf(slot)) {
    cluster_.kernel_.Violate("INV11", "a call was sent a second time to the worker that has it");
  }
  cluster_.SendCall(call);
  return absl::OkStatus();
}

std::optional<absl::Status> SimChannel::Poll(transport::CallSlot* call_slot) {
  auto& slot = *static_cast<Slot*>(call_slot);
  if (slot.status.has_value()) {
    return slot.status;
  }
  if (link_->is_lost) {
    return LinkStatus();
  }
  return std::nullopt;
}

absl::Status SimChannel::Await(transport::CallSlot* /*slot*/) {
  return absl::UnimplementedError("the dispatcher polls");
}

absl::Status SimChannel::LinkStatus() const {
  return link_->is_lost ? Error(absl::StatusCode::kUnavailable, "link_lost", "reset by peer")
                        : absl::OkStatus();
}

void SimChannel::Cancel(transport::CallSlot* slot) { static_cast<Slot*>(slot)->is_sent = false; }

void SimChannel::Release(transport::CallSlot* slot) {
  static_cast<Slot*>(slot)->is_held = false;
  static_cast<Slot*>(slot)->is_sent = false;
}

bool SimChannel::OnReply(const ReplyMessage& reply) {
  Slot& slot = slots_[reply.slot];
  const bool is_awaited = slot.is_held && slot.is_sent && !slot.status.has_value() &&
                          (slot.seq == reply.seq || CONCLAVE_PLANTED_BUG("reply_of_another_seq"));
  if (!is_awaited) {
    return false;  // late, or the second copy
  }
  slot.status = reply.status;
  std::copy_n(reply.rows.begin(), std::min(reply.rows.size(), slot.answer.size()),
              slot.answer.begin());
  slot.reply.queue_us = reply.queue_us;
  slot.reply.service_us = reply.service_us;
  return true;
}

bool SimChannel::HasFirstOf(const transport::CallSlot& call_slot) const {
  const auto& one = static_cast<const Slot&>(call_slot);
  return std::any_of(slots_.begin(), slots_.end(), [&](const Slot& other) {
    return &other != &one && other.is_held && other.is_sent && !other.status.has_value() &&
           other.call.attempt == 0 && other.call.layer == one.call.layer &&
           other.call.num_rows == one.call.num_rows && other.in == one.in &&
           std::equal(other.call.pair_expert.begin(), other.call.pair_expert.end(),
                      one.call.pair_expert.begin(), one.call.pair_expert.end()) &&
           std::equal(other.call.pair_row.begin(), other.call.pair_row.end(),
                      one.call.pair_row.begin(), one.call.pair_row.end());
  });
}

int SimChannel::num_held_slots() const {
  return static_cast<int>(
      std::count_if(slots_.begin(), slots_.end(), [](const Slot& slot) { return slot.is_held; }));
}

SimLinks::SimLinks(Cluster& cluster, FrontendNode& front)
    : cluster_(cluster), front_(front), keeper_({.on_switched = [this](Epoch epoch) {
        front_.acknowledged = epoch;
        cluster_.SendFromFrontend(front_, [epoch](uint64_t session) {
          return rs::EpochAckEvent{session, epoch};
        });
      }}) {}

void SimLinks::Take(Update& update) {
  has_update_ = false;
  keeper_.Take(update);
  if (update.placement != nullptr) {
    if (front_.routed_by != nullptr && update.placement->epoch() < front_.routed_by->epoch()) {
      cluster_.kernel_.Violate("INV4", "the dispatcher's epoch fell");
    }
    front_.routed_by = update.placement;
  }
  for (const WorkerId worker : update.removed) {
    up_.erase(worker);
  }
  for (const fe::WorkerLink& link : update.added) {
    up_[link.worker] = {static_cast<SimChannel*>(link.channel), cluster_.kernel_.now()};
  }
}

void SimLinks::Release(transport::ExpertChannel* channel) {
  auto* released = static_cast<SimChannel*>(channel);
  if (released->num_held_slots() > 0) {
    cluster_.kernel_.Violate("Q1", "a link is given back with a call on it");
  }
  std::erase_if(up_, [&](const auto& entry) { return entry.second.channel == released; });
  (void)keeper_.Release(channel, front_.clock->Now());
  // Not while the dispatcher is on the stack: closing is the links' thread's work.
  cluster_.kernel_.AtNode(cluster_.kernel_.now(), front_.node,
                          [this] { cluster_.TryLinks(front_); });
}

void SimLinks::Report(WorkerId worker, uint64_t incarnation, fe::PeerSighting sighting) {
  cluster_.SendFromFrontend(front_, [=](uint64_t session) {
    rs::PeerReportEvent event;
    event.session = session;
    event.worker = worker;
    event.worker_incarnation = incarnation;
    event.kind = KindOf(sighting);
    return event;
  });
}

bool SimLinks::WaitUntil(MonotonicTime /*until*/) {
  CONCLAVE_CHECK(false);
  return false;
}

void SimLinks::Wake() {
  has_update_ = true;
  cluster_.Ring(front_);
}

int SimLinks::num_held_slots() const {
  int sum = 0;
  for (const auto& [worker, up] : up_) {
    sum += up.channel->num_held_slots();
  }
  return sum;
}

std::optional<int> SimLinks::UpSince(WorkerId worker, Micros since) const {
  const auto it = up_.find(worker);
  if (it == up_.end() || it->second.since > since) {
    return std::nullopt;
  }
  const DataLink& link = it->second.channel->link();
  const Process& p = cluster_.kernel_.process(link.worker);
  const bool is_there = !link.is_lost && p.is_up && p.life == link.worker_life;
  return is_there ? std::optional<int>(link.worker) : std::nullopt;
}

}  // namespace conclave::simulation
