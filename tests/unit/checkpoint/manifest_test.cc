// Goal: two checkpoints that compute differently have different identities, and one checkpoint has
// one, wherever it lies. Method: a small model with one thing changed at a time.
#include "conclave/checkpoint/manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <set>
#include <string>

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

}  // namespace
}  // namespace conclave::checkpoint
