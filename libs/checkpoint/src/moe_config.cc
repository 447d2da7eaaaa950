#include <algorithm>
#include <numeric>
#include <string>

#include "model_config.h"

namespace conclave::checkpoint {
namespace {

constexpr std::string_view kLayersKey = "moe_layers_idx";
constexpr std::string_view kExpertsKey = "num_experts";

// moe_layers_idx is authoritative; only when it is absent does the mode say which layers
// (spec 2.2).
std::vector<int32_t> ReadLayers(ConfigReader& moe, ModelDesc& desc) {
  std::vector<int32_t> layers = moe.IntsOr(kLayersKey, 0, desc.num_layers - 1);
  if (moe.Has(kLayersKey)) {
    std::sort(layers.begin(), layers.end());
    if (layers.empty()) {
      moe.OutOfRange(kLayersKey, "empty; expected at least one layer");
    }
    if (const auto twice = std::adjacent_find(layers.begin(), layers.end());
        twice != layers.end()) {
      moe.OutOfRange(kLayersKey,
                     "layer " + std::to_string(*twice) + " stands twice; expected distinct layers");
    }
    return layers;
  }
  const std::string mode = moe.StringOr("moe_mode", "sparse");
  const bool is_known =
      mode == "sparse" || mode == "dense" || mode == "first_half" || mode == "second_half";
  if (!is_known) {
    moe.OutOfRange(
        "moe_mode",
        "unknown mode and no moe_layers_idx; expected sparse, dense, first_half or second_half, "
        "found \"" +
            mode.substr(0, 64) + "\"");
    return layers;
  }
  for (int32_t layer = 0; layer < desc.num_layers; ++layer) {
    const bool is_moe = mode == "dense" || (mode == "sparse" && layer % 2 == 0) ||
                        (mode == "first_half" && layer < desc.num_layers / 2) ||
                        (mode == "second_half" && layer >= desc.num_layers / 2);
    if (is_moe) {
      layers.push_back(layer);
    }
  }
  desc.warnings.push_back(moe.Where(kLayersKey) + ": absent; layers taken from moe_mode \"" + mode +
                          "\"");
  return layers;
}

// num_experts[i] belongs to moe_layers_idx[i] as listed, which need not be ascending.
std::vector<int32_t> ReadExperts(ConfigReader& moe, size_t num_layers) {
  const boost::json::value* value = moe.Find(kExpertsKey);
  if (value == nullptr) {
    moe.Fail("config_key", kExpertsKey, "missing; expected a list with one number per MoE layer");
    return {};
  }
  if (!value->is_array()) {
    // One number is for every layer.
    const auto num = std::max<int64_t>(static_cast<int64_t>(num_layers), 1);
    const auto most = std::max<int64_t>(2, kExpertsTotalMax / num);
    return std::vector<int32_t>(num_layers,
                                moe.Int(kExpertsKey, 2, std::min<int64_t>(kExpertsMax, most)));
  }
  std::vector<int32_t> experts = moe.IntsOr(kExpertsKey, 2, kExpertsMax);
  if (moe.ok() && experts.size() != num_layers) {
    moe.OutOfRange(kExpertsKey, "one number per MoE layer is needed; expected " +
                                    std::to_string(num_layers) + ", found " +
                                    std::to_string(experts.size()));
  }
  const int64_t total = std::accumulate(experts.begin(), experts.end(), int64_t{0});
  if (moe.ok() && total > kExpertsTotalMax) {
    moe.OutOfRange(kExpertsKey, "too many in all layers; expected at most " +
                                    std::to_string(kExpertsTotalMax) + ", found " +
                                    std::to_string(total));
  }
  return experts;
}

int32_t ReadTopK(ConfigReader& moe) {
  const boost::json::value* value = moe.Find("top_k_experts");
  if (value != nullptr && value->is_int64() && value->get_int64() == -1) {
    moe.OutOfRange("top_k_experts",
                   "a DynMoE checkpoint, whose gate is another method under the same names; not "
                   "supported: use a MoE-LLaVA one; expected 1 or 2, found -1");
  }
  return moe.Int("top_k_experts", 1, 2);
}

void WarnOfIgnored(ConfigReader& moe, ModelDesc& desc) {
  if (moe.IntOr("ep_size", 1, 1, 1 << 20) != 1) {
    desc.warnings.push_back(moe.Where("ep_size") + ": ignored; expert numbers are taken as global");
  }
  moe.NumberOr("capacity_factor", 1.0, 1e-6, 1e6);
  const double capacity = moe.NumberOr("eval_capacity_factor", 1.0, 1e-6, 1e6);
  moe.IntOr("min_capacity", 0, 0, INT32_MAX);
  int32_t experts_max = 0;
  for (const MoeLayerSpec& layer : desc.moe.layers) {
    experts_max = std::max(experts_max, layer.num_experts);
  }
  // The original drops rows below this (spec 4.4); serving never does.
  if (moe.ok() && capacity * desc.moe.top_k < experts_max) {
    desc.warnings.push_back(
        moe.Where("eval_capacity_factor") +
        ": the original would drop tokens at this capacity; none are dropped here");
  }
}

}  // namespace

void ReadMoe(ConfigReader& config, ModelDesc& desc) {
  std::optional<ConfigReader> found = config.Object("moe", "config_moe");
  if (!found.has_value()) {
    config.Fail("config_key", "moe", "missing; a model of type " + desc.model_type + " needs it");
    return;
  }
  ConfigReader& moe = *found;
  if (!moe.BoolOr("moe_enable", true)) {
    moe.OutOfRange("moe_enable", "a model of type " + desc.model_type +
                                     " has experts; expected true, found false");
  }
  // The list as it stands in the file pairs with num_experts; ReadLayers sorts.
  const std::vector<int32_t> listed = moe.IntsOr(kLayersKey, 0, desc.num_layers - 1);
  const std::vector<int32_t> layers = ReadLayers(moe, desc);
  const std::vector<int32_t> experts = ReadExperts(moe, layers.size());
  desc.moe.top_k = ReadTopK(moe);
  if (!moe.ok()) {
    return;
  }
  for (const int32_t layer : layers) {
    const size_t index =
        listed.empty()
            ? desc.moe.layers.size()
            : static_cast<size_t>(std::find(listed.begin(), listed.end(), layer) - listed.begin());
    desc.moe.layers.push_back({.layer = layer, .num_experts = experts[index]});
  }
  desc.moe.is_renormalized = desc.moe.top_k == 2;
  desc.moe.use_residual = moe.BoolOr("use_residual", false);
  desc.moe.io_dim = desc.hidden_dim;
  desc.names.moe_gate = "mlp.deepspeed_moe.gate.wg";
  desc.names.expert = "mlp.deepspeed_moe.experts.deepspeed_experts.{E}.";
  desc.names.residual_ffn = "mlp.mlp.";
  desc.names.residual_coefficient = "mlp.coefficient";
  WarnOfIgnored(moe, desc);
}

}  // namespace conclave::checkpoint
