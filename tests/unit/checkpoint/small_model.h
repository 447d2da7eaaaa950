// A valid checkpoint of the StableLM type with two layers and a CLIP tower of three, a few
// kilobytes in all, whose every config value and tensor a test can change before it is written.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "conclave/checkpoint/safetensors_writer.h"

namespace conclave::checkpoint {

// A new folder under the system's temporary one, removed with everything in it at the end.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

void WriteFile(const std::filesystem::path& path, std::string_view bytes);
std::string ReadFile(const std::filesystem::path& path);

// Members of a JSON object; values are raw JSON.
struct JsonText {
  std::vector<std::pair<std::string, std::string>> members;

  // Replaces or appends.
  void Set(const std::string& key, const std::string& raw);
  void Remove(const std::string& key);
  std::string Text() const;
};

struct SmallModel {
  JsonText config;  // without "moe" and "vision_config"
  JsonText moe;
  JsonText vision;
  JsonText preprocessor;
  bool has_moe = true;
  bool has_vision_config = true;

  SmallModel();

  std::string ConfigText() const;
  void WriteConfigs(const std::string& folder) const;

  // The tensors that the configs imply, with small distinct values; bf16, gates f32. Reads the
  // configs of `folder`.
  static std::vector<TensorValues> Tensors(const std::string& folder);

  // Everything: configs and model.safetensors.
  void Write(const std::string& folder) const;
};

// Replaces folder/model.safetensors.
void WriteWeights(const std::string& folder, const std::vector<TensorValues>& tensors);

// A safetensors file from its raw parts: header length, header, bytes.
std::string RawSafetensors(uint64_t header_length, std::string_view header, std::string_view data);
std::string RawSafetensors(std::string_view header, std::string_view data);

}  // namespace conclave::checkpoint
