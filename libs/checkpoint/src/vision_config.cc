#include <charconv>
#include <cmath>
#include <string>

#include "conclave/base/status.h"
#include "model_config.h"
#include "tower_config.h"

namespace conclave::checkpoint {
namespace {

constexpr int kLinearsMax = 16;

// N of "<prefix>Nx_gelu", 0 when `type` is not of that form.
int32_t MlpLinears(std::string_view type, std::string_view prefix) {
  constexpr std::string_view kSuffix = "x_gelu";
  if (!type.starts_with(prefix) || !type.ends_with(kSuffix) ||
      type.size() <= prefix.size() + kSuffix.size()) {
    return 0;
  }
  const std::string_view digits =
      type.substr(prefix.size(), type.size() - prefix.size() - kSuffix.size());
  int32_t num = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), num);
  return error == std::errc() && end == digits.data() + digits.size() && num >= 1 &&
                 num <= kLinearsMax
             ? num
             : 0;
}

// The original's other projectors are networks of their own, which no published model has.
std::string WhyNot(std::string_view type) {
  if (type.starts_with("cheap_")) {
    type.remove_prefix(std::string_view("cheap_").size());
  }
  std::string_view what = "a projector that is not supported";
  if (type.starts_with("qformer")) {
    what = "a Q-Former projector, which is not supported; train the projector as mlp2x_gelu";
  } else if (type.starts_with("simple")) {
    what =
        "a convolutional projector, which is not supported; train the projector as mlp2x_gelu "
        "or pool_mlp2x_gelu";
  }
  return std::string(what) +
         "; expected linear, identity, mlpNx_gelu or pool_mlpNx_gelu (N from 1 to 16)";
}

void ReadProjector(ConfigReader& config, ModelDesc& desc) {
  const std::string_view key = config.FirstOf({"image_projector_type", "mm_projector_type"});
  if (!config.Has(key)) {
    desc.warnings.push_back(config.Where(key) + ": absent; taken as \"linear\"");
  }
  const std::string type = config.StringOr(key, "linear");
  ProjectorSpec& projector = desc.projector;
  if (type == "identity") {
    projector = {.kind = ProjectorKind::kIdentity, .num_linears = 0, .pools_2x2 = false};
    if (config.ok() && desc.vision.hidden_dim != desc.hidden_dim) {
      config.OutOfRange(key, "identity needs a tower as wide as the decoder; expected " +
                                 std::to_string(desc.hidden_dim) + ", found " +
                                 std::to_string(desc.vision.hidden_dim));
    }
  } else if (type == "linear") {
    projector = {.kind = ProjectorKind::kLinear, .num_linears = 1, .pools_2x2 = false};
  } else if (const int32_t num = MlpLinears(type, "mlp"); num > 0) {
    projector = {.kind = ProjectorKind::kMlpGelu, .num_linears = num, .pools_2x2 = false};
  } else if (const int32_t pooled = MlpLinears(type, "pool_mlp"); pooled > 0) {
    projector = {.kind = ProjectorKind::kMlpGelu, .num_linears = pooled, .pools_2x2 = true};
  } else if (config.ok()) {
    config.OutOfRange(key, WhyNot(type) + ", found \"" + type.substr(0, 64) + "\"");
  }
}

void ReadSelection(ConfigReader& config, VisionSpec& vision) {
  // hidden_states has one entry more than there are layers; entry i is the state after i layers.
  const int32_t states = vision.num_layers + 1;
  const int32_t selected = config.Int("mm_vision_select_layer", -states, vision.num_layers);
  vision.num_layers_run = selected < 0 ? states + selected : selected;
  const std::string feature = config.StringOr("mm_vision_select_feature", "patch");
  if (feature != "patch" && feature != "cls_patch" && config.ok()) {
    config.OutOfRange("mm_vision_select_feature", "unknown; expected patch or cls_patch, found \"" +
                                                      feature.substr(0, 64) + "\"");
  }
  vision.drops_first_row = feature == "patch";
}

void ReadSplice(ConfigReader& config, ModelDesc& desc) {
  desc.splice.use_start_end_tokens = config.BoolOr("mm_use_im_start_end", false);
  const int32_t rows = desc.vision.num_features();
  const auto side =
      static_cast<int32_t>(std::lround(std::floor(std::sqrt(static_cast<double>(rows)))));
  if (desc.projector.pools_2x2 && config.ok()) {
    if (side * side != rows || side < 2) {
      config.OutOfRange(config.FirstOf({"image_projector_type", "mm_projector_type"}),
                        "pooling needs a square grid of feature rows of at least 2 x 2, found " +
                            std::to_string(rows));
    }
    desc.splice.tokens_per_image = (side / 2) * (side / 2);
  } else {
    desc.splice.tokens_per_image = rows;
  }
  if (config.ok() && rows < 1) {
    config.OutOfRange("mm_vision_select_feature", "leaves no feature row");
  }
  if (config.ok() && desc.splice.tokens_per_image >= desc.max_positions) {
    config.Fail("config_range", "max_position_embeddings",
                "no room for an image; expected more than " +
                    std::to_string(desc.splice.tokens_per_image) + ", found " +
                    std::to_string(desc.max_positions));
  }
}

}  // namespace

absl::Status ReadVision(const ModelFolder& folder, const boost::json::object& object,
                        const std::string& vision_tower, ModelDesc& desc) {
  absl::Status status;
  ConfigReader config("config.json", object, "config_vision", &status);
  if (config.Has("mm_video_tower")) {
    desc.warnings.push_back(config.Where("mm_video_tower") + ": ignored; video is not served");
  }
  const std::string_view tower_key = config.FirstOf({"mm_image_tower", "mm_vision_tower"});
  if (!config.Has(tower_key)) {
    if (config.Has("vision_config")) {
      config.Fail("config_key", tower_key,
                  "missing beside vision_config; expected the vision tower's name");
    }
    desc.warnings.push_back(config.Where(tower_key) + ": absent; a model without images");
    desc.names.tower.clear();
    desc.names.projector.clear();
    return status;
  }
  const std::string name = config.String(tower_key);
  CONCLAVE_RETURN_IF_ERROR(status);
  CONCLAVE_RETURN_IF_ERROR(ReadTower(folder, object, name, vision_tower, desc.vision));
  const int32_t width = desc.vision.hidden_dim;
  if (const int32_t stated = config.IntOr("mm_hidden_size", width, 1, kHiddenMax);
      stated != width && config.ok()) {
    config.OutOfRange("mm_hidden_size", "not the width of the vision tower; expected " +
                                            std::to_string(width) + ", found " +
                                            std::to_string(stated));
  }
  ReadSelection(config, desc.vision);
  const bool is_padded = config.StringOr("image_aspect_ratio", "square") == "pad";
  const ImageFit native =
      desc.vision.kind == TowerKind::kClip ? ImageFit::kCrop : ImageFit::kStretch;
  desc.vision.fit = is_padded ? ImageFit::kPad : native;
  ReadProjector(config, desc);
  ReadSplice(config, desc);
  return status;
}

}  // namespace conclave::checkpoint
