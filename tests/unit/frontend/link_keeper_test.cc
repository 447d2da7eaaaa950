// Goal: an answer of a connection counts for the start of the worker that it was made to, and for
// no other. Method: views and answers by hand; the channel is one that is never called.
#include "link_keeper.h"

#include <gtest/gtest.h>

#include <utility>

#include "conclave/base/status.h"

namespace conclave::frontend {
namespace {

class IdleChannel final : public transport::ExpertChannel {
 public:
  const transport::ChannelLimits& limits() const override { return limits_; }
  transport::CallSlot* Acquire() override { return nullptr; }
  absl::Status Dispatch(transport::CallSlot* /*slot*/) override { return absl::OkStatus(); }
  std::optional<absl::Status> Poll(transport::CallSlot* /*slot*/) override { return std::nullopt; }
  absl::Status Await(transport::CallSlot* /*slot*/) override { return absl::OkStatus(); }
  absl::Status LinkStatus() const override { return absl::OkStatus(); }
  void Cancel(transport::CallSlot* /*slot*/) override {}
  void Release(transport::CallSlot* /*slot*/) override {}

 private:
  transport::ChannelLimits limits_;
};

ClusterView ViewOf(uint64_t incarnation) {
  ClusterView view;
  view.frontend_id = 1;
  ClusterMember& member = view.members.emplace_back();
  member.id = WorkerId(3);
  member.name = "w3";
  member.incarnation = incarnation;
  return view;
}

TEST(LinkKeeperTest, AnAnswerOfAFormerStartIsNotTaken) {
  const MonotonicTime now(std::chrono::seconds(10));
  LinkKeeper::Settings settings;
  settings.on_switched = [](Epoch) {};
  LinkKeeper keeper(settings);
  keeper.Apply(ViewOf(1));
  const auto former = keeper.StartDue(now);
  ASSERT_EQ(former.size(), 1u);
  keeper.Apply(ViewOf(2));
  const auto next = keeper.StartDue(now);
  ASSERT_EQ(next.size(), 1u);
  EXPECT_FALSE(keeper.OnConnected(former[0], std::make_unique<IdleChannel>(), now));
  EXPECT_EQ(keeper.num_links(), 0);
  EXPECT_EQ(keeper.TakeUnused().size(), 1u);
  ASSERT_EQ(keeper.Links().size(), 1u);
  EXPECT_EQ(keeper.Links()[0].carrier, nullptr);
  EXPECT_TRUE(keeper.OnConnected(next[0], std::make_unique<IdleChannel>(), now));
  EXPECT_EQ(keeper.Links()[0].name, "w3");
  EXPECT_STREQ(keeper.Links()[0].carrier, "inproc");
  LinkSource::Update update;
  keeper.Take(update);
  ASSERT_EQ(update.added.size(), 1u);
  EXPECT_EQ(update.added[0].incarnation, 2u);
}

}  // namespace
}  // namespace conclave::frontend
