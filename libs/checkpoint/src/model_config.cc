#include "model_config.h"

#include <algorithm>
#include <array>
#include <utility>

#include "conclave/base/status.h"
#include "conclave/checkpoint/checkpoint.h"

namespace conclave::checkpoint {
namespace {

using FamilyReader = void (*)(ConfigReader& config, ModelDesc& desc);

struct Family {
  std::string_view name;  // model_type is "moe_llava_<name>" or "llava_<name>"
  std::string_view
      architecture;  // between "MoELLaVA" or "Llava" and "ForCausalLM" in architectures[0]
  std::string_view prompt_template;
  FamilyReader read;  // null: not built yet
};

// Spec 2.3 and 5.2. Of the rows without a reader only the names are known.
constexpr std::array<Family, 8> kFamilies = {{
    {"stablelm", "Stablelm", "stablelm", &ReadStablelm},
    {"qwen", "QWen", "qwen", nullptr},
    {"phi", "Phi", "phi", nullptr},
    {"mistral", "Mistral", "openchat", nullptr},
    {"llama", "Llama", "vicuna_v1", nullptr},
    {"qwen1_5", "Qwen1_5", "qwen", nullptr},
    {"minicpm", "MiniCPM", "minicpm", nullptr},
    {"mpt", "MPT", "mpt", nullptr},
}};

constexpr std::string_view kMoePrefix = "moe_llava_";
constexpr std::string_view kDensePrefix = "llava_";

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

// model_type, or what architectures[0] stands for when that key is absent.
std::string ModelType(ConfigReader& config, ModelDesc& desc) {
  const boost::json::value* architectures = config.Find("architectures");
  const bool has_name = architectures != nullptr && architectures->is_array() &&
                        !architectures->get_array().empty() &&
                        architectures->get_array()[0].is_string();
  if (config.Has("model_type") || !has_name) {
    return config.String("model_type");
  }
  const std::string_view name = architectures->get_array()[0].get_string();
  for (const Family& family : kFamilies) {
    const std::string tail = std::string(family.architecture) + "ForCausalLM";
    for (const auto& [head, prefix] :
         {std::pair("MoELLaVA", kMoePrefix), std::pair("Llava", kDensePrefix)}) {
      if (name == head + tail) {
        desc.warnings.push_back("config.json: model_type: absent; taken from architectures");
        return std::string(prefix) + std::string(family.name);
      }
    }
  }
  return config.String("model_type");
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
                                 "\" is not built yet: a later version; expected one of " +
                                 Supported());
    }
  }
  return InvalidArgument("model_type_unsupported",
                         "config.json: model_type: unknown; expected one of " + Supported() +
                             ", found \"" + model_type.substr(0, 64) + "\"");
}

// The first file name of the folder with that ending, empty when there is none.
std::string FirstWithSuffix(const std::vector<std::string>& names, std::string_view suffix) {
  const auto found = std::find_if(names.begin(), names.end(), [suffix](const std::string& name) {
    return name.ends_with(suffix);
  });
  return found == names.end() ? std::string() : *found;
}

absl::Status ReadTokenizer(const ModelFolder& folder, ModelDesc& desc) {
  CONCLAVE_ASSIGN_OR_RETURN(const std::vector<std::string> names, folder.List());
  TokenizerSpec& tokenizer = desc.tokenizer;
  const std::string ranks = folder.Has("arcade100k.tiktoken") ? "arcade100k.tiktoken"
                                                              : FirstWithSuffix(names, ".tiktoken");
  if (!ranks.empty()) {
    tokenizer = {.kind = TokenizerKind::kTiktoken, .file = ranks};
  } else if (folder.Has("tokenizer.json")) {
    tokenizer = {.kind = TokenizerKind::kTokenizerJson, .file = "tokenizer.json"};
  } else if (folder.Has("tokenizer.model")) {
    tokenizer = {.kind = TokenizerKind::kSentencePiece, .file = "tokenizer.model"};
  } else if (folder.Has("vocab.json")) {
    tokenizer = {.kind = TokenizerKind::kByteLevelBpe, .file = "vocab.json"};
  } else {
    desc.warnings.push_back(
        "no tokenizer file (.tiktoken, tokenizer.json, tokenizer.model or vocab.json) in the "
        "folder");
  }
  return absl::OkStatus();
}

