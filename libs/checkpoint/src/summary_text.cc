// A ModelSummary as JSON and as lines for a terminal.
#include <cstdio>
#include <string>
#include <string_view>

#include "conclave/checkpoint/model_summary.h"
#include "json.h"

namespace conclave::checkpoint {
namespace {

// 6400249856 -> "6,400,249,856".
std::string Grouped(int64_t number) {
  std::string text = std::to_string(number);
  for (auto at = static_cast<int64_t>(text.size()) - 3; at > 0; at -= 3) {
    text.insert(static_cast<size_t>(at), 1, ',');
  }
  return text;
}

// Decimal units, as file sizes of checkpoints are given: "6.400 GB".
std::string Size(int64_t bytes) {
  char text[32];
  if (bytes >= 1'000'000'000) {
    std::snprintf(text, sizeof(text), "%.3f GB", static_cast<double>(bytes) / 1e9);
  } else if (bytes >= 1'000'000) {
    std::snprintf(text, sizeof(text), "%.3f MB", static_cast<double>(bytes) / 1e6);
  } else {
    std::snprintf(text, sizeof(text), "%lld bytes", static_cast<long long>(bytes));
  }
  return text;
}

// Null when the folder has no tokenizer file.
boost::json::value TokenizerValue(const TokenizerSpec& tokenizer) {
  return tokenizer.file.empty() ? boost::json::value(nullptr)
                                : boost::json::value(Word(tokenizer.file));
}

std::string ProjectorWord(const ProjectorSpec& projector) {
  const std::string number = std::to_string(projector.num_linears);
  switch (projector.kind) {
    case ProjectorKind::kNone:
      return "none";
    case ProjectorKind::kIdentity:
      return "identity";
    case ProjectorKind::kLinear:
      return "linear";
    case ProjectorKind::kMlpGelu:
      return (projector.pools_2x2 ? "pool_mlp" : "mlp") + number + "x_gelu";
  }
  return "";
}

boost::json::value ImageValue(const ModelDesc& desc) {
  if (desc.vision.kind == TowerKind::kNone) {
    return nullptr;
  }
  return boost::json::object{{"tower", desc.vision.kind == TowerKind::kClip ? "clip" : "siglip"},
                             {"projector", Word(ProjectorWord(desc.projector))},
                             {"size", desc.vision.image_size},
                             {"patches", desc.vision.num_patches()},
                             {"tokens", desc.splice.tokens_per_image}};
}

boost::json::object DecoderValue(const ModelDesc& desc) {
  return {{"layers", desc.num_layers},
          {"hidden", desc.hidden_dim},
          {"heads", desc.attention.num_heads},
          {"kv_heads", desc.attention.num_kv_heads},
          {"head_dim", desc.attention.head_dim},
          {"rotary_dim", desc.attention.rope.rotary_dim},
          {"window", desc.attention.sliding_window},
          {"ffn", desc.ffn.inner_dim},
          {"vocabulary", desc.vocab_rows},
          {"tied", desc.tie_embeddings}};
}

std::string_view ActivationWord(ActivationKind kind) {
  switch (kind) {
    case ActivationKind::kSilu:
      return "SiLU";
    case ActivationKind::kGeluTanh:
      return "GELU (tanh)";
    case ActivationKind::kGeluErf:
      return "GELU";
    case ActivationKind::kQuickGelu:
      return "quick GELU";
  }
  return "";
}

// "24 layers of 2048, sequential; 16 heads of 128; FFN 5504, gated SiLU; RMSNorm; vocabulary
// 151936".
std::string DecoderLine(const ModelDesc& desc) {
  const AttentionSpec& attention = desc.attention;
  std::string text =
      std::to_string(desc.num_layers) + " layers of " + std::to_string(desc.hidden_dim) +
      (desc.topology == BlockTopology::kParallel ? ", parallel; " : ", sequential; ");
  text += std::to_string(attention.num_heads) + " heads of " + std::to_string(attention.head_dim);
  if (attention.num_kv_heads != attention.num_heads) {
    text += " over " + std::to_string(attention.num_kv_heads) + " of keys and values";
  }
  if (attention.sliding_window > 0) {
    text += ", window " + std::to_string(attention.sliding_window);
  }
  text += "; FFN " + std::to_string(desc.ffn.inner_dim) + (desc.ffn.is_gated ? ", gated " : ", ") +
          std::string(ActivationWord(desc.ffn.activation)) + "; ";
  text += desc.norm.kind == NormKind::kLayerNorm ? "LayerNorm" : "RMSNorm";
  text += "; vocabulary " + std::to_string(desc.vocab_rows);
  return text + (desc.tie_embeddings ? ", tied to the head" : "");
}

boost::json::object MoeValue(const MoeSpec& moe) {
  boost::json::array layers;
  boost::json::array experts;
  for (const MoeLayerSpec& layer : moe.layers) {
    layers.push_back(layer.layer);
    experts.push_back(layer.num_experts);
  }
  return {{"layers", std::move(layers)},
          {"experts", std::move(experts)},
          {"top_k", moe.top_k},
          {"residual", moe.use_residual}};
}

std::string MoeLine(const ModelSummary& summary) {
  const MoeSpec& moe = summary.desc.moe;
  if (moe.layers.empty()) {
    return "none, a dense model";
  }
  std::string layers;
  bool is_even = true;
  for (const MoeLayerSpec& layer : moe.layers) {
    if (!layers.empty()) {
      layers += ',';
    }
    layers += std::to_string(layer.layer);
    is_even = is_even && layer.num_experts == moe.layers.front().num_experts;
  }
  std::string experts = is_even ? std::to_string(moe.layers.front().num_experts) + " " : "";
  experts += "experts";
  return experts + " in each of layers " + layers + ", top " + std::to_string(moe.top_k) + ", " +
         Grouped(summary.parameters.per_expert) + " parameters per expert" +
         (moe.use_residual ? ", beside an FFN for every token" : "");
}

std::string ImageLine(const ModelDesc& desc) {
  const VisionSpec& vision = desc.vision;
  if (vision.kind == TowerKind::kNone) {
    return "none";
  }
  return std::string(vision.kind == TowerKind::kClip ? "CLIP" : "SigLIP") + ", " +
         std::to_string(vision.image_size) + " px, " + std::to_string(vision.num_patches()) +
         " patches, " + std::to_string(desc.splice.tokens_per_image) +
         " tokens per image, projector " + ProjectorWord(desc.projector);
}

// Null for a checkpoint as published.
boost::json::value PackedValue(const ModelSummary& summary) {
  if (!summary.packed_dtype.has_value()) {
    return nullptr;
  }
  return {{"dtype", Word(NameOf(*summary.packed_dtype))}, {"bytes", summary.packed_bytes}};
}

}  // namespace

std::string ToJson(const ModelSummary& summary) {
  const ModelDesc& desc = summary.desc;
  const ParameterCounts& p = summary.parameters;
  const ByteCounts& b = summary.bytes;
  boost::json::array warnings;
  for (const std::string& warning : desc.warnings) {
    warnings.push_back(Word(warning));
  }
  boost::json::array workers;
  for (const WorkerShare& share : summary.workers) {
    workers.push_back(
        {{"worker", share.worker}, {"experts", share.num_experts}, {"bytes", share.bytes}});
  }
  const boost::json::object object = {
      {"model_type", Word(desc.model_type)},
      {"name", Word(desc.served_name)},
      {"weights", summary.has_weights ? "present" : "absent"},
      {"packed", PackedValue(summary)},
      {"tensors", summary.num_tensors},
      {"parameters",
       {{"total", p.total},
        {"language", p.language},
        {"activated", p.activated},
        {"vision", p.vision},
        {"projector", p.projector},
        {"per_expert", p.per_expert}}},
      {"bytes",
       {{"total", b.total},
        {"experts", b.experts},
        {"attention", b.attention},
        {"embeddings", b.embeddings},
        {"vision", b.vision}}},
      {"decoder", DecoderValue(desc)},
      {"moe", MoeValue(desc.moe)},
      {"kv_bytes_per_token", summary.kv_bytes_per_token},
      {"tokenizer", TokenizerValue(desc.tokenizer)},
      {"template", Word(desc.prompt_template)},
      {"image", ImageValue(desc)},
      {"max_positions", desc.max_positions},
      {"frontend_bytes", summary.frontend_bytes},
      {"workers", std::move(workers)},
      {"warnings", std::move(warnings)},
  };
  return Pretty(object);
}

std::string ToText(const ModelSummary& summary) {
  const ModelDesc& desc = summary.desc;
  const ParameterCounts& p = summary.parameters;
  const ByteCounts& b = summary.bytes;
  const auto line = [](const std::string& label, const std::string& text) {
    return label + std::string(label.size() < 12 ? 12 - label.size() : 1, ' ') + text + "\n";
  };
  std::string out = line("model", desc.served_name + " (" + desc.model_type + ")");
  out += line("weights",
              summary.has_weights
                  ? Size(b.total) + " in " + std::to_string(summary.num_tensors) + " tensors"
                  : "absent; " + Size(b.total) + " in " + std::to_string(summary.num_tensors) +
                        " tensors by the config");
  if (summary.packed_dtype.has_value()) {
    out += line("packed", std::string(NameOf(*summary.packed_dtype)) + ", " +
                              Size(summary.packed_bytes) + "; the sizes here are the source's");
  }
  out += line("parameters", Grouped(p.total) + " in all; language " + Grouped(p.language) +
                                ", of which a token uses " + Grouped(p.activated) + "; vision " +
                                Grouped(p.vision) + "; projector " + Grouped(p.projector));
  out += line("bytes", "experts " + Size(b.experts) + ", attention " + Size(b.attention) +
                           ", embeddings " + Size(b.embeddings) + ", vision " + Size(b.vision));
  out += line("decoder", DecoderLine(desc));
  out += line("experts", MoeLine(summary));
  out += line("kv", Grouped(summary.kv_bytes_per_token) + " bytes per token, " +
                        std::to_string(desc.max_positions) + " positions");
  out += line("image", ImageLine(desc));
  out += line("tokenizer", desc.tokenizer.file.empty() ? "none" : desc.tokenizer.file);
  out += line("template", desc.prompt_template);
  if (!summary.workers.empty()) {
    out += line("frontend", Size(summary.frontend_bytes));
  }
  for (const WorkerShare& share : summary.workers) {
    out += line("worker " + std::to_string(share.worker),
                std::to_string(share.num_experts) + " experts, " + Size(share.bytes));
  }
  for (const std::string& warning : desc.warnings) {
    out += line("warning", warning);
  }
  return out;
}

}  // namespace conclave::checkpoint
