// ExpertChannel within one process: the embedded default and the base of every unit test.
#pragma once

#include <memory>

#include "conclave/transport/expert_channel.h"

namespace conclave::transport {

struct InprocOptions {
  ChannelLimits limits;
  uint32_t frontend = 0;
  // Encode every call and reply to the frames of frame.h and parse them again, with CRC over the payload, and deliver
  // each call twice ("paranoid"): on in debug and test builds, so that every test exercises the protocol.
  bool use_frames = false;
};

// `handler` outlives the channel. Several channels of one thread may share a handler.
std::unique_ptr<ExpertChannel> MakeInprocChannel(CallHandler& handler, const InprocOptions& options);

}  // namespace conclave::transport
