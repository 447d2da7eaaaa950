// Goal: a router that may not command hears, says and answers nothing, though its core still runs.
// Method: a slot with a real loop, and a leadership that is a flag.
#include "core_slot.h"

#include <atomic>
#include <future>

#include "conclave/base/status.h"
#include "gtest/gtest.h"

namespace conclave::router_service {
namespace {

absl::Status Refusal(const std::string& why) {
  return Error(absl::StatusCode::kUnavailable, "standby", why);
}

TEST(CoreSlotTest, TheCoreIsReachedOnlyWhileItMayCommand) {
  CoreSlot slot(Refusal("not yet"));
  const auto is_asked = [&] {
    std::promise<void> answered;
    const bool is_taken = slot.Ask([&](const RouterCore& /*core*/) { answered.set_value(); });
    if (is_taken) {
      answered.get_future().wait();
    }
    return is_taken;
  };
  EXPECT_FALSE(is_asked());
  EXPECT_FALSE(slot.Post(TickEvent{}));
  EXPECT_FALSE(slot.MayCommand());
  EXPECT_EQ(MessageOf(slot.refusal()), "not yet");

  std::atomic<bool> is_leading{true};
  auto made = std::make_unique<CoreLoop>(
      std::make_unique<RouterCore>(CoreOptions{}, std::nullopt), nullptr, milliseconds(10),
      CoreLoop::Hooks{[](const Action& /*action*/, const RouterIdentity& /*router*/) {},
                      [](const RouterCore& /*core*/) {}});
  made->Start();
  slot.Fill(std::move(made), [&] { return is_leading.load(); });
  EXPECT_TRUE(is_asked());
  EXPECT_TRUE(slot.Post(TickEvent{}));

  is_leading.store(false);
  EXPECT_FALSE(is_asked());
  EXPECT_FALSE(slot.Post(TickEvent{}));
  EXPECT_FALSE(slot.MayCommand());
  EXPECT_EQ(ReasonOf(slot.refusal()), "standby");

  is_leading.store(true);
  const std::unique_ptr<CoreLoop> taken = slot.Take(Refusal("deposed"));
  ASSERT_NE(taken, nullptr);
  EXPECT_FALSE(is_asked());
  EXPECT_FALSE(slot.MayCommand()) << "whatever the leadership says";
  EXPECT_EQ(MessageOf(slot.refusal()), "deposed");
}

}  // namespace
}  // namespace conclave::router_service
