// What the decoder families of MoE-LLaVA share in reading their configs (spec 1.2, 2.1, 2.5). Each
// family's reader (family_*.cc) says which keys it has; the checks between them are made here.
#pragma once

#include <initializer_list>
#include <string_view>

#include "model_config.h"

namespace conclave::checkpoint {

// hidden_size, num_hidden_layers, vocab_size, max_position_embeddings.
void ReadSizes(ConfigReader& config, ModelDesc& desc);

// Fills num_heads, num_kv_heads and head_dim: hidden_size is cut evenly, and key-value heads
// ("num_key_value_heads"; absent or null: as many as heads) divide heads.
void ReadHeads(ConfigReader& config, std::string_view heads_key, ModelDesc& desc);

// Fills `rope`: base from `theta_key`, and the rotating part of each head from `part_key` (empty:
// all of it). A rope_scaling is refused: the original's decoders of these types have none.
void ReadRope(ConfigReader& config, std::string_view theta_key, std::string_view part_key,
              ModelDesc& desc);

// The value of "hidden_act" must be `word`, which is also the default.
void ExpectActivation(ConfigReader& config, std::string_view word);

// Keys that change the maths in a way no model of the type has; each must be absent or false.
void RefuseTrue(ConfigReader& config, std::initializer_list<std::string_view> keys);

// SwiGLU of intermediate_size without biases.
void ReadSwiGlu(ConfigReader& config, ModelDesc& desc);

// Everything of the decoders that are Llama's with other numbers (Llama, Mistral, Qwen1.5,
// MiniCPM): sequential pre-norm blocks with RMSNorm, SwiGLU, rotary on whole heads.
void ReadLlamaType(ConfigReader& config, bool is_tied_by_default, ModelDesc& desc);

// Names of all tensors outside the layers' own parts: embedding, head, final norm, layers, tower
// and projector below "model.".
void UseModelRoot(ModelDesc& desc);
// Names within a layer as Llama has them: self_attn.{q,k,v,o}_proj, mlp.{gate,up,down}_proj and two
// norms.
void UseLlamaNames(ModelDesc& desc);

}  // namespace conclave::checkpoint
