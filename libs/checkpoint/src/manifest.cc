#include "conclave/checkpoint/manifest.h"

#include <algorithm>
#include <cstdint>

#include "conclave/checkpoint/packed_file.h"
#include "sha256.h"

namespace conclave::checkpoint {
namespace {

constexpr size_t kSampleBytes = 4096;

}  // namespace

std::string ManifestHash(const Checkpoint& checkpoint) {
  if (checkpoint.packed() != nullptr) {
    return checkpoint.packed()->index().manifest_hash;  // The source's, so that they agree.
  }
  Sha256 hash;
  hash.AddText(checkpoint.config_text());
  for (const TensorView& tensor : checkpoint.tensors()) {
    hash.AddText(tensor.name);
    hash.AddText(NameOf(tensor.dtype));
    hash.Add(tensor.shape.data(), tensor.shape.size() * sizeof(int64_t));
    const size_t size = tensor.bytes.size();
    const size_t sample = std::min(size, kSampleBytes);
    for (const size_t at : {size_t{0}, (size - sample) / 2, size - sample}) {
      hash.Add(tensor.bytes.data() + at, sample);
    }
  }
  return hash.Hex();
}

}  // namespace conclave::checkpoint
