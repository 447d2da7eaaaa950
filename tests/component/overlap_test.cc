// Goal: in a parallel block the experts are asked before attention runs and awaited after it; in a
// sequential block, whose experts need attention's result, nothing comes between, unless a step is
// divided: then each micro-batch attends while the experts have the other.
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
  void Start(int32_t micro_batch, int32_t layer, MatView<const float> n,
             std::span<const model::StepRow> rows, const model::GateChoice& choice,
             MatView<float> out) override {
    notes += micro_batch == 0 ? 's' : 'S';
    inner_.Start(micro_batch, layer, n, rows, choice, out);
  }
  void Poll() override {
    notes += 'p';
    inner_.Poll();
  }
  absl::Status Finish(int32_t micro_batch) override {
    notes += micro_batch == 0 ? 'f' : 'F';
    return inner_.Finish(micro_batch);
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

// What the executor noted in the one step of a prompt: s, f start and end of the first micro-batch,
// S, F of the second, p a look between.
std::string NotesOf(const std::string& like, bool has_residual,
                    frontend::MicroBatching micro_batches) {
  testing::TempFolder temp;
  ThreadPool pool(1);
  checkpoint::SynthOptions options;
  options.like = like;
  options.variant.use_residual = has_residual;
  options.folder = temp.path() + "/model";
  EXPECT_TRUE(checkpoint::Synthesize(options, pool).ok());
  auto model = cli::Assembly::Open(options.folder);
  EXPECT_TRUE(model.ok()) << model.status();
  frontend::EngineOptions engine_options;
  engine_options.max_num_seqs = 1;
  engine_options.max_model_len = 64;
  engine_options.kv_bytes = int64_t{8} << 20;
  engine_options.micro_batches = micro_batches;
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
  return experts.notes;
}

// What every MoE layer of the model adds to the notes.
std::string FourTimes(const std::string& notes) { return notes + notes + notes + notes; }

TEST(OverlapTest, AParallelBlockAttendsWhileExpertsCompute) {
  EXPECT_EQ(NotesOf("tiny-phi", false, frontend::MicroBatching::kOne), FourTimes("sppf"));
}

TEST(OverlapTest, ASequentialBlockWaitsAtOnce) {
  EXPECT_EQ(NotesOf("tiny-qwen", false, frontend::MicroBatching::kOne), FourTimes("sf"));
  EXPECT_EQ(NotesOf("tiny", true, frontend::MicroBatching::kOne), FourTimes("sf"));
}

TEST(OverlapTest, OneMicroBatchAttendsWhileExpertsHaveTheOther) {
  // A dense layer follows every MoE layer: the first micro-batch attends in it while the second is
  // still away.
  EXPECT_EQ(NotesOf("tiny-qwen", false, frontend::MicroBatching::kTwo), FourTimes("sppSfppF"));
  EXPECT_EQ(NotesOf("tiny", true, frontend::MicroBatching::kTwo), FourTimes("sppSfppF"));
  EXPECT_EQ(NotesOf("tiny-phi", false, frontend::MicroBatching::kTwo), FourTimes("sppSppfppF"));
}

}  // namespace
}  // namespace conclave
