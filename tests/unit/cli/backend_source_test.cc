// Goal: an answer of the engine in this process is streamed piece by piece, and errors and
// cancellation come through. Method: a backend that plays a script from a thread of its own.
#include "backend_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <utility>

#include "conclave/base/status.h"

namespace conclave::cli {
namespace {

using frontend::ChatDelta;
using frontend::ChatRequest;
using frontend::ChatSink;
using frontend::ChoiceEnd;
using frontend::FinishReason;
using ::testing::ElementsAre;

class ScriptedBackend final : public frontend::ChatBackend {
 public:
  ~ScriptedBackend() override { Join(); }

  absl::StatusOr<frontend::ChatId> Submit(ChatRequest submitted,
                                          std::shared_ptr<ChatSink> sink) override {
    if (!submit_status.ok()) {
      return submit_status;
    }
    Join();
    request = std::move(submitted);
    thread_ = std::thread([this, sink = std::move(sink)] {
      for (const std::string& piece : pieces) {
        sink->OnDelta({.choice = 0, .text = piece, .token_ids = {}, .logprobs = {}});
      }
      while (waits_for_cancel && !is_cancelled.load()) {
        std::this_thread::yield();
      }
      sink->OnChoiceEnd({.choice = 0,
                         .reason = is_cancelled.load() ? FinishReason::kCancelled : end_reason,
                         .status = end_status,
                         .routed_experts = {},
                         .gate_probabilities = {},
                         .image_spans = {}});
      sink->OnDone({}, {});
    });
    return frontend::ChatId{7};
  }
  void Cancel(frontend::ChatId id) override { is_cancelled.store(id == 7); }
  const frontend::ModelCard& model() const override { return card_; }
  absl::Status Readiness() const override { return absl::OkStatus(); }
  std::vector<int32_t> Tokenize(const std::string&) const override { return {}; }
  std::string Detokenize(const std::vector<int32_t>&) const override { return ""; }

  absl::Status submit_status;
  std::vector<std::string> pieces;
  FinishReason end_reason = FinishReason::kStop;
  absl::Status end_status;
  bool waits_for_cancel = false;
  std::atomic<bool> is_cancelled{false};
  ChatRequest request;

 private:
  void Join() {
    if (thread_.joinable()) {
      thread_.join();
    }
  }
  frontend::ModelCard card_;
  std::thread thread_;
};

class BackendSourceTest : public ::testing::Test {
 protected:
  absl::Status Ask(const std::vector<Turn>& turns, const AskParams& params = {}) {
    BackendSource source(backend_);
    return source.Ask(turns, params, [this](std::string_view piece) {
      taken_.emplace_back(piece);
      return take_status_;
    });
  }

  std::vector<std::string> taken_;
  absl::Status take_status_;
  ScriptedBackend backend_;
};

TEST_F(BackendSourceTest, PiecesArriveInOrder) {
  backend_.pieces = {"a", "", "b"};
  EXPECT_TRUE(Ask({{true, "q", {}}}).ok());
  EXPECT_THAT(taken_, ElementsAre("a", "b"));
}

TEST_F(BackendSourceTest, RequestCarriesTurnsImagesAndParameters) {
  EXPECT_TRUE(Ask({{true, "q", {"png"}}, {false, "a", {}}},
                  {.temperature = 0.5, .max_tokens = 9, .seed = 3})
                  .ok());
  const ChatRequest& request = backend_.request;
  ASSERT_EQ(request.messages.size(), 2U);
  ASSERT_EQ(request.messages[0].parts.size(), 2U);
  EXPECT_EQ(request.messages[0].parts[0].kind, frontend::ContentPart::Kind::kImage);
  EXPECT_EQ(request.messages[0].parts[0].bytes, "png");
  EXPECT_EQ(request.messages[0].parts[1].bytes, "q");
  EXPECT_EQ(request.messages[1].role, frontend::Message::Role::kAssistant);
  EXPECT_EQ(request.sampling.temperature, 0.5f);
  EXPECT_EQ(request.sampling.seed, 3U);
  EXPECT_EQ(request.max_tokens, 9);
}

TEST_F(BackendSourceTest, RefusedRequestIsTheError) {
  backend_.submit_status = Error(absl::StatusCode::kUnavailable, "overloaded", "queue full");
  EXPECT_EQ(ReasonOf(Ask({{true, "q", {}}})), "overloaded");
}

TEST_F(BackendSourceTest, ErrorAfterTextComesThrough) {
  backend_.pieces = {"a"};
  backend_.end_reason = FinishReason::kError;
  backend_.end_status = InvalidArgument("image_truncated", "the image ends early");
  EXPECT_EQ(ReasonOf(Ask({{true, "q", {}}})), "image_truncated");
  EXPECT_THAT(taken_, ElementsAre("a"));
}

TEST_F(BackendSourceTest, ErrorWithoutAStatusIsStillAnError) {
  backend_.end_reason = FinishReason::kError;
  EXPECT_EQ(ReasonOf(Ask({{true, "q", {}}})), "internal");
}

TEST_F(BackendSourceTest, ReaderThatStopsCancelsTheRequest) {
  backend_.pieces = {"a", "b"};
  backend_.waits_for_cancel = true;
  take_status_ = absl::CancelledError("the reader has gone");
  EXPECT_TRUE(absl::IsCancelled(Ask({{true, "q", {}}})));
  EXPECT_THAT(taken_, ElementsAre("a"));
  EXPECT_TRUE(backend_.is_cancelled.load());
}

}  // namespace
}  // namespace conclave::cli
