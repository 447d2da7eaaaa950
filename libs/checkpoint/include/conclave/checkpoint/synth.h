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

struct SynthOptions {
  // One of SynthNames().
  std::string like;
  // The folder to make: must not exist, or be empty.
  std::string folder;
  // The same seed gives the same bytes on every machine and with any number of threads.
  uint64_t seed = 0;
  // Called from the calling thread, some times per second at most disk speed. May be empty.
  std::function<void(const SynthProgress&)> progress;
};

// "stablelm-1.6b-4e" (6.4 GB), "stablelm-1.6b-4e-384" (SigLIP, 6.65 GB), "tiny" (some MB, four MoE
// layers).
std::vector<std::string_view> SynthNames();

// Writes the checkpoint under a temporary name beside `folder` and renames it when it is complete;
// on an error nothing stays. Fails with "synth_unknown" (naming what is known), "folder_not_empty",
// "disk_full" (checked before anything is written) or "file_write_error".
absl::Status Synthesize(const SynthOptions& options, ThreadPool& pool);

}  // namespace conclave::checkpoint
