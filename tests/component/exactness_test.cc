// Goal: the same request gives the same logits, bit by bit, however it is served: split over 1, 2
// or 4 workers, on 1 or 2 threads, alone or beside others in any phase, in chunks of any size, with
// frames or without, from reused KV blocks or not, on every ISA path of this machine. Method: eight
// questions on the demo model, greedy, through the engine stepped by hand. The first configuration
// is the reference; a set of configurations that covers every pair of axis values is compared with
// it byte for byte.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <map>
#include <set>

#include "assembly.h"
#include "conclave/base/clock.h"
#include "conclave/frontend/engine.h"
#include "requests.h"

namespace conclave {
namespace {

constexpr int kWorkers[] = {1, 2, 4};
constexpr int kThreads[] = {1, 2};
constexpr int kTogether[] = {1, 3, 8};
constexpr int kChunks[] = {512, 64, 16};
constexpr bool kFrames[] = {false, true};

// Indices into the axes above.
using Config = std::array<int, 5>;

std::string Describe(const Config& c) {
  return std::to_string(kWorkers[c[0]]) + " workers, " + std::to_string(kThreads[c[1]]) +
         " threads, " + std::to_string(kTogether[c[2]]) + " together, chunk " +
         std::to_string(kChunks[c[3]]) + (kFrames[c[4]] ? ", frames" : ", no frames");
}

// Every pair of values of two axes occurs in one of the configurations: greedy choice from the full
// product.
std::vector<Config> CoveringConfigs() {
  const Config sizes = {3, 2, 3, 3, 2};
  std::vector<Config> all;
  Config c{};
  for (c[0] = 0; c[0] < sizes[0]; ++c[0]) {
    for (c[1] = 0; c[1] < sizes[1]; ++c[1]) {
      for (c[2] = 0; c[2] < sizes[2]; ++c[2]) {
        for (c[3] = 0; c[3] < sizes[3]; ++c[3]) {
          for (c[4] = 0; c[4] < sizes[4]; ++c[4]) {
            all.push_back(c);
          }
        }
      }
    }
  }
  const auto pairs_of = [](const Config& config) {
    std::set<std::array<int, 4>> pairs;
    for (int a = 0; a < 5; ++a) {
      for (int b = a + 1; b < 5; ++b) {
        pairs.insert({a, config[static_cast<size_t>(a)], b, config[static_cast<size_t>(b)]});
      }
    }
    return pairs;
  };
  std::set<std::array<int, 4>> open;
  for (const Config& config : all) {
    const auto pairs = pairs_of(config);
    open.insert(pairs.begin(), pairs.end());
  }
  std::vector<Config> chosen;
  while (!open.empty()) {
    const auto new_pairs = [&](const Config& config) {
      const auto pairs = pairs_of(config);
      return std::count_if(pairs.begin(), pairs.end(),
                           [&](const auto& pair) { return open.contains(pair); });
    };
    const Config best = *std::max_element(
        all.begin(), all.end(),
        [&](const Config& a, const Config& b) { return new_pairs(a) < new_pairs(b); });
    for (const auto& pair : pairs_of(best)) {
      open.erase(pair);
    }
    chosen.push_back(best);
  }
  return chosen;
}

// Logits that every token of every question was chosen from: [question][token][vocabulary].
using Logits = std::vector<std::vector<std::vector<float>>>;

struct Served {
  Logits logits;
  std::vector<std::vector<float>> features;  // of every picture
  int num_tokens = 0;
};

class Recorder : public frontend::EngineObserver {
 public:
  void OnStep(const Step& step) override {
    mixed_steps += step.decode_rows > 0 && step.prefill_rows > 0 ? 1 : 0;
  }
  void OnTokenGap(std::chrono::nanoseconds /*gap*/) override {}
  void OnSequenceEnd(frontend::FinishReason /*reason*/,
                     const frontend::SequenceStats& stats) override {
    cached_rows += stats.cached_rows;
  }
  void OnPreemption() override {}
  void OnLogits(SequenceId sequence, int32_t /*position*/, std::span<const float> values) override {
    logits[sequence.value()].emplace_back(values.begin(), values.end());
  }

  std::map<uint64_t, std::vector<std::vector<float>>> logits;
  int mixed_steps = 0;
  int cached_rows = 0;
};

class NullSink : public frontend::SequenceSink {
 public:
  explicit NullSink(absl::Status& status) : status_(status) {}
  bool OnToken(const frontend::SequenceToken& /*token*/) override { return true; }
  void OnEnd(frontend::FinishReason /*reason*/, const absl::Status& status,
             const frontend::SequenceStats& /*stats*/) override {
    if (!status.ok()) {
      status_ = status;
    }
  }

