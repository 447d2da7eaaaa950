#include "conclave/checkpoint/tensor_list.h"

#include <string_view>
#include <utility>

namespace conclave::checkpoint {
namespace {

std::string Replaced(std::string pattern, std::string_view mark, int32_t number) {
  if (const size_t at = pattern.find(mark); at != std::string::npos) {
    pattern.replace(at, mark.size(), std::to_string(number));
  }
  return pattern;
}

// Collects tensors; `part`, `layer`, `expert` and `is_needed` apply to what is added next.
class Collector {
 public:
  TensorPart part = TensorPart::kNorm;
  int32_t layer = -1;
  int32_t expert = -1;
  bool is_needed = true;

  void Add(std::string name, std::vector<int64_t> shape) {
    list_.push_back({std::move(name), std::move(shape), part, layer, expert, is_needed});
  }
  void Linear(const std::string& name, int64_t out, int64_t in, bool has_bias) {
    Add(name + ".weight", {out, in});
    if (has_bias) {
      Add(name + ".bias", {out});
    }
  }
  void Norm(const std::string& name, int64_t dim, bool has_bias) {
    Add(name + ".weight", {dim});
    if (has_bias) {
      Add(name + ".bias", {dim});
    }
  }
  std::vector<ExpectedTensor> Take() { return std::move(list_); }

