// The parts of a model in one process: checkpoint and tokenizer, worker cores with their inproc
// channels (or links to workers elsewhere), decoder, tower and dispatcher. EmbeddedCluster puts an
// engine on top; parity and exactness tests drive the parts themselves.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/expert_worker/worker_core.h"
#include "conclave/frontend/dispatcher.h"
#include "conclave/frontend/expert_rescue.h"
#include "conclave/frontend/link_source.h"
#include "conclave/kernels/context.h"
#include "conclave/model/decoder.h"
#include "conclave/model/vision_tower.h"
#include "conclave/placement/placement.h"
#include "conclave/text/tokenizer.h"
#include "conclave/transport/expert_channel.h"

namespace conclave::cli {

using Progress = std::function<void(double fraction, const std::string& what)>;

struct AssemblyOptions {
  DType dtype = DType::kBf16;  // the numeric mode: kF32, kBf16 or kQ8
  kernels::Context compute;    // its pool outlives the assembly
  int num_workers = 1;
  bool use_frames = false;
  // Links to workers elsewhere: no expert is loaded here. Null: in-process workers.
  frontend::LinkSource* links = nullptr;
  // With links: bytes of experts that are computed here while no worker serves them; 0: none.
  int64_t rescue_bytes = 0;
  bool is_timing_calls = true;  // DispatcherOptions::is_timing
  // As DispatcherOptions. Outlives the assembly.
  frontend::DispatchObserver* dispatch_observer = nullptr;
  int32_t max_rows = 0;        // rows of a step
  int32_t max_logit_rows = 0;  // of those, rows whose logits are wanted
};

struct Assembly {
  std::unique_ptr<checkpoint::Checkpoint> checkpoint;
  std::unique_ptr<text::Tokenizer> tokenizer;
  std::shared_ptr<const placement::Placement> placement;
  std::vector<std::unique_ptr<expert_worker::WorkerCore>> workers;
  std::vector<std::unique_ptr<transport::ExpertChannel>> channels;
  std::unique_ptr<model::Decoder> decoder;
  std::unique_ptr<model::VisionTower> tower;       // null: a model without vision
  std::unique_ptr<frontend::ExpertRescue> rescue;  // null: none
  std::unique_ptr<frontend::Dispatcher> dispatcher;

  const checkpoint::ModelDesc& desc() const { return checkpoint->desc(); }

  // Checks and maps the folder and reads its tokenizer; no weights yet.
  static absl::StatusOr<std::unique_ptr<Assembly>> Open(
      const std::string& model_dir, const checkpoint::OpenOptions& options = {});

  // Loads everything else. `progress` may be null. Call once.
  absl::Status Load(const AssemblyOptions& options, const Progress& progress);

 private:
  absl::Status LoadExperts(const AssemblyOptions& options, const Progress& progress);
  void Connect(const AssemblyOptions& options);
};

}  // namespace conclave::cli
