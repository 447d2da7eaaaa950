// Goal: what is stored is what is read: names, shapes, dtypes and values, before and after pages
// were released. Method: small models written with known values.
#include "conclave/checkpoint/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "conclave/base/status.h"
#include "conclave/base/thread_pool.h"
#include "small_model.h"

namespace conclave::checkpoint {
namespace {

namespace fs = std::filesystem;
using ::testing::Contains;
using ::testing::HasSubstr;

class CheckpointTest : public ::testing::Test {
 protected:
  CheckpointTest() {
    SmallModel().WriteConfigs(folder_.path());
    tensors_ = SmallModel::Tensors(folder_.path());
  }

  std::unique_ptr<Checkpoint> Open(const OpenOptions& options = {}) {
    WriteWeights(folder_.path(), tensors_);
    auto checkpoint = Checkpoint::Open(folder_.path(), options);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return checkpoint.ok() ? *std::move(checkpoint) : nullptr;
  }

  TemporaryFolder folder_;
  std::vector<TensorValues> tensors_;
};

TEST_F(CheckpointTest, TensorsAreSortedAndFound) {
  const auto checkpoint = Open();
  ASSERT_NE(checkpoint, nullptr);
  const auto tensors = checkpoint->tensors();
  ASSERT_EQ(tensors.size(), tensors_.size());
  for (size_t i = 1; i < tensors.size(); ++i) {
    EXPECT_LT(tensors[i - 1].name, tensors[i].name);
  }
  for (const TensorValues& stored : tensors_) {
    const TensorView* view = checkpoint->Find(stored.spec.name);
    ASSERT_NE(view, nullptr) << stored.spec.name;
    EXPECT_EQ(view->shape, stored.spec.shape);
    EXPECT_EQ(view->dtype, stored.spec.dtype);
    EXPECT_EQ(view->file, "model.safetensors");
    EXPECT_EQ(reinterpret_cast<uintptr_t>(view->bytes.data()) % SizeOf(view->dtype), 0u);
  }
  EXPECT_EQ(checkpoint->Find("model.norm"), nullptr);
  EXPECT_EQ(checkpoint->Find(""), nullptr);
}

// Every 16-bit pattern and random f32 ones, on a thread that flushes denormals, as compute threads
// do.
TEST_F(CheckpointTest, ToFloatsIsExactForEveryPattern) {
  const uint32_t seed = 20240601;
  std::mt19937 random(seed);
  std::vector<float> f32(100'003);
  for (float& value : f32) {
    do {
      value = __builtin_bit_cast(float, static_cast<uint32_t>(random()));
    } while (!std::isfinite(value));
  }
  std::vector<float> bf16;
  std::vector<float> f16;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float wide = ToFloat(Bf16{static_cast<uint16_t>(bits)});
    // ToBf16 flushes denormals, so the writer cannot store those.
    if (std::isfinite(wide) && (wide == 0 || std::abs(wide) >= 0x1p-126f)) bf16.push_back(wide);
    const float half = HalfToFloat(static_cast<uint16_t>(bits));
    if (std::isfinite(half)) f16.push_back(half);
  }
  ASSERT_GT(bf16.size(), 65000u);
  ASSERT_GT(f16.size(), 63000u);
  const auto add = [this](const char* name, DType dtype, const std::vector<float>& values) {
    tensors_.push_back({{name, dtype, {static_cast<int64_t>(values.size())}}, values});
  };
  add("a32", DType::kF32, f32);
  add("b16", DType::kBf16, bf16);
  add("h16", DType::kF16, f16);
  const auto checkpoint = Open();
  ASSERT_NE(checkpoint, nullptr);
  const auto expect_same_bits = [&](const char* name, const std::vector<float>& values) {
    absl::StatusOr<std::vector<float>> read = std::vector<float>();
    {
      const DenormalsOff denormals_off;
      read = ToFloats(*checkpoint->Find(name));
    }
    ASSERT_TRUE(read.ok()) << read.status();
    ASSERT_EQ(read->size(), values.size());
    for (size_t i = 0; i < values.size(); ++i) {
      ASSERT_EQ(__builtin_bit_cast(uint32_t, (*read)[i]), __builtin_bit_cast(uint32_t, values[i]))
          << name << "[" << i << "], seed " << seed;
    }
  };
  expect_same_bits("a32", f32);
  expect_same_bits("b16", bf16);
  expect_same_bits("h16", f16);
}

TEST_F(CheckpointTest, RequireGivesTheTensorOfThatShapeOnly) {
  const auto checkpoint = Open();
  ASSERT_NE(checkpoint, nullptr);
  const int64_t right[] = {24, 16};
  const int64_t transposed[] = {16, 24};
  EXPECT_TRUE(checkpoint->Require("lm_head.weight", right).ok());
  const absl::Status wrong = checkpoint->Require("lm_head.weight", transposed).status();
  EXPECT_EQ(ReasonOf(wrong), "tensor_shape_mismatch");
  EXPECT_THAT(MessageOf(wrong), HasSubstr("model.safetensors: tensor lm_head.weight: wrong shape; "
                                          "expected [16, 24], found [24, 16]"));
  EXPECT_EQ(ReasonOf(checkpoint->Require("lm_head.bias", right).status()), "tensor_missing");
}

TEST_F(CheckpointTest, ReleasedTensorsCanStillBeRead) {
  std::vector<float> large(300'000);
  for (size_t i = 0; i < large.size(); ++i) {
    large[i] = static_cast<float>(i);
  }
  tensors_.push_back({{"large", DType::kF32, {300, 1000}}, large});
  const auto checkpoint = Open();
  ASSERT_NE(checkpoint, nullptr);
  const int64_t shape[] = {300, 1000};
  const auto tensor = checkpoint->Require("large", shape);
  ASSERT_TRUE(tensor.ok());
  EXPECT_EQ(*ToFloats(*tensor), large);
  checkpoint->Release(*tensor);
  EXPECT_EQ(*ToFloats(*tensor), large);
  for (const TensorView& other : checkpoint->tensors()) {
    checkpoint->Release(other);
  }
  EXPECT_EQ(*ToFloats(*tensor), large);
  EXPECT_TRUE(checkpoint->VerifyUnchanged().ok());
}

TEST_F(CheckpointTest, TowerFolderReplacesTheTowersWeights) {
  const TemporaryFolder tower;
  SmallModel model;
  WriteFile(tower / "config.json", "{\"vision_config\":" + model.vision.Text() + "}");
  WriteFile(tower / "preprocessor_config.json", model.preprocessor.Text());
  const std::string root = "model.image_tower.image_tower.";
  std::vector<TensorValues> own;
  for (TensorValues tensor : tensors_) {
    if (tensor.spec.name.starts_with(root)) {
      tensor.spec.name = tensor.spec.name.substr(root.size());
      tensor.values.assign(tensor.values.size(), 0.5f);
      own.push_back(tensor);
    }
  }
  own.push_back({{"text_model.final_layer_norm.weight", DType::kF32, {2}}, {1, 2}});
  WriteWeights(tower.path(), own);
  const auto checkpoint = Open({.vision_tower = tower.path()});
  ASSERT_NE(checkpoint, nullptr);
  const auto values = ToFloats(*checkpoint->Find(root + "vision_model.embeddings.class_embedding"));
  ASSERT_TRUE(values.ok());
  EXPECT_THAT(*values, ::testing::Each(0.5f));
  EXPECT_THAT(*ToFloats(*checkpoint->Find("lm_head.weight")), ::testing::Each(0.25f));
  EXPECT_EQ(checkpoint->tensors().size(), tensors_.size());
}

TEST_F(CheckpointTest, TowerFolderWithoutWeightsGivesGeometryAndAWarning) {
  const TemporaryFolder tower;
  SmallModel model;
  WriteFile(tower / "config.json", "{\"vision_config\":" + model.vision.Text() + "}");
  WriteFile(tower / "preprocessor_config.json", model.preprocessor.Text());
  const auto checkpoint = Open({.vision_tower = tower.path()});
  ASSERT_NE(checkpoint, nullptr);
  EXPECT_THAT(checkpoint->desc().warnings,
              Contains(HasSubstr("no weights; the tower's are the checkpoint's own")));
}

// A checkpoint without its tower takes the one that lies beside it under the name of the config.
TEST_F(CheckpointTest, TowerBesideTheCheckpointServesWhenItHasNone) {
  SmallModel model;
  model.has_vision_config = false;
  model.config.Set("mm_image_tower", "\"tower\"");
  fs::create_directory(folder_ / "tower");
  WriteFile(folder_ / "tower/config.json", "{\"vision_config\":" + model.vision.Text() + "}");
  WriteFile(folder_ / "tower/preprocessor_config.json", model.preprocessor.Text());
  model.WriteConfigs(folder_.path());
  const std::string prefix = "model.image_tower.image_tower.";
  std::vector<TensorValues> tower;
  tensors_.clear();
  for (TensorValues& tensor : SmallModel::Tensors(folder_.path())) {
    if (tensor.spec.name.starts_with(prefix)) {
      tensor.spec.name.erase(0, prefix.size());
      tower.push_back(std::move(tensor));
    } else {
      tensors_.push_back(std::move(tensor));
    }
  }
  WriteWeights(folder_.path(), tensors_);
  EXPECT_EQ(ReasonOf(Checkpoint::Open(folder_.path()).status()), "tensor_missing");
  WriteWeights((folder_ / "tower").string(), tower);
  const auto checkpoint = Open();
  ASSERT_NE(checkpoint, nullptr);
  const TensorView* tensor = checkpoint->Find(prefix + "vision_model.pre_layrnorm.weight");
  ASSERT_NE(tensor, nullptr);
}

// One matrix for embedding and head, stored under either name or under both.
TEST_F(CheckpointTest, TiedHeadIsStoredUnderEitherName) {
  SmallModel model;
  model.config.Set("tie_word_embeddings", "true");
  model.WriteConfigs(folder_.path());
  tensors_ = SmallModel::Tensors(folder_.path());
  const auto embed = std::find_if(tensors_.begin(), tensors_.end(), [](const TensorValues& t) {
    return t.spec.name == "model.embed_tokens.weight";
  });
  ASSERT_NE(embed, tensors_.end());
  TensorValues head = *embed;
  head.spec.name = "lm_head.weight";
  tensors_.push_back(head);
  auto both = Open();
  ASSERT_NE(both, nullptr);
  EXPECT_EQ(both->desc().names.lm_head, "model.embed_tokens.weight");
  EXPECT_TRUE(both->desc().warnings.empty());
  std::erase_if(tensors_,
                [](const TensorValues& t) { return t.spec.name == "model.embed_tokens.weight"; });
  auto alone = Open();
  ASSERT_NE(alone, nullptr);
  EXPECT_EQ(alone->desc().names.embed, "lm_head.weight");
  EXPECT_EQ(alone->desc().names.lm_head, "lm_head.weight");
  EXPECT_TRUE(alone->desc().warnings.empty());
}

TEST_F(CheckpointTest, MissingHeadOfAnUntiedModelSaysWhatToChange) {
  std::vector<TensorValues> tensors = SmallModel::Tensors(folder_.path());
  std::erase_if(tensors, [](const TensorValues& t) { return t.spec.name == "lm_head.weight"; });
  WriteWeights(folder_.path(), tensors);
  const absl::Status status = Checkpoint::Open(folder_.path()).status();
  EXPECT_EQ(ReasonOf(status), "tensor_missing");
  EXPECT_THAT(MessageOf(status), HasSubstr("tie_word_embeddings"));
}

TEST_F(CheckpointTest, WriterRefusesToOverwrite) {
  WriteWeights(folder_.path(), tensors_);
  const absl::Status status = SaveSafetensors((folder_ / "model.safetensors").string(), tensors_);
  EXPECT_EQ(ReasonOf(status), "file_write_error");
  EXPECT_THAT(MessageOf(status), HasSubstr("model.safetensors"));
}

}  // namespace
}  // namespace conclave::checkpoint
