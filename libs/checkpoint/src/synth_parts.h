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

// A model of the StableLM type with MoE on every even layer.
struct SynthModel {
  std::string_view name;
  int32_t hidden_dim, num_layers, num_heads, inner_dim, num_experts, vocab_rows, max_positions;
  int32_t num_ranks;  // of the tokenizer; special ids follow (spec 6.2)
  SynthTower tower;
  // DeepSpeed makes the gate in f32; the published files have it in 16 bits like the rest.
  bool has_f32_gate;
  int64_t shard_bytes_max;
};

std::span<const SynthModel> SynthModels();

// config.json and its companions: file name and content.
std::vector<std::pair<std::string, std::string>> SynthTextFiles(const SynthModel& model);

// A .tiktoken file of `num_ranks` >= 256 ranks: first the single bytes, then strings of which each
// is the concatenation of two earlier ones; no string twice. Most look like words or pieces of
// words.
std::string SynthRanks(int32_t num_ranks, uint64_t seed);

// Uniform values around `offset` with standard deviation `deviation`.
struct Spread {
  float offset = 0;
  float deviation = 0;
};
Spread SpreadOf(const ExpectedTensor& tensor, const ModelDesc& desc);

// Values [first, first + out.size()) of the stream `key`; a value depends on key and index alone.
// `first` is a multiple of 4.
void FillBf16(uint64_t key, int64_t first, const Spread& spread, std::span<uint16_t> out);
void FillF32(uint64_t key, int64_t first, const Spread& spread, std::span<float> out);

// One weight file: the tensors of `shard` (indices into `list`), drawn from `seed` and the tensors'
// names. `written` is told the bytes of each batch.
absl::Status WriteShard(const std::string& path, const std::vector<ExpectedTensor>& list,
                        std::span<const size_t> shard, const ModelDesc& desc, bool has_f32_gate,
                        uint64_t seed, ThreadPool& pool,
                        const std::function<void(int64_t bytes)>& written);

// Cuts the list, in its order, into shards of at most `bytes_max` (more only for a single larger
// tensor).
std::vector<std::vector<size_t>> CutShards(const std::vector<ExpectedTensor>& list,
                                           bool has_f32_gate, int64_t bytes_max);

DType SynthDType(const ExpectedTensor& tensor, bool has_f32_gate);

// "disk_full" when the file system of the folder `path` has less than `bytes` free.
absl::Status CheckFreeSpace(const std::string& path, int64_t bytes);

}  // namespace conclave::checkpoint
