// What the worker's end of every channel does with the frames of a frontend, whatever carries them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/base/failpoint.h"
#include "conclave/transport/call_server.h"
#include "conclave/transport/frame.h"

namespace conclave::transport {

// Of a whole server; outlives it with its calls.
struct SessionCounters {
  std::atomic<uint64_t> bytes_sent{0};
  std::atomic<uint64_t> bytes_received{0};
  std::atomic<uint64_t> calls{0};
  std::atomic<uint64_t> refused{0};
  std::atomic<uint64_t> duplicates{0};
  std::atomic<uint64_t> cancelled{0};
  std::atomic<uint64_t> malformed{0};
  std::atomic<uint64_t> slow_peers{0};
  std::atomic<uint32_t> sessions{0};
  std::atomic<uint64_t> epoch{0};  // that the worker has seen
};

struct SessionTerms {
  uint32_t frontend = 0;
  FrameLimits limits;
  uint16_t num_slots = 0;
  size_t send_bytes_max = 0;
};

// Never the same twice in a process. Any thread.
PeerId NextPeer();

// What is needed of a call to refuse it.
CallView AddressOf(const FrameHeader& header);

// "cluster_mismatch" for a frame that speaks for another frontend than the handshake did.
absl::Status CheckFrontend(const FrameHeader& header, const SessionTerms& terms);

// What the failpoints of a call say of it.
FailpointContext ContextOf(const CallView& call);
FailpointContext ContextOf(const FrameHeader& header);

// What becomes of a frame of type CALL.
struct Admission {
  enum class What : uint8_t { kServe, kDuplicate, kRefuse };
  What what = What::kServe;
  CallView call;                 // kServe: views into the frame
  absl::Status why;              // kRefuse
  bool has_payload_crc = false;  // kServe: the answer is to have one, as the call had
};

// Parses the call and compares it with the terms; `last_seq` has an entry per slot and remembers
// the call. `has_lane`: there is memory to serve it in. An error: the frame is none, and its peer
// not to be talked to any more.
absl::StatusOr<Admission> Admit(std::span<const std::byte> frame, const SessionTerms& terms,
                                bool has_lane, std::vector<uint64_t>& last_seq);

}  // namespace conclave::transport
