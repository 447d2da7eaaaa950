#include "tower_config.h"

#include <array>
#include <filesystem>
#include <optional>
#include <utility>

#include "conclave/base/status.h"
#include "conclave/checkpoint/packed_file.h"
#include "model_config.h"
#include "weight_files.h"

namespace conclave::checkpoint {
namespace {

constexpr std::string_view kReason = "config_vision";
constexpr std::string_view kPreprocessorFile = "preprocessor_config.json";
// Patches above this would make attention over one image larger than any served context.
constexpr int64_t kPatchesMax = 1 << 16;

struct PublishedTower {
  std::string_view name;
  TowerKind kind;
  int32_t image_size, patch_size, hidden_dim, num_heads, inner_dim, num_layers;
};

// Spec 3.3 and 3.4, and two more that training with the original's scripts leads to (spec 1.1).
constexpr std::array<PublishedTower, 4> kPublished = {{
    {"openai/clip-vit-large-patch14-336", TowerKind::kClip, 336, 14, 1024, 16, 4096, 24},
    {"google/siglip-so400m-patch14-384", TowerKind::kSiglip, 384, 14, 1152, 16, 4304, 27},
    {"openai/clip-vit-large-patch14", TowerKind::kClip, 224, 14, 1024, 16, 4096, 24},
    {"google/siglip-base-patch16-256-multilingual", TowerKind::kSiglip, 256, 16, 768, 12, 3072, 12},
}};

// What a kind fixes, and the values that configs leave out when they are the kind's defaults.
void SetKind(TowerKind kind, VisionSpec& vision) {
  const bool is_clip = kind == TowerKind::kClip;
  vision.kind = kind;
  vision.has_class_token = is_clip;
  vision.has_pre_norm = is_clip;
  vision.has_patch_bias = !is_clip;
  vision.activation = is_clip ? ActivationKind::kQuickGelu : ActivationKind::kGeluTanh;
  vision.norm_eps = is_clip ? 1e-5f : 1e-6f;
}

void SetMeanStd(TowerKind kind, VisionSpec& vision) {
  constexpr float kClipMean[3] = {0.48145466f, 0.4578275f, 0.40821073f};
  constexpr float kClipStd[3] = {0.26862954f, 0.26130258f, 0.27577711f};
  for (int c = 0; c < 3; ++c) {
    vision.mean[c] = kind == TowerKind::kClip ? kClipMean[c] : 0.5f;
    vision.std[c] = kind == TowerKind::kClip ? kClipStd[c] : 0.5f;
  }
}

TowerKind KindOfType(std::string_view model_type) {
  if (model_type == "clip" || model_type == "clip_vision_model") return TowerKind::kClip;
  if (model_type == "siglip" || model_type == "siglip_vision_model") return TowerKind::kSiglip;
  return TowerKind::kNone;
}

// The original chooses the class by the prefix of the name.
TowerKind KindOfName(std::string_view name) {
  if (name.starts_with("openai") || name.starts_with("laion")) return TowerKind::kClip;
  if (name.starts_with("google")) return TowerKind::kSiglip;
  return TowerKind::kNone;
}

// The two files that describe a tower, parsed.
struct TowerFiles {
  std::string folder;  // that they lie in; empty: the checkpoint's own
  std::string config_file;
  boost::json::value config;  // holds vision_config, or is one
  std::string preprocessor_file;
  boost::json::value preprocessor;  // null: a folder of configs alone, which is only measured
};

absl::StatusOr<boost::json::value> ReadJson(const ModelFolder& folder, const std::string& file) {
  CONCLAVE_ASSIGN_OR_RETURN(const std::string text,
                            folder.ReadText(file, kConfigBytesMax, "config_key"));
  return ParseConfig(file, text);
}

absl::StatusOr<TowerFiles> ReadTowerFolder(const std::string& path) {
  TowerFiles files;
  const auto read = [&]() -> absl::Status {
    CONCLAVE_ASSIGN_OR_RETURN(const ModelFolder folder, ModelFolder::Open(path));
    CONCLAVE_ASSIGN_OR_RETURN(files.config, ReadJson(folder, "config.json"));
    CONCLAVE_ASSIGN_OR_RETURN(files.preprocessor, ReadJson(folder, std::string(kPreprocessorFile)));
    return absl::OkStatus();
  };
  CONCLAVE_RETURN_IF_ERROR(Annotate(read(), "vision tower " + path));
  files.folder = path;
  files.config_file = path + "/config.json";
  files.preprocessor_file = path + "/" + std::string(kPreprocessorFile);
  return files;
}

// Nullopt: none of the ways that read files applies.
absl::StatusOr<std::optional<TowerFiles>> FindTowerFiles(const ModelFolder& folder,
                                                         const boost::json::object& config,
                                                         const std::string& name,
                                                         const std::string& vision_tower) {
  namespace fs = std::filesystem;
  if (!vision_tower.empty()) {
    return ReadTowerFolder(vision_tower);
  }
  if (folder.Has(kPackedFile) && folder.Has(kPackedTowerFolder)) {
    return ReadTowerFolder(folder.path() + "/" + kPackedTowerFolder);
  }
  if (const boost::json::value* vision_config = config.if_contains("vision_config");
      vision_config != nullptr && !vision_config->is_null()) {
    TowerFiles files{.folder = {},
                     .config_file = "config.json",
                     .config = boost::json::object{{"vision_config", *vision_config}},
                     .preprocessor_file = std::string(kPreprocessorFile),
                     .preprocessor = {}};
    // Without weights nothing is normalised: sizes are all that is asked of such a folder.
    if (HasWeights(folder) || folder.Has(kPreprocessorFile)) {
      CONCLAVE_ASSIGN_OR_RETURN(files.preprocessor, ReadJson(folder, files.preprocessor_file));
    }
    return files;
  }
  const fs::path relative(name);
  std::vector<fs::path> places;
  if (relative.is_absolute()) {
    places = {relative};
  } else if (std::find(relative.begin(), relative.end(), fs::path("..")) == relative.end()) {
    places = {fs::path(folder.path()) / relative, fs::path(folder.path()).parent_path() / relative};
  }
  for (const fs::path& place : places) {
    std::error_code ec;
    if (fs::exists(place / "config.json", ec)) {
      return ReadTowerFolder(place.string());
    }
  }
  return std::optional<TowerFiles>();
}

void ReadActivation(ConfigReader& config, VisionSpec& vision) {
  const std::string word = config.StringOr("hidden_act", "");
  if (word == "quick_gelu") {
    vision.activation = ActivationKind::kQuickGelu;
  } else if (word == "gelu_pytorch_tanh" || word == "gelu_new") {
    vision.activation = ActivationKind::kGeluTanh;
  } else if (word == "gelu") {
    vision.activation = ActivationKind::kGeluErf;
  } else if (!word.empty()) {
    config.OutOfRange("hidden_act",
                      "unknown; expected quick_gelu, gelu_pytorch_tanh or gelu, found \"" +
                          word.substr(0, 64) + "\"");
  }
}

void CheckGeometry(ConfigReader& config, const VisionSpec& vision) {
  if (!config.ok()) {
    return;
  }
  const std::string size = std::to_string(vision.image_size);
  if (vision.hidden_dim % vision.num_heads != 0) {
    config.OutOfRange("num_attention_heads", "does not divide hidden_size; expected a divisor of " +
                                                 std::to_string(vision.hidden_dim) + ", found " +
                                                 std::to_string(vision.num_heads));
  }
  if (vision.patch_size > vision.image_size) {
    config.OutOfRange("patch_size", "larger than the image; expected at most " + size + ", found " +
                                        std::to_string(vision.patch_size));
    return;
  }
  // SigLIP ignores a border (384 = 27 x 14 + 6); a CLIP tower with one is a typing error.
  if (vision.kind == TowerKind::kClip && vision.image_size % vision.patch_size != 0) {
    config.OutOfRange("patch_size", "does not divide image_size; expected a divisor of " + size +
                                        ", found " + std::to_string(vision.patch_size));
  }
  if (vision.num_patches() > kPatchesMax) {
    config.OutOfRange("patch_size", "too many patches; expected at most " +
                                        std::to_string(kPatchesMax) + ", found " +
                                        std::to_string(vision.num_patches()));
  }
}

void ReadGeometry(ConfigReader& config, VisionSpec& vision) {
  vision.image_size = config.Int("image_size", 1, 4096);
  vision.patch_size = config.Int("patch_size", 1, 1024);
  vision.hidden_dim = config.Int("hidden_size", 1, 1 << 14);
  vision.num_heads = config.Int("num_attention_heads", 1, 256);
  vision.inner_dim = config.Int("intermediate_size", 1, kHiddenMax);
  vision.num_layers = config.Int("num_hidden_layers", 1, 256);
  vision.norm_eps =
      static_cast<float>(config.NumberOr("layer_norm_eps", vision.norm_eps, 1e-12, 0.1));
  config.IntOr("num_channels", 3, 3, 3);
  ReadActivation(config, vision);
  CheckGeometry(config, vision);
}

// "size" and "crop_size" are a number, or an object of shortest_edge, or of height and width.
void CheckSide(ConfigReader& config, std::string_view key, int32_t image_size) {
  const boost::json::value* value = config.Find(key);
  if (value == nullptr) {
    return;
  }
  if (!value->is_object()) {
    config.Int(key, image_size, image_size);
    return;
  }
  std::optional<ConfigReader> sides = config.Object(key, kReason);
  for (const std::string_view side : {"shortest_edge", "height", "width"}) {
    if (sides.has_value()) {
      sides->IntOr(side, image_size, image_size, image_size);
    }
  }
}

void ReadThree(ConfigReader& config, std::string_view key, double min, double max,
               float (&out)[3]) {
  if (!config.Has(key)) {
    config.Fail("config_key", key, "missing; expected three numbers");
  }
  const std::vector<double> values = config.NumbersOr(key, min, max);
  if (config.ok() && values.size() != 3) {
    config.OutOfRange(key,
                      "wrong length; expected 3 numbers, found " + std::to_string(values.size()));
  }
  for (size_t c = 0; c < 3 && config.ok(); ++c) {
    out[c] = static_cast<float>(values[c]);
  }
}

void ReadPreprocessor(ConfigReader& config, VisionSpec& vision) {
  for (const std::string_view key : {"do_resize", "do_rescale", "do_normalize"}) {
    if (!config.BoolOr(key, true)) {
      config.OutOfRange(
          key, "a step of the image pipeline that cannot be left out; expected true, found false");
    }
  }
  config.IntOr("resample", 3, 3, 3);  // bicubic
  config.NumberOr("rescale_factor", 1.0 / 255, 1.0 / 255 - 1e-9, 1.0 / 255 + 1e-9);
  CheckSide(config, "size", vision.image_size);
  if (vision.kind == TowerKind::kClip) {
    CheckSide(config, "crop_size", vision.image_size);
  }
  ReadThree(config, "image_mean", -1e3, 1e3, vision.mean);
  ReadThree(config, "image_std", 1e-6, 1e3, vision.std);
}

absl::Status ReadFiles(const TowerFiles& files, const std::string& name, VisionSpec& vision) {
  absl::Status status;
  ConfigReader root(files.config_file, files.config.get_object(), kReason, &status);
  std::optional<ConfigReader> nested = root.Object("vision_config", kReason);
  CONCLAVE_RETURN_IF_ERROR(status);
  ConfigReader& config = nested.has_value() ? *nested : root;
  TowerKind kind = KindOfType(config.StringOr("model_type", ""));
  if (kind == TowerKind::kNone) {
    kind = KindOfType(root.StringOr("model_type", ""));
  }
  if (kind == TowerKind::kNone) {
    kind = KindOfName(name);
  }
  if (kind == TowerKind::kNone) {
    config.OutOfRange(
        "model_type",
        "unknown kind of vision tower; expected clip_vision_model or siglip_vision_model, "
        "found \"" +
            config.StringOr("model_type", "").substr(0, 64) + "\"");
  }
  SetKind(kind, vision);
  vision.folder = files.folder;
  ReadGeometry(config, vision);
  CONCLAVE_RETURN_IF_ERROR(status);
  if (files.preprocessor.is_null()) {
    SetMeanStd(kind, vision);
    return absl::OkStatus();
  }
  ConfigReader preprocessor(files.preprocessor_file, files.preprocessor.get_object(), kReason,
                            &status);
  ReadPreprocessor(preprocessor, vision);
  return status;
}

}  // namespace

absl::Status ReadTower(const ModelFolder& folder, const boost::json::object& config,
                       const std::string& name, const std::string& vision_tower,
                       VisionSpec& vision) {
  CONCLAVE_ASSIGN_OR_RETURN(const std::optional<TowerFiles> files,
                            FindTowerFiles(folder, config, name, vision_tower));
  if (files.has_value()) {
    return ReadFiles(*files, name, vision);
  }
  std::string known;
  for (const PublishedTower& tower : kPublished) {
    if (name == tower.name) {
      SetKind(tower.kind, vision);
      SetMeanStd(tower.kind, vision);
      vision.image_size = tower.image_size;
      vision.patch_size = tower.patch_size;
      vision.hidden_dim = tower.hidden_dim;
      vision.num_heads = tower.num_heads;
      vision.inner_dim = tower.inner_dim;
      vision.num_layers = tower.num_layers;
      return absl::OkStatus();
    }
    known += (known.empty() ? "" : ", ") + std::string(tower.name);
  }
  return InvalidArgument(
      kReason,
      "config.json: mm_image_tower: nothing says the size of vision tower \"" +
          name.substr(0, 128) +
          "\"; expected its folder by --vision-tower, or vision_config in config.json with "
          "preprocessor_config.json beside it, or that folder in the checkpoint folder or its "
          "parent, or one of the known names " +
          known);
}

}  // namespace conclave::checkpoint
