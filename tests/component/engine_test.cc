// Goal: the engine's promises about requests as such: cancellation, limits, preemption, errors,
// fairness between prompts and answers. Method: the demo model through an engine that the test
// steps by hand.
#include "conclave/frontend/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <span>

#include "assembly.h"
#include "conclave/base/clock.h"
#include "conclave/frontend/step_trace.h"
#include "conclave/observability/trace.h"
#include "requests.h"

namespace conclave {
namespace {

using frontend::Engine;
using frontend::EngineOptions;
using frontend::FinishReason;
using frontend::SequenceRequest;
using frontend::SequenceToken;

struct Outcome : public frontend::SequenceSink {
  bool OnToken(const SequenceToken& token) override {
    tokens.push_back(token.token);
    return stop_after == 0 || tokens.size() < stop_after;
  }
  void OnEnd(FinishReason end_reason, const absl::Status& end_status,
             const frontend::SequenceStats& end_stats) override {
    ++num_ends;
    reason = end_reason;
    status = end_status;
    stats = end_stats;
  }

  size_t stop_after = 0;
  std::vector<int32_t> tokens;
  int num_ends = 0;
  FinishReason reason = FinishReason::kError;
  absl::Status status;
  frontend::SequenceStats stats;
};

class StepLog : public frontend::EngineObserver {
 public:
  void OnStep(const Step& step) override { steps.push_back(step); }
  void OnTokenGap(std::chrono::nanoseconds /*gap*/) override {}
  void OnSequenceEnd(FinishReason /*reason*/, const frontend::SequenceStats& /*stats*/) override {}
  void OnPreemption() override { ++num_preemptions; }

  std::vector<Step> steps;
  int num_preemptions = 0;
};

// Fails the experts of one layer when told to.
class FaultyExperts : public model::MoeExecutor {
 public:
  explicit FaultyExperts(model::MoeExecutor& inner) : inner_(inner) {}
  void Start(int32_t micro_batch, int32_t layer, MatView<const float> n,
             std::span<const model::StepRow> rows, const model::GateChoice& choice,
             MatView<float> out) override {
    inner_.Start(micro_batch, layer, n, rows, choice, out);
  }
  absl::Status Finish(int32_t micro_batch) override {
    const absl::Status status = inner_.Finish(micro_batch);
    return fails ? absl::UnavailableError("worker 1 is gone") : status;
  }

  uint64_t num_resent() const override { return resent; }

  bool fails = false;
  uint64_t resent = 0;  // what it says

 private:
  model::MoeExecutor& inner_;
};

class EngineTest : public ::testing::Test {
 protected:
  void Start(EngineOptions options) {
    model_ = *cli::Assembly::Open(testing::DemoFolder());
    if (options.max_model_len == 0) {
      options.max_model_len = model_->desc().max_positions;
    }
    cli::AssemblyOptions load;
    load.dtype = DType::kBf16;
    load.compute = kernels::Context(kernels::SupportedIsas().back(), pool_);
    load.num_workers = 2;
    load.max_rows = frontend::MaxStepRows(options);
    load.max_logit_rows = options.max_num_seqs;
    load.dispatch_observer = dispatch_observer_;
    ASSERT_TRUE(model_->Load(load, nullptr).ok());
    experts_ = std::make_unique<FaultyExperts>(*model_->dispatcher);
    engine_ = std::make_unique<Engine>(options, *model_->decoder, *experts_,
                                       model_->tokenizer->size(), Clock::Real(), &log_);
  }

  SequenceRequest Request(const std::string& text, int32_t max_tokens) {
    SequenceRequest request;
    request.tokens = testing::PromptIds(*model_, {"", text});
    request.max_tokens = max_tokens;
    return request;
  }

  std::shared_ptr<Outcome> Submit(SequenceRequest request, SequenceId* id = nullptr) {
    auto outcome = std::make_shared<Outcome>();
    const auto submitted = engine_->Submit(std::move(request), outcome);
    EXPECT_TRUE(submitted.ok()) << submitted.status();
    if (id != nullptr) {
      *id = *submitted;
    }
    return outcome;
  }

