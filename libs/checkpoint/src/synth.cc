#include "conclave/checkpoint/synth.h"

#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>

#include "conclave/base/status.h"
#include "conclave/checkpoint/checkpoint.h"
#include "json.h"
#include "synth_parts.h"

namespace conclave::checkpoint {
namespace {

namespace fs = std::filesystem;

// Room for the text files, headers and the file system's own blocks.
constexpr int64_t kSpareBytes = 16 << 20;

absl::Status WriteError(const fs::path& path, const std::string& why) {
  return Error(absl::StatusCode::kResourceExhausted, "file_write_error",
               path.string() + ": cannot be written: " + why);
}

absl::Status WriteText(const fs::path& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary);
  out << text;
  out.close();
  return out ? absl::OkStatus() : WriteError(path, std::generic_category().message(errno));
}

// A folder that is removed again unless it is kept.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(fs::path path) : path_(std::move(path)) {}
  ~TemporaryFolder() {
    if (!path_.empty()) {
      std::error_code ec;
      fs::remove_all(path_, ec);
    }
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const fs::path& path() const { return path_; }

  // rename(2) replaces an empty folder and refuses a filled one, so nothing that came up meanwhile
  // is lost.
  absl::Status RenameTo(const fs::path& target) {
    std::error_code ec;
    fs::rename(path_, target, ec);
    if (ec) {
      return WriteError(target, ec.message());
    }
    path_.clear();
    return absl::OkStatus();
  }

 private:
  fs::path path_;
};

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

absl::Status CheckTarget(const fs::path& target) {
  std::error_code ec;
  if (!fs::exists(fs::symlink_status(target, ec))) {
    return absl::OkStatus();
  }
  if (fs::is_directory(target, ec) && fs::is_empty(target, ec) && !ec) {
    return absl::OkStatus();
  }
  return Error(
      absl::StatusCode::kAlreadyExists, "folder_not_empty",
      target.string() + ": exists and is never overwritten; expected a new or empty folder");
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
  CONCLAVE_RETURN_IF_ERROR(CheckFreeSpace(folder.string(), disk_bytes + kSpareBytes));
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

absl::Status CheckFreeSpace(const std::string& path, int64_t bytes) {
  struct statvfs fs {};
  if (::statvfs(path.c_str(), &fs) != 0) {
    return WriteError(path, std::generic_category().message(errno));
  }
  const auto free_bytes = static_cast<int64_t>(fs.f_bavail * fs.f_frsize);
  if (free_bytes < bytes) {
    return Error(absl::StatusCode::kResourceExhausted, "disk_full",
                 path + ": not enough free space; expected " + std::to_string(bytes) +
                     " bytes, found " + std::to_string(free_bytes));
  }
  return absl::OkStatus();
}

std::vector<std::string_view> SynthNames() {
  std::vector<std::string_view> names;
  for (const SynthModel& model : SynthModels()) {
    names.push_back(model.name);
  }
  return names;
}

absl::Status Synthesize(const SynthOptions& options, ThreadPool& pool) {
  CONCLAVE_ASSIGN_OR_RETURN(const SynthModel model, FindModel(options.like, options.variant));
  std::error_code ec;
  fs::path target = fs::absolute(options.folder, ec).lexically_normal();
  if (!target.has_filename()) {  // A slash at the end.
    target = target.parent_path();
  }
  if (options.folder.empty() || ec) {
    return InvalidArgument("folder_invalid", "no folder to write to; expected a path, found \"" +
                                                 options.folder + "\"");
  }
  CONCLAVE_RETURN_IF_ERROR(CheckTarget(target));
  fs::create_directories(target.parent_path(), ec);
  TemporaryFolder folder(target.string() + ".partial-" + std::to_string(::getpid()));
  if (ec || !fs::create_directory(folder.path(), ec) || ec) {
    return WriteError(folder.path(), ec ? ec.message() : "it exists");
  }
  for (const std::vector<SynthFile>& files :
       {SynthConfigs(model), SynthTokenizer(model, options.seed)}) {
    for (const auto& [name, text] : files) {
      CONCLAVE_RETURN_IF_ERROR(WriteText(folder.path() / name, text));
    }
  }
  CONCLAVE_RETURN_IF_ERROR(WriteWeights(model, options, folder.path(), pool));
  return folder.RenameTo(target);
}

}  // namespace conclave::checkpoint
