// The parts of a synthetic checkpoint: which models there are, their text files, their weights.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "conclave/base/thread_pool.h"
#include "conclave/checkpoint/safetensors_writer.h"
#include "conclave/checkpoint/synth.h"
#include "conclave/checkpoint/tensor_list.h"

namespace conclave::checkpoint {

struct SynthTower {
  std::string_view name;  // mm_image_tower
  bool is_clip = true;
  int32_t image_size, patch_size, hidden_dim, num_heads, inner_dim, num_layers;
};

enum class SynthFamily { kStablelm, kQwen, kPhi, kMistral, kLlama, kQwen15, kMiniCpm };

// A model with MoE on every even layer.
struct SynthModel {
  std::string_view name;
  SynthFamily family;
  int32_t hidden_dim, num_layers, num_heads, num_kv_heads, inner_dim, vocab_rows, max_positions;
  // Entries of the tokenizer's own file; added and special tokens follow as the family has them.
  int32_t num_pieces;
  SynthTower tower;
  DType dtype;
  // DeepSpeed makes the gate in f32; the published files have it in 16 bits like the rest.
  bool has_f32_gate;
  bool is_torch;  // torch.save's archives in place of safetensors
  int64_t shard_bytes_max;
  int32_t num_experts = 4;
  int32_t top_k = 2;
  bool use_residual = false;
};

std::span<const SynthModel> SynthModels();

// Name and content of a file.
using SynthFile = std::pair<std::string, std::string>;

// config.json, preprocessor_config.json, generation_config.json.
std::vector<SynthFile> SynthConfigs(const SynthModel& model);

// The tokenizer's files in the family's format: *.tiktoken, vocab.json with merges.txt, or
// tokenizer.model; with tokenizer_config.json, special_tokens_map.json and, where the family has
// some, added_tokens.json.
std::vector<SynthFile> SynthTokenizer(const SynthModel& model, uint64_t seed);

// Ids that configs and tokenizer files share; -1: none.
struct SynthTokenIds {
  int32_t bos = -1;
  int32_t eos = -1;
  int32_t pad = -1;
};
SynthTokenIds TokenIdsOf(const SynthModel& model);

// `num` >= 256 strings: first the single bytes, then strings of which each is the concatenation of
// two earlier ones; no string twice. Most look like words or pieces of words.
std::vector<std::string> SynthPieces(int32_t num, uint64_t seed);

// The formats of tokenizer files, for any list of pieces as SynthPieces makes them.
std::string TiktokenText(std::span<const std::string> pieces);
// vocab.json and merges.txt of a byte-level BPE; `last` are entries behind the pieces.
SynthFile BpeVocabulary(std::span<const std::string> pieces, std::span<const std::string> last);
SynthFile BpeMerges(std::span<const std::string> pieces);
// tokenizer.model of SentencePiece's BPE kind with byte fallback and `num` entries.
std::string SentencePieceModel(int32_t num, uint64_t seed);

// Uniform values around `offset` with standard deviation `deviation`.
struct Spread {
  float offset = 0;
  float deviation = 0;
};
Spread SpreadOf(const ExpectedTensor& tensor, const ModelDesc& desc);

// Values [first, first + out.size()) of the stream `key`; a value depends on key and index alone.
// `first` is a multiple of 4.
void FillF32(uint64_t key, int64_t first, const Spread& spread, std::span<float> out);
void FillBf16(uint64_t key, int64_t first, const Spread& spread, std::span<uint16_t> out);
void FillF16(uint64_t key, int64_t first, const Spread& spread, std::span<uint16_t> out);

// One weight file: the tensors of `shard` (indices into `list`), drawn from `options.seed` and the
// tensors' names, or not at all. `written` is told the bytes of each batch.
absl::Status WriteShard(const std::string& path, const std::vector<ExpectedTensor>& list,
                        std::span<const size_t> shard, const ModelDesc& desc,
                        const SynthModel& model, const SynthOptions& options, ThreadPool& pool,
                        const std::function<void(int64_t bytes)>& written);

// Cuts the list, in its order, into shards of at most model.shard_bytes_max (more only for a single
// larger tensor).
std::vector<std::vector<size_t>> CutShards(const std::vector<ExpectedTensor>& list,
                                           const SynthModel& model);

DType SynthDType(const ExpectedTensor& tensor, const SynthModel& model);

}  // namespace conclave::checkpoint