 private:
  absl::Status& status_;
};

class ExactnessTest : public ::testing::TestWithParam<std::tuple<DType, kernels::Isa>> {
 protected:
  // Serves all questions with `config`, each `num_tokens` long. With `again` the same engine serves
  // them twice and the second time, when whole prompts are kept, is returned.
  Served Serve(kernels::Isa isa, const Config& config, int32_t num_tokens, bool again) {
    const DType dtype = std::get<0>(GetParam());
    ThreadPool pool(kThreads[config[1]]);
    auto model = cli::Assembly::Open(testing::DemoFolder(), "");
    EXPECT_TRUE(model.ok()) << model.status();
    frontend::EngineOptions options;
    options.max_num_seqs = kTogether[config[2]];
    options.prefill_chunk = kChunks[config[3]];
    options.prefill_chunk_mixed = kChunks[config[3]];
    options.max_model_len = (*model)->desc().max_positions;
    options.kv_bytes = int64_t{32} << 20;
    cli::AssemblyOptions load;
    load.dtype = dtype;
    load.compute = kernels::Context(isa, pool);
    load.num_workers = kWorkers[config[0]];
    load.use_frames = kFrames[config[4]];
    load.max_rows = frontend::MaxStepRows(options);
    load.max_logit_rows = options.max_num_seqs;
    const absl::Status loaded = (*model)->Load(load, nullptr);
    EXPECT_TRUE(loaded.ok()) << loaded;

    Recorder recorder;
    frontend::Engine engine(options, *(*model)->decoder, *(*model)->dispatcher,
                            (*model)->tokenizer->size(), Clock::Real(), &recorder);
    Served served;
    Run(**model, engine, num_tokens, served);
    if (again) {
      recorder.logits.clear();
      Run(**model, engine, num_tokens, served);
      EXPECT_GT(recorder.cached_rows, 0) << "no KV block was reused";
    }
    if (kTogether[config[2]] > 1) {
      EXPECT_GT(recorder.mixed_steps, 0) << "no step mixed prefill and decode";
    }
    for (auto& [id, rows] : recorder.logits) {
      served.num_tokens += static_cast<int>(rows.size());
      served.logits.push_back(std::move(rows));
    }
    return served;
  }

  static void Run(cli::Assembly& model, frontend::Engine& engine, int32_t num_tokens,
                  Served& served) {
    absl::Status status;
    served.features.clear();
    for (const testing::Question& question : testing::Questions()) {
      frontend::SequenceRequest request;
      request.tokens = testing::PromptIds(model, question);
      request.max_tokens = num_tokens;
      if (!question.picture.empty()) {
        request.images.push_back(testing::Features(model, question.picture));
        served.features.push_back(request.images[0]->rows);
      }
      const auto id = engine.Submit(std::move(request), std::make_shared<NullSink>(status));
      EXPECT_TRUE(id.ok()) << id.status();
      // Some steps between arrivals, so that the next prompt meets answers under way.
      engine.Step();
      engine.Step();
    }
    while (engine.Step()) {
    }
    EXPECT_TRUE(status.ok()) << status;
  }

  static void ExpectSame(const Served& expected, const Served& found, const std::string& what) {
    ASSERT_EQ(expected.logits.size(), found.logits.size()) << what;
    for (size_t q = 0; q < expected.logits.size(); ++q) {
      ASSERT_EQ(expected.logits[q].size(), found.logits[q].size()) << what << ": question " << q;
      for (size_t t = 0; t < expected.logits[q].size(); ++t) {
        const std::vector<float>& a = expected.logits[q][t];
        const std::vector<float>& b = found.logits[q][t];
        ASSERT_EQ(a.size(), b.size());
        ASSERT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0)
            << what << ": question " << q << ", token " << t;
      }
    }
    ASSERT_EQ(expected.features, found.features) << what << ": image features";
  }
};

TEST_P(ExactnessTest, LogitsDoNotDependOnHowTheyAreServed) {
  const auto [dtype, isa] = GetParam();
  // The scalar path is for reference, not for speed: fewer tokens keep its share of the time in
  // bounds.
  const int32_t num_tokens = isa == kernels::Isa::kScalar ? 6 : 24;
  const Served expected = Serve(isa, {}, num_tokens, false);
  ASSERT_EQ(expected.logits.size(), testing::Questions().size());
  int total = expected.num_tokens;
  for (const Config& config : CoveringConfigs()) {
    const bool again = config[3] == 1;
    const Served found = Serve(isa, config, num_tokens, again);
    total += found.num_tokens;
    ExpectSame(expected, found, Describe(config) + (again ? ", second time" : ""));
    if (HasFatalFailure()) {
      return;
    }
  }
  RecordProperty("tokens", total);
  std::printf("%s %s: %d generated tokens with equal logits\n", std::string(NameOf(dtype)).c_str(),
              std::string(kernels::NameOf(isa)).c_str(), total);
}

TEST_P(ExactnessTest, LogitsAreThoseOfTheScalarPath) {
  const kernels::Isa isa = std::get<1>(GetParam());
  ExpectSame(Serve(kernels::Isa::kScalar, {}, 4, false), Serve(isa, {0, 1, 2, 1, 1}, 4, false),
             std::string(NameOf(isa)));
}

INSTANTIATE_TEST_SUITE_P(EveryPath, ExactnessTest,
                         ::testing::Combine(::testing::Values(DType::kF32, DType::kBf16),
                                            ::testing::ValuesIn(kernels::SupportedIsas())),
                         [](const auto& param) {
                           std::string name(NameOf(std::get<0>(param.param)));
                           for (const char c : kernels::NameOf(std::get<1>(param.param))) {
                             name += c == '-' ? '_' : c;
                           }
                           return name;
                         });

}  // namespace
}  // namespace conclave
