// What a model computes, as data. config.json of any family becomes a ModelDesc; compute code
// switches on these fields and never on a family's name. Sources: ../spec section numbers refer to
// docs/models/moe-llava.md.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "conclave/tensor/dtype.h"

namespace conclave::checkpoint {

enum class NormKind { kLayerNorm, kRmsNorm };

struct NormSpec {
  NormKind kind = NormKind::kLayerNorm;
  float eps = 1e-5f;
  bool has_bias = true;
};

// kSequential: h = x + Attn(N1 x); y = h + Ffn(N2 h).  kParallel: n = N1 x; y = x + Attn(n) +
// Ffn(n).
enum class BlockTopology { kSequential, kParallel };

// What mixes positions in a layer. Families to come have layers with a recurrent state instead of a
// KV cache.
enum class MixerKind : uint8_t { kAttention };

struct RopeSpec {
  int32_t rotary_dim = 0;  // leading dims of each head that rotate; pairs (i, i + rotary_dim/2)
  float theta = 10000.0f;
  // Dynamic NTK (spec 4.2, Qwen v1): a prompt of s > ntk_length positions turns with theta ·
  // α^(d/(d-2)), α = max(1, 2^⌈log2(s / ntk_length) + 1⌉ - 1), fixed for the sequence. 0: none.
  int32_t ntk_length = 0;
};

struct AttentionSpec {
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  bool has_qkv_bias = false;
  bool has_output_bias = false;
  // One stored tensor with rows q | k | v instead of three.
  bool is_fused_qkv = false;
  // A position sees itself and at most this many before it; 0: all.
  int32_t sliding_window = 0;
  // Log-n attention (spec 4.2, Qwen v1): the query at 1-based position i > logn_length is
  // multiplied by log(i) / log(logn_length). 0: none.
  int32_t logn_length = 0;
  RopeSpec rope;
};

enum class ActivationKind { kSilu, kGeluTanh, kGeluErf, kQuickGelu };

struct FfnSpec {
  // Gated: down(act(gate x) ⊙ up x), three matrices. Otherwise fc2(act(fc1 x)), two.
  bool is_gated = true;
  bool has_bias = false;
  ActivationKind activation = ActivationKind::kSilu;
  int32_t inner_dim = 0;
};

struct MoeLayerSpec {
  int32_t layer = 0;
  int32_t num_experts = 0;
};

struct MoeSpec {
  std::vector<MoeLayerSpec> layers;  // ascending; empty for a dense model
  int32_t top_k = 0;                 // 1 or 2
  // Weights divided by their sum over the chosen experts (DeepSpeed: for k = 2 only).
  bool is_renormalized = false;
  // y = c0·moe + c1·ffn with c = softmax(W x + b).
  bool use_residual = false;
  // Width of the rows that experts read and write; differs from hidden_dim in latent MoE families.
  int32_t io_dim = 0;
};

enum class TowerKind { kNone, kClip, kSiglip };
enum class ImageFit { kPad, kCrop, kStretch };

struct VisionSpec {
  TowerKind kind = TowerKind::kNone;
  // Folder of the tower's own that said its geometry, and whose weights serve when the checkpoint
  // has none of the tower's. Empty: the checkpoint's own config, or a published name.
  std::string folder;
  int32_t image_size = 0;  // pixels, square
  int32_t patch_size = 0;
  int32_t hidden_dim = 0;
  int32_t num_heads = 0;
  int32_t inner_dim = 0;
  int32_t num_layers = 0;      // stored
  int32_t num_layers_run = 0;  // up to the selected hidden state
  float norm_eps = 1e-5f;
  ActivationKind activation = ActivationKind::kQuickGelu;
  bool has_class_token = true;
  bool has_pre_norm = true;
  bool has_patch_bias = false;
  // Drop row 0 of the features: the class token for CLIP, and a real patch for SigLIP (spec 3.4).
  bool drops_first_row = true;
  ImageFit fit = ImageFit::kPad;  // from image_aspect_ratio
  float mean[3] = {0, 0, 0};
  float std[3] = {1, 1, 1};

