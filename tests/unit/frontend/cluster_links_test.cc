// Goal: a frontend has a link to every member as soon as one can be had, gives up those of members
// that are gone, and tells the router which epoch it routes by only when no call of an older one is
// under way. Method: views by hand, channels that do nothing, opened by a function that can fail.
#include "conclave/frontend/cluster_links.h"

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "conclave/base/clock.h"
#include "conclave/base/mutex.h"
#include "conclave/base/status.h"

namespace conclave::frontend {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// Counts those that exist.
class IdleChannel final : public transport::ExpertChannel {
 public:
  struct Behaviour {
    std::atomic<bool> is_silent{false};  // PINGs are not answered
    std::atomic<bool> is_lost{false};
    std::atomic<int> pings{0};
  };
  IdleChannel(std::atomic<int>& alive, Behaviour& behaviour)
      : alive_(alive), behaviour_(behaviour), heard_at_(Clock::Real().Now()) {
    ++alive_;
  }
  ~IdleChannel() override { --alive_; }
  const transport::ChannelLimits& limits() const override { return limits_; }
  transport::CallSlot* Acquire() override { return nullptr; }
  absl::Status Dispatch(transport::CallSlot* /*slot*/) override { return absl::OkStatus(); }
  std::optional<absl::Status> Poll(transport::CallSlot* /*slot*/) override { return std::nullopt; }
  absl::Status Await(transport::CallSlot* /*slot*/) override { return absl::OkStatus(); }
  absl::Status LinkStatus() const override {
    return behaviour_.is_lost ? Error(absl::StatusCode::kUnavailable, "link_lost", "it ended")
                              : absl::OkStatus();
  }
  transport::LinkSigns CheckOn() override {
    ++behaviour_.pings;
    if (!behaviour_.is_silent) {
      heard_at_ = Clock::Real().Now();
    }
    return {LinkStatus(), heard_at_};
  }
  void Cancel(transport::CallSlot* /*slot*/) override {}
  void Release(transport::CallSlot* /*slot*/) override {}

 private:
  std::atomic<int>& alive_;
  Behaviour& behaviour_;
  MonotonicTime heard_at_;
  transport::ChannelLimits limits_;
};

class ClusterLinksTest : public ::testing::Test {
 protected:
  ClusterLinksTest() {
    ClusterLinksOptions options;
    options.retry_min = milliseconds(5);
    options.ping_interval = milliseconds(5);
    options.silent_looks_max = 4;
    options.connect = [this](uint32_t /*frontend*/, const ClusterMember& member,
                             transport::Doorbell& /*bell*/)
        -> absl::StatusOr<std::unique_ptr<transport::ExpertChannel>> {
      ++attempts_;
      if (refusals_.fetch_sub(1) > 0) {
        return Error(absl::StatusCode::kUnavailable, "connect", member.name + " is not there");
      }
      return std::make_unique<IdleChannel>(alive_, behaviour_);
    };
    options.on_switched = [this](Epoch epoch) {
      MutexLock lock(mu_);
      switched_.push_back(epoch.value());
    };
    links_ = std::make_unique<ClusterLinks>(std::move(options));
  }

  // Worker w of `incarnations` holds both experts.
  static ClusterView View(uint64_t epoch, const std::vector<uint64_t>& incarnations) {
    const placement::ExpertUnit units[] = {{LayerId(1), ExpertId(0)}, {LayerId(1), ExpertId(1)}};
    ClusterView view;
    view.frontend_id = 7;
    std::vector<placement::Replica> replicas;
    for (size_t w = 0; w < incarnations.size(); ++w) {
      const WorkerId id(static_cast<int32_t>(w));
      if (incarnations[w] == 0) {
        continue;
      }
      ClusterMember member;
      member.id = id;
      member.name = "w" + std::to_string(w);
      member.incarnation = incarnations[w];
      view.members.push_back(member);
      replicas.push_back({units[0], id});
      replicas.push_back({units[1], id});
    }
    auto placement = placement::Placement::CreatePartial(
        Epoch(epoch), {std::begin(units), std::end(units)}, replicas);
    EXPECT_TRUE(placement.ok());
    view.placement = std::make_shared<const placement::Placement>(*std::move(placement));
    return view;
  }

  // Takes updates until `condition` holds or five seconds have passed.
  bool TakeUntil(const std::function<bool()>& condition) {
    const MonotonicTime end = Clock::Real().Now() + seconds(5);
    while (!condition() && Clock::Real().Now() < end) {
      links_->WaitUntil(Clock::Real().Now() + milliseconds(10));
      if (links_->has_update()) {
        LinkSource::Update update;
        links_->Take(update);
        for (const WorkerLink& link : update.added) {
          up_.push_back(link);
        }
        removed_.insert(removed_.end(), update.removed.begin(), update.removed.end());
      }
    }
    return condition();
  }

  std::vector<uint64_t> switched() {
    MutexLock lock(mu_);
    return switched_;
  }

