// Goal: checkpoints as the original writes them, and the shipped demo, are read as what they are.
// Method: the recorded tiny checkpoints of tests/golden/data and models/demo; descriptions are
// compared with what the case files and the demo's card say, tensors with the list that the
// description implies.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <string>

#include "conclave/checkpoint/checkpoint.h"
#include "conclave/checkpoint/model_summary.h"
#include "conclave/checkpoint/tensor_list.h"

namespace conclave::checkpoint {
namespace {

using ::testing::IsEmpty;

std::unique_ptr<Checkpoint> OpenFolder(const std::string& folder, const OpenOptions& options = {}) {
  auto checkpoint = Checkpoint::Open(std::string(CONCLAVE_SOURCE_DIR) + "/" + folder, options);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return checkpoint.ok() ? *std::move(checkpoint) : nullptr;
}

std::string CaseFolder(const std::string& id) { return "tests/golden/data/cases/" + id; }

// Every implied tensor is there, nothing else is, and all values are finite.
void ExpectComplete(const Checkpoint& checkpoint) {
  const std::vector<ExpectedTensor> list = ExpectedTensors(checkpoint.desc());
  EXPECT_EQ(list.size(), checkpoint.tensors().size());
  for (const ExpectedTensor& expected : list) {
    const auto tensor = checkpoint.Require(expected.name, expected.shape);
    ASSERT_TRUE(tensor.ok()) << tensor.status();
    const auto values = ToFloats(*tensor);
    ASSERT_TRUE(values.ok()) << values.status();
    EXPECT_EQ(static_cast<int64_t>(values->size()), expected.num_elements());
  }
  EXPECT_THAT(checkpoint.desc().warnings, IsEmpty());
  EXPECT_TRUE(checkpoint.VerifyUnchanged().ok());
}

// Whatever cases are recorded: they open without a warning, and the tower that the original read
// from its own folder is the one inside the checkpoint.
TEST(GoldenCheckpoint, EveryCase) {
  namespace fs = std::filesystem;
  int num_cases = 0;
  const fs::path cases = fs::path(CONCLAVE_SOURCE_DIR) / "tests/golden/data/cases";
  for (const auto& entry : fs::directory_iterator(cases)) {
    const std::string id = entry.path().filename().string();
    SCOPED_TRACE(id);
    const auto own = OpenFolder(CaseFolder(id) + "/checkpoint");
    ASSERT_NE(own, nullptr);
    ExpectComplete(*own);
    const auto other =
        OpenFolder(CaseFolder(id) + "/checkpoint", {.vision_tower = own->desc().vision.folder});
    ASSERT_NE(other, nullptr);
    const std::string& tower = own->desc().names.tower;
    int num_compared = 0;
    for (const TensorView& tensor : own->tensors()) {
      if (tensor.name.starts_with(tower)) {
        const auto a = ToFloats(tensor);
        const auto b = ToFloats(*other->Find(tensor.name));
        ASSERT_TRUE(a.ok() && b.ok());
        for (size_t i = 0; i < a->size(); ++i) {
          // bf16 in the checkpoint against the original's.
          ASSERT_NEAR((*a)[i], (*b)[i], 0.01f * std::abs((*b)[i]) + 1e-6f) << tensor.name << i;
        }
        ++num_compared;
      }
    }
    EXPECT_GT(num_compared, 50);
    ++num_cases;
  }
  EXPECT_GE(num_cases, 3);
}

TEST(GoldenCheckpoint, StablelmClip) {
  const auto checkpoint = OpenFolder(CaseFolder("stablelm-clip/checkpoint"));
  ASSERT_NE(checkpoint, nullptr);
  ExpectComplete(*checkpoint);
  const ModelDesc& desc = checkpoint->desc();
  EXPECT_EQ(desc.hidden_dim, 64);
  EXPECT_EQ(desc.attention.head_dim, 16);
  EXPECT_EQ(desc.attention.rope.rotary_dim, 4);
  EXPECT_EQ(desc.vocab_rows, 704);
  EXPECT_EQ(desc.eos_token, 601);
  EXPECT_EQ(desc.moe.layers.size(), 2u);
  EXPECT_EQ(desc.moe.layers[1].layer, 2);
  EXPECT_EQ(desc.vision.kind, TowerKind::kClip);
  EXPECT_EQ(desc.vision.num_heads, 4) << "from the tower's folder beside the checkpoint";
  EXPECT_EQ(desc.vision.num_layers_run, 3);
  EXPECT_EQ(desc.splice.tokens_per_image, 16);
  EXPECT_EQ(checkpoint->Find("model.layers.0.mlp.deepspeed_moe.gate.wg.weight")->dtype,
            DType::kF32);
  EXPECT_EQ(checkpoint->Find("lm_head.weight")->dtype, DType::kBf16);
  EXPECT_EQ(checkpoint->Find("lm_head.weight")->file, "model-00003-of-00003.safetensors");
}

TEST(GoldenCheckpoint, Qwen15Siglip) {
  const auto checkpoint = OpenFolder(CaseFolder("qwen1.5-siglip/checkpoint"));
  ASSERT_NE(checkpoint, nullptr);
  ExpectComplete(*checkpoint);
  const ModelDesc& desc = checkpoint->desc();
  EXPECT_EQ(desc.vision.kind, TowerKind::kSiglip);
  EXPECT_EQ(desc.vision.num_patches(), 9);
  EXPECT_EQ(desc.splice.tokens_per_image, 8);
  EXPECT_EQ(desc.vision.hidden_dim, 54);
  EXPECT_EQ(desc.vision.num_heads, 3);
  EXPECT_FLOAT_EQ(desc.vision.norm_eps, 1e-6f);
  EXPECT_EQ(desc.vision.mean[0], 0.5f);
  EXPECT_EQ(desc.stored_dtype, DType::kBf16);
  EXPECT_TRUE(desc.attention.has_qkv_bias);
  EXPECT_EQ(desc.vision.fit, ImageFit::kStretch);
}

TEST(GoldenCheckpoint, StablelmIdentity) {
  const auto checkpoint = OpenFolder(CaseFolder("stablelm-identity/checkpoint"));
  ASSERT_NE(checkpoint, nullptr);
  ExpectComplete(*checkpoint);
  const ModelDesc& desc = checkpoint->desc();
  EXPECT_EQ(desc.projector.kind, ProjectorKind::kIdentity);
  EXPECT_EQ(desc.vision.num_layers_run, 4);
  EXPECT_FALSE(desc.vision.drops_first_row);
  EXPECT_EQ(desc.splice.tokens_per_image, 17);
}

TEST(GoldenCheckpoint, Demo) {
  const auto checkpoint = OpenFolder("models/demo");
  ASSERT_NE(checkpoint, nullptr);
  ExpectComplete(*checkpoint);
  const ModelDesc& desc = checkpoint->desc();
  EXPECT_EQ(desc.served_name, "demo");
  EXPECT_EQ(desc.hidden_dim, 128);
  EXPECT_EQ(desc.attention.rope.theta, 100.0f);
  EXPECT_EQ(desc.max_positions, 512);
  EXPECT_EQ(desc.eos_token, 576);
  EXPECT_EQ(desc.vision.image_size, 72);
  EXPECT_EQ(desc.splice.tokens_per_image, 36);
  const ModelSummary summary = Summarize(*checkpoint, 2);
  EXPECT_EQ(summary.bytes.experts, 2 * 4 * 245'760);
  EXPECT_EQ(summary.workers[0].num_experts, 4);
}

}  // namespace
}  // namespace conclave::checkpoint
