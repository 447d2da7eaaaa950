#include "conclave/transport/ucx_channel.h"

#include <poll.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "call_table.h"
#include "conclave/base/check.h"
#include "conclave/base/failpoint.h"
#include "conclave/base/status.h"
#include "conclave/tensor/aligned_buffer.h"
#include "conclave/transport/rows.h"
#include "frame_faults.h"
#include "frame_io.h"
#include "handshake.h"
#include "session_terms.h"
#include "ucx_worker.h"

namespace conclave::transport {
namespace {

using std::chrono::nanoseconds;

// PINGs and CANCELs that may wait for a worker that does not take them.
constexpr size_t kNumControls = 64;
// Of an endpoint that is given up; UCX then ends its requests without the peer.
constexpr std::chrono::seconds kCloseMax{2};

// Memory of one slot. A call is encoded around its rows, so that they are not copied: header and
// arrays end where the rows begin.
struct SlotLayout {
  explicit SlotLayout(const ChannelLimits& limits)
      : arrays(AlignUp(PairBytes(limits.max_pairs))),
        head(kUcxPrefixBytes + AlignUp(kFrameHeaderBytes + PairBytes(limits.max_pairs))),
        rows(RowBytes(limits.max_rows, limits.row_width, limits.dtype)),
        rows_room(AlignUp(rows + kPayloadCrcBytes)) {}

  size_t bytes() const { return arrays + head + rows_room + kFrameHeaderBytes + rows_room; }

