// The settings that commands have in common: logging, and those of an embedded engine (`serve`,
// `ask`).
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "commands.h"
#include "conclave/base/thread_pool.h"
#include "conclave/service/machine.h"
#include "conclave/service/options.h"
#include "embedded_cluster.h"

namespace conclave::cli {

struct LogSettings {
  std::string level = "info";
  std::string format = "text";
};
void AddLogOptions(service::OptionSet& set, LogSettings& settings);
// Call before threads start.
void Apply(const LogSettings& settings);

// Of everything that loads a model.
struct ModelSettings {
  std::string model;  // empty: the demo
  std::string vision_tower;
  bool require_manifest = false;
  bool verify_weights = false;
  std::string packed_weights = "map";
};
checkpoint::OpenOptions OpenOptionsOf(const ModelSettings& settings);
void AddModelOptions(service::OptionSet& set, ModelSettings& settings);

// Of everything that computes.
struct ComputeSettings {
  int32_t threads = 1;  // set to DefaultThreads before AddComputeOptions
  std::string dtype;    // empty: what a packed folder holds, else bf16
  std::string isa = "auto";
  std::string pin = "auto";  // "auto": threads have cores of their own where they are as many
};
void AddComputeOptions(service::OptionSet& set, ComputeSettings& settings);
// "usage", naming --isa, for a path that this CPU lacks.
absl::StatusOr<kernels::Isa> ResolveIsaFlag(const ComputeSettings& settings);
DType DtypeOf(const ComputeSettings& settings);
// Settles what an empty dtype means for this model; "packed_dtype" where a packed folder holds
// another than the one that was asked for. Whatever else is wrong with the folder is for those to
// say who open it.
absl::Status SettleDtype(const ModelSettings& model, ComputeSettings& compute);
// What --pin and --threads mean on this machine; empty: threads are not bound.
ThreadPool::Cores CoresOf(const ComputeSettings& settings);

struct EngineSettings : ModelSettings, ComputeSettings {
  int32_t workers = 1;
  service::ByteSize kv_memory;  // 0: chosen
  int32_t max_num_seqs = 64;
  int32_t max_model_len = 0;  // 0: the model's own
  int32_t prefill_chunk = 256;
  std::string micro_batches = "auto";
  std::string embedding_scale = "reference";
  std::string inproc_frames = "auto";
};
// `has_experts`: the command computes experts itself.
void AddEngineOptions(service::OptionSet& set, EngineSettings& settings, bool has_experts = true);

// Resolves the words. Errors name the flag: "usage" for an ISA path that this CPU lacks,
// "model_not_found" for a missing demo. Logs where the demo was found.
absl::StatusOr<EmbeddedOptions> ToEmbedded(const EngineSettings& settings,
                                           const Invocation& invocation);

// The model folder alone: --model, or the demo.
absl::StatusOr<std::string> ModelFolder(const ModelSettings& settings,
                                        const Invocation& invocation);

// The variable `name`, empty when not set.
std::string Variable(const Invocation& invocation, std::string_view name);

}  // namespace conclave::cli
