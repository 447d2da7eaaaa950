// Names and shapes of all tensors at the published sizes, against what a published config.json
// implies.
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>

#include "checks.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/checkpoint/tensor_list.h"
#include "recording.h"

namespace conclave::golden {
namespace {

namespace json = boost::json;

// The keys of the published StableLM checkpoints' config.json that decide shapes (spec 1.2, 2.1,
// 2.2).
json::object StablelmConfig(bool is_384) {
  json::array layers, experts;
  for (int layer = 0; layer < 24; layer += 2) {
    layers.push_back(layer);
    experts.push_back(4);
  }
  return {{"model_type", "moe_llava_stablelm"},
          {"vocab_size", 100352},
          {"hidden_size", 2048},
          {"intermediate_size", 5632},
          {"num_hidden_layers", 24},
          {"num_attention_heads", 32},
          {"num_key_value_heads", 32},
          {"max_position_embeddings", 4096},
          {"norm_eps", 1e-5},
          {"rope_pct", 0.25},
          {"rope_theta", 10000},
          {"use_qkv_bias", true},
          {"tie_word_embeddings", false},
          {"hidden_act", "silu"},
          {"bos_token_id", 100257},
          {"eos_token_id", 100257},
          {"torch_dtype", "bfloat16"},
          {"mm_image_tower",
           is_384 ? "google/siglip-so400m-patch14-384" : "openai/clip-vit-large-patch14-336"},
          {"mm_hidden_size", is_384 ? 1152 : 1024},
          {"mm_vision_select_layer", -2},
          {"mm_vision_select_feature", "patch"},
          {"image_projector_type", "mlp2x_gelu"},
          {"image_aspect_ratio", "pad"},
          {"mm_use_im_start_end", false},
          {"mm_use_im_patch_token", false},
          {"moe",
           {{"moe_enable", true},
            {"moe_mode", "sparse"},
            {"moe_layers_idx", layers},
            {"num_experts", experts},
            {"ep_size", 1},
            {"top_k_experts", 2},
            {"capacity_factor", 1.5},
            {"eval_capacity_factor", 2.0},
            {"min_capacity", 0},
            {"use_residual", false},
            {"router_aux_loss_coef", 0.01}}}};
}

// A folder that goes with the scope.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern =
        (std::filesystem::temp_directory_path() / "conclave-shapes-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data()) == nullptr ? "" : pattern;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace

void CheckShapes(const std::string& file, Report& report) {
  const std::string stem = std::filesystem::path(file).stem().string();
  const std::string name = "shapes/" + stem;
  if (!stem.starts_with("MoE-LLaVA-StableLM-1.6B-4e")) {
    report.NotSupported(name, "decoder family");
    return;
  }
  const absl::StatusOr<json::value> recording = ReadJson(file);
  if (!recording.ok()) {
    report.Error(name, "read", std::string(recording.status().message()));
    return;
  }
  const TemporaryFolder folder;
  std::ofstream(folder.path() + "/config.json")
      << json::serialize(StablelmConfig(stem.ends_with("-384")));
  const absl::StatusOr<checkpoint::ModelDesc> desc = checkpoint::ReadModelDesc(folder.path());
  if (!desc.ok()) {
    report.Error(name, "config", desc.status().ToString());
    return;
  }
  std::map<std::string, std::vector<int64_t>> found;
  int64_t parameters = 0;
  for (const checkpoint::ExpectedTensor& tensor : checkpoint::ExpectedTensors(*desc)) {
    found[tensor.name] = tensor.shape;
    parameters += tensor.num_elements();
  }
  const json::object& expected = recording->as_object();
  std::string difference;
  for (const auto& [key, shape] : expected.at("shapes").as_object()) {
    std::vector<int64_t> dims;
    for (const json::value& dim : shape.as_array()) {
      dims.push_back(dim.to_number<int64_t>());
    }
    const auto it = found.find(std::string(key));
    if (difference.empty() && (it == found.end() || it->second != dims)) {
      difference = std::string(key);
    }
  }
  const size_t count = expected.at("shapes").as_object().size();
  report.Exact(name, "names and shapes (" + std::to_string(count) + ")",
               difference.empty() && found.size() == count,
               "first: " + difference + ", found " + std::to_string(found.size()) + " tensors");
  report.Exact(name, "parameters", parameters == expected.at("parameters").to_number<int64_t>(),
               "found " + std::to_string(parameters));
}

}  // namespace conclave::golden
