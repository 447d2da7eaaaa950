#include "ucx_session.h"

#include <algorithm>
#include <string>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "conclave/transport/rows.h"
#include "frame_io.h"

namespace conclave::transport {
namespace {

// PONGs and refusals that may wait for a frontend that does not take them.
constexpr size_t kNumControls = 64;

// The core's lock, for a thread that the one in Progress should give way to.
class UrgentLock {
 public:
  explicit UrgentLock(UcxCore& core) ABSL_NO_THREAD_SAFETY_ANALYSIS : core_(core) {
    core.num_waiting.fetch_add(1, std::memory_order_relaxed);
    core.mu.lock();
    core.num_waiting.fetch_sub(1, std::memory_order_relaxed);
  }
  ~UrgentLock() ABSL_NO_THREAD_SAFETY_ANALYSIS { core_.mu.unlock(); }
  UrgentLock(const UrgentLock&) = delete;
  UrgentLock& operator=(const UrgentLock&) = delete;

 private:
  UcxCore& core_;
};

}  // namespace

UcxSession::UcxSession(uint64_t id, const SessionTerms& terms, bool has_payload_crc,
                       std::shared_ptr<UcxCore> core,
                       std::function<void(const absl::Status&)> on_end)
    : id_(id),
      terms_(terms),
      has_payload_crc_(has_payload_crc),
      peer_(NextPeer()),
      frame_bytes_max_(MaxFrameBytes(terms.limits)),
      core_(std::move(core)),
      on_end_(std::move(on_end)),
      lanes_(size_t{2} * terms.num_slots),
      spare_(frame_bytes_max_),
      controls_memory_(kNumControls * kControlBytes),
      controls_(kNumControls),
      last_seq_(terms.num_slots) {
  int index = 0;
  for (Lane& lane : lanes_) {
    lane.owner = this;
    lane.index = index++;
    lane.frame = AlignedBuffer(AlignUp(frame_bytes_max_));
    lane.block = AlignedBuffer(kUcxPrefixBytes + AlignUp(frame_bytes_max_));
    lane.peer = peer_;
  }
  for (size_t i = 0; i < controls_.size(); ++i) {
    controls_[i].owner = this;
    controls_[i].block = {controls_memory_.As<std::byte>() + i * kControlBytes, kControlBytes};
  }
}

UcxSession::~UcxSession() = default;

absl::Status UcxSession::Connect(const std::string& peer_address) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  const auto on_error = [](void* session, ucp_ep_h /*endpoint*/, ucs_status_t status) {
    static_cast<UcxSession*>(session)->Fail(
        Error(absl::StatusCode::kUnavailable, "link_lost",
              std::string("frontend: UCX gave it up: ") + ucs_status_string(status)));
  };
  CONCLAVE_ASSIGN_OR_RETURN(endpoint_, core_->worker->Connect(peer_address, on_error, this));
  return absl::OkStatus();
}

void UcxSession::Fail(absl::Status why) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  if (!std::exchange(is_failed_, true)) {
    core_->failures.push_back({shared_from_this(), std::move(why)});
  }
}

size_t UcxSession::CancelAll() {
  size_t count = 0;
  for (Lane& lane : lanes_) {
    if (lane.state == Lane::State::kServed &&
        !lane.cancelled.exchange(true, std::memory_order_acq_rel)) {
      ++count;
    }
  }
  core_->counters->cancelled.fetch_add(count, std::memory_order_relaxed);
  return count;
}

void UcxSession::Close() {
  size_t num_cancelled = 0;
  {
    const UrgentLock lock(*core_);
    if (std::exchange(is_closed_, true)) {
      return;
    }
    num_cancelled = CancelAll();
    [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
      core_->closing.push_back(shared_from_this());
      if (core_->worker != nullptr) {
        core_->worker->Signal();
      }
    }();
  }
  if (num_cancelled > 0) {
    core_->sink->OnCancelled(peer_);
  }
}

void UcxSession::Disrupt(FailpointAction how) {
  if (how == FailpointAction::kDrop) {
    is_swallowing_.store(true);
  } else {
    End(Error(absl::StatusCode::kUnavailable, "link_lost", "a failpoint reset the link"));
  }
}

void UcxSession::End(const absl::Status& why) {
  Close();
  on_end_(why);
}

void UcxSession::StartClose() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  if (endpoint_ != nullptr) {
    close_ = core_->worker->StartClose(std::exchange(endpoint_, nullptr));
  }
}

