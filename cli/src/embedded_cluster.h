// A whole cluster in one process: N worker cores, the static placement and a frontend over inproc
// channels; what `conclave serve` and `conclave ask` run. Or only its frontend, over links to
// workers elsewhere: what `conclave frontend` runs.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "conclave/base/thread_pool.h"
#include "conclave/frontend/chat.h"
#include "conclave/frontend/dispatcher.h"
#include "conclave/frontend/engine.h"
#include "conclave/frontend/link_source.h"
#include "conclave/kernels/isa.h"
#include "conclave/live/board.h"
#include "conclave/live/figures.h"
#include "conclave/observability/metrics.h"
#include "conclave/service/watchdog.h"
#include "conclave/tensor/dtype.h"

namespace conclave::cli {

struct EmbeddedOptions {
  std::string model_dir;
  checkpoint::OpenOptions open;
  std::string served_model_name;  // empty: the folder's name
  std::string name = "serve";     // of this frontend, in metrics
  int num_workers = 1;
  int num_threads = 1;
  ThreadPool::Cores cores;     // empty, or one for each thread, which is bound to it
  DType dtype = DType::kBf16;  // the numeric mode: kF32, kBf16 or kQ8
  kernels::Isa isa = kernels::Isa::kScalar;
  int64_t kv_bytes = 0;  // 0: a quarter of what is free, at most what max_num_seqs needs
  int32_t max_num_seqs = 64;
  int32_t max_model_len = 0;  // tokens; 0: the model's own
  int32_t prefill_chunk = 256;
  // kAuto is kOne where `links` is null.
  frontend::MicroBatching micro_batches = frontend::MicroBatching::kAuto;
  frontend::EmbeddingScaling embedding_scaling = frontend::EmbeddingScaling::kReference;
  bool use_frames = false;
  // A frontend of a cluster: links to its workers, which outlive it, and whether they serve every
  // expert. Null: num_workers in-process workers.
  frontend::LinkSource* links = nullptr;
  int64_t rescue_bytes = 0;  // with links, as AssemblyOptions
  std::function<absl::Status()> cluster_readiness;
  // As image::DecodeLimits::cpu_time_max; 0: any.
  std::chrono::nanoseconds image_cpu_time_max{0};
  // As frontend::ChatServiceOptions.
  int64_t image_memory_bytes = int64_t{512} << 20;
  // HOST:PORT of the HTTP API in front of the cluster, for other processes; empty: none.
  std::string api_address;
  // Null: nothing is counted. Outlives the cluster.
  observability::Metrics* metrics = nullptr;
};

class EmbeddedCluster {
 public:
  // Loads the model. `on_progress(fraction, what)`: 0..1 and a word such as "experts"; on any
  // thread, one at a time.
  static absl::StatusOr<std::unique_ptr<EmbeddedCluster>> Start(
      const EmbeddedOptions& options,
      const std::function<void(double fraction, const std::string& what)>& on_progress);
  ~EmbeddedCluster();

  // Lives as long as the cluster.
  frontend::ChatBackend& backend();

  // For what it counts, on any thread. Lives as long as the cluster.
  const frontend::Dispatcher& dispatcher() const;

  // For the live picture: what has been counted, and how its workers stand. Any thread.
  live::FrontendFigures Figures() const;
  live::ClusterPicture Picture() const;

  // As StragglerLog::Json; without links there is nothing in it. Any thread.
  std::string stragglers() const;

  // Of its engine's thread: steps and calls to workers, so that a step that waits for one is no
  // hang. Any thread.
  service::Pulse engine_pulse() const;

  // Takes no new request and waits until running ones have ended or `timeout` passed.
  void Drain(std::chrono::milliseconds timeout);

 private:
  struct State;
  explicit EmbeddedCluster(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace conclave::cli
