#include "engine_options.h"

#include <optional>

#include "conclave/base/status.h"
#include "conclave/checkpoint/packed_file.h"
#include "conclave/observability/log.h"
#include "find_model.h"

namespace conclave::cli {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

// The same code as between processes, with its checks: in builds that look for mistakes.
bool UsesFrames(const std::string& word) {
#ifdef CONCLAVE_FAILPOINTS
  constexpr bool kAuto = true;
#else
  constexpr bool kAuto = false;
#endif
  return word == "on" || (word == "auto" && kAuto);
}

}  // namespace

void AddLogOptions(service::OptionSet& set, LogSettings& settings) {
  set.AddChoice({.name = "log-level", .help = "least level that is logged", .group = "Logging"},
                &settings.level, {"debug", "info", "warning", "error"});
  set.AddChoice({.name = "log-format", .help = "form of log lines on stderr", .group = "Logging"},
                &settings.format, {"text", "json"});
}

void Apply(const LogSettings& settings) {
  observability::SetUpLogging(
      settings.format == "json" ? observability::LogFormat::kJson : observability::LogFormat::kText,
      observability::ParseLogLevel(settings.level).value_or(observability::LogLevel::kInfo));
}

void AddModelOptions(service::OptionSet& set, ModelSettings& settings) {
  set.AddPath({.name = "model",
               .help = "checkpoint folder",
               .group = "Model",
               .short_name = 'm',
               .unset_means = "the demo"},
              &settings.model, service::PathKind::kAny);
  set.AddPath({.name = "vision-tower",
               .help = "folder of the vision tower's weights, for checkpoints that only name it",
               .group = "Model",
               .unset_means = "in the checkpoint"},
              &settings.vision_tower, service::PathKind::kExistingFolder);
  set.Add({.name = "require-manifest",
           .help = "refuse a checkpoint that conclave-manifest.json does not vouch for",
           .group = "Model"},
          &settings.require_manifest);
  set.Add(
      {.name = "verify-weights",
       .help = "compare the checksums of a packed folder while it is loaded, which reads it once "
               "more",
       .group = "Model"},
      &settings.verify_weights);
  set.AddChoice({.name = "packed-weights",
                 .help = "map: compute from the packed file's pages; copy: read it into memory of "
                         "this process, which the file's fate then cannot touch",
                 .group = "Model"},
                &settings.packed_weights, {"map", "copy"});
}

void AddComputeOptions(service::OptionSet& set, ComputeSettings& settings) {
  set.Add({.name = "threads",
           .help = "compute threads; the default is one per core that this process may use",
           .group = "Compute"},
          &settings.threads, {1, 1024});
  set.AddChoice({.name = "dtype",
                 .help = "numeric mode; q8: weights in blocks of int8, half the memory of bf16",
                 .group = "Compute",
                 .unset_means = "bf16, or what a packed folder holds"},
                &settings.dtype, {"f32", "bf16", "q8"});
  set.AddChoice({.name = "isa",
                 .help = "instruction set; auto takes the best of this CPU",
                 .group = "Compute"},
                &settings.isa, {"auto", "scalar", "avx2", "avx512", "avx512-bf16"});
  set.AddChoice({.name = "pin",
                 .help = "bind compute threads to cores; auto: where there is one for each thread",
                 .group = "Compute"},
                &settings.pin, {"auto", "off"});
}

void AddEngineOptions(service::OptionSet& set, EngineSettings& settings, bool has_experts) {
  AddModelOptions(set, settings);
  if (has_experts) {
    set.Add({.name = "workers",
             .help = "in-process expert workers that share the experts",
             .group = "Compute"},
            &settings.workers, {1, 256});
  }
  AddComputeOptions(set, settings);
  set.Add({.name = "kv-memory",
           .help = "memory for keys and values of all sequences",
           .group = "Engine",
           .unset_means = "a quarter of what is free, at most what max-num-seqs needs"},
          &settings.kv_memory, {{kMiB}, {int64_t{64} << 40}});
  set.Add({.name = "max-num-seqs", .help = "sequences that run at once", .group = "Engine"},
          &settings.max_num_seqs, {1, 4096});
  set.Add({.name = "max-model-len",
           .help = "tokens of prompt and answer together",
           .group = "Engine",
           .unset_means = "what the model allows"},
          &settings.max_model_len, {1, int64_t{1} << 20});
  set.Add({.name = "prefill-chunk",
           .help = "prompt tokens in one step; smaller ones keep running answers smoother",
           .group = "Engine"},
          &settings.prefill_chunk, {1, 8192});
  set.AddChoice({.name = "micro-batches",
                 .help = "parts of a step, of which one attends while the workers have the other; "
                         "auto: 1 with in-process workers, else what was measured to be faster",
                 .group = "Engine"},
                &settings.micro_batches, {"auto", "1", "2"});
  set.AddChoice({.name = "embedding-scale",
                 .help = "MiniCPM only; reference: token embeddings are scaled where the original "
                         "does it; consistent: never beside images",
                 .group = "Engine"},
                &settings.embedding_scale, {"reference", "consistent"});
  if (has_experts) {
    set.AddChoice({.name = "inproc-frames",
                   .help = "send dispatches to in-process workers as frames; auto: in debug builds",
                   .group = "Engine"},
                  &settings.inproc_frames, {"auto", "on", "off"});
  }
}

