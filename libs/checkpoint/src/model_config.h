// config.json -> ModelDesc. A family of decoders is one row of the table in model_config.cc and one
// reader; what all MoE-LLaVA families share (MoE dictionary, vision, projector, tokenizer files) is
// read in one place each.
#pragma once

#include <string>

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
inline constexpr int64_t kExpertsMax = 1024;
inline constexpr int64_t kConfigBytesMax = 4 << 20;

// One decoder family: fills sizes, norm, attention, ffn and names. Errors go into the reader.
void ReadStablelm(ConfigReader& config, ModelDesc& desc);

// The "moe" dictionary (spec 2.2): fills desc.moe; num_layers and hidden_dim are known.
void ReadMoe(ConfigReader& config, ModelDesc& desc);

// mm_* keys, tower geometry (spec 2.6), projector, splice. `vision_tower`: a folder, or empty.
absl::Status ReadVision(const ModelFolder& folder, const boost::json::object& config,
                        const std::string& vision_tower, ModelDesc& desc);

// All of it.
absl::StatusOr<ModelDesc> ReadDesc(const ModelFolder& folder, const std::string& vision_tower);

}  // namespace conclave::checkpoint