  IdleChannel::Behaviour behaviour_;
  std::atomic<int> alive_{0};
  std::atomic<int> attempts_{0};
  std::atomic<int> refusals_{0};
  Mutex mu_;
  std::vector<uint64_t> switched_ ABSL_GUARDED_BY(mu_);
  std::vector<WorkerLink> up_;
  std::vector<WorkerId> removed_;
  std::unique_ptr<ClusterLinks> links_;
};

TEST_F(ClusterLinksTest, EveryMemberGetsALinkAndThenTheExpertsAreServed) {
  EXPECT_EQ(ReasonOf(links_->Readiness()), "no_placement");
  links_->Apply(View(1, {10, 20}));
  ASSERT_TRUE(TakeUntil([this] { return up_.size() == 2; }));
  EXPECT_TRUE(links_->Readiness().ok());
  EXPECT_EQ(links_->num_links(), 2);
  for (const WorkerLink& link : up_) {
    links_->Release(link.channel);
  }
}

TEST_F(ClusterLinksTest, AMemberThatDoesNotAnswerIsTriedAgain) {
  refusals_ = 3;
  links_->Apply(View(1, {10}));
  EXPECT_EQ(ReasonOf(links_->Readiness()), "expert_unserved");
  ASSERT_TRUE(TakeUntil([this] { return up_.size() == 1; }));
  EXPECT_EQ(attempts_, 4);
  links_->Release(up_[0].channel);
}

TEST_F(ClusterLinksTest, ALostLinkIsOpenedAnew) {
  links_->Apply(View(1, {10}));
  ASSERT_TRUE(TakeUntil([this] { return up_.size() == 1; }));
  links_->Release(up_[0].channel);
  ASSERT_TRUE(TakeUntil([this] { return up_.size() == 2; }));
  ASSERT_TRUE(TakeUntil([this] { return alive_ == 1; }));
  links_->Release(up_[1].channel);
}

TEST_F(ClusterLinksTest, ALinkThatAnswersIsKept) {
  links_->Apply(View(1, {10}));
  ASSERT_TRUE(TakeUntil([this] { return up_.size() == 1 && behaviour_.pings > 20; }));
  EXPECT_TRUE(removed_.empty());
  EXPECT_EQ(links_->num_links(), 1);
  links_->Release(up_[0].channel);
}

// Nobody but the PINGs would notice: no call is under way.
TEST_F(ClusterLinksTest, ALinkThatFallsSilentIsGivenUpAndOpenedAnew) {
  links_->Apply(View(1, {10}));
  ASSERT_TRUE(TakeUntil([this] { return up_.size() == 1; }));
  behaviour_.is_silent = true;
  ASSERT_TRUE(TakeUntil([this] { return removed_.size() == 1; }));
  // The dispatcher still has the old one.
  behaviour_.is_silent = false;
  ASSERT_TRUE(TakeUntil([this] { return up_.size() == 2; }));
  EXPECT_EQ(alive_, 2);
  links_->Release(up_[0].channel);
  EXPECT_TRUE(links_->Readiness().ok());
  links_->Release(up_[1].channel);
}

TEST_F(ClusterLinksTest, AnIdleLinkThatEndedIsNoticed) {
  links_->Apply(View(1, {10}));
  ASSERT_TRUE(TakeUntil([this] { return up_.size() == 1; }));
  behaviour_.is_lost = true;
  ASSERT_TRUE(TakeUntil([this] { return removed_.size() == 1; }));
  behaviour_.is_lost = false;
  links_->Release(up_[0].channel);
  ASSERT_TRUE(TakeUntil([this] { return up_.size() == 2; }));
  links_->Release(up_[1].channel);
}

TEST_F(ClusterLinksTest, ALinkThatEndsBeforeItIsTakenIsNeverSeen) {
  behaviour_.is_lost = true;
  links_->Apply(View(1, {10}));
  const MonotonicTime end = Clock::Real().Now() + seconds(5);
  while (attempts_ < 3 && Clock::Real().Now() < end) {
    std::this_thread::yield();
  }
  EXPECT_GE(attempts_, 3);
  behaviour_.is_lost = false;
  ASSERT_TRUE(TakeUntil([this] { return !up_.empty(); }));
  for (const WorkerLink& link : up_) {
    links_->Release(link.channel);
  }
}

TEST_F(ClusterLinksTest, MembersThatAreGoneOrRestartedLoseTheirLinks) {
  links_->Apply(View(1, {10, 20}));
  ASSERT_TRUE(TakeUntil([this] { return up_.size() == 2; }));
  links_->Apply(View(2, {11, 0}));
  ASSERT_TRUE(TakeUntil([this] { return removed_.size() == 2 && up_.size() == 3; }));
  EXPECT_EQ(up_[2].worker, WorkerId(0));
  EXPECT_EQ(up_[2].incarnation, 11u);
  for (const WorkerLink& link : up_) {
    links_->Release(link.channel);
  }
  ASSERT_TRUE(TakeUntil([this] { return alive_ == 1 || attempts_ > 3; }));
}

TEST_F(ClusterLinksTest, AnIdleFrontendSwitchesAtOnceABusyOneAfterTheLayer) {
  links_->Apply(View(1, {10}));
  EXPECT_EQ(switched(), std::vector<uint64_t>({1}));
  links_->Enter();
  links_->Apply(View(2, {10}));
  EXPECT_EQ(switched(), std::vector<uint64_t>({1}));
  links_->Leave();
  EXPECT_EQ(switched(), std::vector<uint64_t>({1, 2}));
  links_->Enter();
  links_->Leave();
  EXPECT_EQ(switched(), std::vector<uint64_t>({1, 2}));
}

TEST_F(ClusterLinksTest, AnOlderPlacementIsNotTaken) {
  links_->Apply(View(5, {10}));
  links_->Apply(View(4, {10}));
  EXPECT_EQ(links_->epoch(), Epoch(5));
}

TEST_F(ClusterLinksTest, TheEndWaitsForAttemptsAndClosesEverything) {
  links_->Apply(View(1, {10, 20, 30}));
  links_.reset();
  EXPECT_EQ(alive_, 0);
}

}  // namespace
}  // namespace conclave::frontend
