#include "exactness.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <set>

#include "conclave/base/clock.h"
#include "conclave/base/thread_pool.h"

namespace conclave::testing {
namespace {

class Recorder : public frontend::EngineObserver {
 public:
  void OnStep(const Step& step) override {
    mixed_steps += step.decode_rows > 0 && step.prefill_rows > 0 ? 1 : 0;
    divided_steps += step.is_divided ? 1 : 0;
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
  int divided_steps = 0;
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

void RunAll(const std::vector<frontend::SequenceRequest>& requests, frontend::Engine& engine,
            Served& served) {
  absl::Status status;
  served.features.clear();
  for (const frontend::SequenceRequest& request : requests) {
    for (const auto& features : request.images) {
      served.features.push_back(features->rows);
    }
    const auto id = engine.Submit(request, std::make_shared<NullSink>(status));
    EXPECT_TRUE(id.ok()) << id.status();
    engine.Step();
    engine.Step();
  }
  while (engine.Step()) {
  }
  EXPECT_TRUE(status.ok()) << status;
}

}  // namespace

std::string Describe(const Config& c) {
  return std::to_string(kWorkers[c[0]]) + " workers, " + std::to_string(kThreads[c[1]]) +
         " threads, " + std::to_string(kTogether[c[2]]) + " together, chunk " +
         std::to_string(kChunks[c[3]]) + (kFrames[c[4]] ? ", frames" : ", no frames") +
         (c[5] == 1 ? ", two micro-batches" : "");
}

std::vector<kernels::Isa> PathsToServe() {
  std::vector<kernels::Isa> paths = kernels::SupportedIsas();
#ifdef CONCLAVE_SANITIZED
  if (paths.size() > 1) {
    paths.erase(paths.begin());
  }
#endif
  return paths;
}

// Greedy choice from the full product.
std::vector<Config> CoveringConfigs() {
  const Config sizes = {3, 2, 3, 3, 2, 2};
  std::vector<Config> all;
  Config c{};
  for (c[0] = 0; c[0] < sizes[0]; ++c[0]) {
    for (c[1] = 0; c[1] < sizes[1]; ++c[1]) {
      for (c[2] = 0; c[2] < sizes[2]; ++c[2]) {
        for (c[3] = 0; c[3] < sizes[3]; ++c[3]) {
          for (c[4] = 0; c[4] < sizes[4]; ++c[4]) {
            for (c[5] = 0; c[5] < sizes[5]; ++c[5]) {
              all.push_back(c);
            }
          }
        }
      }
    }
  }
  const auto pairs_of = [](const Config& config) {
    std::set<std::array<int, 4>> pairs;
    for (int a = 0; a < 6; ++a) {
      for (int b = a + 1; b < 6; ++b) {
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

Served Serve(const ServeOptions& options, const RequestsOf& requests_of) {
  const Config& config = options.config;
  ThreadPool pool(kThreads[config[1]]);
  auto model = cli::Assembly::Open(options.folder);
  EXPECT_TRUE(model.ok()) << model.status();
  if (!model.ok()) {
    return {};
  }
  frontend::EngineOptions engine_options;
  engine_options.max_num_seqs = kTogether[config[2]];
  engine_options.prefill_chunk = kChunks[config[3]];
  engine_options.prefill_chunk_mixed = kChunks[config[3]];
  engine_options.max_model_len = std::min((*model)->desc().max_positions, 512);
  engine_options.kv_bytes = int64_t{32} << 20;
  engine_options.micro_batches = kMicroBatching[config[5]];
  cli::AssemblyOptions load;
  load.dtype = options.dtype;
  load.compute = kernels::Context(options.isa, pool);
  load.num_workers = kWorkers[config[0]];
  load.use_frames = kFrames[config[4]];
  load.max_rows = frontend::MaxStepRows(engine_options);
  load.max_logit_rows = engine_options.max_num_seqs;
  const absl::Status loaded = (*model)->Load(load, nullptr);
  EXPECT_TRUE(loaded.ok()) << loaded;
  if (!loaded.ok()) {
    return {};
  }
  Recorder recorder;
  frontend::Engine engine(engine_options, *(*model)->decoder, *(*model)->dispatcher,
                          (*model)->tokenizer->size(), Clock::Real(), &recorder);
  const std::vector<frontend::SequenceRequest> requests = requests_of(**model);
  Served served;
  RunAll(requests, engine, served);
  if (options.again) {
    recorder.logits.clear();
    RunAll(requests, engine, served);
    EXPECT_GT(recorder.cached_rows, 0) << "no KV block was reused";
  }
  if (kTogether[config[2]] > 1) {
    EXPECT_GT(recorder.mixed_steps, 0) << "no step mixed prefill and decode";
  }
  EXPECT_EQ(recorder.divided_steps > 0, config[5] == 1);
  for (auto& [id, rows] : recorder.logits) {
    served.num_tokens += static_cast<int>(rows.size());
    served.logits.push_back(std::move(rows));
  }
  return served;
}

void ExpectSame(const Served& expected, const Served& found, const std::string& what) {
  ASSERT_EQ(expected.logits.size(), found.logits.size()) << what;
  for (size_t q = 0; q < expected.logits.size(); ++q) {
    ASSERT_EQ(expected.logits[q].size(), found.logits[q].size()) << what << ": request " << q;
    for (size_t t = 0; t < expected.logits[q].size(); ++t) {
      const std::vector<float>& a = expected.logits[q][t];
      const std::vector<float>& b = found.logits[q][t];
      ASSERT_EQ(a.size(), b.size());
      ASSERT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0)
          << what << ": request " << q << ", token " << t;
    }
  }
  ASSERT_EQ(expected.features, found.features) << what << ": image features";
}

}  // namespace conclave::testing
