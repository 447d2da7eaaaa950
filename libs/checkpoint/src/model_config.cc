#include "model_config.h"

#include <array>
#include <utility>

#include "conclave/base/status.h"
#include "conclave/checkpoint/checkpoint.h"
#include "weight_files.h"

namespace conclave::checkpoint {
namespace {

constexpr std::string_view kConfigFile = "config.json";

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

absl::StatusOr<std::string> ReadConfigText(const ModelFolder& folder) {
  CONCLAVE_RETURN_IF_ERROR(CheckFolderKind(folder));
  return folder.ReadText(std::string(kConfigFile), kConfigBytesMax, "config_key");
}

absl::StatusOr<ModelDesc> ReadDesc(const ModelFolder& folder, std::string_view config_text,
                                   const std::string& vision_tower) {
  const std::string file(kConfigFile);
  CONCLAVE_ASSIGN_OR_RETURN(const boost::json::value value, ParseConfig(file, config_text));
  const boost::json::object& object = value.get_object();
  absl::Status status;
  ConfigReader config(file, object, "config_range", &status);
  ModelDesc desc;
  desc.served_name = folder.base_name();
  desc.model_type = ModelType(config, folder, desc);
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
  CONCLAVE_RETURN_IF_ERROR(ReadTokenizer(folder, family->name == "mistral", desc));
  CONCLAVE_RETURN_IF_ERROR(ReadCompanions(folder, desc));
  return desc;
}

absl::StatusOr<ModelDesc> ReadModelDesc(const std::string& folder, const OpenOptions& options) {
  CONCLAVE_ASSIGN_OR_RETURN(const ModelFolder opened, ModelFolder::Open(folder));
  CONCLAVE_ASSIGN_OR_RETURN(const std::string text, ReadConfigText(opened));
  return ReadDesc(opened, text, options.vision_tower);
}

}  // namespace conclave::checkpoint
