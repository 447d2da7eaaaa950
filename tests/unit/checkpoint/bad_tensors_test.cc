// Goal: tensors that do not fit the model are refused by name; those that merely are there besides
// it are not. Method: rows C08 to C10, C19, C21 and C22 of the bad-input catalogue: a small model's
// tensors, changed one by one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "bad_checkpoint.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/checkpoint/safetensors_writer.h"
#include "small_model.h"

namespace conclave::checkpoint {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST_F(BadCheckpoint, C08_scalar_and_empty_in_place_of_a_vector) {
  for (const std::vector<int64_t>& shape : {std::vector<int64_t>{}, std::vector<int64_t>{0}}) {
    std::vector<TensorValues> tensors = SmallModel::Tensors(folder_.path());
    for (TensorValues& tensor : tensors) {
      if (tensor.spec.name == "model.norm.weight") {
        tensor.spec.shape = shape;
        tensor.values.resize(static_cast<size_t>(tensor.spec.num_elements()));
      }
    }
    WriteWeights(folder_.path(), tensors);
    ExpectRefusedWith("tensor_shape_mismatch", {kWeights, "model.norm.weight", "expected [16]"});
  }
}

TEST_F(BadCheckpoint, C08_scalar_and_empty_beside_the_model_are_fine) {
  std::vector<TensorValues> tensors = SmallModel::Tensors(folder_.path());
  tensors.push_back({{"scalar", DType::kF32, {}}, {1.0f}});
  tensors.push_back({{"empty", DType::kF32, {0, 3}}, {}});
  WriteWeights(folder_.path(), tensors);
  const auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->Find("scalar")->num_elements(), 1);
  EXPECT_EQ((*checkpoint)->Find("empty")->bytes.size(), 0u);
}

// Each needed tensor in turn is left out, then stored transposed or longer by one.
TEST_F(BadCheckpoint, C09_each_needed_tensor_missing) {
  const std::vector<TensorValues> good = SmallModel::Tensors(folder_.path());
  for (size_t i = 0; i < good.size(); ++i) {
    const std::string& name = good[i].spec.name;
    // Of the tower: the layer behind the selected one and the norm after it.
    const bool is_unused = name.find("post_layernorm") != std::string::npos ||
                           name.find("encoder.layers.2.") != std::string::npos;
    std::vector<TensorValues> tensors = good;
    tensors.erase(tensors.begin() + static_cast<int64_t>(i));
    WriteWeights(folder_.path(), tensors);
    if (is_unused) {
      EXPECT_TRUE(Open(folder_.path()).ok()) << name << ": " << Open(folder_.path());
    } else {
      ExpectRefusedWith("tensor_missing", {name, "expected shape"});
    }
  }
}

TEST_F(BadCheckpoint, C09_each_tensor_of_a_wrong_shape) {
  const std::vector<TensorValues> good = SmallModel::Tensors(folder_.path());
  for (size_t i = 0; i < good.size(); ++i) {
    std::vector<TensorValues> tensors = good;
    TensorSpec& spec = tensors[i].spec;
    std::reverse(spec.shape.begin(), spec.shape.end());
    if (spec.shape == good[i].spec.shape) {  // Square, or a vector.
      ++spec.shape[0];
      tensors[i].values.resize(static_cast<size_t>(spec.num_elements()));
    }
    WriteWeights(folder_.path(), tensors);
    ExpectRefusedWith("tensor_shape_mismatch", {kWeights, spec.name, "expected [", "found ["});
  }
}

TEST_F(BadCheckpoint, C09_extra_tensor_is_a_warning) {
  std::vector<TensorValues> tensors = SmallModel::Tensors(folder_.path());
  tensors.push_back({{"model.something.else", DType::kF32, {2}}, {1, 2}});
  tensors.push_back({{"model.layers.0.self_attn.rotary_emb.inv_freq", DType::kF32, {2}}, {1, 2}});
  WriteWeights(folder_.path(), tensors);
  const auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT((*checkpoint)->desc().warnings,
              ::testing::ElementsAre(AllOf(HasSubstr("1 stored tensors are not used"),
                                           HasSubstr("model.something.else"))));
}

