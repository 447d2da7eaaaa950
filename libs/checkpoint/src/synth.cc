#include "conclave/checkpoint/synth.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <utility>

#include "conclave/base/status.h"
#include "conclave/checkpoint/checkpoint.h"
#include "json.h"
#include "output_folder.h"
#include "synth_parts.h"

namespace conclave::checkpoint {
namespace {

namespace fs = std::filesystem;

absl::StatusOr<SynthModel> FindModel(const std::string& name, const SynthVariant& variant) {
  std::string known;
  for (SynthModel model : SynthModels()) {
    if (model.name == name) {
      model.num_experts = variant.num_experts > 0 ? variant.num_experts : model.num_experts;
      model.top_k = variant.top_k > 0 ? variant.top_k : model.top_k;
      model.num_kv_heads = variant.num_kv_heads > 0 ? variant.num_kv_heads : model.num_kv_heads;
      model.use_residual = variant.use_residual;
      return model;
    }
    known += (known.empty() ? "" : ", ") + std::string(model.name);
  }
  return InvalidArgument("synth_unknown", "--like: unknown model; expected one of " + known +
                                              ", found \"" + name.substr(0, 64) + "\"");
}

// "model.safetensors", "pytorch_model-00002-of-00004.bin".
std::string ShardName(bool is_torch, size_t index, size_t count) {
  const char* stem = is_torch ? "pytorch_model" : "model";
  const char* suffix = is_torch ? "bin" : "safetensors";
  char name[64];
  if (count == 1) {
    std::snprintf(name, sizeof(name), "%s.%s", stem, suffix);
  } else {
    std::snprintf(name, sizeof(name), "%s-%05zu-of-%05zu.%s", stem, index + 1, count, suffix);
  }
  return name;
}

std::string IndexText(bool is_torch, const std::vector<ExpectedTensor>& list,
                      const std::vector<std::vector<size_t>>& shards, int64_t total_bytes) {
  std::vector<std::pair<std::string, std::string>> files;
  for (size_t s = 0; s < shards.size(); ++s) {
    for (const size_t index : shards[s]) {
      files.emplace_back(list[index].name, ShardName(is_torch, s, shards.size()));
    }
  }
  std::sort(files.begin(), files.end());
  boost::json::object map;
  for (const auto& [tensor, file] : files) {
    map[{tensor.data(), tensor.size()}] = boost::json::string(file.data(), file.size());
  }
  return Pretty(boost::json::object{{"metadata", {{"total_size", total_bytes}}},
                                    {"weight_map", std::move(map)}});
}

absl::Status WriteWeights(const SynthModel& model, const SynthOptions& options,
                          const fs::path& folder, ThreadPool& pool) {
  // The reader of checkpoints decides what config.json means, also here.
  CONCLAVE_ASSIGN_OR_RETURN(const ModelDesc desc, ReadModelDesc(folder.string()));
  const std::vector<ExpectedTensor> list = ExpectedTensors(desc);
  SynthProgress progress;
  for (const ExpectedTensor& tensor : list) {
    progress.bytes_total +=
        tensor.num_elements() * static_cast<int64_t>(SizeOf(SynthDType(tensor, model)));
  }
  const int64_t disk_bytes = options.is_headers_only ? 0 : progress.bytes_total;
  CONCLAVE_RETURN_IF_ERROR(CheckFreeSpace(folder.string(), disk_bytes));
  const auto written = [&](int64_t bytes) {
    progress.bytes_done += bytes;
    if (options.progress) {
      options.progress(progress);
    }
  };
  const std::vector<std::vector<size_t>> shards = CutShards(list, model);
  for (size_t s = 0; s < shards.size(); ++s) {
    const fs::path path = folder / ShardName(model.is_torch, s, shards.size());
    CONCLAVE_RETURN_IF_ERROR(
        WriteShard(path.string(), list, shards[s], desc, model, options, pool, written));
  }
  if (shards.size() > 1) {
    const char* name =
        model.is_torch ? "pytorch_model.bin.index.json" : "model.safetensors.index.json";
    return WriteText(folder / name, IndexText(model.is_torch, list, shards, progress.bytes_total));
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<std::string_view> SynthNames() {
  std::vector<std::string_view> names;
  for (const SynthModel& model : SynthModels()) {
    names.push_back(model.name);
  }
  return names;
}

absl::Status Synthesize(const SynthOptions& options, ThreadPool& pool) {
  CONCLAVE_ASSIGN_OR_RETURN(const SynthModel model, FindModel(options.like, options.variant));
  CONCLAVE_ASSIGN_OR_RETURN(OutputFolder folder, OutputFolder::Create(options.folder));
  for (const std::vector<SynthFile>& files :
       {SynthConfigs(model), SynthTokenizer(model, options.seed)}) {
    for (const auto& [name, text] : files) {
      CONCLAVE_RETURN_IF_ERROR(WriteText(folder.path() / name, text));
    }
  }
  CONCLAVE_RETURN_IF_ERROR(WriteWeights(model, options, folder.path(), pool));
  return folder.Keep();
}

}  // namespace conclave::checkpoint