 private:
  std::vector<ExpectedTensor> list_;
};

void AddAttention(const ModelDesc& desc, const std::string& prefix, Collector& out) {
  const AttentionSpec& a = desc.attention;
  const int64_t q_rows = static_cast<int64_t>(a.num_heads) * a.head_dim;
  const int64_t kv_rows = static_cast<int64_t>(a.num_kv_heads) * a.head_dim;
  out.part = TensorPart::kAttention;
  if (a.is_fused_qkv) {
    out.Linear(prefix + desc.names.qkv, q_rows + 2 * kv_rows, desc.hidden_dim, a.has_qkv_bias);
  } else {
    out.Linear(prefix + desc.names.q, q_rows, desc.hidden_dim, a.has_qkv_bias);
    out.Linear(prefix + desc.names.k, kv_rows, desc.hidden_dim, a.has_qkv_bias);
    out.Linear(prefix + desc.names.v, kv_rows, desc.hidden_dim, a.has_qkv_bias);
  }
  out.Linear(prefix + desc.names.o, desc.hidden_dim, q_rows, a.has_output_bias);
}

// A dense FFN or one expert; reads and writes rows of `io_dim`.
void AddFfn(const ModelDesc& desc, const std::string& prefix, int64_t io_dim, TensorPart part,
            Collector& out) {
  const FfnSpec& ffn = desc.ffn;
  out.part = part;
  if (ffn.is_gated) {
    out.Linear(prefix + desc.names.ffn_gate, ffn.inner_dim, io_dim, ffn.has_bias);
  }
  out.Linear(prefix + desc.names.ffn_up, ffn.inner_dim, io_dim, ffn.has_bias);
  out.Linear(prefix + desc.names.ffn_down, io_dim, ffn.inner_dim, ffn.has_bias);
}

void AddMoe(const ModelDesc& desc, const MoeLayerSpec& spec, const std::string& prefix,
            Collector& out) {
  out.part = TensorPart::kGate;
  out.Add(prefix + desc.names.moe_gate + ".weight", {spec.num_experts, desc.hidden_dim});
  for (int32_t e = 0; e < spec.num_experts; ++e) {
    out.expert = e;
    AddFfn(desc, ExpertPrefix(desc.names, spec.layer, e), desc.moe.io_dim, TensorPart::kExpert,
           out);
  }
  out.expert = -1;
  if (desc.moe.use_residual) {
    AddFfn(desc, prefix + desc.names.residual_ffn, desc.hidden_dim, TensorPart::kResidualFfn, out);
    out.Linear(prefix + desc.names.residual_coefficient, 2, desc.hidden_dim, true);
  }
}

void AddDecoder(const ModelDesc& desc, Collector& out) {
  out.part = TensorPart::kEmbedding;
  out.Add(desc.names.embed, {desc.vocab_rows, desc.hidden_dim});
  for (int32_t l = 0; l < desc.num_layers; ++l) {
    out.layer = l;
    const std::string prefix = LayerPrefix(desc.names, l);
    AddAttention(desc, prefix, out);
    if (const MoeLayerSpec* moe = desc.FindMoe(l)) {
      AddMoe(desc, *moe, prefix, out);
    } else {
      AddFfn(desc, prefix + desc.names.ffn, desc.hidden_dim, TensorPart::kDenseFfn, out);
    }
    out.part = TensorPart::kNorm;
    out.Norm(prefix + desc.names.norm1, desc.hidden_dim, desc.norm.has_bias);
    if (!desc.names.norm2.empty()) {
      out.Norm(prefix + desc.names.norm2, desc.hidden_dim, desc.norm.has_bias);
    }
  }
  out.layer = -1;
  out.Norm(desc.names.final_norm, desc.hidden_dim, desc.norm.has_bias);
}

void AddProjector(const ModelDesc& desc, Collector& out) {
  out.part = TensorPart::kProjector;
  const std::string& name = desc.names.projector;
  if (desc.projector.kind == ProjectorKind::kLinear) {
    out.Linear(name, desc.hidden_dim, desc.vision.hidden_dim, true);
  } else if (desc.projector.kind == ProjectorKind::kMlpGelu) {
    const std::string block = desc.projector.pools_2x2 ? ".block." : ".";
    for (int32_t j = 0; j < desc.projector.num_linears; ++j) {
      // The GELUs between the linears take the odd numbers.
      out.Linear(name + block + std::to_string(2 * j), desc.hidden_dim,
                 j == 0 ? desc.vision.hidden_dim : desc.hidden_dim, true);
    }
  }
}

void AddTowerLayer(const VisionSpec& v, const std::string& prefix, Collector& out) {
  for (const std::string_view name : {"k_proj", "v_proj", "q_proj", "out_proj"}) {
    out.Linear(prefix + "self_attn." + std::string(name), v.hidden_dim, v.hidden_dim, true);
  }
  out.Norm(prefix + "layer_norm1", v.hidden_dim, true);
  out.Linear(prefix + "mlp.fc1", v.inner_dim, v.hidden_dim, true);
  out.Linear(prefix + "mlp.fc2", v.hidden_dim, v.inner_dim, true);
  out.Norm(prefix + "layer_norm2", v.hidden_dim, true);
}

void AddPoolingHead(const VisionSpec& v, const std::string& prefix, Collector& out) {
  const int64_t w = v.hidden_dim;
  out.Add(prefix + "probe", {1, 1, w});
  out.Add(prefix + "attention.in_proj_weight", {3 * w, w});
  out.Add(prefix + "attention.in_proj_bias", {3 * w});
  out.Linear(prefix + "attention.out_proj", w, w, true);
  out.Norm(prefix + "layernorm", w, true);
  out.Linear(prefix + "mlp.fc1", v.inner_dim, w, true);
  out.Linear(prefix + "mlp.fc2", w, v.inner_dim, true);
}

void AddTower(const ModelDesc& desc, Collector& out) {
  const VisionSpec& v = desc.vision;
  if (v.kind == TowerKind::kNone) {
    return;
  }
  const std::string& tower = desc.names.tower;
  out.part = TensorPart::kTower;
  if (v.has_class_token) {
    out.Add(tower + "embeddings.class_embedding", {v.hidden_dim});
  }
  out.Add(tower + "embeddings.patch_embedding.weight",
          {v.hidden_dim, 3, v.patch_size, v.patch_size});
  if (v.has_patch_bias) {
    out.Add(tower + "embeddings.patch_embedding.bias", {v.hidden_dim});
  }
  out.Add(tower + "embeddings.position_embedding.weight", {v.num_positions(), v.hidden_dim});
  if (v.has_pre_norm) {
    out.Norm(tower + "pre_layrnorm", v.hidden_dim, true);  // Spelt so in the files.
  }
  for (int32_t l = 0; l < v.num_layers; ++l) {
    out.layer = l;
    out.is_needed = l < v.num_layers_run;
    AddTowerLayer(v, tower + "encoder.layers." + std::to_string(l) + ".", out);
  }
  out.layer = -1;
  out.is_needed = false;
  out.Norm(tower + "post_layernorm", v.hidden_dim, true);
  if (v.kind == TowerKind::kSiglip) {
    AddPoolingHead(v, tower + "head.", out);
  }
  out.is_needed = true;
}

}  // namespace

int64_t ExpectedTensor::num_elements() const {
  int64_t num = 1;
  for (const int64_t size : shape) {
    num *= size;
  }
  return num;
}

std::string LayerPrefix(const TensorNames& names, int32_t layer) {
  return Replaced(names.layer, "{L}", layer);
}

std::string ExpertPrefix(const TensorNames& names, int32_t layer, int32_t expert) {
  return LayerPrefix(names, layer) + Replaced(names.expert, "{E}", expert);
}

std::vector<ExpectedTensor> ExpectedTensors(const ModelDesc& desc) {
  Collector out;
  AddDecoder(desc, out);
  AddProjector(desc, out);
  if (!desc.tie_embeddings) {
    out.part = TensorPart::kHead;
    out.Add(desc.names.lm_head, {desc.vocab_rows, desc.hidden_dim});
  }
  AddTower(desc, out);
  return out.Take();
}

}  // namespace conclave::checkpoint
