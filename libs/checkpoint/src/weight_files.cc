#include "weight_files.h"

#include <algorithm>
#include <map>
#include <utility>

#include "conclave/base/status.h"
#include "config_reader.h"

namespace conclave::checkpoint {
namespace {

constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";
constexpr std::string_view kReason = "shard_index";
constexpr int64_t kIndexBytesMax = 64 << 20;
constexpr size_t kShardsMax = 10'000;
constexpr JsonLimits kIndexLimits{.depth_max = 8, .values_max = 8'000'000};

absl::Status Bad(const std::string& why) {
  return InvalidArgument(kReason, std::string(kIndexFile) + ": " + why);
}

struct ShardIndex {
  std::map<std::string, std::string> shard_of;  // tensor -> file
  int64_t total_bytes = -1;                     // -1: not said
};

absl::StatusOr<ShardIndex> ParseIndex(const std::string& text) {
  absl::StatusOr<boost::json::value> value = ParseStrict(text, kIndexLimits);
  if (!value.ok()) {
    return Bad("not valid JSON " + MessageOf(value.status()));
  }
  const boost::json::object* object = value->if_object();
  const boost::json::value* map = object != nullptr ? object->if_contains("weight_map") : nullptr;
  if (map == nullptr || !map->is_object() || map->get_object().empty()) {
    return Bad("weight_map: missing or empty; expected an object of tensor names and file names");
  }
  ShardIndex index;
  for (const auto& member : map->get_object()) {
    const std::string name(std::string_view(member.key()));
    if (!member.value().is_string()) {
      return Bad("weight_map: tensor " + name.substr(0, 128) + ": expected a file name, found " +
                 Shown(member.value()));
    }
    index.shard_of[name] = std::string(std::string_view(member.value().get_string()));
  }
  const boost::json::value* metadata = object->if_contains("metadata");
  if (metadata != nullptr && metadata->is_object()) {
    if (const boost::json::value* total = metadata->get_object().if_contains("total_size")) {
      if (!total->is_int64() || total->get_int64() < 0) {
        return Bad("metadata.total_size: expected a number of bytes, found " + Shown(*total));
      }
      index.total_bytes = total->get_int64();
    }
  }
  return index;
}

absl::StatusOr<WeightFile> OpenOne(const ModelFolder& folder, const std::string& name) {
  CONCLAVE_ASSIGN_OR_RETURN(OpenedFile file, folder.OpenFile(name));
  CONCLAVE_ASSIGN_OR_RETURN(std::vector<StoredTensor> tensors, ReadSafetensorsHeader(file));
  CONCLAVE_ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::Map(file));
  return WeightFile{
      .file = std::move(file), .mapped = std::move(mapped), .tensors = std::move(tensors)};
}

// Every tensor of every shard is where the index says, and nowhere else.
absl::Status CheckAgainstIndex(const std::vector<WeightFile>& files, const ShardIndex& index) {
  int64_t total_bytes = 0;
  size_t num_tensors = 0;
  for (const WeightFile& file : files) {
    for (const StoredTensor& tensor : file.tensors) {
      const auto found = index.shard_of.find(tensor.name);
      if (found == index.shard_of.end()) {
        return Bad("tensor " + tensor.name + " is in " + file.file.name + " but not in weight_map");
      }
      if (found->second != file.file.name) {
        return Bad("tensor " + tensor.name + ": expected in " + found->second +
                   " alone, found in " + file.file.name);
      }
      total_bytes += tensor.size_bytes;
      ++num_tensors;
    }
  }
  if (num_tensors != index.shard_of.size()) {
    for (const auto& [name, shard] : index.shard_of) {
      const auto file =
          std::find_if(files.begin(), files.end(),
                       [&shard = shard](const WeightFile& f) { return f.file.name == shard; });
      const bool is_there = std::binary_search(
          file->tensors.begin(), file->tensors.end(),
          StoredTensor{.name = name, .dtype = {}, .shape = {}},
          [](const StoredTensor& a, const StoredTensor& b) { return a.name < b.name; });
      if (!is_there) {
        std::string why = "tensor ";
        why += name;
        why += ": expected in ";
        why += shard;
        return Bad(why + ", which does not have it");
      }
    }
  }
  if (index.total_bytes >= 0 && index.total_bytes != total_bytes) {
    return Bad("metadata.total_size: expected " + std::to_string(total_bytes) +
               ", the bytes of all tensors, found " + std::to_string(index.total_bytes));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<WeightFile>> OpenShards(const ModelFolder& folder) {
  CONCLAVE_ASSIGN_OR_RETURN(const std::string text,
                            folder.ReadText(kIndexFile, kIndexBytesMax, kReason));
  CONCLAVE_ASSIGN_OR_RETURN(const ShardIndex index, ParseIndex(text));
  std::vector<std::string> shards;
  for (const auto& [tensor, shard] : index.shard_of) {
    shards.push_back(shard);
  }
  std::sort(shards.begin(), shards.end());
  shards.erase(std::unique(shards.begin(), shards.end()), shards.end());
  if (shards.size() > kShardsMax) {
    return Bad("too many shards; expected at most " + std::to_string(kShardsMax) + ", found " +
               std::to_string(shards.size()));
  }
  std::vector<WeightFile> files;
  for (const std::string& shard : shards) {
    absl::StatusOr<WeightFile> file = OpenOne(folder, shard);
    if (!file.ok()) {
      // A shard that is not there is the index's fault, or the download's; anything else keeps its
      // own reason.
      const bool is_missing = ReasonOf(file.status()) == "model_file_missing";
      return is_missing ? Bad("shard " + MessageOf(file.status()))
                        : Annotate(file.status(), kIndexFile);
    }
    files.push_back(*std::move(file));
  }
  CONCLAVE_RETURN_IF_ERROR(CheckAgainstIndex(files, index));
  return files;
}

absl::Status NotAModel(const std::string& name, const std::string& why) {
  return InvalidArgument("model_format_unsupported", name + ": " + why);
}

}  // namespace

bool HasWeights(const ModelFolder& folder) {
  return folder.Has(kSingleFile) || folder.Has(kIndexFile);
}

absl::Status CheckFolderKind(const ModelFolder& folder) {
  for (const std::string name : {"adapter_config.json", "adapter_model.safetensors",
                                 "adapter_model.bin", "non_lora_trainables.bin"}) {
    if (folder.Has(name)) {
      return NotAModel(name,
                       "a folder of LoRA adapters, which are not applied here; merge them first "
                       "with MoE-LLaVA's scripts/merge_lora_weights.py or "
                       "scripts/merge_moe_lora_weights.py and give the merged folder");
    }
  }
  if (HasWeights(folder)) {
    return absl::OkStatus();
  }
  if (folder.Has("mm_projector.bin")) {
    return NotAModel("mm_projector.bin",
                     "a projector alone, as pretraining leaves it; give the folder of the whole "
                     "model that was trained from it");
  }
  CONCLAVE_ASSIGN_OR_RETURN(const std::vector<std::string> names, folder.List());
  for (const std::string& name : names) {
    if (name.starts_with("global_step") ||
        (name.starts_with("layer_") && name.find("_expert_") != std::string::npos)) {
      return NotAModel(name,
                       "DeepSpeed's own training state; load it with the code that trained it and "
                       "write a model folder with save_pretrained");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<WeightsKind> FindWeights(const ModelFolder& folder) {
  if (folder.Has(kSingleFile)) {
    return WeightsKind::kSingle;
  }
  if (folder.Has(kIndexFile)) {
    return WeightsKind::kSharded;
  }
  CONCLAVE_ASSIGN_OR_RETURN(const std::vector<std::string> names, folder.List());
  for (const std::string& name : names) {
    if (name != "training_args.bin") {
      CONCLAVE_RETURN_IF_ERROR(CheckFormat(name));
    }
    if (name.ends_with(".safetensors")) {
      return NotFound("model_file_missing", std::string(kSingleFile) + ": missing, and no " +
                                                kIndexFile + "; found " + name + " alone");
    }
  }
  return WeightsKind::kNone;
}

absl::StatusOr<std::vector<WeightFile>> OpenWeights(const ModelFolder& folder, WeightsKind kind) {
  if (kind == WeightsKind::kSharded) {
    return OpenShards(folder);
  }
  std::vector<WeightFile> files;
  CONCLAVE_ASSIGN_OR_RETURN(WeightFile file, OpenOne(folder, kSingleFile));
  files.push_back(std::move(file));
  return files;
}

}  // namespace conclave::checkpoint
