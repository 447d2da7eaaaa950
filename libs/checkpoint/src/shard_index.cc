#include "shard_index.h"

#include "conclave/base/status.h"
#include "config_reader.h"

namespace conclave::checkpoint {
namespace {

constexpr JsonLimits kIndexLimits{.depth_max = 8, .values_max = 8'000'000};

}  // namespace

absl::Status ShardIndex::Bad(const std::string& why) const {
  return InvalidArgument(kShardIndexReason, file + ": " + why);
}

absl::StatusOr<ShardIndex> ParseShardIndex(const std::string& file, std::string_view text) {
  ShardIndex index{.file = file, .shard_of = {}};
  absl::StatusOr<boost::json::value> value = ParseStrict(text, kIndexLimits);
  if (!value.ok()) {
    return index.Bad("not valid JSON " + MessageOf(value.status()));
  }
  const boost::json::object* object = value->if_object();
  const boost::json::value* map = object != nullptr ? object->if_contains("weight_map") : nullptr;
  if (map == nullptr || !map->is_object() || map->get_object().empty()) {
    return index.Bad(
        "weight_map: missing or empty; expected an object of tensor names and file names");
  }
  for (const auto& member : map->get_object()) {
    const std::string name(std::string_view(member.key()));
    if (!member.value().is_string()) {
      return index.Bad("weight_map: tensor " + name.substr(0, 128) +
                       ": expected a file name, found " + Shown(member.value()));
    }
    index.shard_of[name] = std::string(std::string_view(member.value().get_string()));
  }
  const boost::json::value* metadata = object->if_contains("metadata");
  if (metadata != nullptr && metadata->is_object()) {
    if (const boost::json::value* total = metadata->get_object().if_contains("total_size")) {
      if (!total->is_int64() || total->get_int64() < 0) {
        return index.Bad("metadata.total_size: expected a number of bytes, found " + Shown(*total));
      }
      index.total_bytes = total->get_int64();
    }
  }
  return index;
}

}  // namespace conclave::checkpoint
