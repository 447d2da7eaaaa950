// Goal: in a parallel block the experts are asked before attention runs and awaited after it; in a
// sequential block, whose experts need attention's result, nothing comes between.
// Method: a synthetic model of each kind; an executor that notes when it is started, polled and
// finished, around the real one.
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "assembly.h"
#include "conclave/base/thread_pool.h"
#include "conclave/checkpoint/synth.h"
#include "conclave/frontend/engine.h"
#include "conclave/testing/temp_folder.h"

namespace conclave {
namespace {

class NotingExperts : public model::MoeExecutor {
 public:
  explicit NotingExperts(model::MoeExecutor& inner) : inner_(inner) {}
  void Start(int32_t layer, MatView<const float> n, std::span<const model::StepRow> rows,
             const model::GateChoice& choice, MatView<float> out) override {
    notes += 's';
    inner_.Start(layer, n, rows, choice, out);
  }
  void Poll() override {
    notes += 'p';
    inner_.Poll();
  }
  absl::Status Finish() override {
    notes += 'f';
    return inner_.Finish();
  }

  std::string notes;

 private:
  model::MoeExecutor& inner_;
};

class Ended : public frontend::SequenceSink {
 public:
  bool OnToken(const frontend::SequenceToken& /*token*/) override { return true; }
  void OnEnd(frontend::FinishReason /*reason*/, const absl::Status& end,
             const frontend::SequenceStats& /*stats*/) override {
    status = end;
  }

  absl::Status status = absl::UnknownError("not ended");
};

// What the executor noted in the one step of a prompt.
std::string NotesOf(const std::string& like, bool has_residual) {
  testing::TempFolder temp;
  ThreadPool pool(1);
  checkpoint::SynthOptions options;
  options.like = like;
  options.variant.use_residual = has_residual;
  options.folder = temp.path() + "/model";
  EXPECT_TRUE(checkpoint::Synthesize(options, pool).ok());
  auto model = cli::Assembly::Open(options.folder, "");
  EXPECT_TRUE(model.ok()) << model.status();
  frontend::EngineOptions engine_options;
  engine_options.max_num_seqs = 1;
  engine_options.max_model_len = 64;
  engine_options.kv_bytes = int64_t{8} << 20;
  cli::AssemblyOptions load;
  load.compute = kernels::Context(kernels::SupportedIsas().back(), pool);
  load.max_rows = frontend::MaxStepRows(engine_options);
  load.max_logit_rows = 1;
  EXPECT_TRUE((*model)->Load(load, nullptr).ok());
  NotingExperts experts(*(*model)->dispatcher);
  frontend::Engine engine(engine_options, *(*model)->decoder, experts, (*model)->tokenizer->size(),
                          Clock::Real(), nullptr);
  frontend::SequenceRequest request;
  request.tokens = {5, 6, 7, 8};
  request.max_tokens = 1;
  const auto ended = std::make_shared<Ended>();
  EXPECT_TRUE(engine.Submit(std::move(request), ended).ok());
  while (engine.Step()) {
  }
  EXPECT_TRUE(ended->status.ok()) << ended->status;
  std::string expected;
  for (size_t l = 0; l < (*model)->desc().moe.layers.size(); ++l) {
    expected += like == "tiny-phi" ? "sppf" : "sf";
  }
  EXPECT_EQ(experts.notes, expected) << like;
  return experts.notes;
}

TEST(OverlapTest, AParallelBlockAttendsWhileExpertsCompute) {
  EXPECT_FALSE(NotesOf("tiny-phi", false).empty());
}

TEST(OverlapTest, ASequentialBlockWaitsAtOnce) {
  EXPECT_FALSE(NotesOf("tiny-qwen", false).empty());
  EXPECT_FALSE(NotesOf("tiny", true).empty());
}

}  // namespace
}  // namespace conclave
