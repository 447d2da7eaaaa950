// model.safetensors.index.json and pytorch_model.bin.index.json.
//
// Promises: an index is refused as "shard_index", or names a file for at least one tensor.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "shard_index.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  using conclave::checkpoint::ShardIndex;
  const absl::StatusOr<ShardIndex> index = conclave::checkpoint::ParseShardIndex(
      "index.json", std::string_view(reinterpret_cast<const char*>(bytes), size));
  if (!index.ok()) {
    CONCLAVE_CHECK(conclave::ReasonOf(index.status()) == "shard_index");
    return 0;
  }
  CONCLAVE_CHECK(!index->shard_of.empty());
  CONCLAVE_CHECK(index->total_bytes >= -1);
  return 0;
}
