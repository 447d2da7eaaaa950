// UCX as the two ends of the channel use it: one context per reach in the process, workers that
// carry active messages, and what is set so that both behave.
#pragma once

#include <ucp/api/ucp.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/transport/frame.h"
#include "conclave/transport/ucx_channel.h"

namespace conclave::transport {

// A frame in the memory of its sender: the session before it, in the last bytes of a block, so that
// session and header are UCX's message header and the rest is its payload.
inline constexpr size_t kUcxPrefixBytes = kFrameAlignment;
inline constexpr size_t kUcxHeadBytes = sizeof(uint64_t) + kFrameHeaderBytes;

// What a message carries before its payload.
struct UcxHead {
  uint64_t session = 0;
  FrameHeader header{};
};
// False when it is no head.
bool ReadHead(const void* head, size_t bytes, UcxHead& out);

absl::Status UcxError(const std::string& what, ucs_status_t status);

// Thread-safe.
class UcxContext {
 public:
  // The process's own for this reach, made when there is none.
  static absl::StatusOr<std::shared_ptr<UcxContext>> Get(const UcxReach& reach);
  ~UcxContext();
  UcxContext(const UcxContext&) = delete;
  UcxContext& operator=(const UcxContext&) = delete;

  ucp_context_h handle() const { return context_; }
  // Rows are to be covered by a CRC: they cross a network.
  bool has_payload_crc() const { return has_payload_crc_; }
  // Frames go through shared memory, of which UCX prefers any kind to TCP.
  bool has_shared_memory() const { return has_shared_memory_; }
  // Names, in UCX's order, each once.
  std::vector<std::string> Transports() const;

 private:
  UcxContext() = default;

  ucp_context_h context_ = nullptr;
  bool has_payload_crc_ = false;
  bool has_shared_memory_ = false;
};

// One thread at a time.
class UcxWorker {
 public:
  using OnMessage = ucp_am_recv_callback_t;

  static absl::StatusOr<std::unique_ptr<UcxWorker>> Create(std::shared_ptr<UcxContext> context);
  // Endpoints are closed before; what is under way is dropped.
  ~UcxWorker();
  UcxWorker(const UcxWorker&) = delete;
  UcxWorker& operator=(const UcxWorker&) = delete;

  // `on_message` is called with `argument` during Progress. Before anything can come.
  void SetHandler(OnMessage on_message, void* argument);

  const UcxContext& context() const { return *context_; }
  ucp_worker_h handle() const { return worker_; }
  const std::string& address() const { return address_; }

  // Whether anything came or went.
  bool Progress() { return ucp_worker_progress(worker_) != 0; }
  // False: something has come already.
  bool Arm() { return ucp_worker_arm(worker_) == UCS_OK; }
  int fd() const { return fd_; }
  // Wakes whoever waits for fd(). Any thread.
  void Signal() { ucp_worker_signal(worker_); }

  // `on_error` is called during Progress when UCX gives the endpoint up.
  absl::StatusOr<ucp_ep_h> Connect(const std::string& peer_address, ucp_err_handler_cb_t on_error,
                                   void* argument);
  // Gives the endpoint up and all that is under way on it; the requests end by their callbacks.
  // Null: at once.
  ucs_status_ptr_t StartClose(ucp_ep_h endpoint);
  // Whether a close is over, whose request is then freed.
  static bool IsOver(ucs_status_ptr_t& request);

  enum class Sent : uint8_t { kDone, kPending, kFailed };
  // Sends the frame that lies kUcxPrefixBytes into `block`; its bytes are the sender's until
  // `on_sent` (called during Progress, only if kPending is returned).
  static Sent Send(ucp_ep_h endpoint, uint64_t session, std::span<std::byte> block,
                   size_t frame_bytes, ucp_send_nbx_callback_t on_sent, void* argument);

  // In a message's callback: lets the payload of a large message come to `out`. kPending:
  // `on_received` is called during a later Progress.
  Sent Receive(void* message, std::span<std::byte> out, ucp_am_recv_data_nbx_callback_t on_received,
               void* argument);

 private:
  UcxWorker() = default;

  std::shared_ptr<UcxContext> context_;
  ucp_worker_h worker_ = nullptr;
  std::string address_;
  int fd_ = -1;
};

}  // namespace conclave::transport
