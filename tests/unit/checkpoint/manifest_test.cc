// Goal: two checkpoints that compute differently have different identities, and one checkpoint has
// one, wherever it lies. Method: a small model with one thing changed at a time.
#include "conclave/checkpoint/manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <string>
#include <utility>

#include "conclave/base/status.h"
#include "conclave/checkpoint/checkpoint.h"
#include "small_model.h"

namespace conclave::checkpoint {
namespace {

namespace fs = std::filesystem;

std::string HashOf(const std::string& folder) {
  const auto checkpoint = Checkpoint::Open(folder);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return checkpoint.ok() ? ManifestHash(**checkpoint) : "";
}

class ManifestTest : public ::testing::Test {
 protected:
  ManifestTest() {
    SmallModel().Write(folder_.path());
    tensors_ = SmallModel::Tensors(folder_.path());
    hashes_.insert(HashOf(folder_.path()));
  }
  // The hash of the folder as it is now is none of those before.
  void ExpectNew(const std::string& what) {
    EXPECT_TRUE(hashes_.insert(HashOf(folder_.path())).second) << what;
  }

  TemporaryFolder folder_;
  std::vector<TensorValues> tensors_;
  std::set<std::string> hashes_;
};

TEST_F(ManifestTest, IsSixtyFourHexDigitsAndTheSameForACopy) {
  const std::string hash = *hashes_.begin();
  EXPECT_THAT(hash, ::testing::MatchesRegex("[0-9a-f]+"));
  EXPECT_EQ(hash.size(), 64u);
  const TemporaryFolder other;
  fs::copy(folder_.path(), other.path(), fs::copy_options::recursive);
  EXPECT_EQ(HashOf(other.path()), hash);
}

TEST_F(ManifestTest, EveryKindOfChangeShows) {
  tensors_[3].values.back() += 1;
  WriteWeights(folder_.path(), tensors_);
  ExpectNew("the last value of a tensor");
  tensors_[3].values.front() += 1;
  WriteWeights(folder_.path(), tensors_);
  ExpectNew("the first value of a tensor");
  tensors_[3].spec.dtype = DType::kF16;
  WriteWeights(folder_.path(), tensors_);
  ExpectNew("the dtype of a tensor");
  SmallModel model;
  model.config.Set("rope_theta", "10001");
  model.WriteConfigs(folder_.path());
  ExpectNew("a key of the config");
}

// What was opened counts, not what lies there later.
TEST_F(ManifestTest, ConfigIsTheOneThatWasOpened) {
  const auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok());
  fs::remove(folder_ / "config.json");
  EXPECT_EQ(ManifestHash(**checkpoint), *hashes_.begin());
}

// Rows C13 and C26 of the bad-input catalogue.
class ManifestFileTest : public ManifestTest {
 protected:
  ManifestFileTest() {
    const auto checkpoint = Checkpoint::Open(folder_.path());
    const auto text = ManifestText(**checkpoint);
    EXPECT_TRUE(text.ok()) << text.status();
    WriteFile(folder_ / kManifestFile, text.ok() ? *text : "");
  }
  absl::Status Open(bool is_required = true) {
    return Checkpoint::Open(folder_.path(), {.require_manifest = is_required}).status();
  }
  // The first error of taking every tensor.
  absl::Status TakeAll() {
    const auto checkpoint = Checkpoint::Open(folder_.path());
    if (!checkpoint.ok()) {
      return checkpoint.status();
    }
    for (const TensorValues& tensor : tensors_) {
      const auto taken = (*checkpoint)->Require(tensor.spec.name, tensor.spec.shape);
      if (!taken.ok()) {
        return taken.status();
      }
    }
    return absl::OkStatus();
  }
  void ExpectMismatch(const absl::Status& status, const std::string& words) {
    EXPECT_EQ(ReasonOf(status), "model_hash_mismatch") << status;
    EXPECT_THAT(MessageOf(status), ::testing::HasSubstr(words));
  }
};

TEST_F(ManifestFileTest, FitsWhatItWasMadeFrom) {
  EXPECT_TRUE(Open().ok()) << Open();
  EXPECT_TRUE(TakeAll().ok()) << TakeAll();
}

TEST_F(ManifestFileTest, C13_absent_though_required) {
  fs::remove(folder_ / kManifestFile);
  ExpectMismatch(Open(), "conclave-manifest.json: missing");
  EXPECT_TRUE(Open(false).ok());
}

TEST_F(ManifestFileTest, C13_one_bit_of_one_tensor) {
  tensors_[5].values[2] += 0.5f;
  WriteWeights(folder_.path(), tensors_);
  ExpectMismatch(TakeAll(), "tensor " + tensors_[5].spec.name + ": not what");
}

TEST_F(ManifestFileTest, C13_another_dtype_or_config) {
  tensors_[5].spec.dtype = DType::kF16;
  WriteWeights(folder_.path(), tensors_);
  ExpectMismatch(TakeAll(), "tensor " + tensors_[5].spec.name);
  SmallModel model;
  model.config.Set("rope_theta", "10001");
  model.WriteConfigs(folder_.path());
  ExpectMismatch(Open(false), "config.json: not what");
}

TEST_F(ManifestFileTest, C26_two_experts_swapped) {
  const auto find = [this](const std::string& name) {
    return std::find_if(tensors_.begin(), tensors_.end(),
                        [&](const TensorValues& t) { return t.spec.name == name; });
  };
  const std::string expert = "model.layers.0.mlp.deepspeed_moe.experts.deepspeed_experts.";
  const auto a = find(expert + "0.up_proj.weight");
  const auto b = find(expert + "1.up_proj.weight");
  ASSERT_TRUE(a != tensors_.end() && b != tensors_.end());
  a->values[0] = 3;
  WriteWeights(folder_.path(), tensors_);
  fs::remove(folder_ / kManifestFile);
  WriteFile(folder_ / "new", *ManifestText(**Checkpoint::Open(folder_.path())));
  fs::rename(folder_ / "new", folder_ / kManifestFile);
  ASSERT_TRUE(TakeAll().ok());
  std::swap(a->values, b->values);
  WriteWeights(folder_.path(), tensors_);
  ExpectMismatch(TakeAll(), expert);
}

TEST_F(ManifestFileTest, C13_no_manifest_at_all) {
  for (const std::string text :
       {"", "[]", "{}", R"({"version": "conclave-manifest-1", "config": 1, "tensors": {}})",
        R"({"version": "2", "config": "", "tensors": {}})",
        R"({"version": "conclave-manifest-1", "config": "", "tensors": {"a": 1}})"}) {
    WriteFile(folder_ / kManifestFile, text);
    ExpectMismatch(Open(), "conclave-manifest.json: ");
  }
}

}  // namespace
}  // namespace conclave::checkpoint
