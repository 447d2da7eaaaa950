#include "weight_files.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "conclave/base/status.h"
#include "conclave/checkpoint/packed_file.h"
#include "shard_index.h"
#include "torch_zip.h"

namespace conclave::checkpoint {
namespace {

constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";
constexpr char kTorchFile[] = "pytorch_model.bin";
constexpr char kTorchIndexFile[] = "pytorch_model.bin.index.json";
constexpr int64_t kIndexBytesMax = 64 << 20;
constexpr size_t kShardsMax = 10'000;

// The elements of a strided view of `bytes`, which begin with its first, in row-major order.
std::vector<std::byte> Gather(const StoredTensor& tensor, std::string_view bytes) {
  const size_t element = SizeOf(tensor.dtype);
  std::vector<std::byte> out(static_cast<size_t>(tensor.size_bytes));
  std::vector<int64_t> index(tensor.shape.size(), 0);
  int64_t at = 0;
  for (size_t done = 0; done < out.size(); done += element) {
    std::memcpy(out.data() + done, bytes.data() + static_cast<size_t>(at) * element, element);
    for (size_t axis = index.size(); axis-- > 0;) {
      at += tensor.strides[axis];
      if (++index[axis] < tensor.shape[axis]) {
        break;
      }
      at -= tensor.strides[axis] * tensor.shape[axis];
      index[axis] = 0;
    }
  }
  return out;
}

absl::StatusOr<WeightFile> OpenOne(const ModelFolder& folder, const std::string& name,
                                   bool is_torch) {
  WeightFile out;
  CONCLAVE_ASSIGN_OR_RETURN(out.file, folder.OpenFile(name));
  CONCLAVE_ASSIGN_OR_RETURN(out.tensors,
                            is_torch ? ReadTorchZip(out.file) : ReadSafetensorsHeader(out.file));
  CONCLAVE_ASSIGN_OR_RETURN(out.mapped, MappedFile::Map(out.file));
  for (size_t i = 0; i < out.tensors.size(); ++i) {
    const StoredTensor& tensor = out.tensors[i];
    if (!tensor.strides.empty()) {
      std::string bytes(static_cast<size_t>(tensor.span_bytes), '\0');
      CONCLAVE_RETURN_IF_ERROR(ReadExactly(out.file, tensor.offset, bytes));
      out.copies[i] = Gather(tensor, bytes);
    }
  }
  return out;
}

// What the index counts: bytes of tensors, of a tie (the same bytes under two names) once.
int64_t CountedBytes(const WeightFile& file) {
  std::set<std::pair<int64_t, int64_t>> extents;
  int64_t total = 0;
  for (const StoredTensor& tensor : file.tensors) {
    const bool is_new = extents.emplace(tensor.offset, tensor.size_bytes).second;
    total += is_new ? tensor.size_bytes : 0;
  }
  return total;
}

// Every tensor of every shard is where the index says, and nowhere else.
absl::Status CheckAgainstIndex(const std::vector<WeightFile>& files, const ShardIndex& index) {
  int64_t total_bytes = 0;
  size_t num_tensors = 0;
  for (const WeightFile& file : files) {
    for (const StoredTensor& tensor : file.tensors) {
      const auto found = index.shard_of.find(tensor.name);
      if (found == index.shard_of.end()) {
        return index.Bad("tensor " + tensor.name + " is in " + file.file.name +
                         " but not in weight_map");
      }
      if (found->second != file.file.name) {
        return index.Bad("tensor " + tensor.name + ": expected in " + found->second +
                         " alone, found in " + file.file.name);
      }
      ++num_tensors;
    }
    total_bytes += CountedBytes(file);
  }
  if (num_tensors != index.shard_of.size()) {
    for (const auto& [name, shard] : index.shard_of) {
      const auto file =
          std::find_if(files.begin(), files.end(),
                       [&shard = shard](const WeightFile& f) { return f.file.name == shard; });
      const bool is_there = std::binary_search(
          file->tensors.begin(), file->tensors.end(),
          StoredTensor{.name = name, .dtype = {}, .shape = {}, .strides = {}},
          [](const StoredTensor& a, const StoredTensor& b) { return a.name < b.name; });
      if (!is_there) {
        std::string why = "tensor ";
        why += name;
        why += ": expected in ";
        why += shard;
        return index.Bad(why + ", which does not have it");
      }
    }
  }
  if (index.total_bytes >= 0 && index.total_bytes != total_bytes) {
    return index.Bad("metadata.total_size: expected " + std::to_string(total_bytes) +
                     ", the bytes of all tensors, found " + std::to_string(index.total_bytes));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<WeightFile>> OpenShards(const ModelFolder& folder, bool is_torch) {
  const std::string index_file = is_torch ? kTorchIndexFile : kIndexFile;
  CONCLAVE_ASSIGN_OR_RETURN(const std::string text,
                            folder.ReadText(index_file, kIndexBytesMax, kShardIndexReason));
  CONCLAVE_ASSIGN_OR_RETURN(const ShardIndex index, ParseShardIndex(index_file, text));
  std::vector<std::string> shards;
  for (const auto& [tensor, shard] : index.shard_of) {
    shards.push_back(shard);
  }
  std::sort(shards.begin(), shards.end());
  shards.erase(std::unique(shards.begin(), shards.end()), shards.end());
  if (shards.size() > kShardsMax) {
    return index.Bad("too many shards; expected at most " + std::to_string(kShardsMax) +
                     ", found " + std::to_string(shards.size()));
  }
  std::vector<WeightFile> files;
  for (const std::string& shard : shards) {
    absl::StatusOr<WeightFile> file = OpenOne(folder, shard, is_torch);
    if (!file.ok()) {
      // A shard that is not there is the index's fault, or the download's; anything else keeps its
      // own reason.
      const bool is_missing = ReasonOf(file.status()) == "model_file_missing";
      return is_missing ? index.Bad("shard " + MessageOf(file.status()))
                        : Annotate(file.status(), index_file);
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
  for (const char* name : {kPackedFile, kSingleFile, kIndexFile, kTorchFile, kTorchIndexFile}) {
    if (folder.Has(name)) {
      return true;
    }
  }
  return false;
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
  if (folder.Has(kPackedFile)) {
    return WeightsKind::kPacked;
  }
  if (folder.Has(kSingleFile)) {
    return WeightsKind::kSingle;
  }
  if (folder.Has(kIndexFile)) {
    return WeightsKind::kSharded;
  }
  if (folder.Has(kTorchFile)) {
    return WeightsKind::kTorchSingle;
  }
  if (folder.Has(kTorchIndexFile)) {
    return WeightsKind::kTorchSharded;
  }
  CONCLAVE_ASSIGN_OR_RETURN(const std::vector<std::string> names, folder.List());
  for (const std::string& name : names) {
    const bool is_torch_shard = name.starts_with("pytorch_model-") && name.ends_with(".bin");
    if (name.ends_with(".safetensors") || is_torch_shard) {
      return NotFound("model_file_missing", std::string(is_torch_shard ? kTorchFile : kSingleFile) +
                                                ": missing, and no " +
                                                (is_torch_shard ? kTorchIndexFile : kIndexFile) +
                                                "; found " + name + " alone");
    }
    if (name != "training_args.bin") {
      CONCLAVE_RETURN_IF_ERROR(CheckFormat(name));
    }
  }
  return WeightsKind::kNone;
}

absl::StatusOr<std::vector<WeightFile>> OpenWeights(const ModelFolder& folder, WeightsKind kind) {
  const bool is_torch = kind == WeightsKind::kTorchSingle || kind == WeightsKind::kTorchSharded;
  if (kind == WeightsKind::kSharded || kind == WeightsKind::kTorchSharded) {
    return OpenShards(folder, is_torch);
  }
  std::vector<WeightFile> files;
  CONCLAVE_ASSIGN_OR_RETURN(WeightFile file,
                            OpenOne(folder, is_torch ? kTorchFile : kSingleFile, is_torch));
  files.push_back(std::move(file));
  return files;
}

std::span<const std::byte> WeightFile::BytesOf(size_t index) const {
  const auto copy = copies.find(index);
  if (copy != copies.end()) {
    return copy->second;
  }
  return mapped.bytes().subspan(static_cast<size_t>(tensors[index].offset),
                                static_cast<size_t>(tensors[index].size_bytes));
}

}  // namespace conclave::checkpoint
