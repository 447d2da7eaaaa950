// Which channel carries the calls of a pair: the best one that both ends allow, and why it is no
// better one. Pure.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace conclave::transport {

enum class ChannelWish : uint8_t { kAuto, kUcx, kGrpc };

// "auto", "ucx" or "grpc", as --channel has them; anything else aborts.
ChannelWish ChannelWishOf(std::string_view text);

struct ChannelChoice {
  std::string channel;  // "ucx" or "grpc"
  std::string why;      // one line; for grpc what keeps ucx away
};

// What one end offers, best first, and why it is no more. `ucx`: OK, or why UCX cannot be used here
// (CheckUcxReach, ProbeUcx), which is the error when ucx alone is wished for.
struct ChannelOffer {
  std::vector<std::string> channels;
  std::string why;
};
absl::StatusOr<ChannelOffer> OfferChannels(ChannelWish wish, const absl::Status& ucx);

// What the frontend takes of what a worker offers; `ucx` is about the way to that worker.
// kFailedPrecondition ("no_common_channel") when nothing is left.
absl::StatusOr<ChannelChoice> ChooseChannel(ChannelWish wish, const absl::Status& ucx,
                                            std::span<const std::string> offered);

}  // namespace conclave::transport
