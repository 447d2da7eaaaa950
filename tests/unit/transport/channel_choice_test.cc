// Goal: a pair takes the best channel that both ends allow, and says why it is no better one.
// Method: tables of wishes, of what UCX can do and of what the other end offers.
#include "conclave/transport/channel_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "conclave/base/status.h"

namespace conclave::transport {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const absl::Status kNoUcx =
    Error(absl::StatusCode::kFailedPrecondition, "untrusted_network", "ucx at 10.0.0.1: untrusted");

TEST(ChannelChoiceTest, AWorkerOffersWhatItIsAllowed) {
  EXPECT_THAT(OfferChannels(ChannelWish::kAuto, absl::OkStatus())->channels,
              ElementsAre("ucx", "grpc"));
  EXPECT_THAT(OfferChannels(ChannelWish::kAuto, kNoUcx)->channels, ElementsAre("grpc"));
  EXPECT_THAT(OfferChannels(ChannelWish::kAuto, kNoUcx)->why, HasSubstr("untrusted"));
  EXPECT_THAT(OfferChannels(ChannelWish::kGrpc, absl::OkStatus())->channels, ElementsAre("grpc"));
  EXPECT_THAT(OfferChannels(ChannelWish::kUcx, absl::OkStatus())->channels, ElementsAre("ucx"));
  const absl::Status refused = OfferChannels(ChannelWish::kUcx, kNoUcx).status();
  EXPECT_EQ(ReasonOf(refused), "untrusted_network");
  EXPECT_THAT(MessageOf(refused), HasSubstr("--channel ucx"));
}

TEST(ChannelChoiceTest, AFrontendTakesTheBestThatBothHave) {
  const std::vector<std::string> both{"ucx", "grpc"};
  const std::vector<std::string> grpc{"grpc"};
  const std::vector<std::string> ucx{"ucx"};
  const auto channel = [](ChannelWish wish, const absl::Status& status,
                          const std::vector<std::string>& offered) {
    const auto choice = ChooseChannel(wish, status, offered);
    return choice.ok() ? choice->channel : ReasonOf(choice.status());
  };
  EXPECT_EQ(channel(ChannelWish::kAuto, absl::OkStatus(), both), "ucx");
  EXPECT_EQ(channel(ChannelWish::kAuto, absl::OkStatus(), grpc), "grpc");
  EXPECT_EQ(channel(ChannelWish::kAuto, kNoUcx, both), "grpc");
  EXPECT_EQ(channel(ChannelWish::kGrpc, absl::OkStatus(), both), "grpc");
  EXPECT_EQ(channel(ChannelWish::kUcx, absl::OkStatus(), both), "ucx");
  EXPECT_EQ(channel(ChannelWish::kUcx, absl::OkStatus(), grpc), "no_common_channel");
  EXPECT_EQ(channel(ChannelWish::kGrpc, absl::OkStatus(), ucx), "no_common_channel");
  EXPECT_EQ(channel(ChannelWish::kAuto, kNoUcx, ucx), "no_common_channel");
  EXPECT_EQ(channel(ChannelWish::kAuto, absl::OkStatus(), {}), "no_common_channel");
  EXPECT_EQ(channel(ChannelWish::kUcx, kNoUcx, both), "untrusted_network");
}

TEST(ChannelChoiceTest, TheReasonForGrpcIsKept) {
  const std::vector<std::string> both{"ucx", "grpc"};
  const std::vector<std::string> grpc{"grpc"};
  EXPECT_THAT(ChooseChannel(ChannelWish::kAuto, kNoUcx, both)->why, HasSubstr("untrusted"));
  EXPECT_THAT(ChooseChannel(ChannelWish::kAuto, absl::OkStatus(), grpc)->why,
              HasSubstr("does not offer ucx"));
  EXPECT_THAT(ChooseChannel(ChannelWish::kGrpc, absl::OkStatus(), both)->why,
              HasSubstr("--channel grpc"));
}

}  // namespace
}  // namespace conclave::transport
