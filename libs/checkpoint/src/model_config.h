// config.json -> ModelDesc. A family of decoders is one row of the table in family_table.cc and one
// reader; what all MoE-LLaVA families share (MoE dictionary, vision, projector, tokenizer files) is
// read in one place each.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/checkpoint/model_desc.h"
#include "config_reader.h"
#include "file.h"

namespace conclave::checkpoint {

// Ranges that no model leaves; they also keep every product of sizes far from overflow.
inline constexpr int64_t kHiddenMax = 1 << 16;
inline constexpr int64_t kInnerMax = 1 << 20;
inline constexpr int64_t kLayersMax = 1024;
inline constexpr int64_t kHeadsMax = 1024;
inline constexpr int64_t kVocabMax = 1 << 22;
inline constexpr int64_t kPositionsMax = 1 << 24;
inline constexpr int64_t kExpertsMax = 1024;          // of one layer
inline constexpr int64_t kExpertsTotalMax = 1 << 16;  // of all layers
inline constexpr int64_t kConfigBytesMax = 4 << 20;

// One decoder family each: sizes, norm, attention, ffn, scales and names, those of tower and
// projector included. Errors go into the reader.
void ReadStablelm(ConfigReader& config, ModelDesc& desc);
void ReadPhi(ConfigReader& config, ModelDesc& desc);
void ReadQwen(ConfigReader& config, ModelDesc& desc);
void ReadLlama(ConfigReader& config, ModelDesc& desc);
void ReadMistral(ConfigReader& config, ModelDesc& desc);
void ReadQwen15(ConfigReader& config, ModelDesc& desc);
void ReadMiniCpm(ConfigReader& config, ModelDesc& desc);

struct Family {
  std::string_view name;  // model_type is "moe_llava_<name>" or "llava_<name>"
  // Between "MoELLaVA" or "Llava" and "ForCausalLM" in architectures[0].
  std::string_view architecture;
  std::string_view prompt_template;
  void (*read)(ConfigReader& config, ModelDesc& desc);  // null: known by name, not supported
};

inline constexpr std::string_view kMoePrefix = "moe_llava_";
inline constexpr std::string_view kDensePrefix = "llava_";

// model_type; when the config has none, what architectures[0] stands for, and without that, by the
// original's rules, the folder's name (spec 2.3), both with a warning.
std::string ModelType(ConfigReader& config, const ModelFolder& folder, ModelDesc& desc);

// "model_type_unsupported" with what is supported.
absl::StatusOr<const Family*> FindFamily(const std::string& model_type);

// Fills desc.tokenizer from the files that are there, and for a Mistral type decides between the
// templates of OpenChat and Mistral by whether the tokenizer has OpenChat's end-of-turn token.
absl::Status ReadTokenizer(const ModelFolder& folder, bool may_be_openchat, ModelDesc& desc);

// The "moe" dictionary (spec 2.2): fills desc.moe; num_layers and hidden_dim are known.
void ReadMoe(ConfigReader& config, ModelDesc& desc);

// mm_* keys, tower geometry (spec 2.6), projector, splice. `vision_tower`: a folder, or empty.
absl::Status ReadVision(const ModelFolder& folder, const boost::json::object& config,
                        const std::string& vision_tower, ModelDesc& desc);

// The bytes of config.json, as they are.
absl::StatusOr<std::string> ReadConfigText(const ModelFolder& folder);

// All of it. `config_text`: what ReadConfigText gave.
absl::StatusOr<ModelDesc> ReadDesc(const ModelFolder& folder, std::string_view config_text,
                                   const std::string& vision_tower);

}  // namespace conclave::checkpoint