void WarnOfIgnored(const std::string& file, const boost::json::object& object, ModelDesc& desc) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 6> kIgnored = {{
      {"auto_map", "no code of a checkpoint is ever run"},
      {"trust_remote_code", "no code of a checkpoint is ever run"},
      {"custom_pipelines", "no code of a checkpoint is ever run"},
      {"chat_template", "the template follows from model_type"},
      {"quantization_config", "weights are read as stored"},
      {"tokenizer_model_max_length", "over-long prompts are refused, never cut"},
  }};
  for (const auto& [key, why] : kIgnored) {
    const boost::json::value* value = object.if_contains({key.data(), key.size()});
    if (value != nullptr && !value->is_null()) {
      desc.warnings.push_back(file + ": " + std::string(key) + ": ignored; " + std::string(why));
    }
  }
}

// Ids may be absent, null or (eos) a list, of which the first counts.
int32_t TokenId(ConfigReader& config, std::string_view key, int32_t vocab_rows) {
  const boost::json::value* value = config.Find(key);
  if (value != nullptr && value->is_array()) {
    const std::vector<int32_t> ids = config.IntsOr(key, 0, vocab_rows - 1);
    return ids.empty() ? -1 : ids.front();
  }
  return config.IntOr(key, -1, 0, vocab_rows - 1);
}

void ReadTokenIds(ConfigReader& config, ModelDesc& desc) {
  if (desc.bos_token < 0) {
    desc.bos_token = TokenId(config, "bos_token_id", desc.vocab_rows);
  }
  if (desc.eos_token < 0) {
    desc.eos_token = TokenId(config, "eos_token_id", desc.vocab_rows);
  }
}

void ReadStoredDType(ConfigReader& config, ModelDesc& desc) {
  const std::string word = config.StringOr("torch_dtype", "bfloat16");
  desc.stored_dtype = word == "float32"   ? DType::kF32
                      : word == "float16" ? DType::kF16
                                          : DType::kBf16;
}

// Files beside config.json that may say something: looked at when present, never required.
absl::Status ReadCompanions(const ModelFolder& folder, ModelDesc& desc) {
  for (const std::string file : {"generation_config.json", "tokenizer_config.json"}) {
    if (!folder.Has(file)) {
      continue;
    }
    CONCLAVE_ASSIGN_OR_RETURN(const std::string text,
                              folder.ReadText(file, kConfigBytesMax, "config_key"));
    CONCLAVE_ASSIGN_OR_RETURN(const boost::json::value value, ParseConfig(file, text));
    WarnOfIgnored(file, value.get_object(), desc);
    if (file == "generation_config.json") {
      absl::Status status;
      ConfigReader reader(file, value.get_object(), "config_range", &status);
      ReadTokenIds(reader, desc);
      CONCLAVE_RETURN_IF_ERROR(status);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelDesc> ReadDesc(const ModelFolder& folder, const std::string& vision_tower) {
  const std::string file = "config.json";
  CONCLAVE_ASSIGN_OR_RETURN(const std::string text,
                            folder.ReadText(file, kConfigBytesMax, "config_key"));
  CONCLAVE_ASSIGN_OR_RETURN(const boost::json::value value, ParseConfig(file, text));
  const boost::json::object& object = value.get_object();
  absl::Status status;
  ConfigReader config(file, object, "config_range", &status);
  ModelDesc desc;
  desc.served_name = folder.base_name();
  desc.model_type = ModelType(config, desc);
  CONCLAVE_RETURN_IF_ERROR(status);
  CONCLAVE_ASSIGN_OR_RETURN(const Family* family, FindFamily(desc.model_type));
  desc.prompt_template = std::string(family->prompt_template);
  family->read(config, desc);
  CONCLAVE_RETURN_IF_ERROR(status);
  desc.mixers.assign(static_cast<size_t>(desc.num_layers), MixerKind::kAttention);
  if (desc.model_type.starts_with(kMoePrefix)) {
    ReadMoe(config, desc);
  } else if (config.Has("moe")) {
    desc.warnings.push_back("config.json: moe: ignored; " + desc.model_type + " is a dense type");
  }
  ReadTokenIds(config, desc);
  ReadStoredDType(config, desc);
  CONCLAVE_RETURN_IF_ERROR(status);
  CONCLAVE_RETURN_IF_ERROR(ReadVision(folder, object, vision_tower, desc));
  WarnOfIgnored(file, object, desc);
  CONCLAVE_RETURN_IF_ERROR(ReadTokenizer(folder, desc));
  CONCLAVE_RETURN_IF_ERROR(ReadCompanions(folder, desc));
  return desc;
}

absl::StatusOr<ModelDesc> ReadModelDesc(const std::string& folder, const OpenOptions& options) {
  CONCLAVE_ASSIGN_OR_RETURN(const ModelFolder opened, ModelFolder::Open(folder));
  return ReadDesc(opened, options.vision_tower);
}

}  // namespace conclave::checkpoint