bool UcxSession::IsClosed() { return UcxWorker::IsOver(close_) && num_operations_ == 0; }

void UcxSession::TellGone() { core_->sink->OnPeerGone(peer_); }

void UcxSession::SetFree(Lane& lane) { lane.state = Lane::State::kFree; }

ucs_status_t UcxSession::OnMessage(const UcxHead& head, void* message, size_t bytes,
                                   bool is_large) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  if (is_closed_ || is_failed_ || is_swallowing_.load(std::memory_order_relaxed)) {
    return UCS_OK;
  }
  const size_t frame_bytes = kFrameHeaderBytes + bytes;
  core_->counters->bytes_received.fetch_add(frame_bytes, std::memory_order_relaxed);
  if (frame_bytes > frame_bytes_max_) {
    core_->counters->malformed.fetch_add(1, std::memory_order_relaxed);
    Fail(FrameError("bad_length", "expected at most " + std::to_string(frame_bytes_max_) +
                                      " bytes, found " + std::to_string(frame_bytes)));
    return UCS_OK;
  }
  const bool is_call = head.header.type == static_cast<uint16_t>(FrameType::kCall);
  const auto free = std::find_if(lanes_.begin(), lanes_.end(),
                                 [](const Lane& lane) { return lane.state == Lane::State::kFree; });
  if (free != lanes_.end() && (is_call || is_large || is_spare_used_)) {
    return TakePayload(*free, head, message, bytes, is_large);
  }
  UcxCore::Arrival arrival{shared_from_this(), -1, head.header, frame_bytes, true};
  if (is_large || is_spare_used_) {
    // Nowhere to put it: refused by what its header says, unread.
    arrival.has_payload = false;
  } else {
    is_spare_used_ = true;
    std::memcpy(spare_.As<std::byte>(), &head.header, kFrameHeaderBytes);
    std::memcpy(spare_.As<std::byte>() + kFrameHeaderBytes, message, bytes);
  }
  core_->arrivals.push_back(std::move(arrival));
  return UCS_OK;
}

ucs_status_t UcxSession::TakePayload(Lane& lane, const UcxHead& head, void* message, size_t bytes,
                                     bool is_large) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  std::byte* frame = lane.frame.As<std::byte>();
  std::memcpy(frame, &head.header, kFrameHeaderBytes);
  lane.header = head.header;
  lane.received_bytes = kFrameHeaderBytes + bytes;
  lane.state = Lane::State::kArrived;
  if (!is_large) {
    // The one copy of an eager message: UCX's memory is not aligned as a frame must be, and goes
    // back to UCX.
    std::memcpy(frame + kFrameHeaderBytes, message, bytes);
    core_->arrivals.push_back(
        {shared_from_this(), lane.index, head.header, lane.received_bytes, true});
    return UCS_OK;
  }
  const auto on_received = [](void* request, ucs_status_t status, size_t /*length*/,
                              void* argument) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    auto& received = *static_cast<Lane*>(argument);
    UcxSession& session = *received.owner;
    --session.num_operations_;
    ucp_request_free(request);
    if (status != UCS_OK || session.is_closed_) {
      session.SetFree(received);
      if (status != UCS_OK) {
        session.Fail(Error(
            absl::StatusCode::kUnavailable, "link_lost",
            std::string("frontend: UCX could not fetch a call: ") + ucs_status_string(status)));
      }
      return;
    }
    received.state = Lane::State::kArrived;
    session.core_->arrivals.push_back({session.shared_from_this(), received.index, received.header,
                                       received.received_bytes, true});
  };
  switch (core_->worker->Receive(message, {frame + kFrameHeaderBytes, bytes}, on_received, &lane)) {
    case UcxWorker::Sent::kPending:
      lane.state = Lane::State::kReceiving;
      ++num_operations_;
      break;
    case UcxWorker::Sent::kDone:
      core_->arrivals.push_back(
          {shared_from_this(), lane.index, head.header, lane.received_bytes, true});
      break;
    case UcxWorker::Sent::kFailed:
      SetFree(lane);
      Fail(Error(absl::StatusCode::kUnavailable, "link_lost",
                 "frontend: UCX could not fetch a call"));
      break;
  }
  return UCS_INPROGRESS;
}

