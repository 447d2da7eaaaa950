#include "conclave/transport/channel_choice.h"

#include <algorithm>

#include "conclave/base/check.h"
#include "conclave/base/status.h"

namespace conclave::transport {
namespace {

bool Has(std::span<const std::string> channels, std::string_view name) {
  return std::find(channels.begin(), channels.end(), name) != channels.end();
}

}  // namespace

ChannelWish ChannelWishOf(std::string_view text) {
  CONCLAVE_CHECK(text == "auto" || text == "ucx" || text == "grpc");
  return text == "auto"  ? ChannelWish::kAuto
         : text == "ucx" ? ChannelWish::kUcx
                         : ChannelWish::kGrpc;
}

absl::StatusOr<ChannelOffer> OfferChannels(ChannelWish wish, const absl::Status& ucx) {
  switch (wish) {
    case ChannelWish::kGrpc:
      return ChannelOffer{{"grpc"}, "--channel grpc"};
    case ChannelWish::kUcx:
      CONCLAVE_RETURN_IF_ERROR(Annotate(ucx, "--channel ucx"));
      return ChannelOffer{{"ucx"}, "--channel ucx"};
    case ChannelWish::kAuto:
      break;
  }
  if (!ucx.ok()) {
    return ChannelOffer{{"grpc"}, MessageOf(ucx)};
  }
  return ChannelOffer{{"ucx", "grpc"}, "the frontend chooses"};
}

absl::StatusOr<ChannelChoice> ChooseChannel(ChannelWish wish, const absl::Status& ucx,
                                            std::span<const std::string> offered) {
  CONCLAVE_ASSIGN_OR_RETURN(const ChannelOffer own, OfferChannels(wish, ucx));
  if (Has(own.channels, "ucx") && Has(offered, "ucx")) {
    return ChannelChoice{"ucx", "both ends have it"};
  }
  if (Has(own.channels, "grpc") && Has(offered, "grpc")) {
    return ChannelChoice{"grpc",
                         Has(own.channels, "ucx") ? "the worker does not offer ucx" : own.why};
  }
  std::string found;
  for (const std::string& channel : offered) {
    found += (found.empty() ? "" : ", ") + channel;
  }
  return Error(absl::StatusCode::kFailedPrecondition, "no_common_channel",
               "worker: expected it to offer " + own.channels.front() + " (" + own.why +
                   "), found " + (found.empty() ? std::string("none") : found));
}

}  // namespace conclave::transport
