// The index of a checkpoint in shards: which file holds which tensor.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace conclave::checkpoint {

struct ShardIndex {
  std::string file;                             // that says it
  std::map<std::string, std::string> shard_of;  // tensor -> file
  int64_t total_bytes = -1;                     // -1: not said

  // "shard_index: <file>: <why>".
  absl::Status Bad(const std::string& why) const;
};

inline constexpr std::string_view kShardIndexReason = "shard_index";

// Parses the index file `file`: {"metadata": {"total_size": n}, "weight_map": {tensor: shard}}. The
// shards' names are as they stand there. Everything wrong with it is "shard_index".
absl::StatusOr<ShardIndex> ParseShardIndex(const std::string& file, std::string_view text);

}  // namespace conclave::checkpoint
