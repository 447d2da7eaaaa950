// What failpoints do to frames.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>

#include "conclave/base/failpoint.h"
#include "conclave/transport/frame.h"
#include "frame_io.h"

namespace conclave::transport {

// Flips a bit of the frame, or cuts it, as the hit says; returns its new length. Nothing, and
// nothing that is left after optimization, without failpoints.
inline size_t Damage(const FailpointHit& hit, std::span<std::byte> frame) {
  const auto argument = static_cast<size_t>(hit.argument);
  if (hit.action == FailpointAction::kTruncate) {
    return argument % frame.size();
  }
  if (hit.action == FailpointAction::kFlip) {
    FrameHeader header;
    std::memcpy(&header, frame.data(), sizeof(header));
    // The rows are covered by a CRC of their own or not at all.
    const bool covers_all = (header.flags & kFlagPayloadCrc) != 0;
    const size_t covered =
        covers_all ? frame.size()
                   : std::min(frame.size(), kFrameHeaderBytes + PairBytes(header.pairs));
    frame[argument % covered] ^= std::byte{1} << (argument / covered % 8);
  }
  return frame.size();
}

}  // namespace conclave::transport
