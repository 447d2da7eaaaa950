#include "small_model.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

#include "conclave/base/check.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/checkpoint/tensor_list.h"

namespace conclave::checkpoint {

namespace fs = std::filesystem;

TemporaryFolder::TemporaryFolder() {
  std::string pattern = (fs::temp_directory_path() / "conclave-checkpoint-XXXXXX").string();
  CONCLAVE_CHECK(::mkdtemp(pattern.data()) != nullptr);
  path_ = fs::canonical(pattern);
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ec;
  fs::remove_all(path_, ec);
}

void WriteFile(const fs::path& path, std::string_view bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  out.close();
  CONCLAVE_CHECK(out.good());
}

std::string ReadFile(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

void JsonText::Set(const std::string& key, const std::string& raw) {
  for (auto& [name, value] : members) {
    if (name == key) {
      value = raw;
      return;
    }
  }
  members.emplace_back(key, raw);
}

void JsonText::Remove(const std::string& key) {
  std::erase_if(members, [&key](const auto& member) { return member.first == key; });
}

std::string JsonText::Text() const {
  std::string text = "{";
  for (const auto& [key, value] : members) {
    text += (text.size() > 1 ? ",\n  \"" : "\n  \"") + key + "\": " + value;
  }
  return text + "\n}";
}

SmallModel::SmallModel() {
  config.members = {
      {"model_type", "\"moe_llava_stablelm\""},
      {"architectures", "[\"MoELLaVAStablelmForCausalLM\"]"},
      {"bos_token_id", "17"},
      {"eos_token_id", "17"},
      {"vocab_size", "24"},
      {"hidden_act", "\"silu\""},
      {"hidden_size", "16"},
      {"intermediate_size", "12"},
      {"num_hidden_layers", "2"},
      {"num_attention_heads", "2"},
      {"num_key_value_heads", "2"},
      {"max_position_embeddings", "64"},
      {"norm_eps", "1e-05"},
      {"rope_pct", "0.25"},
      {"rope_theta", "10000"},
      {"use_qkv_bias", "true"},
      {"tie_word_embeddings", "false"},
      {"torch_dtype", "\"bfloat16\""},
      {"mm_image_tower", "\"openai/clip-small-patch14-28\""},
      {"mm_hidden_size", "8"},
      {"mm_vision_select_layer", "-2"},
      {"mm_vision_select_feature", "\"patch\""},
      {"image_projector_type", "\"mlp2x_gelu\""},
      {"image_aspect_ratio", "\"pad\""},
      {"mm_use_im_start_end", "false"},
  };
  moe.members = {
      {"moe_enable", "true"},     {"moe_mode", "\"sparse\""},
      {"moe_layers_idx", "[0]"},  {"num_experts", "[2]"},
      {"ep_size", "1"},           {"top_k_experts", "2"},
      {"capacity_factor", "1.5"}, {"eval_capacity_factor", "2.0"},
      {"min_capacity", "0"},      {"use_residual", "false"},
  };
  vision.members = {
      {"model_type", "\"clip_vision_model\""},
      {"hidden_size", "8"},
      {"intermediate_size", "12"},
      {"num_hidden_layers", "3"},
      {"num_attention_heads", "2"},
      {"image_size", "28"},
      {"patch_size", "14"},
      {"num_channels", "3"},
      {"hidden_act", "\"quick_gelu\""},
      {"layer_norm_eps", "1e-05"},
  };
  preprocessor.members = {
      {"do_resize", "true"},
      {"size", "{\"shortest_edge\": 28}"},
      {"resample", "3"},
      {"do_center_crop", "true"},
      {"crop_size", "{\"height\": 28, \"width\": 28}"},
      {"do_normalize", "true"},
      {"image_mean", "[0.48145466, 0.4578275, 0.40821073]"},
      {"image_std", "[0.26862954, 0.26130258, 0.27577711]"},
  };
}

std::string SmallModel::ConfigText() const {
  JsonText all = config;
  if (has_moe) {
    all.Set("moe", moe.Text());
  }
  if (has_vision_config) {
    all.Set("vision_config", vision.Text());
  }
  return all.Text();
}

void SmallModel::WriteConfigs(const std::string& folder) const {
  WriteFile(fs::path(folder) / "config.json", ConfigText());
  WriteFile(fs::path(folder) / "preprocessor_config.json", preprocessor.Text());
  WriteFile(fs::path(folder) / "arcade100k.tiktoken", "IQ== 0\n");
}

std::vector<TensorValues> SmallModel::Tensors(const std::string& folder) {
  const absl::StatusOr<ModelDesc> desc = ReadModelDesc(folder);
  CONCLAVE_CHECK(desc.ok());
  std::vector<TensorValues> tensors;
  for (const ExpectedTensor& expected : ExpectedTensors(*desc)) {
    TensorValues& tensor = tensors.emplace_back();
    tensor.spec = {.name = expected.name,
                   .dtype = expected.part == TensorPart::kGate ? DType::kF32 : DType::kBf16,
                   .shape = expected.shape};
    tensor.values.assign(static_cast<size_t>(expected.num_elements()), 0.25f);
  }
  return tensors;
}

void SmallModel::Write(const std::string& folder) const {
  WriteConfigs(folder);
  WriteWeights(folder, Tensors(folder));
}

void WriteWeights(const std::string& folder, const std::vector<TensorValues>& tensors) {
  const std::string path = (fs::path(folder) / "model.safetensors").string();
  fs::remove(path);
  CONCLAVE_CHECK(SaveSafetensors(path, tensors).ok());
}

std::string RawSafetensors(uint64_t header_length, std::string_view header, std::string_view data) {
  std::string bytes(sizeof(header_length), '\0');
  std::memcpy(bytes.data(), &header_length, sizeof(header_length));
  return bytes + std::string(header) + std::string(data);
}

std::string RawSafetensors(std::string_view header, std::string_view data) {
  return RawSafetensors(header.size(), header, data);
}

}  // namespace conclave::checkpoint
