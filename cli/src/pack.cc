// `conclave pack`: the weights of a checkpoint in the form they are computed with, so that a start
// has nothing to do.
#include "conclave/model/pack.h"

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "commands.h"
#include "conclave/base/status.h"
#include "conclave/base/thread_pool.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/checkpoint/packed_file.h"
#include "conclave/checkpoint/packed_writer.h"
#include "conclave/kernels/matmul.h"
#include "conclave/service/exit_codes.h"
#include "conclave/service/progress.h"
#include "conclave/service/signals.h"
#include "engine_options.h"
#include "output.h"

namespace conclave::cli {
namespace {

using checkpoint::Checkpoint;
using checkpoint::PackedFile;
using service::ExitCode;

struct PackSettings {
  std::vector<std::string> folders;  // DIR OUT
  ComputeSettings compute{.dtype = "bf16"};
  std::string vision_tower;
  bool require_manifest = false;
  bool is_verify = false;
  LogSettings log;
};

void Declare(service::OptionSet& set, PackSettings& settings) {
  set.AddPositional(
      {.name = "DIR OUT",
       .help = "checkpoint folder, and the folder to make; with --verify a packed folder alone",
       .num_min = 1,
       .num_max = 2},
      &settings.folders);
  set.AddChoice({.name = "dtype", .help = "numeric mode that the weights are packed for"},
                &settings.compute.dtype, {"f32", "bf16", "q8"});
  set.Add({.name = "threads", .help = "threads that pack"}, &settings.compute.threads, {1, 1024});
  set.AddPath({.name = "vision-tower",
               .help = "folder of the vision tower's weights, for checkpoints that only name it",
               .unset_means = "in the checkpoint"},
              &settings.vision_tower, service::PathKind::kExistingFolder);
  set.Add({.name = "require-manifest",
           .help = "refuse a checkpoint that conclave-manifest.json does not vouch for"},
          &settings.require_manifest);
  set.Add(
      {.name = "verify", .help = "compare every checksum of a packed folder instead of making one"},
      &settings.is_verify);
  AddLogOptions(set, settings.log);
}

// The bar of the work, and whether a signal has ended it.
class Work {
 public:
  Work(const char* label, const Invocation& invocation)
      : progress_({.label = label,
                   .is_terminal = service::IsProgressTerminal(Variable(invocation, "TERM"))}) {}

  // Before any thread starts.
  absl::Status WatchSignals() {
    CONCLAVE_ASSIGN_OR_RETURN(signals_, service::SignalWatcher::Start(
                                            {.on_stop = [this](int signal) { signal_ = signal; },
                                             .on_stop_again = nullptr,
                                             .on_reload = nullptr}));
    return absl::OkStatus();
  }

  absl::Status Update(int64_t bytes_done, int64_t bytes_total) {
    progress_.Update(static_cast<double>(bytes_done) / static_cast<double>(bytes_total), "weights",
                     bytes_done);
    return signal_ == 0 ? absl::OkStatus() : absl::CancelledError("stopped by a signal");
  }

  // The exit code, after `text` where all is well.
  int Finish(const absl::Status& status, const std::string& text) {
    progress_.Finish();
    if (absl::IsCancelled(status)) {
      return 128 + signal_;
    }
    return status.ok() ? PrintResult(text) : service::Fail(status, ExitCode::kModel);
  }

 private:
  service::Progress progress_;
  std::atomic<int> signal_{0};
  std::unique_ptr<service::SignalWatcher> signals_;
};

absl::Status Pack(const PackSettings& settings, ThreadPool& pool, Work& work) {
  const DType dtype = DtypeOf(settings.compute);
  const std::string& out = settings.folders[1];
  CONCLAVE_ASSIGN_OR_RETURN(
      const std::unique_ptr<Checkpoint> source,
      Checkpoint::Open(settings.folders[0], {.vision_tower = settings.vision_tower,
                                             .require_manifest = settings.require_manifest}));
  CONCLAVE_ASSIGN_OR_RETURN(
      checkpoint::PackedWriter writer,
      checkpoint::PackedWriter::Create(*source, {.folder = out,
                                                 .dtype = dtype,
                                                 .panel_revision = kernels::kPanelRevision,
                                                 .progress = [&work](int64_t done, int64_t total) {
                                                   return work.Update(done, total);
                                                 }}));
  CONCLAVE_RETURN_IF_ERROR(model::PackModel(*source, dtype, pool, writer));
  CONCLAVE_RETURN_IF_ERROR(writer.Finish());
  // Old configs leave to the folder's name what kind of model it is.
  const auto made = Checkpoint::Open(out);
  if (!made.ok() || (*made)->desc().model_type != source->desc().model_type) {
    return InvalidArgument("packed_name",
                           out + ": was made, but is another model by this name; expected " +
                               source->desc().model_type + ", found " +
                               (made.ok() ? (*made)->desc().model_type : MessageOf(made.status())) +
                               "; rename it after " + settings.folders[0]);
  }
  return absl::OkStatus();
}

absl::Status Verify(const std::string& folder, ThreadPool& pool, Work& work) {
  CONCLAVE_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> opened, Checkpoint::Open(folder));
  const PackedFile* packed = opened->packed();
  if (packed == nullptr) {
    return InvalidArgument("packed_missing",
                           folder + ": not a packed folder; expected one that conclave pack made");
  }
  int64_t done = 0;
  for (const checkpoint::PackedEntry& entry : packed->index().entries) {
    CONCLAVE_RETURN_IF_ERROR(packed->Verify(entry, pool));
    done += entry.size_bytes;
    CONCLAVE_RETURN_IF_ERROR(work.Update(done, packed->file_bytes()));
  }
  return packed->VerifyUnchanged();
}

int Run(const PackSettings& settings, const Invocation& invocation) {
  Work work(settings.is_verify ? "verifying" : "packing", invocation);
  if (const absl::Status status = work.WatchSignals(); !status.ok()) {
    return service::Fail(status, ExitCode::kInternal);
  }
  ThreadPool pool(settings.compute.threads);
  if (settings.is_verify) {
    return work.Finish(Verify(settings.folders[0], pool, work), "ok\n");
  }
  return work.Finish(Pack(settings, pool, work), settings.folders[1] + "\n");
}

}  // namespace

int RunPack(const Invocation& invocation) {
  PackSettings settings;
  settings.compute.threads = service::DefaultThreads(service::ReadMachine());
  service::OptionSet set("conclave pack", Version(),
                         "Writes a model folder whose weights need no work at start.");
  Declare(set, settings);
  const auto parsed = set.Parse(invocation.args, invocation.variables);
  if (!parsed.ok()) {
    return service::Fail(parsed.status(), ExitCode::kUsage);
  }
  if (parsed->action == service::OptionSet::Action::kPrint) {
    return PrintResult(parsed->output);
  }
  if (parsed->action == service::OptionSet::Action::kCheckConfig) {
    return PrintResult("ok\n");
  }
  if (settings.folders.size() != (settings.is_verify ? 1 : 2)) {
    return service::Fail(
        InvalidArgument("usage", settings.is_verify ? "--verify: expected one packed folder"
                                                    : "OUT is missing; expected DIR OUT"),
        ExitCode::kUsage);
  }
  Apply(settings.log);
  return Run(settings, invocation);
}

}  // namespace conclave::cli
