// Synthetic checkpoints: seeded random weights in the exact layout of a published model (config,
// shards with index, tokenizer files), to measure and to test with where the real weights are not
// at hand. Weight scales keep activations sane through all layers and gate scores apart, so that
// kernels see what they see in real use; the text is noise.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "conclave/base/thread_pool.h"

namespace conclave::checkpoint {

struct SynthProgress {
  int64_t bytes_done = 0;
  int64_t bytes_total = 0;  // of the weights
};

// What a synthetic model may have besides its name's shape, to test and measure; 0 and false: as
// the name says.
struct SynthVariant {
  int32_t num_experts = 0;  // in each MoE layer
  int32_t top_k = 0;
  int32_t num_kv_heads = 0;
  bool use_residual = false;
};

struct SynthOptions {
  // One of SynthNames().
  std::string like;
  // The folder to make: must not exist, or be empty.
  std::string folder;
  // The same seed gives the same bytes on every machine and with any number of threads.
  uint64_t seed = 0;
  SynthVariant variant{};
  // Weight files of their full size that describe all tensors and hold none: their bytes are holes
  // that read as zeros and take no room on the disk. Enough for `inspect` and to test layouts.
  bool is_headers_only = false;
  // Called from the calling thread, some times per second at most disk speed. May be empty.
  std::function<void(const SynthProgress&)> progress;
};

// At the published sizes, in the published file formats: "stablelm-1.6b-4e" (6.4 GB),
// "stablelm-1.6b-4e-384" (SigLIP, 6.65 GB), "qwen-1.8b-4e" (f32, 13.5 GB), "phi2-2.7b-4e" (11.2
// GB), "phi2-2.7b-4e-384" (11.5 GB), "openchat-7b-4e" (32 GB). Some MB each, with four MoE layers:
// "tiny" (StableLM), "tiny-qwen", "tiny-phi", "tiny-openchat", "tiny-llama", "tiny-qwen1.5",
// "tiny-minicpm".
std::vector<std::string_view> SynthNames();

// Writes the checkpoint under a temporary name beside `folder` and renames it when it is complete;
// on an error nothing stays. Fails with "synth_unknown" (naming what is known), "folder_not_empty",
// "disk_full" (checked before anything is written), "file_write_error", or a config's own reason
// for a variant that the decoder family does not have.
absl::Status Synthesize(const SynthOptions& options, ThreadPool& pool);

}  // namespace conclave::checkpoint
