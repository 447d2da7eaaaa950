// Goal: an index and its shards agree in everything, or the model is refused.
// Method: row C11 of the bad-input catalogue: a small model in two shards, index or shards changed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "bad_checkpoint.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/checkpoint/safetensors_writer.h"
#include "small_model.h"

namespace conclave::checkpoint {
namespace {

namespace fs = std::filesystem;

class BadShards : public BadCheckpoint {
 protected:
  BadShards() {
    tensors_ = SmallModel::Tensors(folder_.path());
    fs::remove(folder_ / kWeights);
    Write();
    EXPECT_TRUE(Open(folder_.path()).ok()) << Open(folder_.path());
  }

  void Write() {
    fs::remove(folder_ / kShards[0]);
    fs::remove(folder_ / kShards[1]);
    std::vector<TensorValues> parts[2];
    JsonText map;
    int64_t total = 0;
    for (size_t i = 0; i < tensors_.size(); ++i) {
      parts[i % 2].push_back(tensors_[i]);
      map.Set(tensors_[i].spec.name, "\"" + std::string(kShards[i % 2]) + "\"");
      total += tensors_[i].spec.size_bytes();
    }
    ASSERT_TRUE(SaveSafetensors((folder_ / kShards[0]).string(), parts[0]).ok());
    ASSERT_TRUE(SaveSafetensors((folder_ / kShards[1]).string(), parts[1]).ok());
    map_ = map;
    total_ = total;
    WriteIndex();
  }

  void WriteIndex() {
    WriteFile(folder_ / kIndex, "{\"metadata\":{\"total_size\":" + std::to_string(total_) +
                                    "},\"weight_map\":" + map_.Text() + "}");
  }

  static constexpr const char* kShards[2] = {"model-00001-of-00002.safetensors",
                                             "model-00002-of-00002.safetensors"};
  std::vector<TensorValues> tensors_;
  JsonText map_;
  int64_t total_ = 0;
};

TEST_F(BadShards, C11_good_shards_hold_every_tensor) {
  const auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->tensors().size(), tensors_.size());
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const TensorView* tensor = (*checkpoint)->Find(tensors_[i].spec.name);
    ASSERT_NE(tensor, nullptr) << tensors_[i].spec.name;
    EXPECT_EQ(tensor->file, kShards[i % 2]);
  }
}

TEST_F(BadShards, C11_shard_missing) {
  fs::remove(folder_ / kShards[1]);
  ExpectRefusedWith("shard_index", {kIndex, kShards[1], "missing"});
}

TEST_F(BadShards, C11_tensor_in_two_shards) {
  std::vector<TensorValues> second = {tensors_[0]};
  for (size_t i = 1; i < tensors_.size(); i += 2) {
    second.push_back(tensors_[i]);
  }
  fs::remove(folder_ / kShards[1]);
  ASSERT_TRUE(SaveSafetensors((folder_ / kShards[1]).string(), second).ok());
  ExpectRefusedWith("shard_index", {kIndex, tensors_[0].spec.name, kShards[1]});
}

TEST_F(BadShards, C11_tensor_in_another_shard_than_the_index_says) {
  map_.Set(tensors_[0].spec.name, "\"" + std::string(kShards[1]) + "\"");
  WriteIndex();
  ExpectRefusedWith("shard_index", {kIndex, tensors_[0].spec.name, kShards[0]});
}

TEST_F(BadShards, C11_tensor_not_in_its_shard) {
  map_.Set("model.invented.weight", "\"" + std::string(kShards[0]) + "\"");
  WriteIndex();
  ExpectRefusedWith("shard_index", {kIndex, "model.invented.weight", kShards[0]});
}

TEST_F(BadShards, C11_tensor_not_in_the_index) {
  map_.Remove(tensors_[2].spec.name);
  WriteIndex();
  ExpectRefusedWith("shard_index", {kIndex, tensors_[2].spec.name});
}

TEST_F(BadShards, C11_total_size) {
  for (const int64_t off : {-1, 1, 1'000'000}) {
    total_ += off;
    WriteIndex();
    ExpectRefusedWith("shard_index", {kIndex, "total_size", std::to_string(total_)});
    total_ -= off;
  }
}

TEST_F(BadShards, C11_index_json) {
  for (const std::string text :
       {"", "[]", "{}", "{\"weight_map\":null}", "{\"weight_map\":{}}",
        "{\"weight_map\":{\"a\":1}}", "{\"weight_map\":{\"a\":\"x\",\"a\":\"y\"}}",
        "{\"weight_map\":{\"a\":\"x\"}",
        "{\"metadata\":{\"total_size\":\"9\"},\"weight_map\":{\"a\":\"x\"}}"}) {
    SCOPED_TRACE(text);
    WriteFile(folder_ / kIndex, text);
    ExpectRefusedWith("shard_index", {kIndex});
  }
}

TEST_F(BadShards, C11_shard_names_that_leave_the_folder) {
  for (const std::string name :
       {"../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", "a\\u0000b"}) {
    SCOPED_TRACE(name);
    map_.Set(tensors_[0].spec.name, "\"" + name + "\"");
    WriteIndex();
    ExpectRefusedWith("model_path_escape", {kIndex});
  }
}

TEST_F(BadShards, C11_broken_shard_keeps_its_own_reason) {
  WriteFile(folder_ / kShards[1], "1234567");
  ExpectRefusedWith("safetensors_truncated", {kShards[1]});
}

}  // namespace
}  // namespace conclave::checkpoint