std::string Variable(const Invocation& invocation, std::string_view name) {
  const auto found = invocation.variables.find(name);
  return found == invocation.variables.end() ? std::string() : found->second;
}

absl::StatusOr<kernels::Isa> ResolveIsaFlag(const ComputeSettings& settings) {
  absl::StatusOr<kernels::Isa> isa = kernels::ResolveIsa(settings.isa);
  if (!isa.ok()) {
    return InvalidArgument("usage", "--isa: " + MessageOf(isa.status()));
  }
  return isa;
}

checkpoint::OpenOptions OpenOptionsOf(const ModelSettings& settings) {
  return {.vision_tower = settings.vision_tower,
          .require_manifest = settings.require_manifest,
          .verify_weights = settings.verify_weights,
          .copy_weights = settings.packed_weights == "copy"};
}

absl::Status SettleDtype(const ModelSettings& model, ComputeSettings& compute) {
  const absl::StatusOr<std::optional<DType>> packed =
      model.model.empty() ? std::optional<DType>() : checkpoint::PackedMode(model.model);
  if (!packed.ok() || !packed->has_value()) {
    compute.dtype = compute.dtype.empty() ? "bf16" : compute.dtype;
    return absl::OkStatus();
  }
  const std::string held(NameOf(**packed));
  if (!compute.dtype.empty() && compute.dtype != held) {
    return InvalidArgument("packed_dtype", model.model + ": packed for another numeric mode; " +
                                               "expected --dtype " + held + " or none, found " +
                                               "--dtype " + compute.dtype);
  }
  compute.dtype = held;
  return absl::OkStatus();
}

DType DtypeOf(const ComputeSettings& settings) {
  return settings.dtype == "f32" ? DType::kF32 : settings.dtype == "q8" ? DType::kQ8 : DType::kBf16;
}

ThreadPool::Cores CoresOf(const ComputeSettings& settings) {
  return settings.pin == "auto" ? service::PinnedCores(service::ReadMachine(), settings.threads)
                                : ThreadPool::Cores();
}

absl::StatusOr<std::string> ModelFolder(const ModelSettings& settings,
                                        const Invocation& invocation) {
  if (!settings.model.empty()) {
    return settings.model;
  }
  CONCLAVE_ASSIGN_OR_RETURN(
      FoundModel found, FindDemoModel(invocation.binary, Variable(invocation, "CONCLAVE_HOME")));
  observability::LogInfo("no --model: using the demo",
                         {{"folder", found.folder}, {"where", found.where}});
  return std::move(found.folder);
}

absl::StatusOr<EmbeddedOptions> ToEmbedded(const EngineSettings& settings,
                                           const Invocation& invocation) {
  EmbeddedOptions options;
  CONCLAVE_ASSIGN_OR_RETURN(options.isa, ResolveIsaFlag(settings));
  CONCLAVE_ASSIGN_OR_RETURN(options.model_dir, ModelFolder(settings, invocation));
  options.open = OpenOptionsOf(settings);
  options.num_workers = settings.workers;
  options.num_threads = settings.threads;
  options.cores = CoresOf(settings);
  options.dtype = DtypeOf(settings);
  options.kv_bytes = settings.kv_memory.bytes;
  options.max_num_seqs = settings.max_num_seqs;
  options.max_model_len = settings.max_model_len;
  options.prefill_chunk = settings.prefill_chunk;
  options.micro_batches = settings.micro_batches == "1"   ? frontend::MicroBatching::kOne
                          : settings.micro_batches == "2" ? frontend::MicroBatching::kTwo
                                                          : frontend::MicroBatching::kAuto;
  options.embedding_scaling = settings.embedding_scale == "consistent"
                                  ? frontend::EmbeddingScaling::kConsistent
                                  : frontend::EmbeddingScaling::kReference;
  options.use_frames = UsesFrames(settings.inproc_frames);
  return options;
}

}  // namespace conclave::cli
