// Which decoder families there are, and which one a checkpoint is of (spec 2.3 and 5.2).
#include <algorithm>
#include <array>
#include <cctype>
#include <filesystem>
#include <utility>

#include "conclave/base/status.h"
#include "model_config.h"

namespace conclave::checkpoint {
namespace {

// A Mistral type is OpenChat's when its tokenizer says so: see ReadTokenizer.
constexpr std::array<Family, 8> kFamilies = {{
    {"stablelm", "Stablelm", "stablelm", &ReadStablelm},
    {"qwen", "QWen", "qwen", &ReadQwen},
    {"phi", "Phi", "phi", &ReadPhi},
    {"mistral", "Mistral", "mistral", &ReadMistral},
    {"llama", "Llama", "vicuna_v1", &ReadLlama},
    {"qwen1_5", "Qwen1_5", "qwen", &ReadQwen15},
    {"minicpm", "MiniCPM", "minicpm", &ReadMiniCpm},
    {"mpt", "MPT", "mpt", nullptr},
}};

std::string Supported() {
  std::string list;
  for (const Family& family : kFamilies) {
    if (family.read != nullptr) {
      list += (list.empty() ? "" : ", ") + std::string(kMoePrefix) + std::string(family.name) +
              ", " + std::string(kDensePrefix) + std::string(family.name);
    }
  }
  return list;
}

// What the original calls a folder: its name, with the parent's before that of a training step.
std::string LowerName(const ModelFolder& folder) {
  const std::filesystem::path path(folder.path());
  std::string name = path.filename().string();
  if (name.starts_with("checkpoint-")) {
    name = path.parent_path().filename().string() + "_" + name;
  }
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return name;
}

// The original's order of tests; empty when it would not take the folder for a model of this kind.
std::string TypeOfFolderName(const std::string& name) {
  const auto has = [&name](std::string_view word) { return name.find(word) != std::string::npos; };
  if (!has("llava")) {
    return {};
  }
  const bool is_qwen15 = has("1.5");
  std::string_view family = "llama";
  if (has("mpt")) {
    family = "mpt";
  } else if (has("qwen") && !is_qwen15) {
    family = "qwen";
  } else if (has("openchat") || has("mistral")) {
    family = "mistral";
  } else if (has("phi")) {
    family = "phi";
  } else if (has("qwen")) {
    family = "qwen1_5";
  } else if (has("minicpm")) {
    family = "minicpm";
  } else if (has("stablelm")) {
    family = "stablelm";
  }
  return std::string(has("moe") ? kMoePrefix : kDensePrefix) + std::string(family);
}

std::string TypeOfArchitecture(std::string_view name) {
  for (const Family& family : kFamilies) {
    const std::string tail = std::string(family.architecture) + "ForCausalLM";
    for (const auto& [head, prefix] :
         {std::pair("MoELLaVA", kMoePrefix), std::pair("Llava", kDensePrefix)}) {
      if (name == head + tail) {
        return std::string(prefix) + std::string(family.name);
      }
    }
  }
  return {};
}

}  // namespace

std::string ModelType(ConfigReader& config, const ModelFolder& folder, ModelDesc& desc) {
  if (config.Has("model_type")) {
    return config.String("model_type");
  }
  const boost::json::value* architectures = config.Find("architectures");
  if (architectures != nullptr && architectures->is_array() &&
      !architectures->get_array().empty() && architectures->get_array()[0].is_string()) {
    std::string type = TypeOfArchitecture(architectures->get_array()[0].get_string());
    if (!type.empty()) {
      desc.warnings.push_back("config.json: model_type: absent; taken from architectures");
      return type;
    }
  }
  std::string type = TypeOfFolderName(LowerName(folder));
  if (type.empty()) {
    return config.String("model_type");
  }
  desc.warnings.push_back("config.json: model_type: absent; " + type +
                          " taken from the folder's name");
  return type;
}

absl::StatusOr<const Family*> FindFamily(const std::string& model_type) {
  for (const Family& family : kFamilies) {
    const bool is_this = model_type == std::string(kMoePrefix) + std::string(family.name) ||
                         model_type == std::string(kDensePrefix) + std::string(family.name);
    if (is_this && family.read != nullptr) {
      return &family;
    }
    if (is_this) {
      return InvalidArgument("model_type_unsupported",
                             "config.json: model_type: \"" + model_type +
                                 "\": MPT decoders are not supported, and the original has no MoE "
                                 "form of them; expected one of " +
                                 Supported());
    }
  }
  return InvalidArgument("model_type_unsupported",
                         "config.json: model_type: unknown; expected one of " + Supported() +
                             ", found \"" + model_type.substr(0, 64) + "\"");
}

}  // namespace conclave::checkpoint