  void RunAll() {
    while (engine_->Step()) {
    }
  }

  frontend::DispatchObserver* dispatch_observer_ = nullptr;  // of the next Start
  ThreadPool pool_{1};
  std::unique_ptr<cli::Assembly> model_;
  std::unique_ptr<FaultyExperts> experts_;
  StepLog log_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(EngineTest, EndsAfterMaxTokensWithLength) {
  Start({});
  const auto outcome = Submit(Request("Is there a red circle?", 3));
  RunAll();
  EXPECT_EQ(outcome->reason, FinishReason::kLength);
  EXPECT_EQ(outcome->tokens.size(), 3u);
  EXPECT_EQ(outcome->stats.generated, 3);
  EXPECT_EQ(outcome->num_ends, 1);
}

TEST_F(EngineTest, EndsOnAStopTokenAndOnASinkThatHasEnough) {
  Start({});
  SequenceRequest request = Request("Is there a red circle?", 64);
  request.stop_tokens = {model_->tokenizer->eos()};
  const auto by_token = Submit(request);
  const auto by_sink = std::make_shared<Outcome>();
  by_sink->stop_after = 2;
  ASSERT_TRUE(engine_->Submit(Request("Is there a red circle?", 64), by_sink).ok());
  RunAll();
  EXPECT_EQ(by_token->reason, FinishReason::kStop);
  EXPECT_EQ(by_token->tokens.back(), model_->tokenizer->eos());
  EXPECT_EQ(by_sink->reason, FinishReason::kStop);
  EXPECT_EQ(by_sink->tokens.size(), 2u);
}

TEST_F(EngineTest, CancelFreesTheSequenceBeforeTheNextStepsRows) {
  Start({});
  SequenceId id;
  const auto outcome = Submit(Request("Describe the image.", 200), &id);
  for (int i = 0; i < 4; ++i) {
    engine_->Step();
  }
  const size_t before = outcome->tokens.size();
  ASSERT_GT(before, 0u);
  engine_->Cancel(id);
  engine_->Step();
  EXPECT_EQ(outcome->reason, FinishReason::kCancelled);
  EXPECT_EQ(outcome->tokens.size(), before);
  EXPECT_EQ(engine_->num_open(), 0);
  // What metrics were told last is an idle engine.
  EXPECT_EQ(log_.steps.back().running, 0);
  EXPECT_EQ(log_.steps.back().kv_used, 0.0);
  // A second cancel of the same id is a no-op.
  engine_->Cancel(id);
  EXPECT_FALSE(engine_->Step());
  EXPECT_EQ(outcome->num_ends, 1);
}

TEST_F(EngineTest, CancelReachesASequenceThatStillWaits) {
  EngineOptions options;
  options.max_num_seqs = 1;
  Start(options);
  const auto first = Submit(Request("Describe the image.", 8));
  SequenceId id;
  const auto second = Submit(Request("List the shapes.", 8), &id);
  engine_->Step();
  engine_->Cancel(id);
  RunAll();
  EXPECT_EQ(first->reason, FinishReason::kLength);
  EXPECT_EQ(second->reason, FinishReason::kCancelled);
  EXPECT_TRUE(second->tokens.empty());
}

TEST_F(EngineTest, RefusesWhenTheQueueIsFull) {
  EngineOptions options;
  options.max_num_seqs = 1;
  options.max_queued = 2;
  Start(options);
  for (int i = 0; i < 3; ++i) {
    Submit(Request("List the shapes.", 1));
  }
  const auto refused = engine_->Submit(Request("List the shapes.", 1), std::make_shared<Outcome>());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnavailable);
  RunAll();
  // What ended makes room.
  EXPECT_TRUE(engine_->Submit(Request("List the shapes.", 1), std::make_shared<Outcome>()).ok());
  RunAll();
}

TEST_F(EngineTest, PreemptionIsInvisibleInTheTokens) {
  const std::string text =
      "Scene: a red circle at the top and a blue star at the left. How many objects are there?";
  EngineOptions roomy;
  roomy.kv_bytes = int64_t{64} << 20;
  Start(roomy);
  const auto expected = Submit(Request(text, 150));
  RunAll();
  ASSERT_EQ(log_.num_preemptions, 0);

  EngineOptions tight;
  tight.max_model_len = 256;  // and no more blocks than one such sequence needs
  Start(tight);
  std::vector<std::shared_ptr<Outcome>> outcomes;
  for (int i = 0; i < 3; ++i) {
    SequenceRequest request = Request(text, 150);
    // Different first tokens keep the sequences from sharing blocks.
    if (i > 0) {
      request.tokens[0] += i;
    }
    outcomes.push_back(Submit(std::move(request)));
  }
  RunAll();
  EXPECT_GT(log_.num_preemptions, 0);
  for (const auto& outcome : outcomes) {
    EXPECT_EQ(outcome->reason, FinishReason::kLength) << outcome->status;
    EXPECT_EQ(outcome->tokens.size(), 150u);
  }
  EXPECT_EQ(outcomes[0]->tokens, expected->tokens);
}

// What is traced of a sequence that is preempted, again and again, and of one beside it that is not
// traced: one tree, nested in time, of bounded size, and the same tokens.
TEST_F(EngineTest, TracedSequencesGiveTheSameTokensAndOneTreeEach) {
  EngineOptions tight;
  tight.max_model_len = 256;
  observability::Tracer tracer({.sample_ratio = 0, .seed = 1});
  const std::string text =
      "Scene: a red circle at the top and a blue star at the left. How many objects are there?";
  std::vector<std::vector<int32_t>> tokens[2];
  std::vector<observability::Span> spans;
  for (const bool is_traced : {false, true}) {
    frontend::StepTrace step_trace(nullptr);
    tight.step_trace = &step_trace;
    dispatch_observer_ = &step_trace;
    Start(tight);
    std::vector<std::shared_ptr<Outcome>> outcomes;
    for (int i = 0; i < 3; ++i) {
      SequenceRequest request = Request(text, 150);
      request.tokens[0] += i;  // no block is shared
      if (is_traced && i != 1) {
        request.trace = tracer.StartRequest(
            {"00-0000000000000000000000000000000" + std::to_string(i + 1) + "-00f067aa0ba902b7-01",
             ""},
            "request", Clock::Real().Now());
        ASSERT_NE(request.trace, nullptr);
      }
      outcomes.push_back(Submit(std::move(request)));
    }
    RunAll();
    for (const auto& outcome : outcomes) {
      tokens[is_traced].push_back(outcome->tokens);
    }
    spans = tracer.Take(std::chrono::milliseconds(0));
    EXPECT_EQ(spans.empty(), !is_traced);
  }
  EXPECT_GT(log_.num_preemptions, 0);
  EXPECT_EQ(tokens[0], tokens[1]);

  std::map<observability::SpanId, const observability::Span*> by_id;
  std::map<observability::TraceId, int> roots;
  std::map<std::string_view, int> count;
  for (const observability::Span& span : spans) {
    EXPECT_TRUE(by_id.emplace(span.id, &span).second);
    ++count[span.name];
    roots[span.trace_id] += span.name == "request" ? 1 : 0;
  }
  EXPECT_EQ(roots.size(), 2u);
  int preempted = 0;
  for (const observability::Span& span : spans) {
    for (const observability::SpanEvent& event : span.events) {
      EXPECT_GE(event.time_ns, span.start_ns);
      EXPECT_LE(event.time_ns, span.end_ns);
      preempted += event.name == "preempted" ? 1 : 0;
    }
    if (span.name == "request") {
      continue;
    }
    const auto parent = by_id.find(span.parent_id);
    ASSERT_NE(parent, by_id.end()) << span.name;
    EXPECT_EQ(parent->second->trace_id, span.trace_id);
    EXPECT_LE(parent->second->start_ns, span.start_ns) << span.name;
    EXPECT_GE(parent->second->end_ns, span.end_ns) << span.name;
  }
  for (const char* name : {"request", "queue", "prefill", "decode"}) {
    EXPECT_EQ(count[name], 2) << name;
  }
  EXPECT_GT(preempted, 0);
  EXPECT_LE(count["step"], 2 * (64 + 32));
  EXPECT_EQ(count["dispatch"], count["expert_worker.compute"]);
  EXPECT_GT(count["dispatch"], 0);
}

TEST_F(EngineTest, ALongPromptDoesNotStallWhoAnswers) {
  EngineOptions options;
  options.prefill_chunk = 64;
  options.prefill_chunk_mixed = 16;
  Start(options);
  const auto answering = Submit(Request("Is there a red circle?", 60));
  while (answering->tokens.empty()) {
    engine_->Step();
  }
  SequenceRequest long_prompt = Request("Describe the image.", 2);
  const std::vector<int32_t> once = long_prompt.tokens;
  while (long_prompt.tokens.size() < 300) {
    long_prompt.tokens.insert(long_prompt.tokens.end(), once.begin(), once.end());
  }
  const auto prompt = Submit(std::move(long_prompt));
  const size_t before = answering->tokens.size();
  log_.steps.clear();
  int steps = 0;
  while (prompt->tokens.empty()) {
    engine_->Step();
    ++steps;
  }
  EXPECT_EQ(answering->tokens.size(), before + static_cast<size_t>(steps))
      << "a step gave no token";
  for (const auto& step : log_.steps) {
    EXPECT_LE(step.prefill_rows, 16);
  }
  RunAll();
}

TEST_F(EngineTest, AStepThatFailsEndsItsSequencesAndTheNextRequestWorks) {
  Start({});
  const auto expected = Submit(Request("List the shapes.", 5));
  RunAll();
  experts_->fails = true;
  const auto failed = Submit(Request("List the shapes.", 5));
  RunAll();
  EXPECT_EQ(failed->reason, FinishReason::kError);
  EXPECT_EQ(failed->status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(failed->tokens.empty());
  experts_->fails = false;
  const auto after = Submit(Request("List the shapes.", 5));
  RunAll();
  EXPECT_EQ(after->tokens, expected->tokens);
}

TEST_F(EngineTest, RoutedExpertsHaveOneEntryPerPositionLayerAndChoice) {
  Start({});
  SequenceRequest request = Request("List the shapes.", 5);
  request.wants_routed_experts = true;
  const size_t prompt = request.tokens.size();
  const auto outcome = Submit(std::move(request));
  RunAll();
  const size_t stride = model_->desc().moe.layers.size() * 2;
  // The last generated token was never computed: nothing followed it.
  ASSERT_EQ(outcome->stats.routed_experts.size(), (prompt + 4) * stride);
  EXPECT_TRUE(std::all_of(outcome->stats.routed_experts.begin(),
                          outcome->stats.routed_experts.end(),
                          [](int16_t expert) { return expert >= 0 && expert < 4; }));
}

TEST_F(EngineTest, GateProbabilitiesAreADistributionWhoseLargestWereChosen) {
  Start({});
  SequenceRequest request = Request("List the shapes.", 5);
  request.wants_routed_experts = true;
  request.wants_gate_probabilities = true;
  const size_t positions = request.tokens.size() + 4;
  const auto outcome = Submit(std::move(request));
  RunAll();
  const size_t layers = model_->desc().moe.layers.size();
  const std::vector<float>& gates = outcome->stats.gate_probabilities;
  ASSERT_EQ(gates.size(), positions * layers * 4);
  ASSERT_EQ(outcome->stats.routed_experts.size(), positions * layers * 2);
  for (size_t i = 0; i < positions * layers; ++i) {
    const auto of_row = std::span(gates).subspan(i * 4, 4);
    EXPECT_NEAR(std::accumulate(of_row.begin(), of_row.end(), 0.0), 1, 1e-5) << i;
    const int16_t* chosen = &outcome->stats.routed_experts[i * 2];
    EXPECT_EQ(of_row[static_cast<size_t>(chosen[0])],
              *std::max_element(of_row.begin(), of_row.end()));
    EXPECT_EQ(std::count_if(of_row.begin(), of_row.end(),
                            [&](float p) { return p > of_row[static_cast<size_t>(chosen[1])]; }),
              1);
  }
}

TEST_F(EngineTest, WhatThePrefixCacheHadHasNoProbabilities) {
  Start({});
  SequenceRequest request = Request("List the shapes. Are there more circles than squares?", 3);
  request.wants_gate_probabilities = true;
  const auto first = Submit(request);
  RunAll();
  const auto second = Submit(request);
  RunAll();
  const auto cached = static_cast<size_t>(second->stats.cached_rows);
  ASSERT_GT(cached, 0u);
  const std::vector<float>& before = first->stats.gate_probabilities;
  const std::vector<float>& after = second->stats.gate_probabilities;
  ASSERT_EQ(after.size(), before.size());
  const size_t num_cached = cached * model_->desc().moe.layers.size() * 4;
  for (size_t i = 0; i < after.size(); ++i) {
    if (i < num_cached) {
      ASSERT_TRUE(std::isnan(after[i])) << i;
    } else {
      ASSERT_EQ(after[i], before[i]) << i;
    }
  }
}

TEST_F(EngineTest, NobodyWhoDidNotAskPaysForProbabilities) {
  Start({});
  const auto quiet = Submit(Request("List the shapes.", 3));
  SequenceRequest request = Request("Describe the image.", 3);
  request.wants_gate_probabilities = true;
  const auto asking = Submit(std::move(request));
  RunAll();
  EXPECT_TRUE(quiet->stats.gate_probabilities.empty());
  EXPECT_FALSE(asking->stats.gate_probabilities.empty());
}

TEST_F(EngineTest, ImageSpansAreThePositionsOfThePictures) {
  Start({});
  SequenceRequest request;
  request.tokens = testing::PromptIds(*model_, {"one.png", "What do you see?"});
  request.images = {testing::Features(*model_, "one.png")};
  const auto place = std::find(request.tokens.begin(), request.tokens.end(), text::kImageToken);
  const auto first = static_cast<int32_t>(place - request.tokens.begin());
  const int32_t num_rows = request.images[0]->num_rows;
  // A second picture behind it.
  request.tokens.push_back(text::kImageToken);
  request.images.push_back(request.images[0]);
  const auto second = static_cast<int32_t>(request.tokens.size()) - 2 + num_rows;
  const auto outcome = Submit(std::move(request));
  RunAll();
  EXPECT_EQ(outcome->stats.image_spans,
            (std::vector<std::pair<int32_t, int32_t>>{{first, num_rows}, {second, num_rows}}));
  EXPECT_EQ(outcome->stats.image_rows, 2 * num_rows);
}

TEST_F(EngineTest, ASequenceIsTouchedOnceHoweverOftenCallsAreSentAgain) {
  Start({});
  Submit(Request("List the shapes.", 60));
  Submit(Request("Describe the image.", 60));
  const auto touched_by = [this](uint64_t resent) {
    experts_->resent += resent;
    engine_->Step();
    return log_.steps.back().touched;
  };
  EXPECT_EQ(touched_by(0), 0);
  EXPECT_EQ(touched_by(3), 2);
  EXPECT_EQ(touched_by(0), 0);
  EXPECT_EQ(touched_by(1), 0) << "both have been counted";
  Submit(Request("What color is the sky?", 60));
  EXPECT_EQ(touched_by(0), 0);
  EXPECT_EQ(touched_by(1), 1) << "the new one";
}

}  // namespace
}  // namespace conclave
