#include "grpc_session.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "conclave/transport/grpc_support.h"
#include "conclave/transport/rows.h"
#include "frame_io.h"

namespace conclave::transport {
Session::Session(const SessionTerms& terms, CallSink& sink,
                 std::shared_ptr<SessionCounters> counters, const Clock& clock,
                 grpc::CallbackServerContext* context)
    : terms_(terms),
      peer_(NextPeer()),
      frame_bytes_max_(MaxFrameBytes(terms.limits)),
      send_bytes_max_(
          std::max(terms.send_bytes_max, (size_t{2} * terms.num_slots + 1) * frame_bytes_max_)),
      sink_(sink),
      counters_(std::move(counters)),
      clock_(clock),
      sends_(SendMemory::Create(size_t{2} * terms.num_slots, frame_bytes_max_)),
      lanes_(sends_->num_blocks()),
      spare_frame_(frame_bytes_max_),
      last_seq_(terms.num_slots),
      context_(context) {
  for (size_t i = 0; i < lanes_.size(); ++i) {
    lanes_[i].index = i;
    lanes_[i].frame = AlignedBuffer(frame_bytes_max_);
    lanes_[i].peer = peer_;
  }
  counters_->sessions.fetch_add(1);
}

Session::~Session() = default;

void Session::Start() {
  {
    MutexLock lock(mu_);
    self_ = shared_from_this();
  }
  // At once, so that the frontend knows that the stream was taken.
  StartSendInitialMetadata();
  StartRead(&message_);
}

size_t Session::CancelAll() {
  size_t count = 0;
  for (Lane& lane : lanes_) {
    if (lane.is_served && !lane.cancelled.exchange(true, std::memory_order_acq_rel)) {
      ++count;
    }
  }
  counters_->cancelled.fetch_add(count, std::memory_order_relaxed);
  return count;
}

void Session::Close(const grpc::Status& status, bool is_reset) {
  size_t num_cancelled = 0;
  bool is_now = false;
  std::shared_ptr<Session> keep;
  {
    MutexLock lock(mu_);
    if (is_reset && context_ != nullptr) {
      context_->TryCancel();
    }
    if (is_closing_) {
      return;
    }
    keep = self_;
    is_closing_ = true;
    end_ = status;
    writes_.DropWaiting();
    num_cancelled = CancelAll();
    // The end of a write that is under way comes first; OnWriteDone then finishes.
    is_now = !writes_.is_writing();
  }
  if (num_cancelled > 0) {
    sink_.OnCancelled(peer_);
  }
  if (is_now) {
    Finish(status);
  }
}

void Session::Disrupt(FailpointAction how) {
  if (how == FailpointAction::kDrop) {
    is_swallowing_.store(true);
  } else {
    Close(grpc::Status::CANCELLED, true);
  }
}

void Session::OnReadDone(bool ok) {
  if (!ok) {
    Close(grpc::Status::OK, false);
    return;
  }
  const absl::Status status = Receive();
  envelope_.Close();
  message_.Clear();
  if (!status.ok()) {
    counters_->malformed.fetch_add(1, std::memory_order_relaxed);
    if (damage_.Add(clock_.Now())) {
      Close(ToGrpc(status), false);
      return;
    }
  }
  StartRead(&message_);
}

void Session::OnWriteDone(bool ok) {
  const grpc::ByteBuffer* next = nullptr;
  bool is_last = false;
  grpc::Status end;
  {
    MutexLock lock(mu_);
    if (!ok) {
      writes_.DropWaiting();
    }
    next = writes_.Next();
    is_last = is_closing_;
    end = end_;
  }
  if (is_last) {
    Finish(end);
  } else if (!ok) {
    Close(grpc::Status::OK, false);
  } else if (next != nullptr) {
    StartWrite(next);
  }
}

void Session::OnCancel() { Close(grpc::Status::CANCELLED, false); }

void Session::OnDone() {
  counters_->sessions.fetch_sub(1);
  // After every reaction, so that no Submit of this peer comes after it.
  sink_.OnPeerGone(peer_);
  std::shared_ptr<Session> self;  // goes last
  MutexLock lock(mu_);
  context_ = nullptr;
  self = std::move(self_);
}

Session::Lane* Session::FindFree() {
  MutexLock lock(mu_);
  const auto it = std::find_if(lanes_.begin(), lanes_.end(), [this](const Lane& lane) {
    return !lane.is_served && !sends_->IsBusy(lane.index);
  });
  return it == lanes_.end() ? nullptr : &*it;
}

absl::Status Session::Receive() {
  if (is_swallowing_.load(std::memory_order_relaxed)) {
    return absl::OkStatus();
  }
  CONCLAVE_RETURN_IF_ERROR(envelope_.Open(message_));
  const size_t bytes = envelope_.frame_bytes();
  counters_->bytes_received.fetch_add(bytes, std::memory_order_relaxed);
  if (bytes > frame_bytes_max_) {
    return FrameError("bad_length", "expected at most " + std::to_string(frame_bytes_max_) +
                                        " bytes, found " + std::to_string(bytes));
  }
  Lane* lane = FindFree();
  AlignedBuffer& memory = lane == nullptr ? spare_frame_ : lane->frame;
  const std::span<std::byte> frame(memory.As<std::byte>(), bytes);
  envelope_.CopyTo(frame);
  CONCLAVE_ASSIGN_OR_RETURN(const FrameHeader header, PeekHeader(frame));
  CONCLAVE_RETURN_IF_ERROR(CheckFrontend(header, terms_));
  if (header.type == static_cast<uint16_t>(FrameType::kCall)) {
    return TakeCall(frame, header, lane);
  }
  return TakeControl(frame);
}

absl::Status Session::TakeCall(std::span<const std::byte> frame, const FrameHeader& header,
                               Lane* lane) {
  CONCLAVE_FAILPOINT_LINK(shared_from_this());
  CONCLAVE_ASSIGN_OR_RETURN(const Admission admission,
                            Admit(frame, terms_, lane != nullptr, last_seq_));
  switch (admission.what) {
    case Admission::What::kDuplicate:
      counters_->duplicates.fetch_add(1, std::memory_order_relaxed);
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

void Session::Serve(const Admission& admission, Lane& lane) {
  const CallView& call = admission.call;
  lane.call = call;
  lane.has_payload_crc = admission.has_payload_crc;
  lane.reply = ReplyView();
  // Where the rows belong in the frame of the reply, so that nothing is copied at Finish.
  lane.reply.rows = sends_->BytesOf(lane.index).subspan(kFrameHeaderBytes, call.rows.size());
  lane.received_at = clock_.Now();
  lane.cancelled.store(false, std::memory_order_relaxed);
  lane.session = shared_from_this();
  {
    MutexLock lock(mu_);
    lane.is_served = true;
    if (is_closing_) {
      lane.cancelled.store(true, std::memory_order_relaxed);
    }
  }
  counters_->calls.fetch_add(1, std::memory_order_relaxed);
  const absl::Status taken = sink_.Submit(&lane);
  if (!taken.ok()) {
    counters_->refused.fetch_add(1, std::memory_order_relaxed);
    lane.Finish(taken, Epoch(counters_->epoch.load(std::memory_order_relaxed)), {});
  }
}

void Session::Refuse(const FrameHeader& header, const absl::Status& why) {
  counters_->refused.fetch_add(1, std::memory_order_relaxed);
  size_t bytes = 0;
  grpc::ByteBuffer nack =
      sends_->Make(kFrameHeaderBytes + kFrameAlignment, [&](std::span<std::byte> out) {
        return bytes = EncodeNack(AddressOf(header),
                                  Epoch(counters_->epoch.load(std::memory_order_relaxed)),
                                  NackCodeOf(why), {}, out);
      });
  Send(std::move(nack), bytes);
}

absl::Status Session::TakeControl(std::span<const std::byte> frame) {
  CONCLAVE_ASSIGN_OR_RETURN(ControlFrame control, ParseControl(frame));
  if (control.type == FrameType::kPing) {
    control.type = FrameType::kPong;
    control.epoch = Epoch(counters_->epoch.load(std::memory_order_relaxed));
    alignas(kFrameAlignment) std::array<std::byte, kFrameHeaderBytes> pong;
    EncodeControl(control, pong);
    Send(sends_->Copy(pong), pong.size());
    return absl::OkStatus();
  }
  if (control.type != FrameType::kCancel) {
    return FrameError("type", "expected nothing that only a worker sends");
  }
  bool is_news = false;
  {
    MutexLock lock(mu_);
    for (Lane& lane : lanes_) {
      if (lane.is_served && lane.call.slot == control.slot && lane.call.seq == control.seq) {
        is_news = !lane.cancelled.exchange(true, std::memory_order_acq_rel);
      }
    }
  }
  if (is_news) {
    counters_->cancelled.fetch_add(1, std::memory_order_relaxed);
    sink_.OnCancelled(peer_);
  }
  return absl::OkStatus();
}

void Session::Lane::Finish(const absl::Status& status, Epoch epoch,
                           std::span<const WorkerId> holders) {
  // The lane may be used again as soon as it is not served any more, and be gone with the session.
  const std::shared_ptr<Session> keep = std::move(session);
  keep->FinishLane(*this, status, epoch, holders);
}

void Session::FinishLane(Lane& lane, const absl::Status& status, Epoch epoch,
                         std::span<const WorkerId> holders) {
  const bool is_silent = lane.is_cancelled() || status.code() == absl::StatusCode::kCancelled;
  grpc::ByteBuffer message;
  size_t bytes = 0;
  if (!is_silent) {
    const std::span<std::byte> out = sends_->BytesOf(lane.index);
    const bool is_whole = lane.reply.rows.size() == lane.call.rows.size();
    bytes = status.ok() && is_whole
                ? EncodeReply(lane.call, lane.reply, lane.has_payload_crc, out)
                : EncodeNack(lane.call, epoch, NackCodeOf(status), holders, out);
    grpc::ByteBuffer lent = sends_->Lend(lane.index, bytes);
    message.Swap(&lent);
  }
  (void)CONCLAVE_FAILPOINT("w.reply_partial", (ContextOf(lane.call)));
  {
    MutexLock lock(mu_);
    lane.is_served = false;
  }
  if (!is_silent) {
    Send(std::move(message), bytes);
  }
}

void Session::Send(grpc::ByteBuffer&& message, size_t bytes) {
  if (is_swallowing_.load(std::memory_order_relaxed)) {
    return;
  }
  const grpc::ByteBuffer* first = nullptr;
  bool is_full = false;
  std::shared_ptr<Session> keep;
  {
    MutexLock lock(mu_);
    if (is_closing_) {
      return;
    }
    keep = self_;
    is_full = sends_->pending_bytes() > send_bytes_max_;
    if (!is_full) {
      counters_->bytes_sent.fetch_add(bytes, std::memory_order_relaxed);
      first = writes_.Push(std::move(message));
    }
  }
  if (is_full) {
    counters_->slow_peers.fetch_add(1, std::memory_order_relaxed);
    Close(grpc::Status::CANCELLED, true);
  } else if (first != nullptr) {
    StartWrite(first);
  }
}

}  // namespace conclave::transport