void UcxSession::Process(const UcxCore::Arrival& arrival) {
  const absl::Status status = Look(arrival);
  {
    const UrgentLock lock(*core_);
    if (arrival.lane < 0) {
      is_spare_used_ = is_spare_used_ && !arrival.has_payload;
    } else if (Lane& lane = lanes_[static_cast<size_t>(arrival.lane)];
               lane.state == Lane::State::kArrived) {
      SetFree(lane);  // it was no call to be served
    }
  }
  if (!status.ok()) {
    core_->counters->malformed.fetch_add(1, std::memory_order_relaxed);
    if (damage_.Add(core_->clock->Now())) {
      End(status);
    }
  }
}

absl::Status UcxSession::Look(const UcxCore::Arrival& arrival) {
  {
    const UrgentLock lock(*core_);
    if (is_closed_) {
      return absl::OkStatus();
    }
  }
  CONCLAVE_RETURN_IF_ERROR(CheckFrontend(arrival.header, terms_));
  if (!arrival.has_payload) {
    Refuse(arrival.header, Error(absl::StatusCode::kResourceExhausted, "busy",
                                 "call: expected an earlier one to be over, found none"));
    return absl::OkStatus();
  }
  Lane* lane = arrival.lane < 0 ? nullptr : &lanes_[static_cast<size_t>(arrival.lane)];
  const AlignedBuffer& memory = lane == nullptr ? spare_ : lane->frame;
  const std::span<const std::byte> frame(memory.As<std::byte>(), arrival.bytes);
  CONCLAVE_ASSIGN_OR_RETURN(const FrameHeader header, PeekHeader(frame));
  if (header.type == static_cast<uint16_t>(FrameType::kCall)) {
    return TakeCall(frame, lane, header);
  }
  return TakeControl(frame);
}

absl::Status UcxSession::TakeCall(std::span<const std::byte> frame, Lane* lane,
                                  const FrameHeader& header) {
  CONCLAVE_FAILPOINT_LINK(shared_from_this());
  CONCLAVE_ASSIGN_OR_RETURN(const Admission admission,
                            Admit(frame, terms_, lane != nullptr, last_seq_));
  switch (admission.what) {
    case Admission::What::kDuplicate:
      core_->counters->duplicates.fetch_add(1, std::memory_order_relaxed);
      break;
    case Admission::What::kRefuse:
      Refuse(header, admission.why);
      break;
    case Admission::What::kServe:
      Serve(admission, *lane);
      break;
  }
  return absl::OkStatus();
}

void UcxSession::Serve(const Admission& admission, Lane& lane) {
  const CallView& call = admission.call;
  lane.call = call;
  lane.has_payload_crc = admission.has_payload_crc || has_payload_crc_;
  lane.reply = ReplyView();
  // Where the rows belong in the frame of the reply, so that nothing is copied at Finish.
  lane.reply.rows = {lane.block.As<std::byte>() + kUcxPrefixBytes + kFrameHeaderBytes,
                     call.rows.size()};
  lane.received_at = core_->clock->Now();
  lane.session = shared_from_this();
  {
    const UrgentLock lock(*core_);
    lane.cancelled.store(is_closed_, std::memory_order_relaxed);
    lane.state = Lane::State::kServed;
  }
  core_->counters->calls.fetch_add(1, std::memory_order_relaxed);
  const absl::Status taken = core_->sink->Submit(&lane);
  if (!taken.ok()) {
    core_->counters->refused.fetch_add(1, std::memory_order_relaxed);
    lane.Finish(taken, Epoch(core_->counters->epoch.load(std::memory_order_relaxed)), {});
  }
}

void UcxSession::Refuse(const FrameHeader& header, const absl::Status& why) {
  core_->counters->refused.fetch_add(1, std::memory_order_relaxed);
  SendControl([&](std::span<std::byte> out) {
    return EncodeNack(AddressOf(header),
                      Epoch(core_->counters->epoch.load(std::memory_order_relaxed)),
                      NackCodeOf(why), {}, out);
  });
}

