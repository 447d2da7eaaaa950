// Goal: a packed folder answers with the logits of its checkpoint, byte for byte, in every numeric
// mode, also with a picture.
// Method: the demo is packed and both are served by the engine stepped by hand.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "conclave/base/status.h"
#include "conclave/kernels/matmul.h"
#include "conclave/model/pack.h"
#include "exactness.h"
#include "requests.h"

namespace conclave {
namespace {

namespace fs = std::filesystem;

class PackedTest : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    out_ = fs::temp_directory_path() / ("conclave-packed-" + std::to_string(::getpid()));
    fs::remove_all(out_);
  }
  void TearDown() override { fs::remove_all(out_); }

  absl::Status Pack() const {
    ThreadPool pool(2);
    CONCLAVE_ASSIGN_OR_RETURN(const auto source,
                              checkpoint::Checkpoint::Open(testing::DemoFolder()));
    CONCLAVE_ASSIGN_OR_RETURN(
        checkpoint::PackedWriter writer,
        checkpoint::PackedWriter::Create(*source, {.folder = out_.string(),
                                                   .dtype = GetParam(),
                                                   .panel_revision = kernels::kPanelRevision,
                                                   .progress = nullptr}));
    CONCLAVE_RETURN_IF_ERROR(model::PackModel(*source, GetParam(), pool, writer));
    return writer.Finish();
  }

  testing::Served Serve(const std::string& folder) const {
    const kernels::Isa isa = testing::PathsToServe().back();
    return testing::Serve({folder, GetParam(), isa, {1, 1, 1}, false}, [](cli::Assembly& model) {
      std::vector<frontend::SequenceRequest> requests;
      for (const testing::Question& question : testing::Questions()) {
        frontend::SequenceRequest request;
        request.tokens = testing::PromptIds(model, question);
        request.max_tokens = 4;
        if (!question.picture.empty()) {
          request.images.push_back(testing::Features(model, question.picture));
        }
        requests.push_back(std::move(request));
      }
      return requests;
    });
  }

  fs::path out_;
};

TEST_P(PackedTest, LogitsAreThoseOfTheCheckpoint) {
  const absl::Status packed = Pack();
  ASSERT_TRUE(packed.ok()) << packed;
  testing::ExpectSame(Serve(testing::DemoFolder()), Serve(out_.string()), "packed");
}

INSTANTIATE_TEST_SUITE_P(Modes, PackedTest,
                         ::testing::Values(DType::kF32, DType::kBf16, DType::kQ8),
                         [](const auto& test) { return std::string(NameOf(test.param)); });

}  // namespace
}  // namespace conclave