  const size_t arrays;
  const size_t head;  // of the call's block, at most
  const size_t rows;
  const size_t rows_room;
};

class UcxChannel final : public ExpertChannel, private Waitable {
 public:
  UcxChannel(const Handshake& hands, const PairTerms& terms, std::unique_ptr<UcxWorker> worker,
             Doorbell& bell, const Clock& clock)
      : session_(hands.session),
        layout_(hands.limits),
        has_payload_crc_(terms.has_payload_crc || worker->context().has_payload_crc()),
        bell_(bell),
        clock_(clock),
        memory_(layout_.bytes() * hands.limits.num_slots),
        controls_memory_(kNumControls * kControlBytes),
        spare_(kSpareBytes),
        table_(hands.limits, hands.frame_limits, terms.frontend_id, clock),
        operations_(hands.limits.num_slots),
        controls_(kNumControls),
        worker_(std::move(worker)) {
    worker_->SetHandler(
        [](void* channel, const void* head, size_t head_bytes, void* message, size_t bytes,
           const ucp_am_recv_param_t* param) {
          return static_cast<UcxChannel*>(channel)->OnMessage(
              head, head_bytes, message, bytes,
              (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0);
        },
        this);
    for (CallTable::Slot& slot : table_.slots()) {
      LayOut(slot);
    }
    for (size_t i = 0; i < controls_.size(); ++i) {
      controls_[i].block = {controls_memory_.As<std::byte>() + i * kControlBytes, kControlBytes};
    }
  }

  ~UcxChannel() override;

  // Connects and sends a first PING, whose answer must come before `until`. Once, on any thread.
  absl::Status Open(const Handshake& hands, MonotonicTime until);

  // The worker's callbacks, during Progress.
  ucs_status_t OnMessage(const void* head, size_t head_bytes, void* message, size_t bytes,
                         bool is_large);

  const ChannelLimits& limits() const override { return table_.limits(); }
  CallSlot* Acquire() override;
  absl::Status Dispatch(CallSlot* slot) override;
  std::optional<absl::Status> Poll(CallSlot* slot) override;
  absl::Status Await(CallSlot* slot) override;
  absl::Status LinkStatus() const override;
  void Cancel(CallSlot* slot) override;
  void Release(CallSlot* slot) override { table_.Release(table_.Own(slot)); }
  void Ping() override;
  LinkSigns CheckOn() override;
  MonotonicTime last_heard() const override;
  nanoseconds ping_round_trip() const override;
  LinkCounters counters() const override { return table_.counters(); }
  const char* name() const override { return "ucx"; }
  const char* carrier() const override {
    return worker_->context().has_shared_memory() ? "shm" : "tcp";
  }

 private:
  static constexpr size_t kControlBytes = kUcxPrefixBytes + kFrameHeaderBytes;
  // The largest NACK; whatever else comes outside of a slot is smaller.
  static constexpr size_t kSpareBytes =
      AlignUp(kFrameHeaderBytes + 4 + sizeof(uint32_t) * kMaxNackHolders);

  // What UCX does with a slot's memory.
  struct Operations {
    UcxChannel* channel = nullptr;
    int num_sends = 0;
    bool is_receiving = false;
    size_t received_bytes = 0;  // of the frame that is coming
  };
  struct Control {
    std::span<std::byte> block;
    bool is_busy = false;
  };

  bool Progress() override;
  bool Arm() override { return !is_cut_.load(std::memory_order_acquire) && worker_->Arm(); }
  int fd() const override { return worker_->fd(); }

  void LayOut(CallTable::Slot& slot);
  std::byte* ReplyFrame(const CallTable::Slot& slot) const {
    return slot.reply_rows.data() - kFrameHeaderBytes;
  }
  void Use();
  void NoteUse(CallTable::Slot& slot);
  void Lose(const std::string& why);
  UcxWorker::Sent SendCall(CallTable::Slot& slot, std::span<std::byte> frame);
  void SendControl(const ControlFrame& control);
  void Take(std::span<std::byte> frame);
  void LoseIfDamaging();
  // What came is no frame: dropped, or the end of the link.
  void Malformed();
  // Takes a reply's payload to its slot.
  ucs_status_t TakePayload(CallTable::Slot& slot, const UcxHead& head, void* message, size_t bytes,
                           bool is_large);
  void SleepFor(nanoseconds left);
  void Push();
  bool HasSends() const;

  const uint64_t session_;
  const SlotLayout layout_;
  const bool has_payload_crc_;
  Doorbell& bell_;
  const Clock& clock_;
  AlignedBuffer memory_;  // of all slots
  AlignedBuffer controls_memory_;
  AlignedBuffer spare_;
  CallTable table_;
  std::vector<Operations> operations_;  // of each slot
  std::vector<Control> controls_;
  bool is_attached_ = false;
  std::atomic<bool> is_cut_{false};  // the lifeline has ended
  // For CheckOn: the rest belongs to the owner.
  std::atomic<bool> is_lost_{false};
  std::atomic<bool> wants_ping_{false};
  std::atomic<MonotonicTime> heard_at_;
  std::unique_ptr<UcxWorker> worker_;
  ucp_ep_h endpoint_ = nullptr;
  std::unique_ptr<Lifeline> lifeline_;  // its end is told to all of the above
};

void UcxChannel::LayOut(CallTable::Slot& slot) {
  std::byte* memory = memory_.As<std::byte>() + slot.index * layout_.bytes();
  const size_t pairs = table_.limits().max_pairs;
  slot.pair_weight = {reinterpret_cast<float*>(memory), pairs};
  slot.pair_row = {reinterpret_cast<uint16_t*>(memory + 4 * pairs), pairs};
  slot.pair_expert = {reinterpret_cast<uint16_t*>(memory + 6 * pairs), pairs};
  std::byte* rows = memory + layout_.arrays + layout_.head;
  slot.rows = {rows, layout_.rows};
  slot.reply_rows = {rows + layout_.rows_room + kFrameHeaderBytes, layout_.rows};
  operations_[slot.index].channel = this;
}

absl::Status UcxChannel::Open(const Handshake& hands, MonotonicTime until) {
  CONCLAVE_ASSIGN_OR_RETURN(lifeline_, Lifeline::Open(hands.channel, session_, until, [this] {
                              is_cut_.store(true, std::memory_order_release);
                              worker_->Signal();
                              bell_.Ring();
                            }));
  CONCLAVE_ASSIGN_OR_RETURN(
      endpoint_, worker_->Connect(
                     hands.ucx_address,
                     [](void* channel, ucp_ep_h /*endpoint*/, ucs_status_t status) {
                       static_cast<UcxChannel*>(channel)->Lose(std::string("UCX gave it up: ") +
                                                               ucs_status_string(status));
                     },
                     this));
  if (const std::optional<ControlFrame> ping = table_.Ping(); ping.has_value()) {
    SendControl(*ping);
  }
  while (table_.round_trip().count() == 0) {
    Progress();
    CONCLAVE_RETURN_IF_ERROR(table_.lost());
    const auto left = until - clock_.Now();
    if (left <= nanoseconds::zero()) {
      return Error(absl::StatusCode::kUnavailable, "ucx_unavailable",
                   "worker: shook hands but answered no PING over ucx in time");
    }
    SleepFor(left);
  }
  return absl::OkStatus();
}

UcxChannel::~UcxChannel() {
  bell_.Detach(this);
  lifeline_.reset();
  if (endpoint_ != nullptr) {
    ucs_status_ptr_t close = worker_->StartClose(endpoint_);
    const MonotonicTime until = Clock::Real().Now() + kCloseMax;
    while (!UcxWorker::IsOver(close) && Clock::Real().Now() < until) {
      worker_->Progress();
    }
  }
  // What is still under way now ends with the worker, before the memory that it reads and writes.
  worker_.reset();
}

void UcxChannel::Lose(const std::string& why) {
  is_lost_.store(true, std::memory_order_release);
  if (table_.Lose(why)) {
    bell_.Ring();
  }
}

bool UcxChannel::Progress() {
  bool has_come = false;
  // Bounded, so that a peer which never stops sending does not hold the owner.
  for (int i = 0; i < 64 && worker_->Progress(); ++i) {
    has_come = true;
  }
  if (is_cut_.load(std::memory_order_acquire) && table_.lost().ok()) {
    Lose("the worker's process or the network to it is gone");
    has_come = true;
  }
  if (has_come) {
    heard_at_.store(table_.last_heard(), std::memory_order_release);
  }
  if (wants_ping_.load(std::memory_order_relaxed) && wants_ping_.exchange(false)) {
    Ping();
  }
  return has_come;
}

// A frame that UCX has queued leaves only while its owner makes progress, and the owner may have
// other things to do first.
void UcxChannel::Push() {
  constexpr int kTurnsMax = 64;
  for (int i = 0; i < kTurnsMax && HasSends(); ++i) {
    worker_->Progress();
  }
}

bool UcxChannel::HasSends() const {
  return std::any_of(operations_.begin(), operations_.end(),
                     [](const Operations& o) { return o.num_sends > 0; }) ||
         std::any_of(controls_.begin(), controls_.end(),
                     [](const Control& c) { return c.is_busy; });
}

// From the first use on, the owner's waits bring the channel on.
void UcxChannel::Use() {
  if (!is_attached_) {
    is_attached_ = true;
    bell_.Attach(this);
  }
}

void UcxChannel::NoteUse(CallTable::Slot& slot) {
  const Operations& operations = operations_[slot.index];
  slot.is_busy = operations.num_sends > 0 || operations.is_receiving;
}

CallSlot* UcxChannel::Acquire() {
  Use();
  CallSlot* slot = table_.Acquire();
  if (slot == nullptr && Progress()) {
    slot = table_.Acquire();
  }
  return slot;
}

UcxWorker::Sent UcxChannel::SendCall(CallTable::Slot& slot, std::span<std::byte> frame) {
  Operations& operations = operations_[slot.index];
  const UcxWorker::Sent sent = UcxWorker::Send(
      endpoint_, session_, {frame.data() - kUcxPrefixBytes, kUcxPrefixBytes + frame.size()},
      frame.size(),
      [](void* request, ucs_status_t /*status*/, void* argument) {
        auto& ended = *static_cast<Operations*>(argument);
        --ended.num_sends;
        UcxChannel& channel = *ended.channel;
        channel.NoteUse(
            channel.table_.slots()[static_cast<size_t>(&ended - channel.operations_.data())]);
        ucp_request_free(request);
      },
      &operations);
  if (sent == UcxWorker::Sent::kPending) {
    ++operations.num_sends;
    NoteUse(slot);
  }
  return sent;
}

absl::Status UcxChannel::Dispatch(CallSlot* call_slot) {
  CallTable::Slot& slot = table_.Own(call_slot);
  CONCLAVE_RETURN_IF_ERROR(table_.Prepare(slot));
  CONCLAVE_RETURN_IF_ERROR(table_.lost());
  const size_t before_rows = AlignUp(kFrameHeaderBytes + PairBytes(slot.call.pair_row.size()));
  std::byte* frame = slot.rows.data() - before_rows;
  size_t bytes = EncodeCall(slot.call, has_payload_crc_, {frame, before_rows + layout_.rows_room});
  const FailpointHit hit = CONCLAVE_FAILPOINT("l.call_frame", (ContextOf(slot.call)));
  if (hit.is_hit()) {
    // In the slot's own memory: nobody reads the rows of a call that is under way. A message of
    // UCX's has a header, whatever happens to it.
    bytes = std::max(kFrameHeaderBytes, Damage(hit, {frame, bytes}));
  }
  UcxWorker::Sent sent = SendCall(slot, {frame, bytes});
  if (hit.action == FailpointAction::kDup && sent != UcxWorker::Sent::kFailed) {
    const UcxWorker::Sent again = SendCall(slot, {frame, bytes});
    sent = again == UcxWorker::Sent::kDone ? sent : again;
  }
  if (sent == UcxWorker::Sent::kFailed) {
    Lose("UCX does not take a call");
    return table_.lost();
  }
  table_.counters().bytes_sent += bytes;
  table_.MarkDispatched(slot);
  if (sent == UcxWorker::Sent::kPending) {
    Push();
  }
  return absl::OkStatus();
}

std::optional<absl::Status> UcxChannel::Poll(CallSlot* call_slot) {
  const CallTable::Slot& slot = table_.Own(call_slot);
  if (slot.state == CallTable::SlotState::kDispatched) {
    Progress();
  }
  return table_.StatusOf(slot);
}

absl::Status UcxChannel::Await(CallSlot* call_slot) {
  const CallTable::Slot& slot = table_.Own(call_slot);
  MonotonicTime spin_until = Clock::Real().Now() + Doorbell::kSpin;
  while (true) {
    // Asked for the time only when nothing comes: the first turns are the fast ones.
    for (int i = 0; i < 32; ++i) {
      if (std::optional<absl::Status> status = Poll(call_slot); status.has_value()) {
        return *std::move(status);
      }
    }
    CONCLAVE_ASSIGN_OR_RETURN(const nanoseconds left, table_.TimeLeft(slot));
    if (Clock::Real().Now() < spin_until) {
      std::this_thread::yield();
      continue;
    }
    SleepFor(left);
    spin_until = Clock::Real().Now() + Doorbell::kSpin;
  }
}

void UcxChannel::SleepFor(nanoseconds left) {
  if (!Arm()) {
    return;
  }
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(left).count();
  // Sends that wait for room in the peer's memory wake nobody.
  const int timeout = static_cast<int>(std::clamp<int64_t>(ms, 0, HasSends() ? 1 : 100));
  pollfd entry{worker_->fd(), POLLIN, 0};
  CONCLAVE_CHECK(::poll(&entry, 1, timeout) >= 0 || errno == EINTR);
}

absl::Status UcxChannel::LinkStatus() const {
  const_cast<UcxChannel*>(this)->Progress();
  return table_.lost();
}

MonotonicTime UcxChannel::last_heard() const {
  const_cast<UcxChannel*>(this)->Progress();
  return table_.last_heard();
}

nanoseconds UcxChannel::ping_round_trip() const {
  const_cast<UcxChannel*>(this)->Progress();
  return table_.round_trip();
}

void UcxChannel::Cancel(CallSlot* call_slot) {
  if (const std::optional<ControlFrame> cancel = table_.Cancel(table_.Own(call_slot));
      cancel.has_value()) {
    SendControl(*cancel);
  }
}

void UcxChannel::Ping() {
  Use();
  if (const std::optional<ControlFrame> ping = table_.Ping(); ping.has_value()) {
    SendControl(*ping);
  }
}

LinkSigns UcxChannel::CheckOn() {
  LinkSigns signs;
  if (is_lost_.load(std::memory_order_acquire) || is_cut_.load(std::memory_order_acquire)) {
    signs.status = Error(absl::StatusCode::kUnavailable, "link_lost",
                         "link to the worker: the worker or the network ended it");
  }
  // An idle owner has not sent the last one yet; the lifeline watches meanwhile.
  if (!wants_ping_.exchange(true)) {
    signs.heard_at = heard_at_.load(std::memory_order_acquire);
  }
  return signs;
}

void UcxChannel::SendControl(const ControlFrame& control) {
  if (!table_.lost().ok()) {
    return;
  }
  const auto free =
      std::find_if(controls_.begin(), controls_.end(), [](const Control& c) { return !c.is_busy; });
  if (free == controls_.end()) {
    Lose("the worker reads too slowly; " + std::to_string(kNumControls) +
         " control frames wait for it");
    return;
  }
  EncodeControl(control, free->block.subspan(kUcxPrefixBytes));
  const UcxWorker::Sent sent = UcxWorker::Send(
      endpoint_, session_, free->block, kFrameHeaderBytes,
      [](void* request, ucs_status_t /*status*/, void* ended) {
        static_cast<Control*>(ended)->is_busy = false;
        ucp_request_free(request);
      },
      &*free);
  free->is_busy = sent == UcxWorker::Sent::kPending;
  if (sent == UcxWorker::Sent::kFailed) {
    Lose("UCX does not take a control frame");
    return;
  }
  table_.counters().bytes_sent += kFrameHeaderBytes;
  if (sent == UcxWorker::Sent::kPending) {
    Push();
  }
}

void UcxChannel::LoseIfDamaging() {
  if (table_.is_damaging()) {
    Lose(CallTable::kTooMuchDamage);
  }
}

void UcxChannel::Malformed() {
  table_.CountMalformed();
  LoseIfDamaging();
}

void UcxChannel::Take(std::span<std::byte> frame) {
  const absl::StatusOr<CallTable::Received> received = table_.Parse(frame);
  if (!received.ok()) {
    Malformed();
    return;
  }
  if (table_.Apply(*received)) {
    bell_.Ring();
  }
  LoseIfDamaging();
}

ucs_status_t UcxChannel::OnMessage(const void* head_bytes, size_t num_head_bytes, void* message,
                                   size_t bytes, bool is_large) {
  UcxHead head;
  if (!ReadHead(head_bytes, num_head_bytes, head) || head.session != session_) {
    // Of no worker of ours: whoever reached this port does not end the link.
    table_.CountStray();
    return UCS_OK;
  }
  if (!table_.lost().ok()) {
    return UCS_OK;
  }
  table_.Heard();
  table_.counters().bytes_received += kFrameHeaderBytes + bytes;
  if (head.header.type == static_cast<uint16_t>(FrameType::kReply)) {
    CallTable::Slot* slot = table_.Find(head.header.frontend, head.header.slot, head.header.seq);
    if (slot == nullptr) {
      // Its rows are not even fetched.
      table_.CountLate();
      return UCS_OK;
    }
    return TakePayload(*slot, head, message, bytes, is_large);
  }
  if (is_large || kFrameHeaderBytes + bytes > spare_.size_bytes()) {
    Malformed();
    return UCS_OK;
  }
  // Copied, because UCX's memory is not aligned as a frame must be.
  std::memcpy(spare_.As<std::byte>(), &head.header, kFrameHeaderBytes);
  std::memcpy(spare_.As<std::byte>() + kFrameHeaderBytes, message, bytes);
  Take({spare_.As<std::byte>(), kFrameHeaderBytes + bytes});
  return UCS_OK;
}

ucs_status_t UcxChannel::TakePayload(CallTable::Slot& slot, const UcxHead& head, void* message,
                                     size_t bytes, bool is_large) {
  Operations& operations = operations_[slot.index];
  if (bytes > layout_.rows_room || operations.is_receiving) {
    Malformed();
    return UCS_OK;
  }
  std::byte* frame = ReplyFrame(slot);
  std::memcpy(frame, &head.header, kFrameHeaderBytes);
  if (!is_large) {
    // The one copy of an eager message: out of UCX's memory into the slot's, where it is checked.
    std::memcpy(frame + kFrameHeaderBytes, message, bytes);
    Take({frame, kFrameHeaderBytes + bytes});
    return UCS_OK;
  }
  operations.received_bytes = kFrameHeaderBytes + bytes;
  const UcxWorker::Sent received = worker_->Receive(
      message, {frame + kFrameHeaderBytes, bytes},
      [](void* request, ucs_status_t status, size_t /*length*/, void* argument) {
        auto& ended = *static_cast<Operations*>(argument);
        UcxChannel& channel = *ended.channel;
        const auto index = static_cast<size_t>(&ended - channel.operations_.data());
        CallTable::Slot& into = channel.table_.slots()[index];
        ended.is_receiving = false;
        channel.NoteUse(into);
        ucp_request_free(request);
        if (status != UCS_OK) {
          channel.Lose(std::string("UCX could not fetch a reply: ") + ucs_status_string(status));
        } else if (channel.table_.lost().ok()) {
          channel.Take({channel.ReplyFrame(into), ended.received_bytes});
        }
      },
      &operations);
  switch (received) {
    case UcxWorker::Sent::kPending:
      operations.is_receiving = true;
      NoteUse(slot);
      break;
    case UcxWorker::Sent::kDone:
      Take({frame, operations.received_bytes});
      break;
    case UcxWorker::Sent::kFailed:
      Lose("UCX could not fetch a reply");
      break;
  }
  return UCS_INPROGRESS;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ExpertChannel>> ConnectUcxChannel(
    const std::string& address, const TlsIdentity& tls, const PairTerms& terms,
    const UcxReach& reach, Doorbell& bell, const Clock& clock, std::chrono::milliseconds timeout) {
  const MonotonicTime until = clock.Now() + timeout;
  CONCLAVE_ASSIGN_OR_RETURN(std::shared_ptr<UcxContext> context, UcxContext::Get(reach));
  CONCLAVE_ASSIGN_OR_RETURN(std::unique_ptr<UcxWorker> worker,
                            UcxWorker::Create(std::move(context)));
  CONCLAVE_ASSIGN_OR_RETURN(const Handshake hands,
                            ShakeHands(address, tls, terms, "ucx", worker->address(), timeout));
  if (hands.ucx_address.empty()) {
    return Error(absl::StatusCode::kInternal, "protocol_violation",
                 "worker at " + address + ": expected a UCX address in its grant, found none");
  }
  auto channel = std::make_unique<UcxChannel>(hands, terms, std::move(worker), bell, clock);
  CONCLAVE_RETURN_IF_ERROR(Annotate(channel->Open(hands, until), "worker at " + address));
  return channel;
}

}  // namespace conclave::transport