TEST_F(BadCheckpoint, C09_integers_in_place_of_numbers) {
  std::string bytes = ReadFile(folder_ / kWeights);
  const std::string good = "\"lm_head.weight\":{\"dtype\":\"BF16\"";
  const size_t at = bytes.find(good);
  ASSERT_NE(at, std::string::npos);
  bytes.replace(at, good.size(), "\"lm_head.weight\":{\"dtype\":\"I16\" ");
  WriteFile(folder_ / kWeights, bytes);
  ExpectRefusedWith("tensor_dtype", {kWeights, "lm_head.weight", "i16"});
}

TEST_F(BadCheckpoint, C10_nonfinite) {
  for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF16}) {
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
          -std::numeric_limits<float>::infinity()}) {
      std::vector<TensorValues> tensors = SmallModel::Tensors(folder_.path());
      tensors.push_back({{"bad", dtype, {200}}, std::vector<float>(200, 1.0f)});
      tensors.back().values[131] = bad;
      WriteWeights(folder_.path(), tensors);
      const auto checkpoint = Checkpoint::Open(folder_.path());
      ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
      ExpectRefused(ToFloats(*(*checkpoint)->Find("bad")).status(), "tensor_nonfinite",
                    {kWeights, "tensor bad", "element 131", std::isnan(bad) ? "NaN" : "infinity"});
    }
  }
}

TEST_F(BadCheckpoint, C10_zeros_and_denormals_are_values) {
  std::vector<TensorValues> tensors = SmallModel::Tensors(folder_.path());
  tensors.push_back({{"odd", DType::kF32, {3}}, {0.0f, 1e-40f, -0.0f}});
  tensors.push_back({{"half", DType::kF16, {2}}, {6e-8f, 0.0f}});
  WriteWeights(folder_.path(), tensors);
  const auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT(*ToFloats(*(*checkpoint)->Find("odd")), ::testing::ElementsAre(0.0f, 1e-40f, -0.0f));
  EXPECT_THAT(*ToFloats(*(*checkpoint)->Find("half")), ::testing::ElementsAre(0x1p-24f, 0.0f));
}

TEST_F(BadCheckpoint, C22_mixed_dtypes_are_accepted) {
  std::vector<TensorValues> tensors = SmallModel::Tensors(folder_.path());
  const DType dtypes[] = {DType::kF32, DType::kBf16, DType::kF16};
  for (size_t i = 0; i < tensors.size(); ++i) {
    tensors[i].spec.dtype = dtypes[i % 3];
  }
  WriteWeights(folder_.path(), tensors);
  EXPECT_TRUE(Open(folder_.path()).ok()) << Open(folder_.path());
}

TEST_F(BadCheckpoint, C21_more_tower_layers_than_the_config_says) {
  std::vector<TensorValues> tensors = SmallModel::Tensors(folder_.path());
  const std::string name =
      "model.image_tower.image_tower.vision_model.encoder.layers.3.layer_norm1.bias";
  tensors.push_back({{name, DType::kF32, {8}}, std::vector<float>(8, 0.0f)});
  WriteWeights(folder_.path(), tensors);
  ExpectRefusedWith("config_vision", {kWeights, name, "num_hidden_layers 3"});
}

TEST_F(BadCheckpoint, C19_use_residual_without_its_tensors) {
  SmallModel model;
  model.moe.Set("use_residual", "true");
  model.WriteConfigs(folder_.path());
  ExpectRefusedWith("config_moe", {"use_residual", "model.layers.0.mlp.mlp.gate_proj.weight"});
}

// A sharded copy of the small model with two shards.

}  // namespace
}  // namespace conclave::checkpoint