  int32_t num_patches() const { return (image_size / patch_size) * (image_size / patch_size); }
  int32_t num_positions() const { return num_patches() + (has_class_token ? 1 : 0); }
  // Feature rows out of the tower.
  int32_t num_features() const { return num_positions() - (drops_first_row ? 1 : 0); }
};

enum class ProjectorKind { kNone, kIdentity, kLinear, kMlpGelu };

struct ProjectorSpec {
  ProjectorKind kind = ProjectorKind::kNone;
  int32_t num_linears = 0;  // kMlpGelu: N of mlpNx_gelu
  bool pools_2x2 = false;   // pool_mlpNx_gelu
};

// How images enter the token sequence (spec 3.6).
struct SpliceSpec {
  // "<im_start><image><im_end>" around each image.
  bool use_start_end_tokens = false;
  int32_t tokens_per_image = 0;
};

enum class TokenizerKind { kTiktoken, kByteLevelBpe, kSentencePiece, kTokenizerJson };

struct TokenizerSpec {
  TokenizerKind kind = TokenizerKind::kTiktoken;
  std::string file;  // relative to the checkpoint folder
};

// The names under which a family stores its tensors. "{L}" stands for the layer, "{E}" for the
// expert.
struct TensorNames {
  std::string embed;
  std::string lm_head;
  std::string final_norm;       // without ".weight"/".bias"
  std::string layer;            // "model.layers.{L}."; the names below follow it
  std::string norm1, norm2;     // "input_layernorm", "post_attention_layernorm" (empty: none)
  std::string q, k, v, qkv, o;  // "self_attn.q_proj", …
  std::string ffn;              // "mlp."
  std::string ffn_gate, ffn_up,
      ffn_down;          // gated FFN; for a plain one ffn_up is fc1 and ffn_down fc2
  std::string moe_gate;  // "mlp.deepspeed_moe.gate.wg"
  std::string expert;    // "mlp.deepspeed_moe.experts.deepspeed_experts.{E}."
  // With MoeSpec::use_residual: the FFN beside the experts, and the linear (weight, bias) that
  // mixes the two.
  std::string residual_ffn;          // "mlp.mlp."
  std::string residual_coefficient;  // "mlp.coefficient"
  std::string tower;                 // "model.image_tower.image_tower.vision_model."
  std::string projector;  // "model.mm_projector.image_spatial_proj"; pooling: ".block" follows
};

struct ModelDesc {
  std::string model_type;   // as in config.json, for messages and `inspect` only
  std::string served_name;  // the folder's name
  int32_t hidden_dim = 0;
  int32_t num_layers = 0;
  int32_t vocab_rows = 0;  // rows of embedding and head
  int32_t max_positions = 0;
  bool tie_embeddings = false;
  BlockTopology topology = BlockTopology::kSequential;
  std::vector<MixerKind> mixers;  // one per layer
  NormSpec norm;                  // of blocks and the final norm
  // MiniCPM's three constants (spec 4.2): token embeddings are multiplied by embedding_scale (which
  // ones: spec 4.2), the output of attention and FFN by residual_scale before they are added, and
  // what enters the head by head_scale.
  float embedding_scale = 1.0f;
  float residual_scale = 1.0f;
  float head_scale = 1.0f;
  AttentionSpec attention;
  FfnSpec ffn;  // dense layers and experts alike
  MoeSpec moe;
  VisionSpec vision;
  ProjectorSpec projector;
  SpliceSpec splice;
  TokenizerSpec tokenizer;
  std::string prompt_template;  // key of text::FindTemplate
  TensorNames names;
  // torch_dtype of config.json: for figures about weights that are absent. Stored tensors have
  // their own dtypes.
  DType stored_dtype = DType::kBf16;
  int32_t bos_token = -1;  // -1: none
  int32_t eos_token = -1;
  std::vector<std::string> warnings;  // what was ignored or assumed while reading

  // Null when `layer` is dense.
  const MoeLayerSpec* FindMoe(int32_t layer) const {
    for (const MoeLayerSpec& spec : moe.layers) {
      if (spec.layer == layer) {
        return &spec;
      }
    }
    return nullptr;
  }
};

}  // namespace conclave::checkpoint