absl::Status UcxSession::TakeControl(std::span<const std::byte> frame) {
  CONCLAVE_ASSIGN_OR_RETURN(ControlFrame control, ParseControl(frame));
  if (control.type == FrameType::kPing) {
    control.type = FrameType::kPong;
    control.epoch = Epoch(core_->counters->epoch.load(std::memory_order_relaxed));
    SendControl([&control](std::span<std::byte> out) {
      EncodeControl(control, out);
      return kFrameHeaderBytes;
    });
    return absl::OkStatus();
  }
  if (control.type != FrameType::kCancel) {
    return FrameError("type", "expected nothing that only a worker sends");
  }
  bool is_news = false;
  {
    const UrgentLock lock(*core_);
    for (Lane& lane : lanes_) {
      if (lane.state == Lane::State::kServed && lane.call.slot == control.slot &&
          lane.call.seq == control.seq) {
        is_news = !lane.cancelled.exchange(true, std::memory_order_acq_rel);
      }
    }
  }
  if (is_news) {
    core_->counters->cancelled.fetch_add(1, std::memory_order_relaxed);
    core_->sink->OnCancelled(peer_);
  }
  return absl::OkStatus();
}

void UcxSession::SendControl(const std::function<size_t(std::span<std::byte>)>& encode) {
  const UrgentLock lock(*core_);
  if (is_closed_ || is_failed_ || is_swallowing_.load(std::memory_order_relaxed)) {
    return;
  }
  const auto free =
      std::find_if(controls_.begin(), controls_.end(), [](const Control& c) { return !c.is_busy; });
  if (free == controls_.end()) {
    core_->counters->slow_peers.fetch_add(1, std::memory_order_relaxed);
    Fail(Error(absl::StatusCode::kUnavailable, "link_lost", "frontend: reads too slowly"));
    return;
  }
  const size_t bytes = encode(free->block.subspan(kUcxPrefixBytes));
  const UcxWorker::Sent sent = UcxWorker::Send(
      endpoint_, id_, free->block, bytes,
      [](void* request, ucs_status_t /*status*/, void* argument) {
        auto& ended = *static_cast<Control*>(argument);
        ended.is_busy = false;
        --ended.owner->num_operations_;
        ucp_request_free(request);
      },
      &*free);
  core_->counters->bytes_sent.fetch_add(bytes, std::memory_order_relaxed);
  if (sent == UcxWorker::Sent::kPending) {
    free->is_busy = true;
    ++num_operations_;
  } else if (sent == UcxWorker::Sent::kFailed) {
    Fail(Error(absl::StatusCode::kUnavailable, "link_lost", "frontend: UCX takes no frame"));
  }
}

void UcxSession::Lane::Finish(const absl::Status& status, Epoch epoch,
                              std::span<const WorkerId> holders) {
  // The lane may be used again as soon as it is not served any more, and be gone with the session.
  const std::shared_ptr<UcxSession> keep = std::move(session);
  keep->FinishLane(*this, status, epoch, holders);
}

void UcxSession::FinishLane(Lane& lane, const absl::Status& status, Epoch epoch,
                            std::span<const WorkerId> holders) {
  const bool is_silent = lane.is_cancelled() || status.code() == absl::StatusCode::kCancelled;
  const std::span<std::byte> block(lane.block.As<std::byte>(), lane.block.size_bytes());
  size_t bytes = 0;
  if (!is_silent) {
    const bool is_whole = lane.reply.rows.size() == lane.call.rows.size();
    const std::span<std::byte> out = block.subspan(kUcxPrefixBytes);
    bytes = status.ok() && is_whole
                ? EncodeReply(lane.call, lane.reply, lane.has_payload_crc, out)
                : EncodeNack(lane.call, epoch, NackCodeOf(status), holders, out);
  }
  (void)CONCLAVE_FAILPOINT("w.reply_partial", (ContextOf(lane.call)));
  const UrgentLock lock(*core_);
  SetFree(lane);
  if (is_silent || is_closed_ || is_failed_ || is_swallowing_.load(std::memory_order_relaxed)) {
    return;
  }
  const auto on_sent = [](void* request, ucs_status_t /*status*/, void* argument) {
    auto& sent = *static_cast<Lane*>(argument);
    sent.owner->SetFree(sent);
    --sent.owner->num_operations_;
    ucp_request_free(request);
  };
  core_->counters->bytes_sent.fetch_add(bytes, std::memory_order_relaxed);
  switch (UcxWorker::Send(endpoint_, id_, block, bytes, on_sent, &lane)) {
    case UcxWorker::Sent::kDone:
      break;
    case UcxWorker::Sent::kPending:
      lane.state = Lane::State::kSending;
      ++num_operations_;
      break;
    case UcxWorker::Sent::kFailed:
      Fail(Error(absl::StatusCode::kUnavailable, "link_lost", "frontend: UCX takes no answer"));
      break;
  }
}

}  // namespace conclave::transport
